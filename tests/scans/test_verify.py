import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brats_seg.scans.check import check_case
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.loaded import load_case
from brats_seg.scans.verify import verify_case, verify_folder
from brats_seg.scans.volume import write_volume


def look(folder, **options):
    report = verify_folder(folder, **options)
    for problem in report.problems:
        assert "\n" not in str(problem)
    return report, [str(problem) for problem in report.problems]


def rewrite(path, array, **geometry):
    write_volume(path, array, make_geometry(array.shape, **geometry), dtype=array.dtype.name)


def test_a_good_case_has_counts_and_no_problem(tmp_path, volumes, write_case):
    write_case(tmp_path, volumes)
    report, problems = look(tmp_path)
    assert problems == []
    assert report.exit_code == 0
    assert report.good == ("BraTS2021_00001",)
    # 4 x 6 x 6 voxels of brain; 2, 4 and 1 of them annotated
    counts = {"healthy": 137, "necrotic_or_non_enhancing": 2, "edema": 4, "enhancing_core": 1}
    assert report.cases[0].class_counts == counts
    row = json.loads(json.dumps(report.to_dict()))["cases"][0]
    assert row["class_counts"] == counts
    assert (row["shape"], row["spacing_mm"], row["n_errors"]) == ([6, 8, 10], [1, 1, 1], 0)


def test_a_case_without_a_label_is_good(tmp_path, volumes, write_case):
    del volumes["label"]
    write_case(tmp_path, volumes)
    report, problems = look(tmp_path)
    assert problems == []
    assert report.cases[0].class_counts == {}


def test_a_float_label_with_whole_values_is_good(tmp_path, volumes, write_case):
    write_case(tmp_path, volumes | {"label": volumes["label"].astype(np.float32)})
    report, problems = look(tmp_path)
    assert problems == []
    assert report.cases[0].class_counts["edema"] == 4


def spoil_truncate(files, volumes):
    files["t1c"].write_bytes(files["t1c"].read_bytes()[:-20])


def spoil_text(files, volumes):
    files["t2w"].write_text("not a scan")


def spoil_shape(files, volumes):
    rewrite(files["t2f"], volumes["t2f"][:, :, :-1])


def spoil_spacing(files, volumes):
    rewrite(files["t2f"], volumes["t2f"], spacing_mm=(1, 1, 2))


def spoil_origin(files, volumes):
    rewrite(files["label"], volumes["label"], affine=np.diag([-1.0, -1.0, 1.0, 1.0]))


def spoil_turn(files, volumes):
    angle = np.radians(5)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:2, :2] = [[-np.cos(angle), np.sin(angle)], [-np.sin(angle), -np.cos(angle)]]
    rewrite(files["t1c"], volumes["t1c"], affine=affine)


def spoil_nan(files, volumes):
    array = volumes["t1n"].astype(np.float32)
    array[0, 0, :3] = np.nan
    rewrite(files["t1n"], array)


def spoil_infinite(files, volumes):
    array = volumes["t1n"].astype(np.float64)
    array[0, 0, 0] = -np.inf
    rewrite(files["t1n"], array)


def spoil_empty(files, volumes):
    rewrite(files["t2w"], volumes["t2w"] * 0)


def spoil_label_7(files, volumes):
    volumes["label"][2, 2, 2:5] = 7
    rewrite(files["label"], volumes["label"])


def spoil_label_fraction(files, volumes):
    rewrite(files["label"], volumes["label"] * np.float32(0.3))


def spoil_label_nan(files, volumes):
    array = volumes["label"].astype(np.float32)
    array[0, 0, 0] = np.nan
    rewrite(files["label"], array)


def spoil_label_3(files, volumes):
    array = volumes["label"]
    array[array == 4] = 3
    rewrite(files["label"], array)


