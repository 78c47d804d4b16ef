"""A real case as a hospital has it, the whole way: DICOM series, import, prepare, predict, DICOM SEG."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import AXIAL, SAGITTAL, oblique, write_series

from brats_seg import pipeline
from brats_seg.clinic.convert import import_dicom
from brats_seg.clinic.export import export_labels
from brats_seg.clinic.itk_images import placed, resampled, to_itk
from brats_seg.clinic.prepare import prepare_scans
from brats_seg.inference.options import PredictOptions
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

SERIES = (
    # modality, description, directions of column, row and slice in LPS, kind of file
    ("t1c", "AX T1 POST", AXIAL, "classic"),
    ("t1n", "SAG T1", SAGITTAL, "classic"),
    ("t2w", "AX T2", AXIAL, "enhanced"),
    ("t2f", "AX FLAIR", oblique(15), "enhanced"),
)
OPTIONS = PredictOptions(device="cpu")


def on_grid(image: sitk.Image, directions: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The image (slice, row, column) resampled to 1 mm along these directions, and its origin in LPS."""
    last = np.array(image.GetSize()) - 1
    corners = np.array([
        image.TransformIndexToPhysicalPoint((last * which).tolist()) for which in np.ndindex(2, 2, 2)
    ])  # fmt: skip
    along = corners @ directions.T
    low, size = along.min(axis=0), np.ceil(np.ptp(along, axis=0)).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, directions.T @ low
    grid = placed(sitk.Image([int(n) for n in size], sitk.sitkInt16), affine)
    return sitk.GetArrayFromImage(resampled(image, grid, matrix=np.eye(4))), affine[:3, 3].tolist()


def whole_dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * ((a > 0) & (b > 0)).sum() / ((a > 0).sum() + (b > 0).sum()))


@pytest.mark.campaign
def test_a_real_case_in_four_dicom_series_is_segmented_as_the_case_itself(tmp_path, real_data):
    seg = pytest.importorskip("highdicom.seg")
    case = next(c for c in find_cases(real_data).cases if c.id == "BraTS2021_00006")
    images = {
        name: sitk.Cast(to_itk(*read_volume(scan)), sitk.sitkFloat32)
        for name, scan in case.modalities.items()
    }
    for number, (name, description, directions, form) in enumerate(SERIES, start=1):
        stack, origin = on_grid(images[name], directions)
        write_series(
            tmp_path / "dicom" / name, stack.astype(np.int16), description=description, number=number,
            directions=directions, spacing_mm=(1.0, 1.0, 1.0), origin=origin, form=form,
            PatientBirthDate="", PatientSex="", AccessionNumber="", StudyDate="", StudyTime="", StudyID="",
            ReferringPhysicianName="", Manufacturer="", InstanceNumber=1, PositionReferenceIndicator="",
        )  # fmt: skip
    imported = import_dicom(tmp_path / "dicom", tmp_path / "scans", wanted={})
    assert (imported.written, imported.problems) == (("dicom",), ())
    prepared = prepare_scans(tmp_path / "scans", tmp_path / "prepared")
    assert (prepared.written, prepared.problems) == (("dicom",), ())

    predicted = pipeline.predict("starter", tmp_path / "prepared", tmp_path / "out", options=OPTIONS)
    assert predicted.exit_code == 0
    (tmp_path / "direct").mkdir()
    (tmp_path / "direct" / case.id).symlink_to(case.folder)
    direct = pipeline.predict("starter", case.folder, tmp_path / "own", options=OPTIONS)
    assert direct.exit_code == 0
    back = export_labels(tmp_path / "out", tmp_path / "prepared", tmp_path / "back").written[0]
    ours, truth = read_volume(back)[0], read_volume(tmp_path / "own" / f"{case.id}.nii.gz")[0]
    assert ours.shape == truth.shape
    assert whole_dice(ours, truth) >= 0.97

    done = export_labels(tmp_path / "out", tmp_path / "prepared", tmp_path / "seg", file_type=".dcm")
    assert done.problems == ()
    document = seg.segread(done.written[0])
    assert document.FrameOfReferenceUID == "1.2.3.9"
    volume = document.get_volume(combine_segments=True, skip_overlap_checks=True)
    assert (volume.array > 0).sum() == (ours > 0).sum()
    for z, y, x in np.argwhere(ours > 0)[::5000]:
        place = images["t1c"].TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
        at = np.rint(volume.map_reference_to_indices(np.array(place)[None])[0]).astype(int)
        assert volume.array[tuple(at)] > 0
