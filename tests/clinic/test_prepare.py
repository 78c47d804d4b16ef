import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import oblique, write_series

from brats_seg.clinic.convert import import_dicom
from brats_seg.clinic.export import export_labels
from brats_seg.clinic.itk_images import geometry_of, placed, resampled
from brats_seg.clinic.prepare import brain_of, prepare_scans
from brats_seg.clinic.register import register
from brats_seg.core.errors import InputError
from brats_seg.scans.geometry import make_geometry, same_grid
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume, write_label_map, write_volume

N, MM = 40, 4.0
"""Voxels along each axis of the small head, and their size."""
AFFINE = np.diag([MM, MM, MM, 1.0]) + np.array(
    [[0, 0, 0, -80.0], [0, 0, 0, -80], [0, 0, 0, -80], [0, 0, 0, 0]]
)


def head(*, contrast: float) -> np.ndarray:
    """(Z, Y, X): three ellipsoids of different brightness on a background of 0; nothing is symmetric."""
    z, y, x = (np.mgrid[:N, :N, :N] - N / 2 + 0.5) * MM
    brain = (x / 55) ** 2 + (y / 68) ** 2 + (z / 48) ** 2 < 1
    ventricle = ((x - 6) / 14) ** 2 + ((y + 8) / 30) ** 2 + ((z - 5) / 12) ** 2 < 1
    tumor = ((x + 25) / 16) ** 2 + ((y - 30) / 12) ** 2 + ((z - 14) / 14) ** 2 < 1
    levels = np.where(tumor, 900, np.where(ventricle, 150, 500)) * brain
    return (levels if contrast > 0 else (1000 - levels) * brain).astype(np.int16)