ERRORS = [
    (spoil_truncate, "t1ce.nii.gz", "truncated", "a whole NIfTI file"),
    (spoil_text, "t2.nii.gz", "is not a gzip-compressed NIfTI file", "the content that the suffix names"),
    (spoil_shape, "flair.nii.gz", "t2f has the shape (6, 8, 9)", "(6, 8, 10) as t1n"),
    (spoil_spacing, "flair.nii.gz", "t2f has a spacing of (1, 1, 2) mm", "(1, 1, 1) as t1n"),
    (spoil_origin, "seg.nii.gz", "label has its origin at (0, 0, 0) mm", "(0, 7, 0) as t1n"),
    (spoil_turn, "t1ce.nii.gz", "t1c has another orientation", "that of t1n"),
    (spoil_nan, "t1.nii.gz", "t1n has 3 voxels that are NaN or infinite", "finite"),
    (spoil_infinite, "t1.nii.gz", "t1n has 1 voxels that are NaN or infinite", "finite"),
    (spoil_empty, "t2.nii.gz", "t2w is empty: every voxel is 0", "a scan"),
    (spoil_label_7, "seg.nii.gz", "label has the values 7 (3 voxels)", "0, 1, 2, 4 of schema brats2017"),
    (spoil_label_fraction, "seg.nii.gz", "label values are not whole", "schema 'brats2017' has 0, 1, 2, 4"),
    (spoil_label_nan, "seg.nii.gz", "label has NaN or infinite values", "schema 'brats2017' has 0, 1, 2, 4"),
    (
        spoil_label_3,
        "seg.nii.gz",
        "label has the values 3 (1 voxels)",
        "its values fit brats2013 or brats2023",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "file", "what", "expected"), ERRORS, ids=[spoil.__name__ for spoil, *_ in ERRORS]
)
def test_an_error_names_case_file_fault_and_remedy_and_spares_the_others(
    tmp_path, volumes, write_case, spoil, file, what, expected
):
    other = {
        name: np.where(array > 0, array + 1, 0).astype(array.dtype) if name != "label" else array
        for name, array in volumes.items()
    }
    write_case(tmp_path, other, case_id="BraTS2021_00002")
    spoil(write_case(tmp_path, volumes), volumes)
    report, problems = look(tmp_path)
    assert report.exit_code == 1
    assert report.good == ("BraTS2021_00002",)
    assert len(problems) == 1
    assert problems[0].startswith("BraTS2021_00001: ")
    for part in (file, what, expected):
        assert part in problems[0]


def test_other_values_than_the_layout_says_are_named_in_a_manifest(tmp_path, volumes, write_case):
    """--schema would not help: it holds where the layout does not say the schema."""
    spoil_label_3(write_case(tmp_path, volumes), volumes)
    (line,) = look(tmp_path)[1]
    assert "--schema" not in line
    assert line.endswith("(a manifest CSV names it in its column 'schema')")


def test_an_origin_is_said_in_millimeters_whatever_the_file_says(tmp_path, volumes, write_case):
    files = write_case(tmp_path, volumes)
    for name, path in files.items():
        image = nibabel.Nifti1Image(
            volumes[name].transpose(2, 1, 0), np.diag([-1000.0, -1000.0, 1000.0, 1.0])
        )
        image.header.set_xyzt_units("micron")
        image.affine[0, 3] = 2500 if name == "label" else 0
        image.to_filename(path)
    _, problems = look(tmp_path)
    assert len(problems) == 1
    assert "label has its origin at (2.5, 0, 0) mm (R, A, S)" in problems[0]


def test_all_problems_are_listed_at_once(tmp_path, volumes, write_case):
    files = write_case(tmp_path, volumes)
    for spoil in (spoil_text, spoil_nan, spoil_label_7, spoil_shape):
        spoil(files, volumes)
    report, problems = look(tmp_path)
    assert len(problems) == 4
    assert report.rows[0]["n_errors"] == 4


def warned(tmp_path, volumes, write_case, said, **geometry):
    files = write_case(tmp_path, volumes)
    for name, path in files.items():
        rewrite(path, volumes[name], **geometry)
    report, problems = look(tmp_path)
    assert report.exit_code == 0
    assert report.good == ("BraTS2021_00001",)
    assert len(problems) == 1
    assert said in problems[0]


def test_saturated_intensities_are_a_warning(tmp_path, volumes, write_case):
    volumes["t1c"][2, 2, 2:5] = 32767
    warned(tmp_path, volumes, write_case, "t1c is saturated: 3 voxels at 32767, the maximum of int16")


def test_a_label_map_in_place_of_a_scan_is_a_warning(tmp_path, volumes, write_case):
    volumes["t2f"] = (volumes["t2f"] != 0).astype(volumes["t2f"].dtype) * 4
    warned(tmp_path, volumes, write_case, "t2f looks like a label map: whole values from 0 to 4")


def test_a_label_outside_the_brain_is_a_warning_and_keeps_its_class(tmp_path, volumes, write_case):
    volumes["label"][0, 0, 0] = 2
    warned(tmp_path, volumes, write_case, "label has 1 annotated voxels outside the brain")
    counts = verify_case(find_cases(tmp_path).cases[0]).class_counts
    assert (counts["edema"], counts["healthy"]) == (5, 137)


def test_no_tumor_is_a_warning(tmp_path, volumes, write_case):
    warned(tmp_path, volumes | {"label": volumes["label"] * 0}, write_case, "label has no tumor")


