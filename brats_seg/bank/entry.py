"""One case of a bank on disk: how it is written atomically, and how a finished case is recognized."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.bank.normalize import NormalizedCase, Spacing, normalize, off_spacing
from brats_seg.bank.records import FILES, MEND, SCHEMA_VERSION, RefusalRecord, entry_checksum, read_entry
from brats_seg.core.errors import InputError
from brats_seg.core.files import read_json, read_model, sha256, write_json
from brats_seg.core.kernels import group_positions
from brats_seg.scans.case import Case, Problem, ScanFile, problem_of
from brats_seg.scans.check import CaseReport, check_case
from brats_seg.scans.loaded import load_case
from brats_seg.scans.volume import read_header, read_volume

_STATE = ("name", "channel", "bytes", "mtime_ns")


@dataclass(frozen=True)
class Settings:
    """The settings that, with the scans, determine the files of a case."""

    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    percentiles: tuple[float, float] = (0.5, 99.5)
    n4: bool = False
    resample: bool = False
    spacing_mm: Spacing = (1.0, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain types that stay equal after writing to JSON and reading back."""
        tree: dict[str, Any] = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}))
        return tree


@dataclass(frozen=True)
class EntryTask:
    """An annotated case to add to a bank."""

    case: Case
    bank: Path
    settings: Settings
    threads: int


@dataclass(frozen=True)
class EntryResult:
    """The outcome of a task: its problems; an error means that the case was refused."""

    case_id: str
    problems: tuple[Problem, ...]

    @property
    def refused(self) -> bool:
        """Whether the case is not in the bank."""
        return any(problem.severity == "error" for problem in self.problems)


def write_entry(task: EntryTask) -> EntryResult:
    """Read, check, normalize and write a case, or refuse the case and record the reason."""
    for rest in task.bank.glob(f"cases/.{escape(task.case.id)}.*.part"):  # left by a killed build
        shutil.rmtree(rest, ignore_errors=True)  # a worker that was assumed dead may still write there
    settings, loaded = task.settings, load_case(task.case, threads=task.threads)
    report = check_case(loaded)
    problems = list(report.problems) + _wrong_for_bank(task, report)
    if not any(problem.severity == "error" for problem in problems):
        try:
            normalized = normalize(
                loaded,
                modalities=settings.modalities,
                classes=settings.classes,
                percentiles=settings.percentiles,
                n4_cache=task.bank / "n4" if settings.n4 else None,
                resample_to_mm=settings.spacing_mm if settings.resample else None,
                threads=task.threads,
            )
            problems += [
                Problem("warning", task.case.id, str(task.case.folder), warning)
                for warning in normalized.warnings
            ]
            _write_folder(task, normalized, digests=report.digests)
        except InputError as error:
            problems.append(problem_of(error, task.case.id))
    result = EntryResult(task.case.id, tuple(problems))
    if result.refused:
        refuse(task, result.problems)
    return result


