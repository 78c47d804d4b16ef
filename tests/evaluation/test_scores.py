import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.table import METRICS, few_patients
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import SUFFIXES, write_volume

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
NAN = math.nan
# Dice and HD95 where both are empty, and where one is: the table of the conventions, by name
EMPTY = {
    "brats2013": ((NAN, NAN), (0.0, NAN)),
    "brats2020": ((1.0, 0.0), (0.0, 373.12866)),
    "brats2020_pooled_hd95": ((1.0, 0.0), (0.0, 373.12866)),
    "nnunet": ((NAN, NAN), (0.0, NAN)),
    "brats2023": ((1.0, 0.0), (0.0, 374.0)),
    "brats2026": ((NAN, NAN), (0.0, 373.0)),
}
ALL = tuple(EMPTY)
"""One of each kind of rule; test_conventions.py has every task."""
SHAPE = (10, 12, 14)


def tumor(*, core: int = 0, edema: int = 0, active: int = 0, at: int = 2) -> np.ndarray:
    """(Z, Y, X) with blocks of `core` x 5 x 5, ... voxels side by side along z."""
    tissue = np.zeros(SHAPE, np.uint8)
    z = 1
    for value, depth in ((1, core), (2, edema), (3, active)):
        tissue[z : z + depth, at : at + 5, at : at + 5] = value
        z += depth
    return tissue


def rows(reference, prediction, **more):
    scores = score_case(
        reference, prediction, classes=CLASSES, spacing_mm=(1.0, 1.0, 1.0), conventions=ALL, **more
    )
    return {(s.region, s.convention): s for s in scores}


def same(a: float, b: float) -> bool:
    return a == pytest.approx(b, nan_ok=True)


@pytest.mark.parametrize("convention", ALL)
def test_empty_regions(convention):
    nothing, active = tumor(edema=3), tumor(edema=3, active=3)
    both, one = EMPTY[convention]
    found = rows(nothing, nothing)["active", convention]
    assert same(found.dice, both[0])
    assert same(found.hd95_mm, both[1])
    for reference, prediction in ((nothing, active), (active, nothing)):
        found = rows(reference, prediction)["active", convention]
        assert same(found.dice, one[0])
        assert same(found.iou, one[0])
        assert same(found.hd95_mm, one[1])


def test_lesion_wise_empty_regions():
    nothing, active = tumor(edema=3), tumor(edema=3, active=3)
    for reference, prediction, dice, mm in (
        (nothing, nothing, 1.0, 0.0),
        (nothing, active, 0.0, 374.0),
        (active, nothing, 0.0, 374.0),
    ):
        found = rows(reference, prediction)["active", "brats2023"]
        assert (found.lesion_dice, found.lesion_hd95_mm) == (dice, mm)
    small = tumor(edema=3, active=2)  # 50 mm3 are not scored: nothing to find
    assert rows(small, nothing)["active", "brats2023"].lesion_dice == 1.0
    assert math.isnan(rows(active, active)["active", "brats2020"].lesion_dice)


def test_sensitivity_without_reference_and_precision_without_prediction():
    nothing, active = tumor(edema=3), tumor(edema=3, active=3)
    """Both are 0 / 0 there: left out by every convention, so that a mean never counts a sensitivity for cases
    without the region.
    """
    false_positive, missed, neither = rows(nothing, active), rows(active, nothing), rows(nothing, nothing)
    for convention in ALL:
        assert same(false_positive["active", convention].sensitivity, NAN)
        assert same(false_positive["active", convention].precision, 0.0)
        assert same(missed["active", convention].precision, NAN)
        assert same(missed["active", convention].sensitivity, 0.0)
        assert same(neither["active", convention].sensitivity, NAN)
        assert same(neither["active", convention].precision, NAN)


