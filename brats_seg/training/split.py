"""What a run is given, cases by their use, and how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.folds import inner_split, telling_class
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.sections import Validation


@dataclass(frozen=True)
class Split:
    """Case ids of a bank by their use. `held_out` is only written down: nothing here opens those cases.

    `fold` is the number of the held-out fold, None where there is none. Without inner cases the last weights
    count as the best.
    """

    train: tuple[str, ...]
    inner: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    fold: int | None = None

    def __post_init__(self) -> None:
        for one, other in (("train", "inner"), ("train", "held_out"), ("inner", "held_out")):
            both = sorted(set(getattr(self, one)) & set(getattr(self, other)))
            if both:
                raise UsageError(
                    f"split: {', '.join(both)} stand in both '{one}' and '{other}'; a case has one use"
                )
        if not self.train:
            raise UsageError("split: no case to train on")


def make_split(bank: PatchBank, *, fold: int | None, validation: Validation, seed: int) -> Split:
    """Cases to train on, to validate on (`validation.cases` says which) and to hold out.

    Args:
        bank: whose folds are meant.
        fold: to hold out, from 0; None trains on all cases and validates on none.
        validation: says which cases of the other folds are the inner split.
        seed: of a random inner split.

    Raises:
        UsageError: a fold that the bank does not have, or "next_fold" where no third fold is left to train
            on.
        InputError: a fold that holds all cases, or training cases of a single patient.
    """
    if fold is None:
        return Split(train=tuple(case.id for case in bank.cases))
    folds = bank.folds
    if not 0 <= fold < len(folds):
        raise UsageError(f"--fold {fold}: the bank has folds 0..{len(folds) - 1}, or 'all'")
    rest = [case for case in bank.cases if case.id not in folds[fold]]
    if not rest:
        raise InputError(f"{bank.path}: fold {fold} holds every case; nothing is left to train on")
    trained = tuple(case.id for case in rest)
    inner: tuple[str, ...] = ()
    if validation.cases == "next_fold":
        if len(folds) < 3:
            raise UsageError(
                f"validation.cases 'next_fold' needs 3 folds or more; {bank.path} has {len(folds)}"
            )
        following = folds[(fold + 1) % len(folds)]
        inner = tuple(case for case in trained if case in following)
        trained = tuple(case for case in trained if case not in following)
    elif validation.cases == "fraction":
        enhancing = telling_class(bank.classes)
        trained, inner = inner_split(
            {case.id: case.patient for case in rest},
            {case.id: case.n_voxels[enhancing] > 0 for case in rest},
            fraction=validation.fraction,
            seed=seed,
        )
    return Split(train=trained, inner=inner, held_out=folds[fold], fold=fold)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_dir: where everything lies.
        n_epochs: epochs completed.
        ended: "done" (the budget, or early stopping) or "stopped" (by a signal; resuming goes on).
        best_epoch, best_score: of `checkpoint_best.pt`; None without inner cases.
        rows: those of `epochs.csv`.
    """

    run_dir: Path
    n_epochs: int
    ended: Literal["done", "stopped"]
    best_epoch: int | None
    best_score: float | None
    rows: tuple[dict[str, Any], ...]
