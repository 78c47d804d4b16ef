import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import InputError
from brats_seg.scans.labels import (
    MERGED,
    REGIONS,
    SCHEMAS,
    common_classes,
    from_tissue,
    region_classes,
    regions_of,
    schema_named,
    to_tissue,
)

FIVE = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
FOUR = ("healthy", MERGED, "edema", "enhancing_core")


def test_2013_alone_tells_five_classes_apart():
    assert common_classes([SCHEMAS["brats2013"]]) == FIVE


@pytest.mark.parametrize("later", ["brats2017", "brats2023", "brats2024gli", "msd"])
def test_with_a_later_release_the_two_cores_merge(later):
    assert common_classes([SCHEMAS["brats2013"], SCHEMAS[later]]) == FOUR


def test_the_cavity_is_a_class_only_where_all_have_it():
    assert common_classes([SCHEMAS["brats2024gli"]]) == (*FOUR, "resection_cavity")
    assert common_classes([SCHEMAS["brats2024gli"], SCHEMAS["brats2023"]]) == FOUR


def test_no_schema_is_refused():
    with pytest.raises(InputError, match="at least one labeled case"):
        common_classes([])


def test_regions_are_nested():
    assert region_classes("whole", FIVE) == (1, 2, 3, 4)
    assert region_classes("core", FIVE) == (1, 3, 4)
    assert region_classes("active", FIVE) == (4,)
    assert [region_classes(region, FOUR) for region in REGIONS] == [(1, 2, 3), (1, 3), (3,)]


def test_the_cavity_joins_a_region_only_if_asked():
    classes = common_classes([SCHEMAS["brats2024gli"]])
    assert region_classes("whole", classes) == (1, 2, 3)
    assert region_classes("whole", classes, cavity_in=("whole",)) == (1, 2, 3, 4)
    assert region_classes("core", classes, cavity_in=("whole",)) == (1, 3)


def test_unknown_region_is_refused_with_the_choices():
    with pytest.raises(InputError, match="'tumor' is unknown; the regions are whole, core, active"):
        region_classes("tumor", FIVE)


@pytest.mark.parametrize(
    ("schema", "values", "classes", "expected"),
    [
        ("brats2013", [0, 1, 2, 3, 4], FIVE, [0, 1, 2, 3, 4]),
        ("brats2013", [0, 1, 2, 3, 4], FOUR, [0, 1, 2, 1, 3]),
        ("brats2017", [0, 1, 2, 4], FOUR, [0, 1, 2, 3]),
        ("brats2023", [0, 1, 2, 3], FOUR, [0, 1, 2, 3]),
        ("brats2024gli", [0, 1, 2, 3, 4], FOUR, [0, 1, 2, 3, 0]),
        ("brats2024ped", [0, 1, 2, 3, 4], FIVE, [0, 4, 3, 1, 2]),
        ("msd", [0, 1, 2, 3], FOUR, [0, 2, 1, 3]),
    ],
)
def test_values_mean_the_tissues_the_release_says(schema, values, classes, expected):
    assert to_tissue(np.array(values), SCHEMAS[schema], classes).tolist() == expected


@pytest.mark.parametrize(
    ("schema", "value"),
    [("brats2013", 1), ("brats2017", 1), ("brats2023", 1), ("msd", 2), ("brats2024ped", 2)],
)
def test_a_merged_class_is_written_back_as_one_value(schema, value):
    assert from_tissue(np.array([0, 1, 255], np.uint8), SCHEMAS[schema], FOUR).tolist() == [0, value, 0]


def test_a_core_the_schema_does_not_tell_apart_takes_the_merged_value():
    assert [
        SCHEMAS["brats2017"].value_of(t) for t in ("necrotic_core", "non_enhancing_core", "resection_cavity")
    ] == [1, 1, 0]
    with pytest.raises(InputError, match="'gray_matter' is unknown"):
        SCHEMAS["brats2017"].value_of("gray_matter")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", "int64"])
