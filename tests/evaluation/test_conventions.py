"""The rules of each year and task: 2026 against the organizers' package, the others worked by hand."""

import json
import math

import numpy as np
import pytest
from organizers import FILE, MM, N_PAIRS, TASKS, random_pair

from brats_seg.evaluation.conventions import CONVENTIONS
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.table import METRICS, Score
from brats_seg.scans.labels import CLASS_ORDER, REGIONS, SCHEMAS, common_classes, to_tissue

CLASSES = common_classes([SCHEMAS["brats2024gli"]])  # healthy, both cores, edema, enhancing, cavity
CORE, EDEMA, ENHANCING, CAVITY = (CLASSES.index(name) for name in CLASSES[1:])
THEIR_REGIONS = {
    "mets": {"et": "active", "rc": "resection_cavity", "tc": "core", "wt": "whole"},
    "gli": {
        "et": "active", "rc": "resection_cavity", "tc": "core", "wt": "whole", "snfh": "edema",
        "netc": "necrotic_or_non_enhancing",
    },
    "ped": {
        "et": "active", "tc": "core", "wt": "whole", "netc": "non_enhancing_core", "cc": "necrotic_core",
        "ed": "edema",
    },
    "GoAT": {"et": "active", "tc": "core", "wt": "whole"},
    "MenRT": {"gtv": "whole"},
}  # fmt: skip
SCHEMA_AND_RULE = {
    "mets": ("brats2024gli", "brats2026_met"),
    "gli": ("brats2024gli", "brats2026"),
    "ped": ("brats2024ped", "brats2026_ped"),
    "GoAT": ("brats2023", "brats2026"),
    "MenRT": ("brats2024menrt", "brats2026_men_rt"),
}
THEIR_COLUMNS = {
    "lesionwise_dsc_mean": "lesion_dice", "lesionwise_hd95_mean": "lesion_hd95_mm",
    "lesionwise_nsd_mean": "lesion_surface_dice", "all_instance_tp": "n_lesions_found",
    "all_instance_fp": "n_lesions_false", "all_instance_fn": "n_lesions_missed",
    "all_instance_prec": "lesion_precision", "all_instance_rec": "lesion_sensitivity",
    "all_instance_f1": "lesion_f1", "global_dsc": "dice", "global_nsd": "surface_dice",
    "global_hd95": "hd95_mm", "small_instance_f1": "small_lesion_f1",
    "small_instance_prec": "small_lesion_precision", "small_instance_rec": "small_lesion_sensitivity",
}  # fmt: skip
IN_VOXELS = ("global_nsd", "global_hd95")
"""What the package measures in voxels; it agrees where a voxel is 1 mm."""


@pytest.mark.parametrize("task", TASKS)
def test_2026_is_as_the_organizers_package_has_it(task):
    schema, rule = SCHEMA_AND_RULE[task]
    classes = common_classes([SCHEMAS[schema]])
    theirs, n_compared = json.loads(FILE.read_text())[task], 0
    for seed in range(N_PAIRS):
        reference, prediction, spacing = random_pair(seed, task)
        ours = by_region(
            *(to_tissue(values, SCHEMAS[schema], classes) for values in (reference, prediction)),
            rule=rule,
            classes=classes,
            spacing=spacing,
        )
        for name, region in THEIR_REGIONS[task].items():
            for column, metric in THEIR_COLUMNS.items():
                if f"{column}_{name}" not in theirs or (column in IN_VOXELS and spacing != MM):
                    continue
                expected = float(theirs[f"{column}_{name}"][seed])
                expected = 373.0 if math.isinf(expected) else expected
                value = getattr(ours[region], metric)
                value = math.nan if value is None else value
                assert value == pytest.approx(expected, abs=1e-4, nan_ok=True), (seed, region, metric)
                n_compared += 1
    assert n_compared > 80


def by_region(reference, prediction, *, rule, classes=CLASSES, spacing=MM) -> dict[str, Score]:
    scores = score_case(reference, prediction, classes=classes, spacing_mm=spacing, conventions=(rule,))
    return {score.region: score for score in scores}


