from dataclasses import replace

import numpy as np
import pytest
from empty_files import touch

from brats_seg.core.errors import UsageError
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.verify import verify_folder
from brats_seg.scans.volume import write_label_map, write_volume


def test_the_brain_mask_of_prepare_is_left_out_without_a_word(tmp_path):
    for name in ("t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz", "brain_mask.nii.gz"):
        touch(tmp_path / "ann" / name)
    found = find_cases(tmp_path)
    assert (len(found.cases), found.problems, found.strangers) == (1, (), ())


@pytest.mark.parametrize(
    "names",
    [
        ("t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz", "seg.nii.gz"),
        ("t1n.nii.gz", "t1c.nii.gz", "t2w.nii.gz", "t2f.nii.gz", "gt.nii.gz"),
        ("T1.nii", "T1C.nii", "T2.nii", "FLAIR.nii", "mask.nii"),
        ("T1 (1).mha", "T1gd (1).mha", "T2 (1).mha", "FLAIR (1).mha", "truth (2).mha"),
        ("t1_pre.nii.gz", "t1_post.nii.gz", "T2W.NII.GZ", "T2-FLAIR.nii.gz", "label.nii.gz"),
        ("T1-native.nii.gz", "T1_contrast.nii.gz", "t2.nii", "flair.mha", "Ground_Truth.nii.gz"),
    ],
)
def test_files_named_after_their_modality_are_a_case_of_no_known_schema(tmp_path, names):
    for name in names:
        touch(tmp_path / "data" / "Ann 1" / name)
    (case,) = find_cases(tmp_path).cases
    assert (case.id, case.layout, case.schema) == ("Ann 1", "plain", "")
    assert tuple(case.modalities[name].path.name for name in MODALITIES) == names[:4]
    assert case.label is not None
    assert case.label.path.name == names[4]
    assert find_cases(tmp_path, schema="brats2017").cases[0].schema == "brats2017"


def test_the_folder_given_may_be_the_case_itself(tmp_path):
    for name in ("t1", "t1ce", "t2", "flair"):
        touch(tmp_path / "Ann" / f"{name}.nii.gz")
    assert [case.id for case in find_cases(tmp_path / "Ann").cases] == ["Ann"]


def test_folders_of_one_name_are_named_after_their_paths(tmp_path):
    for person in ("ann", "bob"):
        for name in ("t1", "t1ce", "t2", "flair"):
            touch(tmp_path / person / "mri" / f"{name}.nii.gz")
    assert [case.id for case in find_cases(tmp_path).cases] == ["ann_mri", "bob_mri"]


@pytest.mark.parametrize(
    "visits",
    [("visit1", "visit2"), ("ses-01", "ses-02"), ("Baseline", "follow-up 1"), ("2019-05-31", "20200101")],
)
def test_visits_of_a_person_are_scans_of_one_patient(tmp_path, visits):
    for person in ("ann", "bob"):
        for visit in visits:
            for name in ("t1", "t1ce", "t2", "flair"):
                touch(tmp_path / person / visit / f"{name}.nii.gz")
    cases = find_cases(tmp_path).cases
    assert {(case.id, case.patient) for case in cases} == {
        (f"{person}_{visit}", person) for person in ("ann", "bob") for visit in visits
    }


def test_a_visit_is_of_the_person_around_it_also_where_each_visit_is_named_once(tmp_path):
    for folder in ("cohort/ann/visit1/mri", "cohort/ann/visit2/mri", "cohort/bob", "cohort/scan3", "visit9"):
        for name in ("t1", "t1ce", "t2", "flair"):
            touch(tmp_path / folder / f"{name}.nii.gz")
    assert {case.id: case.patient for case in find_cases(tmp_path).cases} == {
        "cohort_ann_visit1_mri": "cohort_ann",
        "cohort_ann_visit2_mri": "cohort_ann",
        "bob": "bob",
        "scan3": "scan3",
        "visit9": "visit9",
    }


@pytest.mark.parametrize(
    "stray", ["BraTS2021_00001/mask.nii.gz", "BraTS2021_00001/flair.nii.gz", "t1.nii.gz"]
)
def test_stray_plain_names_beside_the_cases_of_a_release_are_left_out_with_a_warning(tmp_path, stray):
    for role in ("t1", "t1ce", "t2", "flair", "seg"):
        touch(tmp_path / "data/BraTS2021_00001" / f"BraTS2021_00001_{role}.nii.gz")
        touch(tmp_path / "data/ann" / f"{role}.nii.gz")
    touch(tmp_path / "data" / stray)
    found = find_cases(tmp_path, schema="brats2017")
    assert [case.id for case in found.cases] == ["BraTS2021_00001", "ann"]
    (problem,) = found.problems
    name = stray.rpartition("/")[2]
    assert (problem.severity, problem.what) == (
        "warning",
        f"1 scan files that no layout claims, such as {name}, are left out",
    )


def test_two_files_that_read_as_one_modality_are_one_line_and_the_other_cases_go_on(tmp_path):
    for person in ("ann", "bob"):
        for name in ("t1", "t1ce", "t2", "flair"):
            touch(tmp_path / person / f"{name}.nii.gz")
    touch(tmp_path / "ann/T1_pre.nii.gz")
    touch(tmp_path / "ann/T2 (1).nii.gz")
    found = find_cases(tmp_path)
    assert [case.id for case in found.cases] == ["bob"]
    (problem,) = found.problems
    assert (problem.severity, problem.case) == ("error", "ann")
    assert (
        problem.what
        == "t1n is ambiguous: T1_pre.nii.gz and t1.nii.gz; t2w is ambiguous: T2 (1).nii.gz and t2.nii.gz"
    )


