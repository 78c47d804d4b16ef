"""The class mix asked for and the mix drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from brats_seg.core.shapes import Counts, Shares
from brats_seg.errors import UsageError
from brats_seg.imbalance.priors import effective_prior
from brats_seg.imbalance.samplers import Draw

LEDGER_COLUMNS = ("epoch", "class", "requested_share", "center_share", "voxel_share", "n_draws", "n_distinct", "n_hard")
OUTSIDE = "outside"
"""The ledger's name for air: patch voxels outside the brain, or off the volume."""


class Ledger:
    """Counts what was drawn, epoch by epoch. A step costs two additions; distinct examples are counted when the epoch is closed."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._history: list[tuple[int, np.ndarray]] = []
        self._open()

    def add(self, draw: Draw, counts: Counts) -> None:
        """One batch: its draw, and its voxels per class as the gather counted them (K + 1 numbers, the last one air)."""
        self._draws.append((draw.ids, draw.classes, draw.hard))
        self._voxels += counts

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Add the open epoch of another rank's ledger, given as its `state_dict()`."""
        self._draws.append((state["ids"], state["classes"].astype(np.int64), state["hard"]))
        self._voxels += state["voxels"]

    def close_epoch(self, epoch: int, requested: Shares) -> list[dict[str, Any]]:
        """The rows of this epoch, and a fresh page for the next.

        A row per class, its keys `LEDGER_COLUMNS`: `center_share` of the draws and `voxel_share` of the patch voxels inside the brain,
        both summing to 1 over the classes. Air stands apart, in a last row `outside`: its `voxel_share` is of *all* patch voxels, and it
        has no draws. `n_distinct` counts how many different examples the draws hit.
        """
        ids, classes, hard = self._drawn()
        n_classes = len(self.class_names)
        n_draws = np.bincount(classes, minlength=n_classes)
        n_hard = np.bincount(classes[hard], minlength=n_classes)
        inside = self._voxels[:-1] / max(1, int(self._voxels[:-1].sum()))
        rows = []
        for k, name in enumerate(self.class_names):
            shares = (float(requested[k]), float(n_draws[k] / max(1, len(ids))), float(inside[k]))
            numbers = (int(n_draws[k]), len(np.unique(ids[classes == k])), int(n_hard[k]))
            rows.append(dict(zip(LEDGER_COLUMNS, (epoch, name, *shares, *numbers), strict=True)))
        air = float(self._voxels[-1] / max(1, int(self._voxels.sum())))
        rows.append(dict(zip(LEDGER_COLUMNS, (epoch, OUTSIDE, 0.0, 0.0, air, 0, 0, 0), strict=True)))
        self._history.append((epoch, self._voxels))
        self._open()
        return rows

    def voxel_counts(self, *, first_epoch: int = 1, last_epoch: int | None = None) -> Counts:
        """Patch voxels of each class, air left out, over the closed epochs from `first_epoch` to `last_epoch` (the newest where None)."""
        counted = [voxels[:-1] for epoch, voxels in self._history if first_epoch <= epoch <= (last_epoch or epoch)]
        return np.sum([np.zeros(len(self.class_names), np.int64), *counted], axis=0)

    def effective_prior(self, *, class_weights: Shares | None = None, first_epoch: int = 1, last_epoch: int | None = None) -> Shares:
        """The prior the network of `last_epoch` was trained under: patch voxels per class x class weights. See `priors.effective_prior`.

        Where the mix or the weights changed on the way, ask for the epochs that the network has last learned from.
        """
        counts = self.voxel_counts(first_epoch=first_epoch, last_epoch=last_epoch)
        if counts.sum() == 0:
            raise UsageError(
                f"ledger: no closed epoch from {first_epoch} to {last_epoch}; the training prior is known after the first epoch"
            )
        return effective_prior(counts, class_weights=class_weights)

    def state_dict(self) -> dict[str, Any]:
        """The whole ledger, the open epoch included, in arrays."""
        ids, classes, hard = self._drawn()
        history = np.array([voxels for _, voxels in self._history], dtype=np.int64).reshape(len(self._history), self._voxels.size)
        closed = np.array([epoch for epoch, _ in self._history], dtype=np.int64)
        opened = {"ids": ids, "classes": classes.astype(np.int16), "hard": hard, "voxels": self._voxels.copy()}
        return {**opened, "closed_epochs": closed, "closed_voxels": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises `UsageError` where it counts other classes."""
        if len(state["voxels"]) != len(self.class_names) + 1:
            raise UsageError(f"ledger: {len(state['voxels']) - 1} classes in the checkpoint, {len(self.class_names)} in the bank")
        self._open()
        self.absorb(state)
        self._history = [
            (int(epoch), np.asarray(voxels, dtype=np.int64))
            for epoch, voxels in zip(state["closed_epochs"], state["closed_voxels"], strict=True)
        ]

    def _open(self) -> None:
        self._draws: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._voxels: Int64[np.ndarray, " k_and_air"] = np.zeros(len(self.class_names) + 1, dtype=np.int64)

    def _drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self._draws:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)
        ids, classes, hard = zip(*self._draws, strict=True)
        return np.concatenate(ids), np.concatenate(classes), np.concatenate(hard)
