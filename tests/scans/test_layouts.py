import os
from pathlib import Path

import numpy as np
import pytest
from empty_files import NEW, OLD, UCSF, UPENN, named, one, touch, vsd

from brats_seg.core.errors import InputError, UsageError
from brats_seg.phantoms import files as phantom_files
from brats_seg.scans.case import MODALITIES, ScanFile
from brats_seg.scans.labels import SCHEMAS, common_classes, to_tissue
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.releases import LAYOUTS
from brats_seg.scans.volume import read_volume


def test_2013(tmp_path):
    vsd(tmp_path / "BRATS-2/Image_Data/HG/0001", label="VSD.Brain_3more.XX.XX.OT")
    vsd(tmp_path / "BRATS-2/Image_Data/LG/0001", label="VSD.Brain_1more.XX.XX.OT")
    found = find_cases(tmp_path)
    assert [(case.id, case.patient, case.layout, case.schema) for case in found.cases] == [
        ("HG_0001", "2013-HG-0001", "brats2013", "brats2013"),
        ("LG_0001", "2013-LG-0001", "brats2013", "brats2013"),
    ]
    first = found.cases[0]
    assert first.folder == tmp_path / "BRATS-2/Image_Data/HG/0001"
    assert first.modalities["t1c"].path.name == "VSD.Brain.XX.O.MR_T1c.1.mha"
    assert first.modalities["t1n"].path.name == "VSD.Brain.XX.O.MR_T1.0.mha"
    assert first.label == ScanFile(first.folder / "VSD.Brain_3more.XX.XX.OT/VSD.Brain_3more.XX.XX.OT.77.mha")


def test_the_folder_given_may_be_the_grade_itself(tmp_path):
    vsd(tmp_path / "HG/0001", label="VSD.Brain_3more.XX.XX.OT")
    assert one(find_cases(tmp_path / "HG")).id == "HG_0001"


def test_synthetic_cases_are_left_out_unless_asked_for(tmp_path):
    vsd(tmp_path / "Synthetic_Data/HG/0001", label="VSD.Brain_3more.XX.XX.OT")
    vsd(tmp_path / "Image_Data/HG/0001", label="VSD.Brain_3more.XX.XX.OT")
    for name in ("T1", "T1C", "T2", "FLAIR", "complete_truth"):
        touch(tmp_path / f"SimBRATS_LG0003/SimBRATS_LG0003_{name}.mha")
    found = find_cases(tmp_path)
    assert [case.id for case in found.cases] == ["HG_0001"]
    assert [problem.severity for problem in found.problems] == ["warning"]
    assert "2 synthetic (SimBRATS) cases are left out" in found.problems[0].what
    asked = find_cases(tmp_path, synthetic=True)
    assert [case.id for case in asked.cases] == ["HG_0001", "Synthetic_HG_0001", "Synthetic_SimBRATS_LG0003"]
    assert len({case.patient for case in asked.cases}) == 3
    assert all(case.label for case in asked.cases)


def test_2015_contains_2013(tmp_path):
    for name in ("HGG/brats_2013_pat0001_1", "LGG/brats_2013_pat0001_1", "HGG/brats_tcia_pat105_0001"):
        vsd(tmp_path / "BRATS2015_Training" / name, label="VSD.Brain_3more.XX.O.OT")
    vsd(tmp_path / "Image_Data/HG/0001", label="VSD.Brain_3more.XX.XX.OT")
    found = find_cases(tmp_path)
    assert {case.id: case.patient for case in found.cases} == {
        "HGG_brats_2013_pat0001_1": "2013-HG-0001",
        "HGG_brats_tcia_pat105_0001": "TCIA-105",
        "HG_0001": "2013-HG-0001",
        "LGG_brats_2013_pat0001_1": "2013-LG-0001",
    }