def test_two_references_are_ambiguous_unless_no_label_is_needed(tmp_path):
    for name in ("t1", "t1ce", "t2", "flair", "seg", "mask"):
        touch(tmp_path / "ann" / f"{name}.nii.gz")
    assert "label is ambiguous: mask.nii.gz and seg.nii.gz" in find_cases(tmp_path).problems[0].what
    found = find_cases(tmp_path, labels="unused")
    assert [(case.id, case.label) for case in found.cases] == [("ann", None)]
    assert not found.problems


def test_a_folder_without_any_modality_is_no_case(tmp_path):
    touch(tmp_path / "out/seg.nii.gz")
    problems = find_cases(tmp_path).problems
    assert [problem.severity for problem in problems] == ["warning", "error"]
    assert problems[0].what == "1 scan files that no layout claims, such as seg.nii.gz, are left out"


def test_files_beside_a_manifest_are_no_further_cases(tmp_path):
    for name in ("t1", "t1ce", "t2", "flair"):
        touch(tmp_path / "ann" / f"{name}.nii.gz")
    touch(tmp_path / "manifest.csv", "case,t1n\nx,absent.nii\n")
    assert not find_cases(tmp_path).cases


def test_a_schema_that_there_is_not_is_named_with_the_others(tmp_path):
    with pytest.raises(
        UsageError, match=r"--schema brats2016: no such label schema; the schemas are brats2012, "
    ):
        find_cases(tmp_path, schema="brats2016")


def scan_case(folder, *, values, label):
    """Four scans and a label map of 1 edema and 2 core, as in 2012, whose meaning nothing tells."""
    rng = np.random.default_rng(0)
    geometry = make_geometry((12, 16, 16), dtype="int16")
    for name in ("t1", "t1ce", "t2", "flair"):
        scan = np.zeros((12, 16, 16), np.int16)
        scan[2:10, 3:13, 3:13] = rng.integers(100, 200, (8, 10, 10))
        folder.mkdir(parents=True, exist_ok=True)
        write_volume(folder / f"{name}.nii.gz", scan, geometry, dtype="int16")
    array = np.zeros((12, 16, 16), np.uint8)
    for i, value in enumerate(values):
        array[4 + i, 5:9, 5:9] = value
    write_label_map(folder / label, array, geometry, dtype="uint8")


@pytest.mark.parametrize("layout", ["plain", "manifest"])
def test_labels_without_a_schema_are_refused_with_those_that_fit(tmp_path, layout):
    scan_case(tmp_path / "ann", values=(1, 2), label="gt.nii.gz")
    if layout == "manifest":
        row = "ann,ann/t1.nii.gz,ann/t1ce.nii.gz,ann/t2.nii.gz,ann/flair.nii.gz,ann/gt.nii.gz"
        touch(tmp_path / "manifest.csv", f"case,t1n,t1c,t2w,t2f,label\n{row}\n")
    report = verify_folder(tmp_path)
    (problem,) = [problem for problem in report.problems if problem.severity == "error"]
    assert problem.what == "label has the values 1, 2, and the meaning of each value is unknown"
    assert problem.expected == (
        "--schema NAME"
        + (", or a column 'schema' in the manifest" if layout == "manifest" else "")
        + "; the values fit brats2012 (1 edema, 2 whole core) or brats2013 (1 necrotic, 2 edema)"
        " or brats2017 or brats2023 or brats2024gli (1 core, 2 edema)"
        " or brats2024ped (1 enhancing, 2 non-enhancing) or msd (1 edema, 2 core)"
    )
    short = replace(problem, file="/home/someone/scans/ann/gt.nii.gz")  # the path of this run may be long
    assert "..." not in str(short)  # the whole line is shown
    told = verify_folder(tmp_path, schema="msd")
    assert told.good == ("ann",)
    assert told.cases[0].class_counts["edema"] == 16


def test_a_schema_that_no_case_takes_is_said(tmp_path):
    for role in ("t1", "t1ce", "t2", "flair", "seg"):
        touch(tmp_path / "data/BraTS2021_00001" / f"BraTS2021_00001_{role}.nii.gz")
    found = find_cases(tmp_path, schema="msd")
    assert [case.schema for case in found.cases] == ["brats2017"]
    assert [(problem.severity, problem.what) for problem in found.problems] == [
        ("warning", "--schema msd is not used: the layout of every case says its label schema")
    ]
    touch(tmp_path / "data/ann/t1.nii.gz")
    assert not find_cases(tmp_path, schema="msd", required=()).problems


def test_values_that_do_not_fit_the_named_schema_ask_for_another(tmp_path):
    scan_case(tmp_path / "ann", values=(1, 2, 4), label="gt.nii.gz")
    (problem,) = verify_folder(tmp_path, schema="msd").problems
    assert (
        problem.expected
        == "0, 1, 2, 3 of schema msd; its values fit brats2013 or brats2017 or brats2024gli or brats2024ped "
        "(--schema NAME)"
    )
