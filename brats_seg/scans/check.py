"""All that is wrong with a case and its label map."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations
from typing import Literal

import numpy as np

from brats_seg.core.errors import InputError
from brats_seg.core.shapes import Mask, Volume
from brats_seg.scans.case import Case, Problem
from brats_seg.scans.datasets import LABEL
from brats_seg.scans.geometry import Geometry, ScanError, same_grid
from brats_seg.scans.labels import SCHEMAS, LabelSchema, schema_named, schemas_that_fit, whole_values
from brats_seg.scans.loaded import LoadedCase, all_volumes, problem_with
from brats_seg.scans.releases import LAYOUTS, PLAIN
from brats_seg.scans.volume import read_volume

_MASK_SHARE = 0.9  # largest plausible share of tumor in the brain; the largest of 15 real cases: 0.16


def check_label(loaded: LoadedCase, brain: Mask | None) -> tuple[dict[str, int], list[Problem]]:
    """Voxels of each tissue class of a label, and what is wrong with the label.

    Args:
        loaded: a case with a label.
        brain: voxels of the brain; None if the volumes are too different to find the brain.
    """
    assert loaded.label is not None
    if not loaded.case.schema:
        return {}, [_untold(loaded.case, loaded.label[0])]
    array, schema, problem = (
        loaded.label[0],
        schema_named(loaded.case.schema),
        partial(problem_with, loaded.case),
    )
    try:
        values = whole_values(array, schema)
    except InputError as error:
        what, _, expected = str(error).removeprefix("label ").partition("; ")
        return {}, [problem("error", LABEL, what, expected)]
    counts_of_values = np.bincount(
        values[values != 0], minlength=256
    )  # without the zeros counting is 20 times faster
    counts_of_values[0] = values.size - counts_of_values.sum()
    strange = [value for value in np.flatnonzero(counts_of_values).tolist() if value not in schema.values]
    if strange:
        return {}, [
            problem(
                "error", LABEL, *_strange_values(strange, counts_of_values, schema, layout=loaded.case.layout)
            )
        ]
    counts = {tissue: int(counts_of_values[value]) for value, tissue in schema.values.items()}
    problems = []
    if brain is not None:
        n_outside = int(np.count_nonzero((values != 0) & ~brain))
        counts["healthy"] = int(np.count_nonzero(brain)) - (int(counts_of_values[1:].sum()) - n_outside)
        if n_outside:
            problems.append(
                problem("warning", LABEL, f"has {n_outside:,} annotated voxels outside the brain", "none")
            )
    if not any(counts[tissue] for tissue in counts if tissue not in ("healthy", "resection_cavity")):
        problems.append(problem("warning", LABEL, "has no tumor"))
    elif brain is not None and (tumor := 1 - counts["healthy"] / np.count_nonzero(brain)) > _MASK_SHARE:
        problems.append(
            problem(
                "warning",
                LABEL,
                f"marks {tumor:.0%} of the brain as tumor",
                "a label of the tumor, not a brain mask",
            )
        )
    return counts, problems


def untold_schema(case: Case) -> Problem | None:
    """The problem of a case whose label has values of an unknown meaning (the values are read); None if the
    schema is known.
    """
    if case.schema or case.label is None:
        return None
    try:
        return _untold(case, read_volume(case.label)[0])
    except ScanError as error:
        return Problem("error", case.id, str(error.path), error.what, error.expected)


def _untold(case: Case, label: Volume) -> Problem:
    """No default decides what a value means: 2 is edema in most releases and tumor core in others."""
    stored = np.unique(label[label != 0])
    if not np.isfinite(stored).all() or np.any(
        np.abs(stored - np.rint(stored)) > 1e-3
    ):  # as `labels.whole_values` accepts them
        return problem_with(case, "error", LABEL, "has values that are not whole", "a label map")
    values = [int(value) for value in np.unique(np.rint(stored))]
    listed = ", ".join(map(str, values[:9])) + ", ..." * (len(values) > 9) or "only 0"
    by_manifest = ", or a column 'schema' in the manifest" if case.layout == "manifest" else ""
    candidates = LAYOUTS[case.layout].candidates if case.layout in LAYOUTS else ()
    return problem_with(
        case,
        "error",
        LABEL,
        f"has the values {listed}, and the meaning of each value is unknown",
        f"--schema NAME{by_manifest}; the values fit {schemas_that_fit(values, among=candidates)}",
    )


def _strange_values(
    strange: Sequence[int], counts_of_values: np.ndarray, schema: LabelSchema, *, layout: str
) -> tuple[str, str]:
    listed = ", ".join(f"{value} ({int(counts_of_values[value]):,} voxels)" for value in strange)
    fitting = [
        name
        for name, other in SCHEMAS.items()
        if set(np.flatnonzero(counts_of_values).tolist()) <= set(other.values)
    ]
    how = (
        "--schema NAME"
        if layout == PLAIN or LAYOUTS[layout].candidates
        else "a manifest CSV names it in its column 'schema'"
    )
    hint = f"; its values fit {' or '.join(fitting)} ({how})" if fitting else ""
    return (
        f"has the values {listed}",
        f"{', '.join(str(v) for v in sorted(schema.values))} of schema {schema.name}{hint}",
    )


# a brain with its fluid has 1,100 to 1,900 ml (eight real cases: 1,250 to 1,550), a head over
# 3,000
_UNSTRIPPED_ML = 2200.0
_UNSTRIPPED_SHARE = 0.75  # of the frame; an ellipsoid that touches all six sides has 0.52
# Dice of a modality's non-zero voxels with those of the others: over 0.999 in real cases, 0.87 at a shift of
# 10 mm
_REGISTERED_DICE = 0.9
_LARGEST_LABEL = 9  # BraTS labels end at 4; a scan with only whole values up to 9 is not an image
_FEW_SLICES = 64  # up to this number every slice is checked: of four slices, only three may have brain
_SATURATED_SHARE = 1e-4  # share of the brain; scaling to the range of a type leaves one voxel at the maximum
_SPACING_MM = 0.01  # largest difference from 1 mm


@dataclass(frozen=True)
class CaseReport:
    """The result of the checks of one case.

    Attributes:
        case: the checked case.
        problems: errors (they refuse the case) and warnings.
        class_counts: tissue name of its own schema -> voxels in the brain, annotated voxels outside included;
            empty without a label.
        shape: (Z, Y, X) in LPS; None if no file could be read.
        spacing_mm: (Z, Y, X) in LPS; None if no file could be read.
        digests: modality -> digest of its content, equal for the same scan stored in another orientation,
            type or file format; empty if no digests were wanted.
    """

    case: Case
    problems: tuple[Problem, ...]
    class_counts: Mapping[str, int]
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    digests: Mapping[str, str]

    @property
    def good(self) -> bool:
        """True if the case has no error."""
        return all(problem.severity != "error" for problem in self.problems)


def check_case(loaded: LoadedCase, *, digests: Literal["all", "none"] = "all") -> CaseReport:
    """Every check on volumes already read.

    Args:
        loaded: from `load_case`.
        digests: "none" leaves the digests out of the report: they take half of the time, and are needed only
            to compare cases with each other.
    """
    case, problem = loaded.case, partial(problem_with, loaded.case)
    problems = [*loaded.problems, *_grid_problems(loaded)]
    sound, limits = {}, {}
    for name, (array, _) in loaded.volumes.items():
        limits[name] = array.min(), array.max()
        wrong = _content(array, *limits[name])
        if wrong:
            problems.append(problem("error", name, *wrong))
        else:
            sound[name] = array
    same_shape = len({array.shape for array, _ in all_volumes(loaded).values()}) == 1
    brain = reduce(np.logical_or, (array != 0 for array in sound.values())) if sound and same_shape else None
    counts: dict[str, int] = {}
    if brain is not None:
        spacing = next(iter(loaded.volumes.values()))[1].spacing_mm
        if unstripped := unstripped_words(brain, spacing_mm=spacing):
            problems.append(replace(problem("warning", "", *unstripped), kind="skull"))
        problems += [problem("warning", *warning) for warning in _brain_warnings(sound, brain, limits=limits)]
    if loaded.label is not None:
        counts, wrong_label = check_label(loaded, brain)
        problems += wrong_label
    geometry = next((geometry for _, geometry in all_volumes(loaded).values()), None)
    contents = (
        {name: _digest(array) for name, array in sound.items()}
        if digests == "all" or _may_be_twins(sound.values())
        else {}
    )
    for name, content in contents.items():
        other = next(earlier for earlier in contents if contents[earlier] == content)
        if other != name:
            twin = problem("warning", name, f"is the same scan as {other}", "a scan for each modality")
            problems.append(replace(twin, kind="same_scan"))
    return CaseReport(
        case,
        tuple(problems),
        counts,
        None if geometry is None else geometry.shape,
        None if geometry is None else geometry.spacing_mm,
        contents if digests == "all" else {},
    )


def _grid_problems(loaded: LoadedCase) -> list[Problem]:
    """Problems of files whose grid differs from the grid of most files of the case, and of a spacing that is
    not 1 mm.
    """
    grids = {name: geometry for name, (_, geometry) in all_volumes(loaded).items()}
    if not grids:
        return []
    agreeing = {name: sum(same_grid(grid, other) for other in grids.values()) for name, grid in grids.items()}
    standard = max(grids, key=lambda name: agreeing[name])
    mend = "`brats-seg prepare SCANS OUT` brings scans to one grid; resample a label by nearest neighbor"
    problems = []
    for name, grid in grids.items():
        if not same_grid(grid, grids[standard]):
            what, expected = _grid_words(grid, grids[standard], standard=standard)
            problems.append(problem_with(loaded.case, "error", name, what, f"{expected}; {mend}"))
    spacing = grids[standard].spacing_mm
    if max(abs(mm - 1) for mm in spacing) > _SPACING_MM:
        shown = " x ".join(f"{mm:.3g}" for mm in spacing)
        problems.append(
            problem_with(
                loaded.case,
                "warning",
                "",
                f"spacing is {shown} mm (Z, Y, X)",
                "1 mm, as BraTS releases it; `preprocess --resample` and `predict --resample` change it",
            )
        )
    return problems


def _grid_words(grid: Geometry, other: Geometry, *, standard: str) -> tuple[str, str]:
    if grid.shape != other.shape:
        return f"has the shape {grid.shape} (Z, Y, X)", f"{other.shape} as {standard}"
    if not np.allclose(grid.spacing_mm, other.spacing_mm, atol=1e-3):
        return (
            f"has a spacing of {_rounded(grid.spacing_mm)} mm",
            f"{_rounded(other.spacing_mm)} as {standard}",
        )
    a, b = grid.lps_affine, other.lps_affine
    if np.allclose(a[:3, :3], b[:3, :3], atol=1e-3):
        return f"has its origin at {_rounded(a[:3, 3])} mm (R, A, S)", f"{_rounded(b[:3, 3])} as {standard}"
    return "has another orientation in its affine", f"that of {standard}"


def _rounded(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{float(v):.4g}" for v in values) + ")"


def _content(array: Volume, low: np.generic, high: np.generic) -> tuple[str, str] | None:
    if not (np.isfinite(low) and np.isfinite(high)):
        n = array.size - int(np.count_nonzero(np.isfinite(array)))
        return f"has {n:,} voxels that are NaN or infinite", "finite intensities"
    if low == high:
        return f"is empty: every voxel is {low:g}", "a scan"
    return None


def unstripped_words(brain: Mask, *, spacing_mm: tuple[float, float, float]) -> tuple[str, str] | None:
    """The problem of a case in which more than the brain is not 0."""
    n_brain = int(np.count_nonzero(brain))
    brain_ml = n_brain * float(np.prod(spacing_mm)) / 1000
    if brain_ml <= _UNSTRIPPED_ML and n_brain <= _UNSTRIPPED_SHARE * brain.size:
        return None
    return (
        f"looks unstripped: {n_brain / brain.size:.0%} of the frame, {brain_ml:,.0f} ml are not 0",
        "a brain on a background of 0; `brats-seg prepare SCANS OUT` removes the skull",
    )


def _brain_warnings(
    volumes: Mapping[str, Volume], brain: Mask, *, limits: Mapping[str, tuple[np.generic, np.generic]]
) -> list[tuple[str, str, str] | tuple[str, str]]:
    warnings: list[tuple[str, str, str] | tuple[str, str]] = []
    n_brain = int(np.count_nonzero(brain))
    for name, array in volumes.items():
        if float(limits[name][1]) <= _LARGEST_LABEL and np.array_equal(array, np.rint(array)):
            warnings.append(
                (
                    name,
                    f"looks like a label map: whole values from {limits[name][0]:g} to {limits[name][1]:g}",
                    "intensities",
                )
            )
        if array.dtype.kind in "iu":
            most = np.iinfo(array.dtype).max
            n = int(np.count_nonzero(array == most)) if limits[name][1] == most else 0
            if n > _SATURATED_SHARE * n_brain and n > 1:
                warnings.append((name, f"is saturated: {n:,} voxels at {most}, the maximum of {array.dtype}"))
    step = 4 if brain.shape[0] > _FEW_SLICES else 1
    masks = {
        name: array[::step, ::2] != 0 for name, array in volumes.items()
    }  # whole rows take a quarter of the time of every second voxel
    shared = np.add.reduce([mask.view(np.uint8) for mask in masks.values()]) * 2 >= len(masks)
    for name, mask in masks.items():
        n_each = int(np.count_nonzero(mask)) + int(np.count_nonzero(shared))
        dice = 2 * int(np.count_nonzero(mask & shared)) / max(n_each, 1)
        if dice < _REGISTERED_DICE:
            warnings.append(
                (
                    name,
                    f"looks unregistered: its voxels overlap those of the others with a Dice of {dice:.2f}",
                    "over 0.9; `brats-seg prepare SCANS OUT` registers",
                )
            )
    return warnings


def _digest(array: Volume) -> str:
    """The SHA-256 of every second voxel along each axis (an eighth of the voxels): 1.1 million voxels
    distinguish scans, and take 3 ms instead of 25.

    Whole numbers are hashed as int32, whatever their stored type; other numbers (and those outside int32) as
    float32.
    """
    sample = array[::2, ::2, ::2]
    small = sample.dtype.kind in "iu" and sample.dtype.itemsize < 4
    fits = small or max(-float(sample.min()), float(sample.max())) < 2**31
    is_whole = fits and (sample.dtype.kind in "iu" or np.array_equal(sample, np.rint(sample)))
    with np.errstate(over="ignore"):
        values = sample.astype(np.int32 if is_whole else np.float32)
    return hashlib.sha256(repr(array.shape).encode() + values.tobytes()).hexdigest()


def _may_be_twins(volumes: Iterable[Volume]) -> bool:
    """Whether two volumes have equal values in a small sample (one voxel in 512) of the hashed voxels;
    different scans differ in this sample.
    """
    with np.errstate(over="ignore"):
        samples = [array[::8, ::8, ::8].astype(np.float32) for array in volumes]
    return any(np.array_equal(a, b) for a, b in combinations(samples, 2))
