"""Label schema per BraTS task: voxel value <-> tissue class; regions. Data, not code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Num, UInt8

from brats_seg.core.errors import InputError, UsageError

TISSUES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core", "resection_cavity")
"""Every tissue class a voxel of the brain can have, in the order class indices follow."""
MERGED = "necrotic_or_non_enhancing"
"""The class that stands for both cores where one schema of a data set does not tell them apart."""
REGIONS = ("whole", "core", "active")
"""Nested regions, largest first."""
OUTSIDE = 255
"""The tissue index of a voxel outside the brain."""

_SHORT_WORDS = {  # for one line about all schemas
    "necrotic_core": "necrotic",
    MERGED: "core",
    "edema": "edema",
    "non_enhancing_core": "non-enhancing",
    "enhancing_core": "enhancing",
    "resection_cavity": "cavity",
}
_CORES = ("necrotic_core", "non_enhancing_core")
_ORDER = ("healthy", "necrotic_core", MERGED, *TISSUES[2:])
_REGION_TISSUES = {
    "whole": ("necrotic_core", MERGED, "edema", "non_enhancing_core", "enhancing_core"),
    "core": ("necrotic_core", MERGED, "non_enhancing_core", "enhancing_core"),
    "active": ("enhancing_core",),
}
_WHOLE_TOLERANCE = 1e-3
"""A value rebuilt from `scl_slope` misses its whole number by about 1e-7; interpolated labels miss it by far
more than this.
"""
_UNEXPECTED = 254


@dataclass(frozen=True)
class LabelSchema:
    """Which voxel value means which tissue.

    Attributes:
        name: the key in `SCHEMAS`.
        values: voxel value -> tissue name of `TISSUES`, or `MERGED`; 0 is always healthy.
        merged_value: the value `MERGED` is written back as.
    """

    name: str
    values: Mapping[int, str]
    merged_value: int

    def value_of(self, tissue: str) -> int:
        """The voxel value a tissue class is written as.

        A core this schema does not tell apart takes the merged value, and a resection cavity in a schema
        without one takes 0 (healthy).

        Raises:
            InputError: the tissue is none of `TISSUES` and not `MERGED`.
        """
        if tissue == MERGED:
            return self.merged_value
        for value, name in self.values.items():
            if name == tissue:
                return value
        if tissue in _CORES:
            return self.merged_value
        if tissue in TISSUES:
            return 0
        raise InputError(
            f"tissue class '{tissue}' is unknown; the classes are {', '.join((*TISSUES, MERGED))}"
        )


def _schema(name: str, *, merged_value: int, **values: int) -> LabelSchema:
    return LabelSchema(
        name,
        MappingProxyType({0: "healthy"} | {value: tissue for tissue, value in values.items()}),
        merged_value,
    )


SCHEMAS: dict[str, LabelSchema] = {
    schema.name: schema
    for schema in (
        # 2013 and 2015, Menze et al. 2015
        _schema(
            "brats2013", necrotic_core=1, edema=2, non_enhancing_core=3, enhancing_core=4, merged_value=1
        ),
        # 2017 to 2021, Bakas et al. 2018, Baid et al. 2021: 3 is skipped
        _schema("brats2017", necrotic_or_non_enhancing=1, edema=2, enhancing_core=4, merged_value=1),
        # 2023 adult glioma: enhancing moved from 4 to 3
        _schema("brats2023", necrotic_or_non_enhancing=1, edema=2, enhancing_core=3, merged_value=1),
        # 2024 adult glioma after treatment, de Verdier et al. 2024
        _schema(
            "brats2024gli",
            necrotic_or_non_enhancing=1,
            edema=2,
            enhancing_core=3,
            resection_cavity=4,
            merged_value=1,
        ),
        # 2024 pediatric: 3 is "cystic component"; merged is written as 2, the far larger part, since 1 is
        # enhancing here
        _schema(
            "brats2024ped", enhancing_core=1, non_enhancing_core=2, necrotic_core=3, edema=4, merged_value=2
        ),
        # Medical Segmentation Decathlon, Task01, and what nnU-Net converts BraTS to
        _schema("msd", edema=1, necrotic_or_non_enhancing=2, enhancing_core=3, merged_value=2),
    )
}


def schema_named(name: str) -> LabelSchema:
    """The schema of that name. Raises `InputError` with the choices."""
    if name not in SCHEMAS:
        raise InputError(f"label schema '{name}' is unknown; the schemas are {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def schema_option(name: str | None, *, option: str = "--schema") -> str:
    """The schema that an option names, "" where it names none. Raises `UsageError` with the choices."""
    if name is not None and name not in SCHEMAS:
        raise UsageError(f"{option} {name}: no such label schema; the schemas are {', '.join(SCHEMAS)}")
    return name or ""


def schemas_that_fit(values: Iterable[int]) -> str:
    """The schemas that have all these voxel values, in words, with what each value would mean; those that
    agree stand together.
    """
    found = sorted({int(value) for value in values} - {0})
    names: dict[str, list[str]] = {}
    for schema in SCHEMAS.values():
        if set(found) <= set(schema.values):
            meaning = ", ".join(f"{value} {_SHORT_WORDS[schema.values[value]]}" for value in found)
            names.setdefault(meaning, []).append(schema.name)
    return (
        " or ".join(f"{' or '.join(fitting)} ({meaning or 'no tumor'})" for meaning, fitting in names.items())
        or "no schema"
    )


def region_classes(region: str, classes: Sequence[str], *, cavity_in: Sequence[str] = ()) -> tuple[int, ...]:
    """Indices into `classes` of the tissue classes that make a region.

    whole = all tumor classes; core = whole without edema; active = enhancing alone. The resection cavity
    belongs to no region but those in `cavity_in`.

    Raises:
        InputError: a region that is none of `REGIONS`.
    """
    for name in (region, *cavity_in):
        if name not in REGIONS:
            raise InputError(f"region '{name}' is unknown; the regions are {', '.join(REGIONS)}")
    members = _REGION_TISSUES[region] + (("resection_cavity",) if region in cavity_in else ())
    return tuple(i for i, tissue in enumerate(classes) if tissue in members)


def common_classes(schemas: Iterable[LabelSchema]) -> tuple[str, ...]:
    """The finest tissue classes that all schemas tell apart, healthy first, in the order of `TISSUES`.

    One schema that merges the two cores merges them for all (`MERGED`, in the place of the necrotic core). A
    cavity is a class only where all schemas have it; else it counts as healthy. 2013 alone gives five
    classes; with 2017 or later beside it, four.

    Raises:
        InputError: no schema at all.
    """
    tissue_sets = [set(schema.values.values()) for schema in schemas]
    if not tissue_sets:
        raise InputError("no label schema given; tissue classes need at least one labeled case")
    if any(MERGED in tissues for tissues in tissue_sets):
        tissue_sets = [(tissues - set(_CORES)) | {MERGED} for tissues in tissue_sets]
    shared = set.intersection(*tissue_sets)
    return tuple(tissue for tissue in _ORDER if tissue in shared)


def to_tissue(
    array: Num[np.ndarray, "*grid"], schema: LabelSchema, classes: Sequence[str]
) -> UInt8[np.ndarray, "*grid"]:
    """Voxel values as stored -> indices into `classes`, same shape, by one table look-up.

    Whole numbers stored as floats are taken. A resection cavity becomes healthy where `classes` has none.

    Raises:
        InputError: values outside the schema (listed), values that are not whole, or a tissue that `classes`
            cannot express.
    """
    tissue = np.take(
        _lookup(schema, classes), whole_values(array, schema)
    )  # two thirds of the time of indexing
    if np.any(tissue == _UNEXPECTED):
        values = [int(v) for v in np.unique(array) if int(v) not in schema.values]
        raise InputError(
            f"label values {_listed(values)} are not in schema '{schema.name}'; its values are "
            f"{_listed(sorted(schema.values))}"
        )
    return tissue


def from_tissue(
    tissue: UInt8[np.ndarray, "*grid"], schema: LabelSchema, classes: Sequence[str]
) -> UInt8[np.ndarray, "*grid"]:
    """Indices into `classes` -> voxel values of the schema, same shape; outside the brain (255) becomes 0."""
    table = np.zeros(256, np.uint8)
    table[: len(classes)] = [schema.value_of(name) for name in classes]
    return np.take(table, tissue)


def whole_values(array: Num[np.ndarray, "*grid"], schema: LabelSchema) -> UInt8[np.ndarray, "*grid"]:
    """Label values of any number type as bytes (values from 0 to 255).

    Raises:
        InputError: NaN, infinity, a value that is not whole, or one that no byte holds.
    """
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    with np.errstate(invalid="ignore"):
        values = array.astype(np.uint8)
    if np.array_equal(
        values, array
    ):  # whole values that a byte holds, as released: a quarter of the time of the rest
        return values
    low, high = array.min(), array.max()
    choices = _listed(sorted(schema.values))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"label has NaN or infinite values; schema '{schema.name}' has {choices}")
    if low < -_WHOLE_TOLERANCE or high > 255:
        raise InputError(f"label values run from {low:g} to {high:g}; schema '{schema.name}' has {choices}")
    if array.dtype.kind != "f":
        return array.astype(np.uint8)
    values = (array + 0.5).astype(np.uint8)
    off = np.abs(array - values) > _WHOLE_TOLERANCE
    if off.any():
        raise InputError(
            f"label values are not whole: {int(off.sum())} voxels such as {array[off].flat[0]:g}; schema "
            f"'{schema.name}' has {choices}"
        )
    return values


def _lookup(schema: LabelSchema, classes: Sequence[str]) -> UInt8[np.ndarray, "256"]:
    table = np.full(256, _UNEXPECTED, np.uint8)
    for value, tissue in schema.values.items():
        table[value] = _index_of(tissue, schema, classes)
    return table


def _index_of(tissue: str, schema: LabelSchema, classes: Sequence[str]) -> int:
    for name in (
        tissue,
        MERGED if tissue in _CORES else tissue,
        "healthy" if tissue == "resection_cavity" else tissue,
    ):
        if name in classes:
            return list(classes).index(name)
    raise InputError(
        f"schema '{schema.name}' has '{tissue}', which the classes {', '.join(classes)} cannot express"
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values)
