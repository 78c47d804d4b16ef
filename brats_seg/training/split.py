"""What a run is given, cases by their use, and how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brats_seg.core.errors import UsageError


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
