"""All that is wrong with the label map of a case."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from brats_seg.core.errors import InputError
from brats_seg.core.shapes import Mask, Volume
from brats_seg.scans.case import Case
from brats_seg.scans.datasets import LABEL
from brats_seg.scans.geometry import ScanError
from brats_seg.scans.labels import SCHEMAS, LabelSchema, schema_named, schemas_that_fit, whole_values
from brats_seg.scans.loaded import LoadedCase, problem_with
from brats_seg.scans.plain import NAME as PLAIN
from brats_seg.scans.problem import Problem
from brats_seg.scans.releases import LAYOUTS
from brats_seg.scans.volume import read_volume

_MASK_SHARE = 0.9  # of the brain that a label calls tumor; the largest of the 15 real cases looked at: 0.16


def check_label(loaded: LoadedCase, brain: Mask | None) -> tuple[dict[str, int], list[Problem]]:
    """Voxels of each tissue class of a label, and what is wrong with the label.

    Args:
        loaded: a case with a label.
        brain: voxels of the brain; None where the volumes are too different to tell.
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
    found = np.bincount(values[values != 0], minlength=256)  # 20 times as fast as counting the zeros too
    found[0] = values.size - found.sum()
    strange = [value for value in np.flatnonzero(found).tolist() if value not in schema.values]
    if strange:
        return {}, [
            problem("error", LABEL, *_strange_values(strange, found, schema, layout=loaded.case.layout))
        ]
    counts = {tissue: int(found[value]) for value, tissue in schema.values.items()}
    problems = []
    if brain is not None:
        n_outside = int(np.count_nonzero((values != 0) & ~brain))
        counts["healthy"] = int(np.count_nonzero(brain)) - (int(found[1:].sum()) - n_outside)
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
                f"calls {tumor:.0%} of the brain tumor",
                "a label of the tumor, not a brain mask",
            )
        )
    return counts, problems


def untold_schema(case: Case) -> Problem | None:
    """The problem of a case whose label comes without a word on its values, which are read; None where the
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
    ):  # as `labels.whole_values` takes them
        return problem_with(case, "error", LABEL, "has values that are not whole", "a label map")
    values = [int(value) for value in np.unique(np.rint(stored))]
    listed = ", ".join(map(str, values[:9])) + ", ..." * (len(values) > 9) or "0 alone"
    by_manifest = ", or a column 'schema' in the manifest" if case.layout == "manifest" else ""
    candidates = LAYOUTS[case.layout].candidates if case.layout in LAYOUTS else ()
    return problem_with(
        case,
        "error",
        LABEL,
        f"has the values {listed}, and nothing says which tissue each value is",
        f"--schema NAME{by_manifest}; the values fit {schemas_that_fit(values, among=candidates)}",
    )


def _strange_values(
    strange: Sequence[int], found: np.ndarray, schema: LabelSchema, *, layout: str
) -> tuple[str, str]:
    listed = ", ".join(f"{value} ({int(found[value]):,} voxels)" for value in strange)
    fitting = [
        name for name, other in SCHEMAS.items() if set(np.flatnonzero(found).tolist()) <= set(other.values)
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
