import json
from pathlib import Path

import pytest
from empty_files import OLD, named, one, touch

from brats_seg.scans.case import MODALITIES, ScanFile
from brats_seg.scans.layouts import find_cases


def test_msd_stacks_its_modalities(tmp_path):
    task = tmp_path / "Task01_BrainTumour"
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    touch(task / "dataset.json", json.dumps({"modality": modality, "labels": labels}))
    for file in ("imagesTr/BRATS_001", "labelsTr/BRATS_001", "imagesTs/BRATS_485"):
        touch(task / f"{file}.nii.gz")
    touch(task / "imagesTr/._BRATS_001.nii.gz")
    first, second = find_cases(tmp_path).cases
    stack = task / "imagesTr/BRATS_001.nii.gz"
    assert (first.id, first.layout, first.schema) == ("BRATS_001", "msd", "msd")
    assert first.modalities == {
        name: ScanFile(stack, channel) for name, channel in zip(MODALITIES, (1, 2, 3, 0), strict=True)
    }
    assert first.label == ScanFile(task / "labelsTr/BRATS_001.nii.gz")
    assert second.label is None


NNUNET_LABELS = {
    "regions": (
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        "msd",
    ),
    "tissues": ({"background": 0, "NCR": 1, "edema": 2, "enhancing": 3}, "brats2023"),
    "both cores": (
        {"background": 0, "necrosis": 1, "edema": 2, "non-enhancing": 3, "enhancing": 4},
        "brats2013",
    ),
    "merged": (
        {"background": 0, "necrotic and non-enhancing core": 1, "peritumoral edema": 2, "ET": 4},
        "brats2017",
    ),
    "cavity": ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, "brats2024gli"),
    "spelled out": (
        {
            "Non-enhancing tumor core": 1,
            "Surrounding non-enhancing FLAIR hyperintensity": 2,
            "Enhancing tissue": 3,
            "Resection cavity": 4,
        },
        "brats2024gli",
    ),
    "contrast": ({"edema": 1, "non-contrast-enhancing core": 2, "contrast-enhancing": 3}, "msd"),
    "abnormality": ({"necrosis": 1, "FLAIR abnormality": 2, "enhancing": 4}, "brats2017"),
    "abbreviated": ({"ET": 1, "NET": 2, "CC": 3, "ED": 4}, "brats2024ped"),
    "pediatric": ({"background": 0, "ET": 1, "NET": 2, "cystic component": 3, "ED": 4}, "brats2024ped"),
}


@pytest.mark.parametrize("which", NNUNET_LABELS)
def test_nnunet_names_its_channels_and_labels(tmp_path, which):
    labels, schema = NNUNET_LABELS[which]
    home = tmp_path / "Dataset137_BraTS2021"
    tree = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
        "labels": labels,
        "file_ending": ".nii.gz",
    }
    touch(home / "dataset.json", json.dumps(tree))
    for channel in range(4):
        touch(home / f"imagesTr/BraTS2021_00006_{channel:04}.nii.gz")
    touch(home / "labelsTr/BraTS2021_00006.nii.gz")
    case = one(find_cases(tmp_path))
    assert (case.id, case.patient, case.layout, case.schema) == (
        "BraTS2021_00006",
        "GLI-00006",
        "nnunet",
        schema,
    )
    assert case.modalities["t2f"].path.name == "BraTS2021_00006_0003.nii.gz"
    assert case.label is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a JSON object"),
        ("{}", "names no channels"),
        ('{"channel_names": {"0": "CT"}}', "channel names CT are not modalities"),
        ('{"channel_names": {"0": "T1"}}', "names no labels"),
        (
            '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "liver": 1}}',
            "'liver' is not a tissue class",
        ),
        ('{"channel_names": {"0": "T1"}, "labels": {"background": 0, "edema": 7}}', "7 edema fit no schema"),
        ('{"channel_names": {"0": "T1"}, "labels": {"background": "zero"}}', "not whole numbers"),
        (
            '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "edema": Infinity}}',
            "not whole numbers",
        ),
        ('{"channel_names": {"zero": "T1"}, "labels": {"background": 0}}', "numbers its channels zero"),
        (
            '{"channel_names": {"0": "T1"}, "labels": {"edema": 1, "swelling (edema)": 2, "necrosis": 3}}',
            "1 edema, 2 edema",
        ),
    ],
)
def test_a_dataset_json_that_says_nothing_of_use_is_a_problem(tmp_path, text, said):
    touch(tmp_path / "bad/dataset.json", text)
    touch(tmp_path / "bad/imagesTr/x_0000.nii.gz")
    touch(tmp_path / "bad/labelsTr/x.nii.gz")
    named(tmp_path, "BraTS2021_00001")
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert any(said in problem.what and problem.severity == "error" for problem in found.problems)


