"""What `predict` did: the label maps that were written, and the cases that were refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brats_seg.scans.case import Problem


@dataclass(frozen=True)
class Prediction:
    """One label map that was written.

    Attributes:
        case: its id.
        path: of its file.
        seconds: time to read, compute and write it, one after the other.
        volumes_ml: of each class and region of it.
        warnings: about the case.
    """

    case: str
    path: Path
    seconds: float
    volumes_ml: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PredictReport:
    """What a run over a folder did: label maps written, cases that were finished before, and problems."""

    predictions: tuple[Prediction, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]

    @classmethod
    def of_all(cls, parts: Sequence["PredictReport"]) -> "PredictReport":
        """The report of the whole folder, from the reports of its parts."""
        return cls(
            tuple(sorted((one for part in parts for one in part.predictions), key=lambda one: one.case)),
            tuple(sorted(case for part in parts for case in part.skipped)),
            tuple(problem for part in parts for problem in part.problems),
        )

    @property
    def exit_code(self) -> int:
        """1 if a case was refused or there was no case, else 0."""
        return int(
            not (self.predictions or self.skipped) or any(p.severity == "error" for p in self.problems)
        )

    def summary(self) -> str:
        """One line of counts."""
        n_refused = len({p.case or p.file for p in self.problems if p.severity == "error"})
        mean = (
            f", {sum(p.seconds for p in self.predictions) / len(self.predictions):.1f} s each"
            if self.predictions
            else ""
        )
        already = f", {len(self.skipped)} were finished before" if self.skipped else ""
        n = len(self.predictions)
        return f"{n} {'case' if n == 1 else 'cases'} segmented{mean}{already}, {n_refused} refused"