def movement(*, degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    """A turn about the axis from foot to head through the center of the small head, then a shift."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:3, 3] = shift_mm
    return matrix


def moved(image: sitk.Image, matrix: np.ndarray) -> sitk.Image:
    """What a scanner sees after the head has moved by the matrix."""
    return resampled(image, image, matrix=np.linalg.inv(matrix))


def scan(*, contrast: float) -> sitk.Image:
    return placed(sitk.GetImageFromArray(head(contrast=contrast)), AFFINE)


def write_scan(path: Path, image: sitk.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = sitk.GetArrayFromImage(image)
    write_volume(path, array, geometry_of(image, dtype=array.dtype.name), dtype=array.dtype.name)


def test_a_known_movement_is_found_again_to_half_a_voxel():
    known = movement(degrees=12, shift_mm=(9, -6, 12))
    found = register(moved(scan(contrast=-1), known), scan(contrast=1))
    assert found.converged
    z, y, x = np.nonzero(head(contrast=1))
    places = AFFINE @ np.stack([x, y, z, np.ones_like(x)])
    apart_mm = np.linalg.norm(((found.matrix - known) @ places)[:3], axis=0)
    assert apart_mm.mean() < MM / 2


def test_prepared_scans_lie_on_one_another_and_labels_find_the_way_back(tmp_path):
    known = movement(degrees=8, shift_mm=(6, 4, -8))
    write_scan(tmp_path / "in/anna/t1ce.nii.gz", scan(contrast=1))
    write_scan(tmp_path / "in/anna/flair.nii.gz", moved(scan(contrast=-1), known))
    noise = np.random.default_rng(0).integers(1, 900, (N, N, N)).astype(np.int16)
    write_scan(tmp_path / "in/eve/t1ce.nii.gz", scan(contrast=1))
    write_scan(tmp_path / "in/eve/t2.nii.gz", placed(sitk.GetImageFromArray(noise), AFFINE))

    done = prepare_scans(tmp_path / "in", tmp_path / "out")
    assert find_cases(tmp_path / "out").strangers == ()

    assert done.written == ("anna",)
    (problem,) = [problem for problem in done.problems if problem.severity == "error"]
    assert "eve" in str(problem)
    assert "registration of t2w (t2.nii.gz) did not converge: its mutual information is 0.0" in str(problem)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["anna"]
    t1c, geometry = read_volume(tmp_path / "out/anna/t1ce.nii.gz")
    flair, _ = read_volume(tmp_path / "out/anna/flair.nii.gz")
    assert geometry.spacing_mm == pytest.approx((1, 1, 1))
    assert t1c.shape == (160, 160, 160)
    assert flair[t1c > 850].mean() < 250  # the tumor is 900 in one contrast and 100 in the other

    labels = np.where(t1c > 700, 3, 0).astype(np.uint8)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    write_label_map(predictions / "anna.nii.gz", labels, geometry, dtype="uint8")
    (predictions / "predictions.csv").write_text("case,file,schema\nanna,anna.nii.gz,brats2023\n")
    exported = export_labels(predictions, tmp_path / "out", tmp_path / "back")
    assert exported.problems == ()
    back, grid = read_volume(exported.written[0])
    original, theirs = read_volume(tmp_path / "in/anna/t1ce.nii.gz")
    assert same_grid(grid, theirs)
    truth = original > 700
    assert 2 * (truth & (back == 3)).sum() / (truth.sum() + (back == 3).sum()) > 0.95


def test_a_head_needs_a_mask_or_a_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    array = head(contrast=1) + 10  # no voxel is 0: a head with its skull
    geometry = make_geometry(array.shape, spacing_mm=(MM, MM, MM))
    with pytest.raises(InputError, match=r"no program for brain extraction is installed; install HD-BET"):
        brain_of(array, geometry, mask_file=None)

    program = tmp_path / "hd-bet"
    program.write_text(
        f"#!{sys.executable}\nimport sys, nibabel\n_, _, head, _, brain, *_ = sys.argv\n"
        "image = nibabel.load(head)\nvoxels = image.get_fdata()\n"
        "nibabel.save(nibabel.Nifti1Image(voxels * (voxels > 60), image.affine), brain)\n"
    )
    program.chmod(0o755)
    np.testing.assert_array_equal(brain_of(array, geometry, mask_file=None), head(contrast=1) > 0)

    program.write_text("#!/bin/sh\necho no GPU here >&2\nexit 3\n")
    with pytest.raises(InputError, match="hd-bet ended with 3 and said: no GPU here"):
        brain_of(array, geometry, mask_file=None)

    mask = tmp_path / "mask.nii.gz"
    write_label_map(mask, (array > 60).astype(np.uint8), geometry, dtype="uint8")
    np.testing.assert_array_equal(brain_of(array, geometry, mask_file=mask), head(contrast=1) > 0)
    other = make_geometry(array.shape, spacing_mm=(MM, MM, 2 * MM))
    with pytest.raises(InputError, match=r"mask\.nii\.gz: the mask .* lies on another grid"):
        brain_of(array, other, mask_file=mask)


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_a_dicom_seg_and_segments_of_slicer_lie_where_the_series_lies(tmp_path, form):
    seg = pytest.importorskip("highdicom.seg")
    stack = np.random.default_rng(1).integers(1, 900, (6, 10, 8)).astype(np.int16)
    write_series(
        tmp_path / "dicom", stack, description="T1 post", number=1, form=form, directions=oblique(15),
        PatientBirthDate="", PatientSex="", AccessionNumber="", StudyDate="", StudyTime="", StudyID="",
        ReferringPhysicianName="", Manufacturer="", InstanceNumber=1, PositionReferenceIndicator="",
    )  # fmt: skip
    assert import_dicom(tmp_path / "dicom", tmp_path / "scans", wanted={}).written == ("dicom",)
    array, geometry = read_volume(tmp_path / "scans/dicom/t1ce.nii.gz")
    labels = np.select([array > 700, array < 200], [3, 2], 0).astype(np.uint8)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    write_label_map(predictions / "dicom.nii.gz", labels, geometry, dtype="uint8")
    (predictions / "predictions.csv").write_text("case,file,schema\ndicom,dicom.nii.gz,brats2023\n")

    done = export_labels(predictions, tmp_path / "scans", tmp_path / "out", file_type=".dcm")
    assert done.problems == ()
    document = seg.segread(done.written[0])
    assert document.FrameOfReferenceUID == "1.2.3.9"
    assert [document.get_segment_description(n).segmented_property_type.meaning for n in (1, 2)] == [
        "Edema",
        "Enhancing Lesion",
    ]
    volume = document.get_volume(combine_segments=True, skip_overlap_checks=True)
    for n, row, column in np.argwhere(stack > 700)[:5]:
        place = np.array([-20.0, -30, 5]) + np.array([column * 1.0, row * 1.0, n * 3.0]) @ oblique(15)
        at = np.rint(volume.map_reference_to_indices(place[None])[0]).astype(int)
        assert volume.array[tuple(at)] == 2
    assert (volume.array == 1).sum() == (stack < 200).sum()

    done = export_labels(predictions, tmp_path / "scans", tmp_path / "out", file_type=".seg.nrrd")
    image = sitk.ReadImage(str(done.written[0]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    assert same_grid(geometry_of(image, dtype="uint8"), geometry)
    names = {
        image.GetMetaData(f"Segment{n}_LabelValue"): image.GetMetaData(f"Segment{n}_Name") for n in range(3)
    }
    assert names == {"1": "necrotic or non enhancing", "2": "edema", "3": "enhancing core"}
    assert "~SCT^79654002^Edema~" in image.GetMetaData("Segment1_Tags")


def test_cases_that_cannot_be_exported_are_named(tmp_path):
    (tmp_path / "scans/eve").mkdir(parents=True)
    labels = np.zeros((4, 4, 4), np.uint8)
    write_label_map(tmp_path / "eve.nii.gz", labels, make_geometry((4, 4, 4)), dtype="uint8")
    rows = "case,file,schema\neve,eve.nii.gz,brats2023\nadam,eve.nii.gz,brats2023\n"
    (tmp_path / "predictions.csv").write_text(rows)
    done = export_labels(tmp_path, tmp_path / "scans", tmp_path / "out", file_type=".dcm")
    assert done.written == ()
    eve, adam = (str(problem) for problem in done.problems)
    assert "has no import.json: DICOM SEG is for cases that `brats-seg import` made" in eve
    assert "adam: no such case" in adam


@pytest.mark.campaign
def test_real_scans_that_were_misplaced_come_back_below_a_millimeter_and_a_degree(real_data):
    spec = importlib.util.spec_from_file_location(
        "registration_errors", Path(__file__).parents[2] / "tools" / "registration_errors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules["registration_errors"] = tool
    spec.loader.exec_module(tool)
    rows = list(tool.misplaced(find_cases(real_data, labels="unused").cases, 10))
    errors = [(row.error_mm, row.error_degrees) for row in rows]
    assert np.all(np.median(errors, axis=0) < 1)
    assert np.all(np.max(errors, axis=0) < 1.5)


@pytest.mark.campaign
def test_the_native_scans_of_a_real_patient_come_to_the_frame_of_another_tool(tmp_path):
    root = Path(os.environ["BRATS_SEG_DATA"]) / "prepare/TCGA-DU-7294"
    for name, file in (("t1", "t1"), ("t1c", "t1ce"), ("t2", "t2"), ("fla", "flair")):
        target = tmp_path / f"in/case/{file}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(root / f"native/TCGA-DU-7294_hdbet_native_{name}.nii.gz")
    atlas = root / "brats_frame/TCGA-DU-7294_t1c_bet.nii.gz"
    done = prepare_scans(tmp_path / "in", tmp_path / "out", atlas=atlas)
    assert done.problems == ()
    ours, geometry = read_volume(tmp_path / "out/case/brain_mask.nii.gz")
    theirs, grid = read_volume(atlas)
    assert same_grid(geometry, grid)
    assert 2 * (ours * (theirs != 0)).sum() / (ours.sum() + (theirs != 0).sum()) >= 0.95
    steps = json.loads((tmp_path / "out/case/prepare.json").read_text())
    assert min(steps["metric"].values()) > 0.2


def labels_of_two_regions(folder: Path, case: str) -> np.ndarray:
    """A label map of edema with an enhancing cube in it, 2 mm slices, and the table of its folder."""
    labels = np.zeros((6, 10, 12), np.uint8)
    labels[1:5, 2:8, 3:9] = 2
    labels[2:4, 3:6, 4:7] = 3
    folder.mkdir(parents=True, exist_ok=True)
    geometry = make_geometry(labels.shape, spacing_mm=(2.0, 1.0, 1.0))
    write_label_map(folder / f"{case}.nii.gz", labels, geometry, dtype="uint8")
    (folder / "predictions.csv").write_text(f"case,file,schema\n{case},{case}.nii.gz,brats2023\n")
    return labels


def test_a_surface_of_each_region_encloses_its_volume_where_the_scan_lies(tmp_path):
    labels = labels_of_two_regions(tmp_path / "predictions", "eve")
    (tmp_path / "scans/eve").mkdir(parents=True)
    done = export_labels(tmp_path / "predictions", tmp_path / "scans", tmp_path / "out", file_type=".stl")
    assert [path.name for path in done.written] == [
        "eve_whole.stl", "eve_core.stl", "eve_active.stl"
    ]  # fmt: skip
    affine = read_volume(tmp_path / "predictions/eve.nii.gz")[1].lps_affine
    for path, mask in zip(done.written, (labels > 0, labels == 3, labels == 3), strict=True):
        content = path.read_bytes()
        assert b"SPACE=LPS" in content[:80]
        n = int(np.frombuffer(content, "<u4", 1, 80)[0])
        assert len(content) == 84 + 50 * n
        triangles = np.frombuffer(
            content, np.dtype([("n", "<f4", 3), ("p", "<f4", (3, 3)), ("r", "<u2")]), n, 84
        )
        points = triangles["p"].astype(float)
        volume = np.einsum("ij,ij->i", points[:, 0], np.cross(points[:, 1], points[:, 2])).sum() / 6
        # Halfway between voxels in and out: the corners and edges of a block are cut off.
        assert 0.7 * mask.sum() * 2 < abs(volume) < mask.sum() * 2
        center = affine[:3, :3] @ np.argwhere(mask)[:, ::-1].mean(axis=0) + affine[:3, 3]
        np.testing.assert_allclose(points.mean(axis=(0, 1)) * (-1, -1, 1), center, atol=0.2)


def test_an_empty_label_map_has_no_surface_and_no_dicom_seg(tmp_path):
    labels_of_two_regions(tmp_path / "predictions", "eve")
    (tmp_path / "scans/eve").mkdir(parents=True)
    (tmp_path / "scans/eve/import.json").write_text(
        '{"source": "gone", "series": {"t1c": {"series_uid": "1"}}}'
    )
    grid = read_volume(tmp_path / "predictions/eve.nii.gz")[1]
    empty = np.zeros((6, 10, 12), np.uint8)
    write_label_map(tmp_path / "predictions/eve.nii.gz", empty, grid, dtype="uint8")
    for file_type, said in ((".stl", "it has no surface"), (".dcm", "DICOM SEG has no form for it")):
        done = export_labels(
            tmp_path / "predictions", tmp_path / "scans", tmp_path / "out", file_type=file_type
        )
        assert done.written == ()
        (problem,) = done.problems
        assert f"the label map is empty: {said}" in str(problem)
    assert not list((tmp_path / "out").iterdir())


def test_label_maps_of_bids_scans_take_names_of_bids_and_are_no_references(tmp_path):
    labels_of_two_regions(tmp_path / "predictions", "sub-001_ses-02")
    root = tmp_path / "study"
    for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"):
        path = root / f"sub-001/ses-02/anat/sub-001_ses-02_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = export_labels(
        tmp_path / "predictions", root, root / "derivatives/brats", file_type=".nii.gz", names="bids"
    )
    assert done.problems == ()
    home = root / "derivatives/brats"
    assert done.written == (home / "sub-001/ses-02/anat/sub-001_ses-02_desc-bratsseg_dseg.nii.gz",)
    assert (home / "desc-bratsseg_dseg.tsv").read_text().splitlines()[3] == "2\tedema"
    found = find_cases(root)
    assert not found.problems
    assert [(case.id, case.label) for case in found.cases] == [("sub-001_ses-02", None)]
    labels_of_two_regions(tmp_path / "predictions", "eve")
    (problem,) = export_labels(tmp_path / "predictions", root, home, names="bids").problems
    assert "is not a BIDS subject and session" in str(problem)
