import pytest

from brats_seg.scans.case import modality_named, patient_of


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("T1ce", "t1c"),
        ("t1-Gd", "t1c"),
        ("T1w", "t1n"),
        ("FLAIR", "t2f"),
        ("MR_T2", "t2w"),
        ("t1n", "t1n"),
        ("DWI", None),
        ("", None),
    ],
)
def test_a_modality_goes_by_many_names(text, modality):
    assert modality_named(text) == modality


@pytest.mark.parametrize(
    ("cases", "patient"),
    [
        (("BraTS2021_00006", "BraTS-GLI-00006-000", "BraTS-GLI-00006-101"), "GLI-00006"),
        (("HG_0001", "HGG_brats_2013_pat0001_1"), "2013-HG-0001"),
        (("LG_0001",), "2013-LG-0001"),
        (("Brats17_TCIA_105_1", "BraTS19_TCIA01_105_1", "HGG_brats_tcia_pat105_0001"), "TCIA-105"),
        (("Brats18_CBICA_AWG_1", "BraTS19_CBICA_AWG_1"), "CBICA_AWG"),
        (("BraTS-PED-00012-000",), "PED-00012"),
        (("BraTS20_Training_001",), "BraTS20_Training_001"),
    ],
)
def test_one_patient_across_releases_and_time_points(cases, patient):
    assert {patient_of(case) for case in cases} == {patient}