def boxes(**corners: tuple[slice, slice, slice]) -> np.ndarray:
    """A map of 24 x 24 x 60 with a box for each class, later ones over earlier ones."""
    tissue = np.zeros((24, 24, 60), np.uint8)
    for name, box in corners.items():
        tissue[box] = globals()[name.rstrip("0123456789")]
    return tissue


def cube(z: int, y: int, x: int, side: int = 4) -> tuple[slice, slice, slice]:
    return slice(z, z + side), slice(y, y + side), slice(x, x + side)


def test_2023_and_2024_differ_in_growth_and_smallest_volume():
    # Two cubes of 64 mm3, 4 voxels apart: one lesion when each grows by 3 voxels, two when it grows by 1.
    reference = boxes(EDEMA1=cube(4, 4, 4), EDEMA2=cube(4, 4, 12))
    n = {
        rule: by_region(reference, reference, rule=rule)["whole"].n_lesions_found
        for rule in (
            "brats2023",
            "brats2023_men",
            "brats2023_met",
            "brats2024_gli",
            "brats2024_met",
            "brats2026",
        )
    }
    assert n == {
        "brats2023": 1, "brats2023_men": 2, "brats2023_met": 2, "brats2024_gli": 1, "brats2024_met": 2,
        "brats2026": 2,
    }  # fmt: skip
    small = boxes(EDEMA=cube(4, 4, 4, side=3))  # 27 mm3
    n_small = [
        by_region(small, small, rule=rule)["whole"].n_lesions_found
        for rule in ("brats2023", "brats2023_met", "brats2024_gli", "brats2024_ped")
    ]
    assert n_small == [0, 1, 1, 1]


def test_2024_lesions_that_touch_the_same_lesion_of_another_tissue_are_one():
    # Two enhancing cubes 16 voxels apart, with a bar of necrotic core that touches both.
    bar = (slice(4, 8), slice(4, 8), slice(8, 24))
    apart = boxes(ENHANCING1=cube(4, 4, 4), ENHANCING2=cube(4, 4, 24))
    joined = boxes(CORE=bar, ENHANCING1=cube(4, 4, 4), ENHANCING2=cube(4, 4, 24))
    for rule, n_apart, n_joined in (("brats2024_gli", 2, 1), ("brats2024_ssa", 2, 1), ("brats2023", 2, 2)):
        assert by_region(apart, apart, rule=rule)["active"].n_lesions_found == n_apart
        assert by_region(joined, joined, rule=rule)["active"].n_lesions_found == n_joined
    # One of the two is missed: Dice of the joined lesion is 2 * 64 / (128 + 64); without joining (1 + 0) / 2.
    half = boxes(CORE=bar, ENHANCING1=cube(4, 4, 4))
    assert by_region(joined, half, rule="brats2024_gli")["active"].lesion_dice == pytest.approx(2 / 3)
    assert by_region(joined, half, rule="brats2023")["active"].lesion_dice == pytest.approx(1 / 2)


def test_2024_enhancing_tumor_and_cavity_count_from_10_mm3_on_and_the_rest_from_20():
    # 18 voxels each: 2 x 3 x 3
    small = {
        name: boxes(**{name: (slice(4, 6), slice(4, 7), slice(4, 7))})
        for name in ("ENHANCING", "CAVITY", "EDEMA")
    }
    found = {
        name: by_region(tissue, tissue, rule="brats2024_gli")[CLASSES[globals()[name]]].n_lesions_found
        for name, tissue in small.items()
    }
    assert found == {"ENHANCING": 1, "CAVITY": 1, "EDEMA": 0}


def test_2024_pediatric_predictions_are_joined_and_cleaned_of_10_voxels_or_less():
    reference = boxes(EDEMA=cube(4, 4, 4))
    specks = boxes(EDEMA1=cube(4, 4, 4), EDEMA2=(slice(4, 6), slice(4, 6), slice(40, 42)))  # 8 voxels, false
    assert by_region(reference, specks, rule="brats2024_ped")["whole"].lesion_dice == 1.0
    assert by_region(reference, specks, rule="brats2024_gli")["whole"].lesion_dice == 0.5


