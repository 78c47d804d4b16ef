"""All that is wrong with a data set, at once."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brats_seg.core.dask_engine import Cluster
from brats_seg.core.engine import map_in_order
from brats_seg.scans.case import Case, Problem
from brats_seg.scans.check import CaseReport, check_case
from brats_seg.scans.layouts import Found, find_cases
from brats_seg.scans.loaded import load_case, problem_with


@dataclass(frozen=True)
class Report:
    """The result of the checks of a data set.

    Attributes:
        cases: one report for each case that has its files, in the order of their ids.
        problems: every problem: of the folder, of incomplete cases, of checked cases, of pairs of cases.
        patients: case id -> patient; cases that share a scan count as one patient.
    """

    cases: tuple[CaseReport, ...]
    problems: tuple[Problem, ...]
    patients: Mapping[str, str]

    @property
    def good(self) -> tuple[str, ...]:
        """Ids of the cases without errors."""
        return tuple(report.case.id for report in self.cases if report.good)

    @property
    def exit_code(self) -> int:
        """1 if there is an error, else 0, also with warnings."""
        return int(any(problem.severity == "error" for problem in self.problems))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row of plain types per case, for a table."""
        return [self._row(report) for report in self.cases]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "cases": self.rows,
            "problems": [problem.to_dict() for problem in self.problems],
            "n_good": len(self.good),
        }

    def _row(self, report: CaseReport) -> dict[str, Any]:
        case, own_problems = (
            report.case,
            [problem for problem in self.problems if problem.case == report.case.id],
        )
        return {
            "case": case.id,
            "patient": self.patients[case.id],
            "layout": case.layout,
            "schema": case.schema,
            "folder": str(case.folder),
            "has_label": case.label is not None,
            "shape": report.shape,
            "spacing_mm": report.spacing_mm,
            "class_counts": dict(report.class_counts),
            "n_errors": sum(problem.severity == "error" for problem in own_problems),
            "n_warnings": sum(problem.severity == "warning" for problem in own_problems),
        }


def verify_folder(
    folder: str | Path,
    *,
    layout: str | None = None,
    synthetic: bool = False,
    required: Sequence[str] | None = None,
    schema: str | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
) -> Report:
    """Check every case under a folder (or in a manifest). For the other arguments and errors see
    `find_cases`.

    Args:
        workers: number of cases checked at the same time, a thread each; a BraTS case needs about 100 MB of
            memory.
        cluster: whose workers check the cases, instead of threads.
    """
    return verify_cases(
        find_cases(folder, layout=layout, synthetic=synthetic, required=required, schema=schema),
        workers=workers,
        cluster=cluster,
    )


def verify_cases(found: Found, *, workers: int = 1, cluster: Cluster | None = None) -> Report:
    """Check every case and compare the cases with each other; of an incomplete case, check the existing
    files.
    """
    cases = (*found.cases, *found.incomplete)
    looked_at = map_in_order(
        verify_case, cases, threads=workers, label="verify", on_death=_unread, cluster=cluster
    )
    reports = tuple(looked_at[: len(found.cases)])
    twins = _twins(reports)
    problems = (*found.problems, *(problem for report in looked_at for problem in report.problems), *twins)
    return Report(reports, problems, one_patient(reports))


def _unread(case: Case, error: BaseException) -> CaseReport:
    return CaseReport(case, (problem_with(case, "error", "", str(error)),), {}, None, None, {})


def verify_case(case: Case) -> CaseReport:
    """Read and check a case. Problems of its files never raise an error."""
    return check_case(load_case(case))


def one_patient(reports: Iterable[CaseReport]) -> dict[str, str]:
    """Case id -> patient. Patients whose cases share a scan become one, under the first of their names in
    sorting order.
    """
    reports = tuple(reports)
    parent = {report.case.patient: report.case.patient for report in reports}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    for report in reports:
        for digest in report.digests.values():
            a, b = sorted((root(first.setdefault(digest, report.case.patient)), root(report.case.patient)))
            parent[b] = a
    return {report.case.id: root(report.case.patient) for report in reports}


def _twins(reports: Sequence[CaseReport]) -> list[Problem]:
    """A warning for each case that has a scan of an earlier one."""
    first: dict[str, CaseReport] = {}
    problems = []
    for report in reports:
        shared: Counter[str] = Counter()
        file = ""
        for name, digest in report.digests.items():
            first_case = first.setdefault(digest, report)
            if first_case is not report:
                shared[first_case.case.id] += 1
                file = file or str(report.case.modalities[name])
        for other_id, n in shared.items():
            what = f"{n} of its scans are the same as in case {other_id}; the two count as one patient"
            problems.append(Problem("warning", report.case.id, file, what))
    return problems