def test_a_case_by_hand():
    reference, prediction = tumor(core=2, edema=2, active=4), tumor(core=2, edema=2, active=3)
    found = rows(reference, prediction)
    whole = found["whole", "brats2020"]
    assert (whole.n_reference_vox, whole.n_prediction_vox) == (200, 175)
    assert whole.dice == pytest.approx(350 / 375)
    assert whole.sensitivity == pytest.approx(175 / 200)
    assert whole.precision == 1.0
    assert whole.specificity == 1.0
    assert whole.volume_error_ml == pytest.approx(-0.025)
    assert (whole.hd95_mm, whole.surface_dice) == (1.0, 1.0)  # the missing layer is 1 mm thick
    assert found["core", "brats2020"].dice == pytest.approx(250 / 275)
    assert found["active", "nnunet"].dice == pytest.approx(150 / 175)
    assert found["active", "brats2023"].lesion_dice == pytest.approx(150 / 175)
    assert found["edema", "brats2020"].dice == 1.0
    healthy = found["healthy", "brats2020"]
    assert healthy.dice == pytest.approx(2 * 1480 / (1480 + 1505))
    assert math.isnan(healthy.hd95_mm)


@given(st.data())
def test_itself_is_perfect_and_every_score_in_its_range(data):
    a, b = (
        data.draw(arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 3), fill=st.just(0))) for _ in range(2)
    )
    for score in rows(a, a).values():
        for metric, best in zip(
            ("dice", "iou", "surface_dice", "lesion_dice", "hd95_mm", "volume_error_ml"),
            (1, 1, 1, 1, 0, 0),
            strict=True,
        ):
            assert getattr(score, metric) == best or math.isnan(getattr(score, metric))
    for score in rows(a, b).values():
        for metric in (name for name, m in METRICS.items() if not m.unit):
            value = getattr(score, metric)
            assert math.isnan(value) or 0 <= value <= 1


def test_unknown_convention_is_refused():
    with pytest.raises(
        UsageError,
        match="the conventions are brats2013, brats2020, brats2020_pooled_hd95, nnunet, brats2023, ",
    ):
        score_case(tumor(), tumor(), classes=CLASSES, spacing_mm=(1, 1, 1), conventions=("brats1999",))


def write_reference(folder: Path, tissues: dict[str, np.ndarray]) -> Path:
    """BraTS 2021 cases that are labels alone; 4 is enhancing."""
    for name, tissue in tissues.items():
        (folder / name).mkdir(parents=True)
        write_map(folder / name / f"{name}_seg.nii.gz", tissue)
    return folder


def write_map(path: Path, tissue: np.ndarray, *, values=(0, 1, 2, 4), geometry=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, np.array(values, np.uint8)[tissue], geometry or make_geometry(SHAPE), dtype="uint8")