def test_a_brain_mask_in_place_of_a_label_is_a_warning(tmp_path, volumes, write_case):
    volumes["label"] = (volumes["t1n"] != 0).astype(np.uint8)
    warned(tmp_path, volumes, write_case, "label marks 100% of the brain as tumor")


def test_a_spacing_that_is_not_1_mm_is_a_warning(tmp_path, volumes, write_case):
    said = "spacing is 5 x 1 x 1 mm (Z, Y, X); expected 1 mm, as BraTS releases it; `preprocess --resample`"
    warned(tmp_path, volumes, write_case, said, spacing_mm=(5, 1, 1))


def test_a_background_that_is_not_0_looks_unstripped(tmp_path, volumes, write_case):
    for name in ("t1n", "t1c", "t2w", "t2f"):
        volumes[name] += 1
    warned(tmp_path, volumes, write_case, "looks unstripped: 100% of the frame")


def test_one_scan_given_for_two_modalities_is_a_warning(tmp_path, volumes, write_case):
    volumes["t1c"] = volumes["t1n"].copy()
    warned(tmp_path, volumes, write_case, "t1c is the same scan as t1n")
    (case,) = find_cases(tmp_path).cases
    report = check_case(load_case(case), digests="none")
    assert report.digests == {}
    assert [p.what for p in report.problems] == [p.what for p in verify_case(case).problems]


def test_a_shifted_modality_looks_unregistered(tmp_path, volumes, write_case):
    volumes["t2w"] = np.roll(volumes["t2w"], 2, axis=2)
    volumes["t2w"][2, 3, 2:8] = 9  # keeps the label in the brain
    warned(tmp_path, volumes, write_case, "t2w looks unregistered")


@pytest.mark.parametrize("n_slices", [2, 4])
def test_a_brain_in_the_second_of_a_few_slices_is_registered(tmp_path, volumes, write_case, n_slices):
    write_case(
        tmp_path,
        {
            name: np.concatenate([0 * array[:1], array[2:3], 0 * array[: n_slices - 2]])
            for name, array in volumes.items()
        },
    )
    assert [line for line in look(tmp_path)[1] if "unregistered" in line] == []


def test_the_same_scan_in_two_cases_is_named_and_makes_them_one_patient(tmp_path, volumes, write_case):
    write_case(tmp_path, volumes, case_id="BraTS2021_00001")
    other = {
        name: np.roll(array, 1, axis=0) if name in ("t1n", "t2w", "t2f") else array
        for name, array in volumes.items()
    }
    files = write_case(tmp_path, other, case_id="BraTS2021_00002")
    rewrite(
        files["t1c"], other["t1c"].astype(np.float32), orientation="RAS"
    )  # another type and orientation, the same scan
    report = verify_folder(tmp_path)
    assert report.exit_code == 0
    twins = [problem for problem in report.problems if "same as in case BraTS2021_00001" in problem.what]
    assert [problem.case for problem in twins] == ["BraTS2021_00002"]
    assert report.patients == {"BraTS2021_00001": "GLI-00001", "BraTS2021_00002": "GLI-00001"}
    assert report.rows[1]["patient"] == "GLI-00001"


def test_cases_that_share_scans_in_a_chain_are_one_patient(tmp_path, volumes, write_case):
    def fresh(seed):
        array = np.zeros((6, 8, 10), np.int16)
        array[1:5, 1:7, 2:8] = np.random.default_rng(seed).integers(1, 1000, (4, 6, 6))
        return array

    for number, seeds in enumerate([(1, 2, 3, 4), (5, 6, 7, 1), (5, 8, 9, 10), (11, 12, 13, 14)]):
        scans = {name: fresh(seed) for name, seed in zip(("t1n", "t1c", "t2w", "t2f"), seeds, strict=True)}
        write_case(tmp_path, scans, case_id=f"BraTS2021_0000{number}")
    assert list(verify_folder(tmp_path, workers=2).patients.values()) == ["GLI-00000"] * 3 + ["GLI-00003"]


def test_no_tumor_but_a_cavity_is_no_tumor(tmp_path, volumes):
    names = {"t1n": "t1n", "t1c": "t1c", "t2w": "t2w", "t2f": "t2f", "label": "seg"}
    home = tmp_path / "BraTS-GLI-00001-100"
    home.mkdir()
    for name, array in (volumes | {"label": (volumes["label"] == 4).astype(np.uint8) * 4}).items():
        rewrite(home / f"{home.name}-{names[name]}.nii.gz", array)
    report, _ = look(tmp_path)
    assert report.cases[0].class_counts["resection_cavity"] == 1
    assert [problem.what for problem in report.problems] == ["label has no tumor"]


