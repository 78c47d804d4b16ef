"""The requested class shares and the drawn class shares, epoch by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Counts, Shares
from brats_seg.imbalance.groups import SIZE_STEPS, Lesions
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.priors import effective_prior
from brats_seg.imbalance.sampler import Draw

LEDGER_COLUMNS = (
    "epoch", "class", "requested_share", "center_share", "voxel_share", "n_draws", "n_distinct", "n_hard",
)  # fmt: skip
CASE_COLUMNS = ("epoch", "case", "class", "n_draws", "n_distinct")
LESION_COLUMNS = ("epoch", "class", "lesion_voxels_from", "n_draws", "n_distinct")
OUTSIDE = "outside"
"""The name of air in the ledger: patch voxels outside the brain or outside the volume."""


@runtime_checkable
class Countable(Protocol):
    """Whole numbers (n,) that can be added: a NumPy array, or a torch tensor on any device. This package does
    not import torch.
    """

    def tolist(self) -> Any:
        """The numbers as a list. On a GPU this waits until they are computed."""


class Ledger:
    """Counts the draws of each epoch. Each step needs two additions. Distinct examples are counted when the
    epoch is closed.
    """

    _voxels: Int64[np.ndarray, " k_and_air"]
    _uncounted: Any  # sum of the counts since they were last read, 0 if there are no such counts

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._history: list[tuple[int, np.ndarray]] = []
        self._open()

    def add(self, draw: Draw, counts: Countable) -> None:
        """Add one batch: its draw, and the number of its voxels of each class (K + 1 numbers, the last one
        for air).

        Counts on a GPU are added on the GPU without waiting. They are copied to the CPU when the epoch is
        closed or the state is saved.
        """
        self._draws.append((draw.ids, draw.classes, draw.hard))
        self._uncounted = self._uncounted + counts  # not +=: the next batch writes into the same array

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Add the open epoch of the ledger of another rank, given as its `state_dict()`."""
        self._draws.append((state["ids"], state["classes"].astype(np.int64), state["hard"]))
        self._voxels = self._counted() + state["voxels"]

    def close_epoch(self, epoch: int, requested: Shares) -> list[dict[str, Any]]:
        """Return the rows of this epoch, and start the next epoch.

        One row for each class, with keys `LEDGER_COLUMNS`: `center_share` is the share of the draws and
        `voxel_share` the share of the patch voxels inside the brain. Both sum to 1 over the classes. Air has
        a separate last row `outside`. Its `voxel_share` is the share of *all* patch voxels, and it has no
        draws. `n_distinct` is the number of different examples that were drawn.
        """
        ids, classes, hard = self._drawn()
        n_classes = len(self.class_names)
        n_draws = np.bincount(classes, minlength=n_classes)
        n_hard = np.bincount(classes[hard], minlength=n_classes)
        voxels = self._counted()
        inside = voxels[:-1] / max(1, int(voxels[:-1].sum()))
        rows = []
        for k, name in enumerate(self.class_names):
            shares = (float(requested[k]), float(n_draws[k] / max(1, len(ids))), float(inside[k]))
            numbers = (int(n_draws[k]), len(np.unique(ids[classes == k])), int(n_hard[k]))
            rows.append(dict(zip(LEDGER_COLUMNS, (epoch, name, *shares, *numbers), strict=True)))
        air = float(voxels[-1] / max(1, int(voxels.sum())))
        rows.append(dict(zip(LEDGER_COLUMNS, (epoch, OUTSIDE, 0.0, 0.0, air, 0, 0, 0), strict=True)))
        self._history.append((epoch, voxels))
        self._open()
        return rows

    def case_rows(self, epoch: int, *, case_names: Sequence[str]) -> list[dict[str, Any]]:
        """How often each case was drawn in the open epoch: one row, with keys `CASE_COLUMNS`, for each case
        and class with a draw.

        Args:
            epoch: number of the epoch.
            case_names: names of all cases. The upper 32 bits of an id are the number of the case.
        """
        ids, classes, _ = self._drawn()
        n_classes = len(self.class_names)
        _, first, n_each = np.unique(ids, return_index=True, return_counts=True)
        places = (ids[first] >> 32) * n_classes + classes[first]
        n_draws, n_distinct = np.bincount(places, n_each), np.bincount(places)
        return [
            dict(
                zip(
                    CASE_COLUMNS,
                    (epoch, case_names[at // n_classes], name, int(n_draws[at]), int(n_distinct[at])),
                    strict=True,
                )
            )
            for at in np.flatnonzero(n_distinct).tolist()
            for name in [self.class_names[at % n_classes]]
        ]

    def lesion_rows(self, epoch: int, *, index: ClassIndex, lesions: Lesions) -> list[dict[str, Any]]:
        """How often lesions of each size were drawn in the open epoch: one row, with keys `LESION_COLUMNS`,
        for each tumor class and size.

        Args:
            epoch: number of the epoch.
            index: the index of the draws.
            lesions: the lesions of the index. `lesion_voxels_from` is the smallest number of voxels of a
                lesion of the row (`SIZE_STEPS`).
        """
        ids, classes, _ = self._drawn()
        rows = []
        for k, bins in enumerate(lesions.size_bins):
            if bins is None:
                continue
            different, n_each = np.unique(ids[classes == k], return_counts=True)
            seen = bins[index.numbers_of(k, different)]
            n_draws, n_distinct = (
                np.bincount(seen, n_each, len(SIZE_STEPS)),
                np.bincount(seen, minlength=len(SIZE_STEPS)),
            )
            for smallest, n, n_different in zip(
                SIZE_STEPS, n_draws.astype(np.int64).tolist(), n_distinct.tolist(), strict=True
            ):
                rows.append(
                    dict(
                        zip(
                            LESION_COLUMNS,
                            (epoch, self.class_names[k], smallest, n, n_different),
                            strict=True,
                        )
                    )
                )
        return rows

    def voxel_counts(self, *, first_epoch: int = 1, last_epoch: int | None = None) -> Counts:
        """The number of patch voxels of each class, without air, over the closed epochs from `first_epoch` to
        `last_epoch` (None: the newest epoch).
        """
        counted = [
            voxels[:-1] for epoch, voxels in self._history if first_epoch <= epoch <= (last_epoch or epoch)
        ]
        return np.sum([np.zeros(len(self.class_names), np.int64), *counted], axis=0)

    def effective_prior(
        self, *, class_weights: Shares | None = None, first_epoch: int = 1, last_epoch: int | None = None
    ) -> Shares:
        """The training prior of the network of `last_epoch`: patch voxels per class x class weights. See
        `priors.effective_prior`.

        If the class shares or the weights changed during the training, give the range of the last epochs,
        from which the network has learned last.
        """
        counts = self.voxel_counts(first_epoch=first_epoch, last_epoch=last_epoch)
        if counts.sum() == 0:
            raise UsageError(
                f"ledger: no closed epoch from {first_epoch} to {last_epoch}; the training prior exists only "
                "after the first epoch"
            )
        return effective_prior(counts, class_weights=class_weights)

    def state_dict(self) -> dict[str, Any]:
        """The whole ledger in arrays, including the open epoch."""
        ids, classes, hard = self._drawn()
        history = np.array([voxels for _, voxels in self._history], dtype=np.int64).reshape(
            len(self._history), len(self.class_names) + 1
        )
        closed = np.array([epoch for epoch, _ in self._history], dtype=np.int64)
        opened = {
            "ids": ids,
            "classes": classes.astype(np.int16),
            "hard": hard,
            "voxels": self._counted().copy(),
        }
        return {**opened, "closed_epochs": closed, "closed_voxels": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved `state`. Raises `UsageError` if the state counts other classes."""
        if len(state["voxels"]) != len(self.class_names) + 1:
            raise UsageError(
                f"ledger: {len(state['voxels']) - 1} classes in the checkpoint, {len(self.class_names)} in "
                "the bank"
            )
        self._open()
        self.absorb(state)
        self._history = [
            (int(epoch), np.asarray(voxels, dtype=np.int64))
            for epoch, voxels in zip(state["closed_epochs"], state["closed_voxels"], strict=True)
        ]

    def _open(self) -> None:
        self._draws: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._voxels = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        self._uncounted = 0

    def _counted(self) -> Int64[np.ndarray, " k_and_air"]:
        """The number of voxels of each class in the open epoch, (K + 1,)."""
        if not isinstance(self._uncounted, int):
            self._voxels = self._voxels + np.array(self._uncounted.tolist(), dtype=np.int64)
            self._uncounted = 0
        return self._voxels

    def _drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self._draws:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)
        ids, classes, hard = zip(*self._draws, strict=True)
        return np.concatenate(ids), np.concatenate(classes), np.concatenate(hard)