def test_folders(tmp_path):
    truth = {"BraTS2021_00001": tumor(core=2, edema=2, active=4), "BraTS2021_00002": tumor(core=2, edema=2)}
    reference = write_reference(tmp_path / "reference", truth)
    answers = {
        "BraTS2021_00001": tumor(core=2, edema=2, active=3),
        "BraTS2021_00002": tumor(core=2, edema=2, active=1),
    }
    for name, tissue in answers.items():
        write_map(tmp_path / "out" / f"{name}.nii.gz", tissue)
    report = evaluate_folders(
        tmp_path / "out", reference, output=tmp_path / "scores", options=ScoreOptions(conventions=ALL)
    )
    assert (report.exit_code, report.problems) == (0, ())

    with (tmp_path / "scores" / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * (3 + 4) * len(ALL)
    columns = [
        "case", "region", "convention", "n_reference_vox", "n_prediction_vox", "dice", "iou", "sensitivity",
        "specificity", "precision", "hd95_mm",
    ]  # fmt: skip
    assert list(table[0])[:11] == columns
    active = {(r["case"], r["convention"]): r for r in table if r["region"] == "active"}
    assert active["BraTS2021_00002", "brats2020"]["hd95_mm"] == "373.12866"
    assert active["BraTS2021_00002", "nnunet"]["hd95_mm"] == ""

    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    figures = summary["conventions"]["brats2020"]["regions"]["active"]
    first = 150 / 175
    assert figures["dice"]["mean"] == pytest.approx(first / 2)
    assert figures["dice"]["n"] == 2
    assert figures["dice"]["interval95"] == pytest.approx([0, first])
    assert figures["dice_where_present"]["mean"] == pytest.approx(first)
    counted = [
        figures[key]
        for key in ("n_cases", "n_present", "n_false_positive_cases", "n_missed_cases", "n_both_empty")
    ]
    assert counted == [2, 1, 1, 0, 0]
    assert summary["conventions"]["nnunet"]["regions"]["active"]["hd95_mm"]["n"] == 1
    assert summary["conventions"]["brats2013"]["both_empty"]["dice"] is None
    assert "air" in summary["specificity"]
    assert "lesion_dice" in summary["conventions"]["brats2023"]["regions"]["active"]


def test_every_problem_is_named_and_the_others_scored(tmp_path):
    names = {
        k: f"BraTS2021_0000{i}"
        for i, k in enumerate(("good", "missing", "shape", "moved", "value", "double", "stack", "text"))
    }
    reference = write_reference(tmp_path / "reference", dict.fromkeys(names.values(), tumor(core=2, edema=2)))
    out = tmp_path / "out"
    for key in ("good", "double"):
        write_map(out / f"{names[key]}.nii.gz", tumor(core=2, edema=2))
    write_map(out / f"{names['double']}.nii", tumor())
    write_volume(
        out / f"{names['shape']}.nii.gz",
        np.zeros((9, 12, 14), np.uint8),
        make_geometry((9, 12, 14)),
        dtype="uint8",
    )
    write_map(
        out / f"{names['moved']}.nii.gz", tumor(core=2), geometry=make_geometry(SHAPE, spacing_mm=(1, 1, 1.1))
    )
    write_map(out / f"{names['value']}.nii.gz", tumor(core=2), values=(0, 7, 2, 4))
    write_volume(
        out / f"{names['stack']}.nii.gz", np.zeros((*SHAPE, 2), np.uint8), make_geometry(SHAPE), dtype="uint8"
    )
    (out / f"{names['text']}.nii.gz").write_text("not a scan")
    write_map(out / "stranger.nii.gz", tumor())
    report = evaluate_folders(out, reference)
    assert report.exit_code == 1
    assert {s.case for s in report.scores} == {names["good"]}
    said = {p.case: str(p) for p in report.problems}
    assert len(report.problems) == report.summary["n_problems"] == 8
    assert "no prediction" in said[names["missing"]]
    assert "shape (9, 12, 14)" in said[names["shape"]]
    assert "affine" in said[names["moved"]]
    assert "7" in said[names["value"]]
    assert "0, 1, 2, 4" in said[names["value"]]
    assert "2 predictions" in said[names["double"]]
    assert "2 volumes" in said[names["stack"]]
    assert "gzip" in said[names["text"]]
    assert "no reference" in said["stranger"]
    assert evaluate_folders(out, reference, options=ScoreOptions(only=tuple([names["good"]]))).exit_code == 0


def test_a_case_asked_for_with_neither_prediction_nor_reference_is_named_once(tmp_path):
    reference = write_reference(
        tmp_path / "reference", {"BraTS2021_00001": tumor(core=2), "BraTS2021_00002": tumor(core=2)}
    )
    write_map(
        reference / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz", tumor()
    )  # a case without a label
    write_map(reference / "BraTS2021_00002" / "BraTS2021_00002_seg.nii", tumor())  # a second label: ambiguous
    write_map(tmp_path / "out" / "BraTS2021_00001.nii.gz", tumor(core=2))
    asked = [f"BraTS2021_0000{i}" for i in range(1, 5)]
    report = evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(only=tuple(asked)))
    assert {s.case for s in report.scores} == {asked[0]}
    said = {p.case: p.what for p in report.problems}
    assert (report.exit_code, sorted(said), len(report.problems)) == (1, asked[1:], 3)
    assert "ambiguous" in said[asked[1]]
    assert said[asked[2]] == said[asked[3]] == "neither a prediction nor a reference with a label"
    assert (
        evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(only=tuple(asked[:1]))).problems
        == ()
    )