def test_bids_with_sessions_and_masks_under_derivatives(tmp_path):
    for session in ("01", "02"):
        stem = f"sub-007_ses-{session}"
        anat = tmp_path / f"ds/sub-007/ses-{session}/anat"
        for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"):
            touch(anat / f"{stem}_{name}.nii.gz")
            touch(anat / f"{stem}_{name}.json", "{}")
    touch(tmp_path / "ds/derivatives/experts/sub-007/ses-01/anat/sub-007_ses-01_dseg.nii.gz")
    touch(tmp_path / "ds/derivatives/experts/sub-009/anat/sub-009_dseg.nii.gz")
    found = find_cases(tmp_path)
    assert [(case.id, case.patient, case.schema) for case in found.cases] == [
        ("sub-007_ses-01", "sub-007", ""),
        ("sub-007_ses-02", "sub-007", ""),
    ]
    assert found.cases[0].modalities["t1c"].path.name == "sub-007_ses-01_ce-gadolinium_T1w.nii.gz"
    assert found.cases[0].modalities["t1n"].path.name == "sub-007_ses-01_T1w.nii.gz"
    assert found.cases[0].label is not None
    assert found.cases[1].label is None
    (problem,) = found.problems
    assert problem.what.startswith("1 scan files that no layout claims, such as sub-009_dseg.nii.gz")


def test_scans_under_derivatives_are_cases_where_that_folder_is_given(tmp_path):
    anat = tmp_path / "ds/derivatives/stripped/sub-1/anat"
    for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"):
        touch(anat / f"sub-1_{name}.nii.gz")
    assert not find_cases(tmp_path).cases
    assert one(find_cases(tmp_path / "ds/derivatives/stripped")).id == "sub-1"


def test_bids_tells_the_values_of_its_masks_in_a_table(tmp_path):
    anat = tmp_path / "sub-1/anat"
    for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "dseg"):
        touch(anat / f"sub-1_{name}.nii.gz")
    touch(tmp_path / "dseg.tsv", "index\tname\n0\tbackground\n1\tnecrosis\n2\tedema\n4\tenhancing tumor\n")
    assert one(find_cases(tmp_path)).schema == "brats2017"
    touch(anat / "sub-1_dseg.tsv", "index\tname\n1\tbone\n")
    assert "'bone' is not a tissue class" in find_cases(tmp_path).problems[0].what


@pytest.mark.parametrize(
    ("homes", "n_labels"), [(["rawdata"], 1), (["."], 1), ([".", "the_copy"], 1), (["one", "two"], 0)]
)
def test_a_mask_under_derivatives_goes_to_the_scans_beside_that_folder(tmp_path, homes, n_labels):
    for home in homes:
        for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"):
            touch(tmp_path / home / f"sub-1/anat/sub-1_{name}.nii.gz")
    touch(tmp_path / "derivatives/sub-1/anat/sub-1_dseg.nii.gz")
    cases = find_cases(tmp_path).cases
    assert [case.folder for case in cases] == [tmp_path / homes[0] / "sub-1/anat"]
    assert sum(case.label is not None for case in cases) == n_labels


def test_the_end_of_space_is_no_contrast_agent(tmp_path):
    anat = tmp_path / "sub-1/anat"
    for name in ("space-MNI_T1w", "ce-gadolinium_space-MNI_T1w", "space-MNI_T2w", "space-MNI_FLAIR"):
        touch(anat / f"sub-1_{name}.nii.gz")
    case = one(find_cases(tmp_path))
    assert case.modalities["t1n"].path.name == "sub-1_space-MNI_T1w.nii.gz"
    assert case.modalities["t1c"].path.name == "sub-1_ce-gadolinium_space-MNI_T1w.nii.gz"


