"""Label schema per BraTS task: voxel value <-> tissue class; regions. Data, not code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Num, UInt8

from brats_seg.core.errors import InputError, UsageError, refuse

TISSUES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core", "resection_cavity")
"""Every tissue class a voxel of the brain can have, in the order class indices follow."""
MERGED = "necrotic_or_non_enhancing"
"""The class of both cores together, if one schema of a data set does not separate them."""
TUMOR_CORE = "tumor_core"
"""The class of both cores and the enhancing core together (2012)."""
WHOLE_TUMOR = "whole_tumor"
"""The class of all tumor tissue together, edema included (EGD)."""
GROSS_TUMOR = "gross_tumor"
"""The gross tumor volume of radiotherapy: it neither contains nor belongs to another class."""
REGIONS = ("whole", "core", "active")
"""Nested regions, largest first. A task has the regions that its classes form (`regions_of`)."""
OUTSIDE = 255
"""The tissue index of a voxel outside the brain."""

_SHORT_WORDS = {  # short names for messages about schemas
    "necrotic_core": "necrotic",
    MERGED: "core",
    "edema": "edema",
    "non_enhancing_core": "non-enhancing",
    "enhancing_core": "enhancing",
    "resection_cavity": "cavity",
    TUMOR_CORE: "whole core",
    WHOLE_TUMOR: "whole tumor",
    GROSS_TUMOR: "gross tumor",
}
_CORES = ("necrotic_core", "non_enhancing_core")
CLASS_ORDER = ("healthy", WHOLE_TUMOR, GROSS_TUMOR, TUMOR_CORE, "necrotic_core", MERGED, *TISSUES[2:])
"""Every class a network can have, in the order class indices follow."""
_PARTS = {  # the parts of each joined class
    MERGED: _CORES,
    TUMOR_CORE: (*_CORES, MERGED, "enhancing_core"),
    WHOLE_TUMOR: (*_CORES, MERGED, "enhancing_core", TUMOR_CORE, "edema"),
}
_REGION_TISSUES = {
    "whole": (*_PARTS[WHOLE_TUMOR], WHOLE_TUMOR, GROSS_TUMOR),
    "core": (*_PARTS[TUMOR_CORE], TUMOR_CORE),
    "active": ("enhancing_core",),
}
_WHOLE_TOLERANCE = 1e-3
"""A value computed with `scl_slope` differs from its whole number by about 1e-7; interpolated labels differ
by far more than this.
"""
_UNEXPECTED = 254


@dataclass(frozen=True)
class LabelSchema:
    """Which voxel value means which tissue.

    Attributes:
        name: the key in `SCHEMAS`.
        values: voxel value -> a name of `CLASS_ORDER`; 0 is always healthy.
        merged_value: the value written for `MERGED` in a schema that separates the two cores.
    """

    name: str
    values: Mapping[int, str]
    merged_value: int | None = None

    def value_of(self, tissue: str) -> int:
        """The voxel value that is written for a tissue class.

        A class that the schema does not separate gets the value of the joined class that contains it. A
        resection cavity gets 0 (healthy) in a schema without a cavity.

        Raises:
            InputError: a class that is unknown, or that the schema cannot write.
        """
        stored = _first_of(tissue, self.values.values())
        if stored is not None:
            return next(value for value, name in self.values.items() if name == stored)
        if tissue == MERGED and self.merged_value is not None:
            return self.merged_value
        if tissue == "resection_cavity":
            return 0
        if tissue not in CLASS_ORDER:
            raise InputError(f"tissue class '{tissue}' is unknown; the classes are {', '.join(CLASS_ORDER)}")
        raise InputError(
            f"tissue class '{tissue}' has no value in schema '{self.name}', which has "
            f"{', '.join(tuple(self.values.values())[1:])}"
        )

    def writes(self, classes: Iterable[str]) -> bool:
        """Whether all these classes have a value."""
        try:
            return all(self.value_of(tissue) >= 0 for tissue in classes)
        except InputError:
            return False


def _first_of(tissue: str, names: Iterable[str]) -> str | None:
    """The class itself, or the smallest joined class that contains it, if one is among the names."""
    choices = set(names)
    return next((n for n in (tissue, *_PARTS) if n in choices and tissue in (n, *_PARTS.get(n, ()))), None)


def _schema(name: str, *, merged_value: int | None = None, **values: int) -> LabelSchema:
    return LabelSchema(
        name,
        MappingProxyType({0: "healthy"} | {value: tissue for tissue, value in values.items()}),
        merged_value,
    )


SCHEMAS: dict[str, LabelSchema] = {
    schema.name: schema
    for schema in (
        # 2012: the whole core, enhancing tumor included, has one value (Menze et al. 2015 tell its history)
        _schema("brats2012", edema=1, tumor_core=2),
        # 2013 and 2015, Menze et al. 2015
        _schema(
            "brats2013", necrotic_core=1, edema=2, non_enhancing_core=3, enhancing_core=4, merged_value=1
        ),
        # 2017 to 2021, Bakas et al. 2018, Baid et al. 2021: 3 is skipped
        _schema("brats2017", necrotic_or_non_enhancing=1, edema=2, enhancing_core=4),
        # 2023 and later, except the following: enhancing moved from 4 to 3 (gliomas, metastases, meningiomas,
        # SSA, GoAT, and pediatric tumors of 2023)
        _schema("brats2023", necrotic_or_non_enhancing=1, edema=2, enhancing_core=3),
        # 2024 adult glioma after treatment, de Verdier et al. 2024; metastases since 2025
        _schema(
            "brats2024gli",
            necrotic_or_non_enhancing=1,
            edema=2,
            enhancing_core=3,
            resection_cavity=4,
        ),
        # 2024 and later, pediatric: 3 is "cystic component"; the merged class is written as 2, its much
        # larger part, because 1 is the enhancing core
        _schema(
            "brats2024ped", enhancing_core=1, non_enhancing_core=2, necrotic_core=3, edema=4, merged_value=2
        ),
        # 2024 meningioma before radiotherapy, LaBella et al. 2024
        _schema("brats2024menrt", gross_tumor=1),
        # Medical Segmentation Decathlon, Task01, and BraTS data converted by nnU-Net
        _schema("msd", edema=1, necrotic_or_non_enhancing=2, enhancing_core=3),
        # Erasmus Glioma Database: only the whole tumor, van der Voort et al. 2021
        _schema("egd", whole_tumor=1),
    )
}


def schema_named(name: str) -> LabelSchema:
    """The schema of that name. Raises `InputError` with the choices."""
    if name not in SCHEMAS:
        raise InputError(f"label schema '{name}' is unknown; the schemas are {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def schema_option(name: str | None, *, option: str = "--schema") -> str:
    """The schema that an option names, or "" without one. Raises `UsageError` with the choices."""
    if name is not None and name not in SCHEMAS:
        raise UsageError(f"{option} {name}: no such label schema; the schemas are {', '.join(SCHEMAS)}")
    return name or ""


def schemas_that_fit(values: Iterable[int], *, among: Sequence[str] = ()) -> str:
    """The schemas that have all these voxel values, in words, with the meaning of each value; schemas with
    equal meanings are listed together. `among` names the possible schemas; empty for all.
    """
    present = sorted({int(value) for value in values} - {0})
    names: dict[str, list[str]] = {}
    for schema in map(schema_named, among or SCHEMAS):
        if set(present) <= set(schema.values):
            meaning = ", ".join(f"{value} {_SHORT_WORDS[schema.values[value]]}" for value in present)
            names.setdefault(meaning, []).append(schema.name)
    return (
        " or ".join(f"{' or '.join(fitting)} ({meaning or 'no tumor'})" for meaning, fitting in names.items())
        or "no schema"
    )


def region_classes(region: str, classes: Sequence[str], *, cavity_in: Sequence[str] = ()) -> tuple[int, ...]:
    """Indices into `classes` of the tissue classes that make a region.

    whole = all tumor classes; core = whole without edema; active = only enhancing core. The gross tumor
    volume is whole. The resection cavity belongs only to the regions in `cavity_in`.

    Raises:
        InputError: a region that is not in `REGIONS`.
    """
    for name in (region, *cavity_in):
        if name not in REGIONS:
            raise InputError(f"region '{name}' is unknown; the regions are {', '.join(REGIONS)}")
    members = _REGION_TISSUES[region] + (("resection_cavity",) if region in cavity_in else ())
    return tuple(i for i, tissue in enumerate(classes) if tissue in members)


def regions_of(classes: Sequence[str]) -> tuple[str, ...]:
    """The regions that the classes form, largest first."""
    return tuple(region for region in REGIONS if region_classes(region, classes))


def common_classes(schemas: Iterable[LabelSchema]) -> tuple[str, ...]:
    """The finest tissue classes that all schemas separate, healthy first, in the order of `CLASS_ORDER`.

    If one schema joins several classes, they are joined for all schemas: with 2013 and 2017 or later, the two
    cores are one class. A cavity is a class only if all schemas have it; else it counts as healthy. 2013
    alone gives five classes; 2013 with 2017 or later gives four.

    Raises:
        InputError: no schema at all, or schemas without a tumor class in common.
    """
    schemas = tuple(schemas)
    tissue_sets = [set(schema.values.values()) for schema in schemas]
    if not tissue_sets:
        raise InputError("no label schema given; tissue classes need at least one labeled case")
    for merged, parts in _PARTS.items():
        if any(merged in tissues for tissues in tissue_sets):
            tissue_sets = [
                (tissues - set(parts)) | {merged} if tissues & {merged, *parts} else tissues
                for tissues in tissue_sets
            ]
    shared = set.intersection(*tissue_sets)
    if shared == {"healthy"}:
        names = " and ".join(sorted({schema.name for schema in schemas}))
        raise InputError(
            f"the label schemas {names} have no tumor class in common; use each schema separately"
        )
    return tuple(tissue for tissue in CLASS_ORDER if tissue in shared)


def to_tissue(
    array: Num[np.ndarray, "*grid"], schema: LabelSchema, classes: Sequence[str]
) -> UInt8[np.ndarray, "*grid"]:
    """Voxel values as stored -> indices into `classes`, same shape, by one table look-up.

    Whole numbers stored as floats are accepted. A resection cavity becomes healthy if `classes` has no
    cavity.

    Raises:
        InputError: values outside the schema (listed), values that are not whole, or a tissue that `classes`
            cannot express.
    """
    tissue = np.take(
        _lookup(schema, classes), whole_values(array, schema)
    )  # takes two thirds of the time of indexing
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
        InputError: NaN, infinity, a value that is not whole, or a value outside 0 to 255.
    """
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    with np.errstate(invalid="ignore"):
        values = array.astype(np.uint8)
    if np.array_equal(
        values, array
    ):  # whole values from 0 to 255, as released: four times faster than the code below
        return values
    low, high = array.min(), array.max()
    choices = _listed(sorted(schema.values))
    refuse(
        (
            not (np.isfinite(low) and np.isfinite(high)),
            f"label has NaN or infinite values; schema '{schema.name}' has {choices}",
        ),
        (
            low < -_WHOLE_TOLERANCE or high > 255,
            f"label values run from {low:g} to {high:g}; schema '{schema.name}' has {choices}",
        ),
        error=InputError,
    )
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
        nearest = _first_of(tissue, classes)
        if nearest is None and tissue == "resection_cavity":
            nearest = "healthy"
        if nearest is None:
            raise InputError(
                f"schema '{schema.name}' has '{tissue}', which the classes {', '.join(classes)} "
                "cannot express"
            )
        table[value] = list(classes).index(nearest)
    return table


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values)