def test_problems_of_folders_are_named_where_they_concern_the_cases_asked_for(tmp_path):
    here, elsewhere = tmp_path / "scans" / "here", tmp_path / "scans" / "elsewhere"
    write_map(here / "label.nii.gz", tumor(core=2), values=(0, 1, 2, 3))
    (here / "manifest.csv").write_text("case,label,schema\nmine,label.nii.gz,brats2023\n")
    (here / "strange.nii.gz").touch()
    write_map(elsewhere / "imagesTr" / "BRATS_001.nii.gz", tumor())
    (elsewhere / "dataset.json").write_text("no JSON")
    write_map(tmp_path / "out" / "mine.nii.gz", tumor(core=2), values=(0, 1, 2, 3))
    found = evaluate_folders(tmp_path / "out", tmp_path / "scans", options=ScoreOptions(only=tuple(["mine"])))
    assert found.exit_code == 0
    assert ["strange.nii.gz" in p.what for p in found.problems] == [True]
    lost = evaluate_folders(
        tmp_path / "out", tmp_path / "scans", options=ScoreOptions(only=tuple(["mine", "BRATS_001"]))
    )  # it may be in the broken data set
    assert lost.exit_code == 1
    assert [(p.severity, p.case) for p in lost.problems] == [
        ("error", ""),
        ("warning", ""),
        ("warning", ""),
        ("error", "BRATS_001"),
    ]


def test_the_cavity_is_scored_in_the_regions_asked_for_alone(tmp_path):
    name, values = "BraTS-GLI-00001-100", (0, 1, 2, 3, 4)
    truth = tumor(core=2, edema=2)
    truth[6:8, 2:7, 2:7] = 4  # 50 voxels of cavity beside 100 of tumor; the prediction has none
    write_map(tmp_path / "scans" / name / f"{name}-seg.nii.gz", truth, values=values)
    write_map(tmp_path / "out" / f"{name}.nii.gz", np.where(truth == 4, 0, truth).astype(np.uint8))
    (tmp_path / "out" / "probabilities").mkdir()
    (tmp_path / "out" / "probabilities" / "classes.txt").write_text(
        "healthy necrotic_or_non_enhancing edema enhancing_core resection_cavity"
    )
    write_volume(
        tmp_path / "out" / "probabilities" / f"{name}.nii.gz",
        np.eye(5)[truth],
        make_geometry(SHAPE),
        dtype="float32",
    )
    for cavity_in, dice in (((), 1.0), (("whole",), 200 / 250)):
        report = evaluate_folders(
            tmp_path / "out", tmp_path / "scans", options=ScoreOptions(cavity_in=cavity_in)
        )
        assert (report.problems, report.summary["cavity_in"]) == ((), list(cavity_in))
        found = {s.region: s.dice for s in report.scores}
        assert (found["whole"], found["core"]) == (pytest.approx(dice), 1.0)
        assert (
            report.summary["calibration"]["regions"]["whole"]["ece"] == 0
        )  # the saved probabilities know the cavity
    assert report.summary["calibration"]["regions"]["whole"]["bins"][-1]["n_voxels"] == 150
    with pytest.raises(UsageError, match="--cavity-in edema: unknown; the regions are whole, core, active"):
        evaluate_folders(tmp_path / "out", tmp_path / "scans", options=ScoreOptions(cavity_in=("edema",)))


