"""The cases of a run by their use, and the result of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.folds import inner_split, telling_class
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.sections import Validation


@dataclass(frozen=True)
class Split:
    """Case ids of a bank by their use. The training only records `held_out` and never reads these cases.

    `fold` is the number of the held-out fold, or None. Without inner cases the last weights count as the best
    weights.
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
                    f"split: {', '.join(both)} are in both '{one}' and '{other}'; a case has one use"
                )
        if not self.train:
            raise UsageError("split: there is no training case")


def make_split(bank: PatchBank, *, fold: int | None, validation: Validation, seed: int) -> Split:
    """Split the cases of a bank into training cases, inner cases for validation (by `validation.cases`) and
    held-out cases.

    Args:
        bank: bank with the folds.
        fold: number of the fold to hold out, from 0; None uses all cases for training and none for
            validation.
        validation: determines which cases of the other folds are inner cases.
        seed: seed of a random inner split.

    Raises:
        UsageError: the bank does not have the fold, or "next_fold" leaves no third fold for training.
        InputError: the fold holds all cases, or all training cases belong to a single patient.
    """
    if fold is None:
        return Split(train=tuple(case.id for case in bank.cases))
    folds = bank.folds
    if not 0 <= fold < len(folds):
        raise UsageError(f"--fold {fold}: the bank has folds 0..{len(folds) - 1}, or 'all'")
    rest = [case for case in bank.cases if case.id not in folds[fold]]
    if not rest:
        raise InputError(f"{bank.path}: fold {fold} holds every case, so no training case is left")
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
        run_dir: folder of the run.
        n_epochs: number of completed epochs.
        ended: "done" (the budget was used, or early stopping) or "stopped" (by a signal; the run can be
            resumed).
        best_epoch, best_score: epoch and score of `checkpoint_best.pt`; None without inner cases.
        rows: rows of `epochs.csv`.
    """

    run_dir: Path
    n_epochs: int
    ended: Literal["done", "stopped"]
    best_epoch: int | None
    best_score: float | None
    rows: tuple[dict[str, Any], ...]