@pytest.mark.parametrize(
    ("case_id", "layout", "schema", "names", "joint"),
    [
        ("Brats17_TCIA_105_1", "brats2017", "brats2017", OLD, "_"),
        ("Brats18_CBICA_AWG_1", "brats2018", "brats2017", OLD, "_"),
        ("BraTS19_2013_2_1", "brats2019", "brats2017", OLD, "_"),
        ("BraTS20_Training_001", "brats2020", "brats2017", OLD, "_"),
        ("BraTS2021_00006", "brats2021", "brats2017", OLD, "_"),
        ("BraTS-GLI-00006-000", "brats2023", "brats2023", NEW, "-"),
        ("BraTS-GLI-00006-100", "brats2024gli", "brats2024gli", NEW, "-"),
        ("BraTS-MEN-00006-000", "bratsmen", "brats2023", NEW, "-"),
        ("BraTS-SSA-00006-000", "bratsssa", "brats2023", NEW, "-"),
        ("BraTS-GoAT-00006", "bratsgoat", "brats2023", NEW, "-"),
        ("UCSF-PDGM-0006", "ucsf", "brats2017", UCSF, "_"),
        ("UPENN-GBM-00006_11", "upenn", "brats2017", UPENN, "_"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_release_is_told_by_its_file_names(tmp_path, case_id, layout, schema, names, joint, suffix):
    named(tmp_path / "deep" / "er", case_id, names, joint=joint, suffix=suffix)
    case = one(find_cases(tmp_path))
    assert (case.id, case.layout, case.schema) == (case_id, layout, schema)
    assert case.label is not None
    assert case.folder == tmp_path / "deep" / "er" / case_id


def test_case_355_of_2020_has_a_mask_with_its_hospital_name(tmp_path):
    scans = {name: old for name, old in OLD.items() if name != "label"}
    named(tmp_path, "BraTS20_Training_355", scans, suffix=".nii")
    mask = touch(tmp_path / "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    assert one(find_cases(tmp_path)).label == ScanFile(mask)


@pytest.mark.parametrize(
    ("folder", "case_id", "layout"),
    [
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", "BraTS-GLI-00006-000", "brats2023"),
        ("BraTS2024-BraTS-GLI/training_data1_v2", "BraTS-GLI-00006-000", "brats2024gli"),
        ("BraTS2024-BraTS-GLI/training_data1_v2", "BraTS-GLI-00006-100", "brats2024gli"),
        ("ASNR-MICCAI-BraTS2023-PED-Challenge-TrainingData", "BraTS-PED-00006-000", "brats2023ped"),
        ("BraTS2024-PED", "BraTS-PED-00006-000", "brats2024ped"),
        ("BraTS-PEDs2024_Training", "BraTS-PED-00006-000", "brats2024ped"),
        ("BraTS2024-PED/backup-2023", "BraTS-PED-00006-000", "brats2024ped"),
        ("BraTS2024-PED", "BraTS-PED-02023-000", "brats2024ped"),
        ("BraTS2023", "BraTS-GLI-02024-000", "brats2023"),
        ("BraTS2023/BraTS2024-PED", "BraTS-PED-00006-000", "brats2024ped"),
        ("BraTS2025-PED-Training", "BraTS-PED-00006-000", "brats2024ped"),
        ("BraTS2025-GLI-PRE-Challenge-TrainingData", "BraTS-GLI-00006-000", "brats2023"),
        ("BraTS2025-GLI-POST", "BraTS-GLI-00006-100", "brats2024gli"),
        ("ASNR-MICCAI-BraTS2023-MET-Challenge-TrainingData", "BraTS-MET-00006-000", "brats2023met"),
        ("MICCAI-LH-BraTS2025-MET-Challenge-Training", "BraTS-MET-00006-000", "brats2025met"),
        ("BraTS2026-METS", "BraTS-MET-00006-000", "brats2025met"),
    ],
)
def test_the_year_in_the_release_folder_decides_between_equal_names(tmp_path, folder, case_id, layout):
    named(tmp_path / folder, case_id, NEW, joint="-")
    assert one(find_cases(tmp_path)).layout == layout


@pytest.mark.parametrize(
    "folder",
    ["backup-2023/PED", "brats2024_study/PED", "BraTS2023/BraTS-PEDs", "brats2023-ped-study/raw/old/PED"],
)
def test_pediatric_cases_of_a_release_without_a_year_have_no_schema_until_one_is_given(tmp_path, folder):
    named(tmp_path / folder, "BraTS-PED-00006-000", NEW, joint="-")
    case = one(find_cases(tmp_path))
    assert (case.id, case.layout, case.schema) == ("BraTS-PED-00006-000", "bratsped", "")
    assert one(find_cases(tmp_path, schema="brats2023")).schema == "brats2023"
    assert one(find_cases(tmp_path, layout="brats2024ped")).schema == "brats2024ped"


def test_metastases_of_a_release_without_a_year_name_the_schemas_they_can_follow(tmp_path):
    named(tmp_path / "metastases", "BraTS-MET-00006-000", NEW, joint="-")
    case = one(find_cases(tmp_path))
    assert (case.layout, case.schema) == ("bratsmet", "")
    assert LAYOUTS["bratsmet"].candidates == ("brats2023", "brats2024gli")


def test_a_case_before_radiotherapy_has_one_scan_and_a_gross_tumor_volume(tmp_path):
    case_id = "BraTS-MEN-RT-0004-1"
    for role in ("t1c", "gtv"):
        touch(tmp_path / "BraTS-MEN-RT-Train-v2" / case_id / f"{case_id}_{role}.nii.gz")
    found = find_cases(tmp_path)
    assert not found.problems
    case = found.cases[0]
    assert (case.layout, case.schema, case.patient) == ("brats2024menrt", "brats2024menrt", "MEN-RT-00004")
    assert tuple(case.modalities) == ("t1c",)
    assert case.label is not None
    assert "t1n" in find_cases(tmp_path, required=MODALITIES).problems[0].what


def test_2012_has_the_patients_of_2013(tmp_path):
    for role in ("T1", "T1C", "T2", "FLAIR", "truth"):
        touch(tmp_path / f"BRATS_HG0015/BRATS_HG0015_{role}.mha")
    case = one(find_cases(tmp_path))
    assert (case.layout, case.schema, case.patient) == ("brats2012", "brats2012", "2013-HG-0015")


def test_what_lies_beside_the_scans_of_a_public_data_set_is_left_out_without_a_word(tmp_path):
    named(tmp_path / "UCSF-PDGM-0006_nifti", "UCSF-PDGM-0006", UCSF)
    touch(tmp_path / "UCSF-PDGM-0006_nifti/UCSF-PDGM-0006_ADC.nii.gz")
    home = tmp_path / "NIfTI-files"
    for role in ("T1", "T1GD", "T2", "FLAIR"):
        touch(home / f"images_structural/UPENN-GBM-00006_11/UPENN-GBM-00006_11_{role}.nii.gz")
    touch(home / "images_segm/UPENN-GBM-00006_11_segm.nii.gz")
    touch(home / "automated_segm/UPENN-GBM-00006_11_automated_approx_segm.nii.gz")
    found = find_cases(tmp_path)
    assert not found.problems
    assert [(case.id, case.patient) for case in found.cases] == [
        ("UCSF-PDGM-0006", "UCSF-PDGM-0006"),
        ("UPENN-GBM-00006_11", "UPENN-GBM-00006"),
    ]
    label = found.cases[1].label
    assert label is not None
    assert label.path.parent.name == "images_segm"


def test_a_download_with_all_that_lies_around_in_it(tmp_path):
    scans = {name: old for name, old in OLD.items() if name != "label"}
    home = tmp_path / "MICCAI_BraTS2020_ValidationData"
    named(home, "BraTS20_Validation_001", scans)
    for name in (
        "survival_evaluation.csv",
        "name_mapping_validation_data.csv",
        ".DS_Store",
        "BraTS20_Validation_001/._BraTS20_Validation_001_t1.nii.gz",
    ):
        touch(home / name, "a,b\n1,2\n")
    touch(tmp_path / "__MACOSX/BraTS20_Validation_001/BraTS20_Validation_001_t1.nii.gz")
    case = one(find_cases(tmp_path))
    assert case.label is None
    assert case.folder == home / "BraTS20_Validation_001"


def test_names_and_suffixes_in_capitals(tmp_path):
    capitals = {name: old.upper() for name, old in OLD.items()}
    named(tmp_path, "BRATS2021_00006", capitals, suffix=".NII.GZ")
    case = one(find_cases(tmp_path))
    assert (case.id, case.patient, case.label is not None) == ("BRATS2021_00006", "GLI-00006", True)


def test_a_layout_given_by_name_decides(tmp_path):
    named(tmp_path, "BraTS-GLI-00006-000", NEW, joint="-")
    named(tmp_path, "BraTS2021_00007")
    found = find_cases(tmp_path, layout="brats2024gli")
    assert [(case.id, case.schema) for case in found.cases] == [("BraTS-GLI-00006-000", "brats2024gli")]
    with pytest.raises(UsageError, match="no such layout; the layouts are brats2012, "):
        find_cases(tmp_path, layout="brats2022")


def test_a_folder_may_mix_everything_at_any_depth(tmp_path):
    named(tmp_path / "a", "BraTS2021_00006")
    named(tmp_path / "b" / "c", "BraTS-GLI-00006-000", NEW, joint="-")
    vsd(tmp_path / "d/HG/0002", label="VSD.Brain_3more.XX.XX.OT")
    for name in OLD.values():
        touch(tmp_path / "flat" / f"BraTS2021_00008_{name}.nii.gz")
        touch(tmp_path / "flat" / f"BraTS2021_00009_{name}.nii.gz")
    found = find_cases(tmp_path)
    assert [case.id for case in found.cases] == [
        "BraTS-GLI-00006-000",
        "BraTS2021_00006",
        "BraTS2021_00008",
        "BraTS2021_00009",
        "HG_0002",
    ]
    assert found.cases[0].patient == found.cases[1].patient == "GLI-00006"
    assert not found.problems


def test_a_missing_modality_is_named_and_the_others_are_found(tmp_path):
    named(tmp_path, "BraTS2021_00001")
    named(tmp_path, "BraTS2021_00002")
    (tmp_path / "BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz").unlink()
    found = find_cases(tmp_path)
    assert [case.id for case in found.cases] == ["BraTS2021_00001"]
    assert [case.id for case in found.incomplete] == ["BraTS2021_00002"]
    assert len(found.problems) == 1
    problem = found.problems[0]
    assert (problem.severity, problem.case) == ("error", "BraTS2021_00002")
    assert "modality t1c missing; found label, t1n, t2f, t2w" in str(problem)
    assert [case.id for case in find_cases(tmp_path, required=()).cases] == [
        "BraTS2021_00001",
        "BraTS2021_00002",
    ]


def test_two_files_for_one_modality_are_ambiguous(tmp_path):
    named(tmp_path, "BraTS2021_00001")
    touch(tmp_path / "BraTS2021_00001/BraTS2021_00001_t1.nii")
    found = find_cases(tmp_path)
    assert not found.cases
    assert "t1n is ambiguous: BraTS2021_00001_t1.nii and BraTS2021_00001_t1.nii.gz" in found.problems[0].what


def test_the_same_id_in_two_folders_is_refused_once(tmp_path):
    named(tmp_path / "a", "BraTS2021_00001")
    named(tmp_path / "b", "BraTS2021_00001")
    found = find_cases(tmp_path)
    assert [case.folder.parent.name for case in found.cases] == ["a"]
    assert "has the same id as" in found.problems[0].what


def test_what_no_layout_claims_is_said(tmp_path):
    named(tmp_path, "BraTS2021_00001")
    touch(tmp_path / "other/scan1.nii.gz")
    touch(tmp_path / "other/scan2.nii.gz")
    touch(tmp_path / "other/.hidden.nii.gz")
    touch(tmp_path / "other/notes.txt")
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert [problem.severity for problem in found.problems] == ["warning"]
    assert "2 scan files that no layout claims, such as scan1.nii.gz" in found.problems[0].what


def test_no_case_is_an_error_and_no_folder_is_refused(tmp_path):
    problems = find_cases(tmp_path).problems
    assert [(problem.severity, problem.what) for problem in problems] == [("error", "no case found")]
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "absent")
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / ("a" * 300))


def test_links_are_followed_within_the_folder_but_not_in_circles(tmp_path):
    named(tmp_path / ".store", "BraTS2021_00001")
    (tmp_path / "link").symlink_to(tmp_path / ".store")
    (tmp_path / "circle").symlink_to(tmp_path)
    assert one(find_cases(tmp_path)).id == "BraTS2021_00001"


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    named(tmp_path / "elsewhere", "BraTS2021_00001")
    named(tmp_path / "data", "BraTS2021_00002")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/up").symlink_to(tmp_path)
    found = find_cases(tmp_path / "data")
    assert [case.id for case in found.cases] == ["BraTS2021_00002"]
    assert [Path(problem.file).name for problem in found.problems] == ["link", "up"]
    assert all("leads out of the folder and is not followed" in problem.what for problem in found.problems)
    assert one(find_cases(tmp_path / "data/link")).id == "BraTS2021_00001"


def test_pipes_among_the_scans_are_left_out(tmp_path):
    named(tmp_path, "BraTS2021_00001")
    os.mkfifo(tmp_path / "dataset.json")
    os.mkfifo(tmp_path / "manifest.csv")
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert [problem.what for problem in found.problems] == ["is not a regular file and is left out"] * 2


def test_ids_that_differ_in_case_alone_or_hold_a_line_break_are_refused(tmp_path):
    for case_id in ("BraTS20_Training_001", "BraTS20_TRAINING_001", "BraTS20_Training\n_002"):
        for role in ("t1", "t1ce", "t2", "flair"):
            touch(tmp_path / case_id / f"{case_id}_{role}.nii.gz")
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    said = sorted(problem.what for problem in found.problems)
    assert said[0].startswith("its id differs from BraTS20_TRAINING_001 only in upper and lower case")
    assert said[1] == "its id has a line break or a control character"


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path, monkeypatch):
    named(tmp_path, "BraTS2021_00001")
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = __import__("os").scandir

    def refuse(path):
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert "cannot be read: Permission denied" in found.problems[0].what


def test_every_layout_names_a_schema_there_is():
    assert {layout.schema for layout in LAYOUTS.values()} - {""} <= set(SCHEMAS)


def test_the_real_cases_are_found(real_data):
    found = find_cases(real_data)
    expected = ["brats2023"] + ["brats2021"] * 10 + ["brats2020", "brats2017"] + ["brats2018"] * 2
    assert [case.layout for case in found.cases] == expected
    assert not found.problems


@pytest.mark.parametrize("layout", phantom_files.LAYOUTS)
def test_what_the_phantom_writes_in_a_layout_is_read_as_that_layout(tmp_path, layout):
    rng = np.random.default_rng(0)
    modalities = rng.integers(1, 1000, (4, 5, 6, 4)).astype(np.int16)
    tissue = rng.integers(0, 5, (4, 5, 6)).astype(np.uint8)
    for number in (1, 2):
        phantom_files.write_case(
            tmp_path, number, layout=layout, modalities=modalities, tissue=tissue, enhancing=number == 1
        )
    phantom_files.write_index(tmp_path, 2, layout=layout)
    found = find_cases(tmp_path)
    assert found.problems == ()
    assert len(found.cases) == 2
    case = found.cases[0]
    assert case.layout == layout
    assert case.schema == phantom_files.LAYOUTS[layout].schema
    for m, name in enumerate(MODALITIES):
        if name in LAYOUTS[layout].modalities:
            assert np.array_equal(read_volume(case.modalities[name])[0], modalities[..., m])
    classes = common_classes([SCHEMAS[case.schema]])
    merged = to_tissue(
        np.array([SCHEMAS[case.schema].value_of(t) for t in phantom_files.LAYOUTS[layout].drawn[:5]]),
        SCHEMAS[case.schema],
        classes,
    )
    assert case.label is not None
    assert np.array_equal(
        to_tissue(read_volume(case.label)[0], SCHEMAS[case.schema], classes), merged[tissue]
    )