def test_a_cavity_that_the_labels_do_not_tell_apart_joins_no_region(tmp_path):
    reference = write_reference(tmp_path / "reference", {"BraTS2021_00001": tumor(core=2)})
    write_map(tmp_path / "out" / "BraTS2021_00001.nii.gz", tumor(core=2))
    with pytest.raises(
        UsageError,
        match=r"--cavity-in whole: .*, edema, enhancing_core, and no resection cavity; .*brats2024gli",
    ):
        evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(cavity_in=("whole",)))


@pytest.mark.parametrize(
    ("n_patients", "said"),
    [
        (1, ""),  # no interval, no test
        (5, "With fewer than 6 patients p cannot fall below 0.05 and the 95 % intervals are too narrow."),
        (6, ""),
    ],
)
def test_few_patients_are_said(tmp_path, n_patients, said):
    """Two cases of each patient: what counts is not the number of cases."""
    truth = {
        f"BraTS-GLI-{i:05d}-00{time}": tumor(core=2, edema=2, active=3)
        for i in range(n_patients)
        for time in (0, 1)
    }
    for name, tissue in truth.items():
        write_map(tmp_path / "scans" / name / f"{name}-seg.nii.gz", tissue, values=(0, 1, 2, 3))
        for out in ("out", "same"):
            write_map(tmp_path / out / f"{name}.nii.gz", tissue, values=(0, 1, 2, 3))
    alone = evaluate_folders(tmp_path / "out", tmp_path / "scans").summary
    figures = alone["conventions"]["brats2020"]["regions"]["whole"]["dice"]
    assert (figures["n"], figures["n_patients"]) == (2 * n_patients, n_patients)
    assert few_patients(alone) == said.replace("p cannot fall below 0.05 and ", "")
    both = evaluate_folders(tmp_path / "out", tmp_path / "scans", against=tmp_path / "same").summary
    assert few_patients(both) == (
        said or ("With fewer than 6 patients p cannot fall below 0.05." if n_patients == 1 else "")
    )


def test_a_reference_that_cannot_be_used_is_named_and_the_others_scored(tmp_path):
    names = {k: f"BraTS2021_0000{i}" for i, k in enumerate(("good", "stack", "double", "value"))}
    reference = write_reference(tmp_path / "reference", dict.fromkeys(names.values(), tumor(core=2, edema=2)))
    file = {key: reference / name / f"{name}_seg.nii.gz" for key, name in names.items()}
    write_volume(file["stack"], np.zeros((*SHAPE, 2), np.uint8), make_geometry(SHAPE), dtype="uint8")
    write_map(file["double"].with_suffix(""), tumor())
    write_map(file["value"], tumor(core=2), values=(0, 9, 2, 4))
    for name in names.values():
        write_map(tmp_path / "out" / f"{name}.nii.gz", tumor(core=2, edema=2))
    report = evaluate_folders(tmp_path / "out", reference)
    said = {key: " ".join(str(p) for p in report.problems if p.case == name) for key, name in names.items()}
    assert (report.exit_code, {s.case for s in report.scores}, said["good"]) == (1, {names["good"]}, "")
    assert "2 volumes" in said["stack"]
    assert "ambiguous" in said["double"]
    assert "9" in said["value"]


def test_against_another_folder(tmp_path):
    truth = {f"BraTS2021_{i:05d}": tumor(core=2, edema=2, active=3) for i in range(6)}
    reference = write_reference(tmp_path / "reference", truth)
    for i, name in enumerate(truth):
        write_map(tmp_path / "out" / f"{name}.nii.gz", truth[name])
        worse = truth[name].copy()
        worse[1 : 2 + i % 2, 2, 2] = 0
        write_map(tmp_path / "worse" / f"{name}.nii.gz", worse)
    report = evaluate_folders(tmp_path / "out", reference, against=tmp_path / "worse")
    tests = {(t["region"], t["metric"]): t for t in report.summary["against"]["tests"]}
    whole = tests["whole", "dice"]
    assert whole["n"] == 6
    assert whole["mean_difference"] > 0
    assert whole["p"] == pytest.approx(0.03125)  # six of six: 2 / 2^6
    assert tests["active", "dice"]["p"] == 1.0
    with pytest.raises(InputError, match="is not a folder"):
        evaluate_folders(tmp_path / "nowhere", reference)