def test_before_radiotherapy_false_lesions_lower_no_mean():
    classes = ("healthy", "gross_tumor")
    reference, prediction = np.zeros((2, 24, 24, 60), np.uint8)
    reference[cube(4, 4, 4)] = prediction[cube(4, 4, 4)] = prediction[cube(4, 4, 40)] = 1
    score = by_region(reference, prediction, rule="brats2024_men_rt", classes=classes)
    assert set(score) == {"whole", "healthy", "gross_tumor"}
    assert (score["whole"].lesion_dice, score["whole"].n_lesions_false) == (1.0, 1)
    nothing = by_region(reference, 0 * prediction, rule="brats2024_men_rt", classes=classes)["whole"]
    assert (nothing.lesion_dice, nothing.lesion_hd95_mm) == (0.0, 374.0)


def test_2025_surface_dice_is_the_mean_of_the_shares_of_both_surfaces():
    # A cube of 4 has 64 - 8 = 56 surface voxels. Moved by 1 along x, all of them lie within 1 mm of the other
    # surface. At 0.5 mm those count that both surfaces share.
    reference, moved = boxes(EDEMA=cube(4, 4, 4)), boxes(EDEMA=cube(4, 4, 5))
    score = by_region(reference, moved, rule="brats2025_gli")["whole"]
    shared = sum(
        1
        for z in range(4)
        for y in range(4)
        for x in range(1, 4)
        if (z in (0, 3) or y in (0, 3) or x == 3) and (z in (0, 3) or y in (0, 3) or x == 1)
    )
    assert score.surface_dice == score.lesion_surface_dice == 1.0
    assert score.surface_dice_05mm == score.lesion_surface_dice_05mm == pytest.approx(shared / 56)


def test_2026_metastases_are_averaged_from_27_mm3_on_and_smaller_ones_detected_from_a_dice_of_0_2_on():
    # Large: one found at Dice 1, one missed. Small (8 mm3): one found at Dice 1, one missed. One false.
    reference = boxes(
        ENHANCING1=cube(4, 4, 4), ENHANCING2=cube(16, 16, 4), ENHANCING3=cube(4, 4, 20, side=2),
        ENHANCING4=cube(16, 4, 30, side=2),
    )  # fmt: skip
    prediction = boxes(
        ENHANCING1=cube(4, 4, 4), ENHANCING2=cube(4, 4, 20, side=2), ENHANCING3=cube(4, 16, 50, side=2)
    )
    score = by_region(reference, prediction, rule="brats2026_met")["active"]
    assert score.lesion_dice == pytest.approx(1 / 3)  # the found, the missed and the false one
    assert score.lesion_hd95_mm == pytest.approx(2 * 373 / 3)
    assert (score.lesion_f1, score.lesion_sensitivity, score.lesion_precision) == pytest.approx(
        (2 * 2 / (2 * 2 + 2 + 1), 2 / 4, 2 / 3)
    )
    assert (
        score.small_lesion_f1,
        score.small_lesion_sensitivity,
        score.small_lesion_precision,
    ) == pytest.approx((2 / (2 + 1 + 1), 1 / 2, 1 / 2))
    assert score.false_lesion_mm3 == 8.0
    assert score.lesion_sensitivity_below_100mm3 == 2 / 4  # all four lesions are that small
    assert np.isnan(score.lesion_sensitivity_from_1000mm3)


def test_every_convention_ranks_by_metrics_and_regions_that_there_are():
    for convention in CONVENTIONS.values():
        assert set(convention.headline) <= set(METRICS)
        assert set(convention.ranked) <= {*REGIONS, *CLASS_ORDER}
        if convention.lesions is not None:
            names = {*convention.lesions.joined_by, *convention.lesions.smallest_of}
            assert names <= {*REGIONS, *CLASS_ORDER}
