"""The config of a training: all its sections, and reading it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from brats_seg.core.augmentation import Augment
from brats_seg.core.loss import Loss
from brats_seg.core.sections import (
    Hard,
    Mix,
    Network,
    Optimizer,
    Patch,
    Phases,
    Sampler,
    Task,
    Training,
    Validation,
)
from brats_seg.core.settings import Rules, Section, load_settings, parse_settings


class Config(Section):
    """A whole training run."""

    network: Network = Network()
    task: Task = Task()
    patch: Patch = Patch()
    sampler: Sampler = Sampler()
    hard: Hard = Hard()
    loss: Loss = Loss()
    augment: Augment = Augment()
    mix: Annotated[Mix, Field(exclude_if=lambda value: value == Mix())] = Mix()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    phases: Phases = Phases()
    validation: Validation = Validation()

    @property
    def n_epochs(self) -> int:
        """Number of epochs of all phases if no phase ends early."""
        return self.training.epochs + (
            (self.phases.epochs or self.training.epochs) if self.phases.two_phase else 0
        )

    def _rules(self) -> Rules:
        return (
            (
                self.training.norm_statistics == "measured" and self.validation.metric != "last",
                "training.norm_statistics 'measured' changes only the weights of the last epoch, so it needs "
                "validation.metric 'last', which keeps them: "
                f"'{self.validation.metric}' may keep an earlier epoch",
            ),
        )


def load_config(source: str | Path | None = None, *, overrides: tuple[str, ...] = ()) -> Config:
    """A training config; see `load_settings`. None gives the defaults."""
    return load_settings(Config, source, overrides=overrides)


def parse_config(tree: dict[str, Any]) -> Config:
    """Check a nested mapping, as read from YAML; see `parse_settings`."""
    return parse_settings(Config, tree)