def write_time_points(tmp_path: Path, n_patients: int = 8) -> dict[str, np.ndarray]:
    """Two scans of each patient; every prediction is right at the first time point and misses most of the
    tumor at the second.
    """
    truth = {
        f"BraTS-GLI-{i:05d}-00{time}": tumor(core=2, edema=3) for i in range(n_patients) for time in (0, 1)
    }
    for name, tissue in truth.items():
        write_map(tmp_path / "scans" / name / f"{name}-seg.nii.gz", tissue, values=(0, 1, 2, 3))
        seen = tissue if name.endswith("0") else tumor(core=1 + int(name[10:15]) % 2)
        write_map(tmp_path / "out" / f"{name}.nii.gz", seen, values=(0, 1, 2, 3))
        if name.endswith("0"):
            write_map(tmp_path / "fewer" / f"{name}.nii.gz", seen, values=(0, 1, 2, 3))
    return truth


def test_a_paired_test_is_over_the_scans_that_both_folders_have(tmp_path):
    """The second folder holds the same maps and lacks the harder time points: nothing differs."""
    write_time_points(tmp_path)
    for out, against in (("out", "fewer"), ("fewer", "out")):
        tests = evaluate_folders(tmp_path / out, tmp_path / "scans", against=tmp_path / against).summary[
            "against"
        ]["tests"]
        whole = next(t for t in tests if (t["region"], t["metric"]) == ("whole", "dice"))
        assert (whole["mean_difference"], whole["p"], whole["n"], whole["n_scans"]) == (0.0, 1.0, 8, 8)


def test_a_scan_that_the_convention_leaves_out_of_one_folder_is_left_out_of_the_pairs(tmp_path):
    """HD95 of an empty prediction is left out by brats2013: the other folder's HD95 of that scan must not
    count either.
    """
    truth = write_time_points(tmp_path)
    for name, tissue in truth.items():
        seen = tissue if name.endswith("0") else tumor()
        write_map(tmp_path / "empty" / f"{name}.nii.gz", seen, values=(0, 1, 2, 3))
    report = evaluate_folders(
        tmp_path / "out",
        tmp_path / "scans",
        against=tmp_path / "empty",
        options=ScoreOptions(conventions=("brats2013",)),
    )
    tests = {(t["region"], t["metric"]): t for t in report.summary["against"]["tests"]}
    assert (tests["whole", "hd95_mm"]["mean_difference"], tests["whole", "hd95_mm"]["p"]) == (0.0, 1.0)
    assert (tests["whole", "hd95_mm"]["n_scans"], tests["whole", "dice"]["n_scans"]) == (8, 16)


MSD_VALUES = (0, 2, 1, 3)
"""Of healthy, merged core, edema and enhancing core in MSD Task01; `tumor` and the references here have 0, 1,
2, 4.
"""


def write_in_other_values(tmp_path: Path) -> Path:
    """Perfect predictions in the label values of MSD."""
    truth = {f"BraTS2021_{i:05d}": tumor(core=2, edema=4, active=2) for i in range(2)}
    for name, tissue in truth.items():
        write_map(tmp_path / "out" / f"{name}.nii.gz", tissue, values=MSD_VALUES)
    return write_reference(tmp_path / "reference", truth)