def test_whole_values_of_any_number_type_are_taken(dtype):
    assert to_tissue(np.array([[0, 1], [2, 4]], dtype), SCHEMAS["brats2017"], FOUR).tolist() == [
        [0, 1],
        [2, 3],
    ]


def test_values_rebuilt_from_a_slope_are_whole_enough():
    stored = np.array([0, 16384, 32768, 65535], np.uint16).astype(np.float32) * np.float32(4 / 65535)
    assert to_tissue(stored, SCHEMAS["brats2017"], FOUR).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1, 7], "label values 7 are not in schema 'brats2017'; its values are 0, 1, 2, 4"),
        ([0.0, 3.0, 9.0], "label values 3, 9 are not in schema"),
        ([0.0, 0.5], "not whole: 1 voxels such as 0.5"),
        ([0.0, np.nan], "NaN or infinite"),
        ([0.0, np.inf], "NaN or infinite"),
        ([0, -1], "run from -1 to 0"),
        ([0, 300], "run from 0 to 300"),
    ],
)
def test_other_values_are_refused_and_listed(values, said):
    with pytest.raises(InputError, match=said):
        to_tissue(np.array(values), SCHEMAS["brats2017"], FOUR)


def test_unknown_schema_is_refused_with_the_choices():
    with pytest.raises(InputError, match="'brats2016' is unknown; the schemas are brats2012, brats2013"):
        schema_named("brats2016")


@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_from_tissue_undoes_to_tissue_with_a_schemas_own_classes(name, data):
    schema = SCHEMAS[name]
    values = np.array(data.draw(st.lists(st.sampled_from(sorted(schema.values)), min_size=1)), np.uint8)
    classes = common_classes([schema])
    assert np.array_equal(from_tissue(to_tissue(values, schema, classes), schema, classes), values)


def test_2012_tells_the_core_as_a_whole_and_egd_the_tumor_as_a_whole():
    assert common_classes([SCHEMAS["brats2012"]]) == ("healthy", "tumor_core", "edema")
    assert common_classes([SCHEMAS["brats2012"], SCHEMAS["brats2023"]]) == ("healthy", "tumor_core", "edema")
    assert common_classes([SCHEMAS["egd"], SCHEMAS["brats2013"]]) == ("healthy", "whole_tumor")
    assert to_tissue(np.arange(5), SCHEMAS["brats2013"], ("healthy", "tumor_core", "edema")).tolist() == [
        0,
        1,
        2,
        1,
        1,
    ]
    assert [SCHEMAS["brats2012"].value_of(tissue) for tissue in FOUR] == [0, 2, 1, 2]


def test_a_task_has_the_regions_that_its_classes_make():
    assert regions_of(FIVE) == ("whole", "core", "active")
    assert regions_of(common_classes([SCHEMAS["brats2012"]])) == ("whole", "core")
    assert regions_of(common_classes([SCHEMAS["brats2024menrt"]])) == ("whole",)


def test_a_gross_tumor_volume_has_no_class_in_common_with_the_others():
    with pytest.raises(InputError, match="brats2023 and brats2024menrt have no tumor class in common"):
        common_classes([SCHEMAS["brats2024menrt"], SCHEMAS["brats2023"]])
    with pytest.raises(InputError, match="'edema' has no value in schema 'brats2024menrt'"):
        SCHEMAS["brats2024menrt"].value_of("edema")


@given(st.sets(st.sampled_from(sorted(set(SCHEMAS) - {"brats2024menrt"})), min_size=1))
def test_every_schema_of_a_mix_can_express_its_values_in_the_common_classes(names):
    schemas = [SCHEMAS[name] for name in names]
    classes = common_classes(schemas)
    for schema in schemas:
        assert to_tissue(np.array(sorted(schema.values)), schema, classes).max() < len(classes)
