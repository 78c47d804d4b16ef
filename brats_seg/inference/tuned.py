"""`RUN/tuned.yaml`: the settings that scored best on inner cases or were chosen by hand, and how."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from brats_seg.core.errors import InputError
from brats_seg.core.files import TUNED, parse_yaml, read_text, write_text
from brats_seg.core.settings import Section, Share
from brats_seg.inference.options import Settings

Objective = Literal["dice", "lesion_dice"]
"""What a setting is to raise, case by case: the mean Dice of whole, core and active (empty in reference and
prediction: 1), or the lesion-wise Dice of the whole tumor (BraTS 2023)."""


class Tuning(Section):
    """The settings that scored best, and on what. Fields with a default are absent from the files of older
    versions.

    Attributes:
        correct_priors: strength of prior correction.
        min_component_mm3, min_enhancing_mm3, min_core_component_mm3, min_active_component_mm3,
            min_component_share: see `Cleanup`.
        threshold_whole, threshold_core, threshold_active: see `RegionThresholds`.
        epoch, checkpoint: of the checkpoint they were found for, the latter the SHA-256 of its file.
        n_cases, n_patients, n_runs: inner cases they were found on, and of how many runs.
        objective: what was raised.
        score, score_before: its mean over the cases with the settings and without; None where nobody measured
            these settings with these networks.
        gain_interval95: 95 % interval of the difference, over patients; None of one patient.
        notes: thresholds that would raise the score and were not taken over, and why; or why the settings
            were chosen.
        by: whether `brats-seg tune` found the settings, or a person chose them.
    """

    correct_priors: Share
    min_component_mm3: Annotated[float, Field(ge=0)]
    min_enhancing_mm3: Annotated[float, Field(ge=0)]
    threshold_whole: Share | None = None
    threshold_core: Share | None = None
    threshold_active: Share | None = None
    min_core_component_mm3: Annotated[float, Field(ge=0)] = 0.0
    min_active_component_mm3: Annotated[float, Field(ge=0)] = 0.0
    min_component_share: Share = 0.0
    epoch: Annotated[int, Field(ge=0)]
    checkpoint: str
    n_cases: Annotated[int, Field(gt=0)]
    n_patients: int | None = None
    n_runs: int = 1
    objective: Objective = "dice"
    score: Share | None = None
    score_before: Share | None = None
    gain_interval95: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    by: Literal["search", "hand"] = "search"

    @property
    def settings(self) -> Settings:
        """What `predict --tuned` uses."""
        return Settings(**{name: getattr(self, name) for name in asdict(Settings())})


def write_tuning(run: Path, tuning: Tuning) -> Path:
    """Write `RUN/tuned.yaml` in one piece."""
    path = run / TUNED
    of = "this run" if tuning.n_runs == 1 else f"{tuning.n_runs} runs"
    origin = "Found by `brats-seg tune`" if tuning.by == "search" else "Chosen by hand"
    said = f"# {origin} on {tuning.n_cases} inner cases of {of}; `brats-seg predict --tuned` uses it.\n"
    write_text(path, said + yaml.safe_dump(tuning.model_dump(mode="json"), sort_keys=False, width=1000))
    return path


def read_tuning(run: Path, *, checkpoint: str) -> Tuning:
    """Read `RUN/tuned.yaml`.

    Raises:
        InputError: not there, not what `write_tuning` wrote, or found for another checkpoint, whose SHA-256
            is not this one.
    """
    path = run / TUNED
    if not path.is_file():
        raise InputError(f"{path}: not there; `brats-seg tune {run} BANK` writes it")
    try:
        tuning = Tuning.model_validate(parse_yaml(read_text(path)))
    except ValueError:  # of pydantic too
        raise InputError(f"{path}: not settings as `brats-seg tune` writes them; run it again") from None
    if tuning.checkpoint != checkpoint:
        raise InputError(
            f"{path}: found for a checkpoint of epoch {tuning.epoch} that is not the run's best any more; "
            "tune it again"
        )
    return tuning