def test_predictions_in_other_values_than_their_references_are_scored_where_their_schema_is_named(tmp_path):
    reference = write_in_other_values(tmp_path)
    assert (
        evaluate_folders(tmp_path / "out", reference).scores == ()
    )  # 3 is no value of the references' schema
    report = evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(prediction_schema="msd"))
    assert {s.dice for s in report.scores} == {1.0}
    assert (report.problems, report.exit_code) == ((), 0)
    with pytest.raises(
        UsageError, match="--prediction-schema brats: no such label schema; the schemas are brats2012"
    ):
        evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(prediction_schema="brats"))


def test_a_table_that_overrules_the_schema_that_is_asked_for_is_said(tmp_path):
    """One of two predictions stands in the table: its schema holds, the other's is the one asked for."""
    reference = write_in_other_values(tmp_path)
    write_map(
        tmp_path / "out" / "BraTS2021_00000.nii.gz", tumor(core=2, edema=4, active=2), values=(0, 1, 2, 4)
    )
    (tmp_path / "out" / "predictions.csv").write_text(
        "case,file,schema\nBraTS2021_00000,BraTS2021_00000.nii.gz,brats2017\n"
    )
    report = evaluate_folders(tmp_path / "out", reference, options=ScoreOptions(prediction_schema="msd"))
    assert {s.dice for s in report.scores} == {1.0}
    (problem,) = report.problems
    assert (problem.severity, problem.what) == (
        "warning",
        "--prediction-schema msd is not used for 1 of 2 predictions: predictions.csv says brats2017",
    )


def test_a_table_with_a_schema_that_is_unknown_is_not_passed_over(tmp_path):
    """A newer version may know it: read in the values of the reference, the scores would be wrong without a
    word.
    """
    truth = {"BraTS2021_00000": tumor(core=2, edema=4, active=1)}
    reference = write_reference(tmp_path / "reference", truth)
    write_map(tmp_path / "out" / "BraTS2021_00000.nii.gz", truth["BraTS2021_00000"])
    (tmp_path / "out" / "predictions.csv").write_text(
        "case,file,schema\nBraTS2021_00000,BraTS2021_00000.nii.gz,brats2099\n"
    )
    with pytest.raises(
        InputError, match=r"predictions\.csv: has the label schema 'brats2099'; the schemas are brats2012"
    ):
        evaluate_folders(tmp_path / "out", reference)


def test_a_remap_that_swapped_two_classes_is_warned_of(tmp_path):
    """1 and 2 left as MSD has them and 3 made 4: core Dice falls by half, and nothing is refused."""
    truth = {f"BraTS2021_{i:05d}": tumor(core=2, edema=4, active=1) for i in range(3)}
    reference = write_reference(tmp_path / "reference", truth)
    for name, tissue in truth.items():
        write_map(tmp_path / "swapped" / f"{name}.nii.gz", tissue, values=(0, 2, 1, 4))
        write_map(tmp_path / "right" / f"{name}.nii.gz", tissue)
    report = evaluate_folders(tmp_path / "swapped", reference)
    (problem,) = report.problems
    assert (problem.severity, report.exit_code) == ("warning", 0)
    assert (
        "with necrotic_or_non_enhancing and edema swapped the mean Dice of core would be 1.000 instead of 0."
        in str(problem)
    )
    assert "--prediction-schema" in str(problem)
    assert str(problem) in report.summary["problems"]
    assert evaluate_folders(tmp_path / "right", reference).problems == ()