def test_numbers_no_integer_holds_are_compared_all_the_same(tmp_path, volumes, write_case):
    for case_id in ("BraTS2021_00001", "BraTS2021_00002"):
        write_case(
            tmp_path, volumes | {name: volumes[name] * 1e30 for name in ("t1n", "t2w")}, case_id=case_id
        )
    report, problems = look(tmp_path)
    assert report.exit_code == 0
    assert problems[0].endswith(
        "4 of its scans are the same as in case BraTS2021_00001; the two count as one patient"
    )


def test_files_of_a_case_that_lacks_one_are_looked_at_too(tmp_path, volumes, write_case):
    files = write_case(tmp_path, volumes)
    files["t1c"].unlink()
    spoil_text(files, volumes)
    spoil_label_7(files, volumes)
    report, problems = look(tmp_path)
    assert report.cases == ()
    assert len(problems) == 3
    for said, problem in zip(
        ("modality t1c missing", "is not a gzip-compressed", "label has the values 7"), problems, strict=True
    ):
        assert problem.startswith("BraTS2021_00001: ")
        assert said in problem


def test_a_file_that_may_not_be_read_or_is_a_broken_link_is_a_problem(
    tmp_path, volumes, write_case, monkeypatch
):
    files = write_case(tmp_path, volumes)
    files["t2w"].unlink()
    files["t2w"].symlink_to(tmp_path / "nowhere")
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path == files["t1n"]:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    _, problems = look(tmp_path)
    assert [problem.partition("; ")[0].partition("seg")[0] for problem in problems] == [
        f"BraTS2021_00001: {files['t1n']}: cannot be read: Permission denied",
        f"BraTS2021_00001: {files['t2w']}: cannot be read: No such file or directory",
    ]


def test_a_line_break_in_a_name_does_not_break_the_line(tmp_path, volumes, write_case):
    write_case(tmp_path / "two\nlines", volumes)["t1c"].write_text("not a scan")
    _, problems = look(tmp_path)
    assert "two\\nlines" in problems[0]


def test_a_missing_modality_counts_as_an_error(tmp_path, volumes, write_case):
    write_case(tmp_path, volumes)["t1c"].unlink()
    report, problems = look(tmp_path)
    assert report.exit_code == 1
    assert "modality t1c missing" in problems[0]


def test_a_stack_is_looked_at_by_channel(tmp_path, volumes):
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": names, "labels": labels}))
    stack = np.stack([volumes[name] for name in ("t2f", "t1n", "t1c", "t2w")], axis=-1)
    stack[..., 3] = 0
    geometry = make_geometry((6, 8, 10), orientation="RAS")
    write_volume(tmp_path / "imagesTr/BRATS_001.nii.gz", stack, geometry, dtype="int16")
    write_volume(
        tmp_path / "labelsTr/BRATS_001.nii.gz", np.minimum(volumes["label"], 3), geometry, dtype="uint8"
    )
    report, problems = look(tmp_path)
    assert len(problems) == 1
    assert "BRATS_001.nii.gz (channel 3): t2w is empty" in problems[0]
    # value 1 is edema here, and 2 the merged core
    assert [
        report.cases[0].class_counts[name]
        for name in ("edema", "necrotic_or_non_enhancing", "enhancing_core")
    ] == [2, 4, 1]


def test_the_fifteen_real_cases_are_good(real_data):
    report = verify_folder(real_data, workers=2)
    assert len(report.good) == 15
    (problem,) = report.problems
    assert (problem.severity, problem.case) == ("warning", "Brats17_2013_27_1")
    assert problem.what == "label has 6 annotated voxels outside the brain"
    tumor = ("necrotic_or_non_enhancing", "edema", "enhancing_core")
    assert {row["case"]: tuple(row["class_counts"][name] for name in tumor) for row in report.rows} == {
        "Brats17_2013_27_1": (11727, 50571, 20437),
        "Brats18_CBICA_AWG_1": (19830, 29143, 14186),
        "Brats18_TCIA05_396_1": (9487, 135912, 16998),
        "BraTS20_Training_001": (15443, 168794, 27742),
        "BraTS2021_00002": (11248, 155695, 23651),
        "BraTS2021_00003": (17214, 57773, 24252),
        "BraTS2021_00005": (24187, 76742, 23854),
        "BraTS2021_00006": (25506, 85957, 26448),
        "BraTS2021_00008": (16, 18135, 311),
        "BraTS2021_00014": (2, 35799, 2557),
        "BraTS2021_01476": (23189, 27760, 224),
        "BraTS2021_01479": (93298, 7407, 89546),
        "BraTS2021_01480": (10557, 24143, 0),
        "BraTS2021_01484": (135025, 27678, 0),
        "BraTS-GLI-00000-000": (11738, 12836, 32731),
    }