def refuse(task: EntryTask, problems: Sequence[Problem]) -> None:
    """Record why a case is not in the bank, and delete the files that an earlier build made of it."""
    path = _refusal_path(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(entry_folder(task), ignore_errors=True)
    tree = {
        "settings": task.settings.to_dict(),
        "sources": _states(task.case),
        "problems": [problem.to_dict() for problem in problems],
    }
    write_json(path, tree)


def find_entry(task: EntryTask) -> dict[str, Any] | None:
    """The content of `case.json` of a finished case, or None if the case must be made (again).

    A case is finished if it was made with these settings from these scans, and its files exist in the
    recorded sizes. A scan with the recorded name, size and time counts as unchanged. Any other scan is
    hashed; if its content is unchanged, its new state is recorded.
    """
    path = entry_folder(task) / "case.json"
    entry = _read_if_sound(path)
    if entry is None:
        return None
    case = task.case
    same = entry["settings"] == task.settings.to_dict() and (entry["schema"], entry["patient"]) == (
        case.schema,
        case.patient,
    )
    if not same or [_size(path.parent / name) for name in FILES] != entry["bytes"]:
        return None
    states = _states(case)
    if states != {role: {key: state.get(key) for key in _STATE} for role, state in entry["sources"].items()}:
        sources = _sources(case)
        if _contents(sources) != _contents(entry["sources"]):
            return None
        entry = entry | {"sources": sources}
        write_json(path, entry | {"checksum": entry_checksum(entry)})
    return entry


def is_damaged(task: EntryTask, entry: Mapping[str, Any]) -> bool:
    """Whether a file of a finished case has another checksum than the recorded one."""
    return [sha256(entry_folder(task) / name) for name in FILES] != entry["sha256"]


def read_settings(bank: Path, case_id: str) -> dict[str, Any] | None:
    """The settings that a case of a bank was made with, as from `Settings.to_dict`; None if they cannot be
    read.
    """
    entry = _read_if_sound(bank / "cases" / case_id / "case.json")
    return None if entry is None else entry["settings"]


def find_refusal(task: EntryTask) -> tuple[Problem, ...] | None:
    """Why a case was refused with these settings and these scans, or None."""
    try:
        refusal = read_model(RefusalRecord, _refusal_path(task), mend=MEND)
    except InputError:
        return None
    if refusal.settings != task.settings.to_dict() or refusal.sources != _states(task.case):
        return None
    return refusal.problems


def _read_if_sound(path: Path) -> dict[str, Any] | None:
    """A `case.json`; None if the file is missing, damaged or changed. The case is then prepared again."""
    try:
        read_entry(path)
        tree: dict[str, Any] = read_json(path)
    except InputError:
        return None
    return tree


def entry_folder(task: EntryTask) -> Path:
    """The folder of a case's files."""
    return task.bank / "cases" / task.case.id


def _wrong_for_bank(task: EntryTask, report: CaseReport) -> list[Problem]:
    """Problems that are errors only for a case of a bank."""
    case, settings, problems = task.case, task.settings, []
    if (
        report.spacing_mm is not None
        and off_spacing(report.spacing_mm, wanted_mm=settings.spacing_mm)
        and not settings.resample
    ):
        have, want = (
            " x ".join(f"{mm:.3g}" for mm in spacing) for spacing in (report.spacing_mm, settings.spacing_mm)
        )
        what = f"voxels of {have} mm (Z, Y, X), over 5 % off the bank's {want} mm"
        problems.append(Problem("error", case.id, str(case.folder), what, "that spacing, or --resample"))
    return problems


def _write_folder(task: EntryTask, normalized: NormalizedCase, *, digests: Mapping[str, str]) -> None:
    """Write a case to a temporary folder, and rename the folder when all files are on disk. If a file cannot
    be written, the temporary folder is deleted.
    """
    place = entry_folder(task)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        _fill_folder(part, task, normalized, digests=digests)
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _refusal_path(task).unlink(missing_ok=True)


def _fill_folder(
    part: Path, task: EntryTask, normalized: NormalizedCase, *, digests: Mapping[str, str]
) -> None:
    label = normalized.label
    assert label is not None
    counts, positions = group_positions(label.reshape(-1), len(task.settings.classes))
    for name, array in zip(FILES, (normalized.image, label, positions), strict=True):
        with (part / name).open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    case = task.case
    entry = {
        "id": case.id,
        "patient": case.patient,
        "schema": case.schema,
        "shape": label.shape,
        "origin": normalized.origin,
        "grid_shape": normalized.grid_shape,
        "spacing_mm": normalized.spacing_mm,
        "counts": counts.tolist(),
        "offsets": [0, *np.cumsum(counts).tolist()],
        "bytes": [_size(part / name) for name in FILES],
        "sha256": [sha256(part / name) for name in FILES],
        "settings": task.settings.to_dict(),
        "layout": case.layout,
        "geometry": normalized.geometry.to_dict(),
        "digests": dict(digests),
        "warnings": normalized.warnings,
        "sources": _sources(case),
    }
    write_json(part / "case.json", entry | {"checksum": entry_checksum(entry)})


def _refusal_path(task: EntryTask) -> Path:
    return task.bank / "refused" / f"{task.case.id}.json"


def _sources(case: Case) -> dict[str, dict[str, Any]]:
    states = _states(case)
    return {
        role: {**states[role], "path": str(file.path), "sha256": sha256(file.path)}
        for role, file in _files(case).items()
    }


def _contents(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, int | None]]:
    """The source of the voxels of each role: a checksum, and the channel of a 4-D file (a corrected
    `dataset.json` changes the channels).
    """
    return {role: (source["sha256"], source.get("channel")) for role, source in sources.items()}


def _states(case: Case) -> dict[str, dict[str, Any]]:
    """Name, channel, size and time of each file of a case; without the folder, which may move."""
    states = {}
    for role, file in _files(case).items():
        try:
            status = file.path.stat()
            n_bytes, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            n_bytes, mtime_ns = -1, 0
        states[role] = dict(zip(_STATE, (file.path.name, file.channel, n_bytes, mtime_ns), strict=True))
    return states


def _files(case: Case) -> dict[str, ScanFile]:
    return {**case.modalities, **({} if case.label is None else {"label": case.label})}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


_PROBED = 3  # cases whose brain is measured to estimate the disk space of a bank
_MARGIN = 1.2  # factor on the largest share of these cases


def disk_needed(cases: Sequence[Case], *, n_modalities: int) -> int:
    """Estimated bytes of cases in a bank, from all headers and the brains of a few cases; a case that cannot
    be read counts as 0.
    """
    n_voxels = []
    for case in cases:
        try:
            z, y, x = read_header(next(iter(case.modalities.values())).path).shape
        except InputError:
            continue
        n_voxels.append(z * y * x)
    bytes_per_voxel = 2 * n_modalities + 1 + 4  # image, label and (of the brain) positions
    return int(sum(n_voxels) * bytes_per_voxel * _brain_share(cases))


def _brain_share(cases: Sequence[Case]) -> float:
    """The largest share of the frame that the brain's bounding box fills, over a few cases spread over the
    data, plus a margin.
    """
    shares = []
    for case in cases[:: max(1, len(cases) // _PROBED)][:_PROBED]:
        try:
            volume, _ = read_volume(next(iter(case.modalities.values())))
        except InputError:
            continue
        spans = [np.flatnonzero(volume.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        box = [int(span[-1] - span[0] + 1) if span.size else 0 for span in spans]
        shares.append(box[0] * box[1] * box[2] / volume.size)
    return min(1.0, max(shares, default=1.0) * _MARGIN)


def check_disk(todo: Sequence[EntryTask], say: Callable[[str], None]) -> None:
    """Say how much disk space the cases need. Raises `InputError` if less is free."""
    if not todo:
        return
    bank = todo[0].bank
    needed = disk_needed([task.case for task in todo], n_modalities=len(todo[0].settings.modalities))
    free = shutil.disk_usage(bank).free
    say(
        f"{len(todo)} cases to prepare; they need about {needed / 1e9:.2f} GB of the {free / 1e9:.1f} GB "
        f"free at {bank}"
    )
    if needed > free:
        raise InputError(
            f"{bank}: {len(todo)} cases need about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free "
            "some or choose another disk"
        )