def test_voxels_are_counted_over_all_cases_and_saved_probabilities_are_calibrated(tmp_path):
    truth = {f"BraTS2021_{i:05d}": tumor(core=2, edema=2, active=3) for i in range(2)}
    reference = write_reference(tmp_path / "reference", truth)
    first, second = truth
    write_map(tmp_path / "out" / f"{first}.nii.gz", truth[first])
    write_map(
        tmp_path / "out" / f"{second}.nii.gz", np.where(truth[second] == 3, 1, truth[second]).astype(np.uint8)
    )
    plain = evaluate_folders(tmp_path / "out", reference)
    assert "calibration" not in plain.summary
    confusion = plain.summary["confusion"]
    assert confusion["classes"][3] == "enhancing_core"
    n_enhancing = int((truth[first] == 3).sum())
    assert confusion["n_voxels"][3] == [0, n_enhancing, 0, n_enhancing]
    assert np.sum(confusion["n_voxels"]) == 2 * truth[first].size

    folder = tmp_path / "out" / "probabilities"
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(confusion["classes"]))
    write_volume(folder / f"{first}.nii.gz", np.eye(4)[truth[first]], make_geometry(SHAPE), dtype="float32")
    calibrated = evaluate_folders(tmp_path / "out", reference, output=tmp_path / "scores")
    assert calibrated.problems == ()
    assert calibrated.summary["calibration"]["n_cases"] == 1
    assert [found["ece"] for found in calibrated.summary["calibration"]["regions"].values()] == [0, 0, 0]
    (folder / f"{first}.nii.gz").write_text("not a scan")
    broken = evaluate_folders(tmp_path / "out", reference)
    assert [p.case for p in broken.problems] == [first]
    assert {s.case for s in broken.scores} == {first, second}
    assert (broken.exit_code, "calibration" in broken.summary) == (1, False)


def test_a_manifest_is_a_reference_too(tmp_path):
    tissue = tumor(core=2, edema=2, active=3)
    write_reference(tmp_path, {"BraTS2021_00001": tissue})
    (tmp_path / "list.csv").write_text(
        "case,patient,label,schema\nmine,p,BraTS2021_00001/BraTS2021_00001_seg.nii.gz,brats2017\n"
    )
    write_map(tmp_path / "out" / "mine.nii.gz", tissue)
    report = evaluate_folders(tmp_path / "out", tmp_path / "list.csv")
    assert (report.exit_code, {s.patient for s in report.scores}, {s.dice for s in report.scores}) == (
        0,
        {"p"},
        {1.0},
    )
    with pytest.raises(InputError, match="no such"):
        evaluate_folders(tmp_path / "out", tmp_path / "nothing.csv")


def test_orientation_and_type_of_a_prediction_do_not_matter(tmp_path):
    tissue = tumor(core=2, edema=1, active=3)
    reference = write_reference(tmp_path / "reference", {"BraTS2021_00001": tissue})
    grid = make_geometry(SHAPE, orientation="RAS")
    (tmp_path / "out").mkdir()
    write_volume(
        tmp_path / "out" / "BraTS2021_00001.nii.gz", np.array([0, 1, 2, 4])[tissue], grid, dtype="float32"
    )
    report = evaluate_folders(tmp_path / "out", reference)
    assert report.problems == ()
    assert all(s.dice == 1.0 for s in report.scores)


def test_real_references_against_themselves(real_data, tmp_path):
    cases = find_cases(real_data).cases
    for case in cases:
        suffix = next(s for s in SUFFIXES if case.label.path.name.endswith(s))
        (tmp_path / f"{case.id}{suffix}").symlink_to(case.label.path)
    report = evaluate_folders(
        tmp_path, real_data, options=ScoreOptions(conventions=("brats2020", "brats2023"))
    )
    assert (report.exit_code, report.summary["n_cases"]) == (0, len(cases))
    for score in report.scores:
        assert score.dice == 1.0
        assert same(score.sensitivity, 1.0 if score.n_reference_vox else NAN)
        assert score.hd95_mm == 0.0 or score.region == "healthy"


def test_where_no_case_could_be_scored_an_older_table_stays(tmp_path):
    for name in ("predictions", "reference"):
        (tmp_path / name).mkdir()
    (tmp_path / "predictions" / "scores.csv").write_text("older")
    report = evaluate_folders(
        tmp_path / "predictions", tmp_path / "reference", output=tmp_path / "predictions"
    )
    assert report.scores == ()
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["scores.csv"]
    assert (tmp_path / "predictions" / "scores.csv").read_text() == "older"
