"""The case to view and its label maps: from a folder, a manifest, files or predictions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from brats_seg.core.errors import InputError, UsageError
from brats_seg.reporting.viewer import write_page
from brats_seg.scans.case import Case, case_of_files
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.predictions import label_map_of
from brats_seg.scans.volume import SUFFIXES


def find_case(source: str | Path, *, id: str | None = None, schema: str | None = None) -> Case:
    """The case of a folder, or of a folder or manifest of many the one of this id.

    Raises:
        InputError: no case, no case of this id, or several and no id.
    """
    cases = find_cases(source, required=(), schema=schema).cases
    if id is not None:
        cases = tuple(case for case in cases if case.id == id)
        if not cases:
            raise InputError(f"{source}: holds no case {id}")
    if len(cases) != 1:
        names = ", ".join([case.id for case in cases[:5]] + ["..."] * (len(cases) > 5)) or "none"
        raise InputError(
            f"{source}: holds {len(cases)} cases ({names}); give the folder of one case, or --case ID"
        )
    return cases[0]


def case_of_scans(files: Mapping[str, Path], *, reference: Path | None, schema: str | None) -> Case:
    """A case of files that are named one by one: modality -> file."""
    first = next(iter(files.values()))
    suffix = next((s for s in SUFFIXES if first.name.lower().endswith(s)), first.suffix)
    case = case_of_files(files, id=first.name[: len(first.name) - len(suffix)])
    return replace(case, schema=schema or "") if reference is not None or schema else case


def write_pages(
    source: str | Path,
    predictions: Path,
    *,
    output: Path,
    schema: str | None = None,
    prediction_schema: str | None = None,
) -> list[Path]:
    """A page for each case that has a label map in a folder of predictions, `OUTPUT/<case>.html`; each leads
    to the next and the previous one.

    Raises:
        UsageError: `output` is a file, or ends as one.
        InputError: no case of `source` has a label map.
    """
    if output.suffix or output.is_file():
        raise UsageError(
            f"--output {output}: a folder of predictions has a page for each case; name a folder"
        )
    cases_of_source = find_cases(source, required=(), schema=schema).cases
    maps = {
        case.id: path for case in cases_of_source if (path := label_map_of(predictions, case.id)) is not None
    }
    cases = [case for case in cases_of_source if case.id in maps]
    if not cases:
        raise InputError(f"{predictions}: holds no label map of a case of {source}")
    output.mkdir(parents=True, exist_ok=True)
    names = [f"{case.id}.html" for case in cases]
    return [
        write_page(
            case,
            prediction=maps[case.id],
            reference=None,
            output=output / name,
            prediction_schema=prediction_schema,
            neighbors=(before, after),
        )
        for case, name, before, after in zip(cases, names, ["", *names], [*names[1:], ""], strict=False)
    ]


def label_map_in(folder: Path, case: str) -> Path:
    """The label map of a case in a folder of predictions. Raises `InputError` where there is none."""
    path = label_map_of(folder, case)
    if path is None:
        raise InputError(f"{folder}: holds no label map of case {case}")
    return path