def test_a_manifest_lists_files_of_any_name(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        touch(tmp_path / f"scans/{name}.nii")
    row = ",".join(f"scans/{name}.nii" for name in "abcde")
    manifest = touch(tmp_path / "list.csv", f"case,patient,t1n,t1c,t2w,t2f,label,schema\none,Ann,{row},msd\n")
    case = one(find_cases(manifest))
    assert (case.id, case.patient, case.layout, case.schema) == ("one", "Ann", "manifest", "msd")
    assert case.modalities["t2f"] == ScanFile(tmp_path / "scans/d.nii")


def test_a_manifest_in_a_folder_claims_its_files_and_knows_the_release_by_the_label(tmp_path):
    named(tmp_path, "BraTS2021_00006")
    named(tmp_path, "BraTS2021_00007")
    files = [f"BraTS2021_00006/BraTS2021_00006_{OLD[name]}.nii.gz" for name in (*MODALITIES, "label")]
    touch(
        tmp_path / "manifest.csv",
        "case,t1n,t1c,t2w,t2f,label\n" + ",".join(["BraTS2021_00006", *files]) + "\n",
    )
    found = find_cases(tmp_path)
    assert [(case.id, case.layout, case.schema) for case in found.cases] == [
        ("BraTS2021_00006", "manifest", "brats2017"),
        ("BraTS2021_00007", "brats2021", "brats2017"),
    ]
    assert found.cases[0].patient == "GLI-00006"
    assert not found.problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column 'case' or no row"),
        ("name,t1n\nx,y\n", "has no column 'case'"),
        ("case,t1n\nx,absent.nii\n", "absent.nii does not exist"),
        ("case,t1n,schema\nx,,brats1999\n", "schema 'brats1999' is unknown"),
        ("case,t1n,t1c,t2w,t2f\nx,a.nii,a.nii,a.nii,\n", "modality t2f missing"),
        ("case,t1n,t1c,t2w,t2f\nx,a.nii,a.nii,a.nii,a.nii\nx,a.nii,a.nii,a.nii,a.nii\n", "t1n is ambiguous"),
        ("case,t1n\n../../x,a.nii\n", "case '../../x' cannot name a file"),
        ("case,t1n\n,a.nii\n", "case '' cannot name a file"),
        (f"case,t1n\nx,{'a' * 300}.nii\n", "does not exist"),
        (f"case,t1n,t1c,t2w,t2f\n{'x' * 201},a.nii,a.nii,a.nii,a.nii\n", "its id is too long to name files"),
    ],
)
def test_a_manifest_with_a_problem_is_named(tmp_path, text, said):
    touch(tmp_path / "a.nii")
    found = find_cases(touch(tmp_path / "list.csv", text))
    assert not found.cases
    assert any(said in problem.what for problem in found.problems)


@pytest.mark.parametrize("names", [("seg",), ()])
def test_a_manifest_in_the_working_folder_knows_the_release_by_the_label_or_else_the_scans(
    tmp_path, monkeypatch, names
):
    scans = ["t1", "t1ce", "t2", "flair"]
    files = [f"BraTS2021_00006_{name}.nii.gz" for name in (*scans, *names)]
    for file in files:
        touch(tmp_path / file)
    touch(
        tmp_path / "list.csv",
        "case,t1n,t1c,t2w,t2f,label\n" + ",".join(["one", *files, *[""] * (5 - len(files))]) + "\n",
    )
    monkeypatch.chdir(tmp_path)
    assert one(find_cases(Path("list.csv"))).schema == "brats2017"


def test_another_programs_manifest_in_a_folder_is_a_warning(tmp_path):
    named(tmp_path, "BraTS2021_00006")
    touch(tmp_path / "manifest.csv", "series,url\n1,http\n")
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert [(problem.severity, problem.what) for problem in found.problems] == [
        ("warning", "has no column 'case' or no row")
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "not a JSON file: nested too deep"),
        (b'{"labels": ' + b"9" * 5000 + b"}", "not a JSON file: Exceeds the limit"),
        (b'{"modality": {"0": "\xff"}}', "not text in UTF-8"),
        (b'{"modality": {"' + b"9" * 5000 + b'": "FLAIR"}}', "numbers its channels 9999"),
        (
            b'{"modality": {"0": "FLAIR"}, "labels": {"0": "' + b"necro" * 100_000 + b'", "1": "x"}}',
            "is not a tissue class",
        ),
        (
            b'{"modality": {"0": "FLAIR"}, "labels": {"edema": 123456789123456789}}',
            "has labels outside 0 to 255",
        ),
    ],
    ids=["deep", "digits", "encoding", "channel", "name", "value"],
)
def test_a_hostile_dataset_file_is_one_problem_and_the_other_cases_are_found(tmp_path, content, said):
    touch(tmp_path / "bad/imagesTr/BRATS_001.nii.gz")
    touch(tmp_path / "bad/labelsTr/BRATS_001.nii.gz")
    (tmp_path / "bad/dataset.json").write_bytes(content)
    named(tmp_path / "good", "BraTS2021_00001")
    found = find_cases(tmp_path)
    assert [case.id for case in found.cases] == ["BraTS2021_00001"]
    problem = next(problem for problem in found.problems if problem.severity == "error")
    assert problem.file == str(tmp_path / "bad/dataset.json")
    assert said in problem.what
    assert len(str(problem)) <= 400


@pytest.mark.parametrize("content", [b"case,t1n\n\xff,x\n", b'case,t1n\nA,"x\n', b"case,t1n\nA,x,y\n"])
def test_a_manifest_that_is_no_table_is_one_problem(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    found = find_cases(tmp_path / "m.csv")
    assert not found.cases
    assert [problem.file for problem in found.problems] == [str(tmp_path / "m.csv")]
    assert found.problems[0].what.startswith("not ")
