import gzip
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_files import AXIAL, SAGITTAL, oblique, write_series
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, JPEGLSLossless

from brats_seg.clinic.archives import list_files
from brats_seg.clinic.convert import FILES, import_dicom, read_voxels
from brats_seg.clinic.modality import CONTRADICTION, modality_of
from brats_seg.clinic.series import Series, read_series
from brats_seg.clinic.studies import parse_wanted
from brats_seg.core.errors import UsageError
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 900, (6, 10, 8)).astype(np.int16)

REAL = {
    "anatomical/001": None,
    "axial_oblique": None,
    "ge/anatomical/001": None,
    "siemens/anatomical/001": None,
    "siemens_multiframe/anatomical/001": None,
    "philips/anatomical/001": None,
    "philips_enhanced/anatomical/001": None,
    "hitachi/anatomical/001": None,
    "hyperfine/anatomical/001": None,
    "generic/compressed_rle/001": None,
    "generic/compressed_jpegls/001": None,
    "failing/gantrytilting/001": "a gantry tilt of 14.0 degrees",
    "failing/slicecount/001": "has 2 slices",
    "failing/sliceincrement/001": "lacks 1 of its slices, the first after IM-0001-0009-0001.dcm (10 mm",
    "failing/sliceorientation/001": "slices of 2 orientations",
}
"""A folder of real series -> why it is refused."""


@pytest.fixture(scope="session")
def real_dicom() -> Path:
    root = Path(os.environ.get("BRATS_SEG_DATA", "/nowhere")) / "dicom"
    if not root.is_dir():
        pytest.skip("BRATS_SEG_DATA does not name a folder with dicom/ in it: real series are not tested")
    return root


def series_in(folder: Path, scratch: Path) -> list[Series]:
    files, problems = list_files(folder, scratch=scratch)
    series, damaged = read_series(files)
    assert not problems
    assert not damaged
    return series


def write_patient(folder: Path, *, study: str = "1.2.3", patient: str = "DOE^JANE") -> None:
    """Four series of one patient: classic and enhanced, axial, oblique and sagittal, with a localizer."""
    who = {"study": study, "patient": patient}
    write_series(folder / "a", STACK, description="AX T1", number=2, **who)
    write_series(folder / "b", STACK + 1, description="Ax T1 POST", number=3, form="enhanced", **who)
    write_series(folder / "c", STACK + 2, description="T2 TSE obl", number=4, directions=oblique(15), **who)
    write_series(folder / "d", STACK + 3, description="sag FLAIR", number=5, directions=SAGITTAL, **who)
    write_series(folder / "e", STACK[:3], description="localizer", number=1, **who)


@pytest.mark.parametrize("folder", REAL)
def test_each_real_series_is_read_or_refused_with_its_reason(real_dicom, tmp_path, folder):
    (series,) = series_in(real_dicom / folder, tmp_path)
    if REAL[folder] is None:
        assert series.flaws == ()
        if folder != "axial_oblique":  # GDCM takes 4 s for one of its files: below
            array, geometry = read_voxels(series)
            assert array.shape == geometry.shape
            assert array.max() > array.min()
    else:
        assert REAL[folder] in series.flaws[0]


@pytest.mark.parametrize("folder", [name for name, flaw in REAL.items() if flaw is None])
def test_voxels_and_places_are_those_of_dcm2niix(real_dicom, tmp_path, folder):
    program = Path(pytest.importorskip("dcm2niix").bin)
    subprocess.run(
        [program, "-b", "n", "-z", "n", "-p", "n", "-f", "x", "-o", tmp_path, real_dicom / folder],
        check=True,
        capture_output=True,
    )
    (series,) = series_in(real_dicom / folder, tmp_path / "scratch")
    array, geometry = read_voxels(series)
    expected, theirs = read_volume(tmp_path / "x.nii")
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    z, y, x = geometry.shape
    corners = np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)])
    apart_mm = np.abs(corners @ (geometry.lps_affine - theirs.lps_affine).T).max()
    if folder == "axial_oblique":
        # The headers' positions are rounded to 0.1 mm. dcm2niix takes the first distance for all of them and
        # puts the last slice 1.3 mm away from where its header says; here it lies there.
        assert apart_mm == pytest.approx(1.41, abs=0.01)
        last = series.affine_lps @ (0, 0, len(series.planes) - 1, 1)
        np.testing.assert_allclose(last[:3], series.planes[-1].position, atol=1e-3)
    else:
        assert apart_mm < 1e-3


@pytest.mark.parametrize("form", ["classic", "enhanced"])
@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL, oblique(15)], ids=["axial", "sagittal", "oblique"])
def test_each_voxel_lies_where_its_header_says(tmp_path, form, directions):
    write_series(tmp_path / "in", STACK, description="T2", number=1, directions=directions, form=form)
    done = import_dicom(tmp_path / "in", tmp_path / "out", wanted={})
    assert done.written == ("in",)
    array, geometry = read_volume(tmp_path / "out/in/t2.nii.gz")
    for n, row, column in [(0, 0, 0), (5, 9, 7), (2, 4, 1)]:
        lps = np.array([-20.0, -30, 5]) + np.array([column * 1.0, row * 1.0, n * 3.0]) @ directions
        ras = np.append(lps * (-1, -1, 1), 1)
        x, y, z = np.rint(np.linalg.inv(geometry.lps_affine) @ ras)[:3].astype(int)
        assert array[z, y, x] == STACK[n, row, column]


def test_four_series_become_a_case_that_the_package_reads_and_no_text_travels(tmp_path):
    write_patient(tmp_path / "dicom/anna")
    done = import_dicom(tmp_path / "dicom", tmp_path / "out", wanted={})
    assert [str(problem) for problem in done.problems] == []
    (case,) = find_cases(tmp_path / "out").cases
    assert (case.id, sorted(case.modalities)) == ("anna", ["t1c", "t1n", "t2f", "t2w"])
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        raw = gzip.decompress(path.read_bytes())
        assert b"DOE" not in raw
        assert b"T1" not in raw[:352]


def test_bad_patients_are_named_and_the_good_one_is_written(tmp_path):
    root = tmp_path / "dicom"
    for n, name in enumerate(["good", "gap", "two", "cut", "twice", "burnt", "header"]):
        write_patient(root / name, study=f"1.2.{n}", patient=name)
    gap = write_series(
        root / "gap/f", STACK, description="T1 post", number=9, study="1.2.1", patient="gap", leave_out=[2]
    )
    (root / "gap/b/image.dcm").unlink()
    write_series(root / "two/f", STACK, description="T1 +C", number=9, study="1.2.2", patient="two")
    cut = root / "cut/a/IM0002.dcm"
    cut.write_bytes(cut.read_bytes()[:-40])
    (root / "twice/a/copy.dcm").write_bytes((root / "twice/a/IM0000.dcm").read_bytes())
    write_series(
        root / "burnt/a",
        STACK,
        description="AX T1",
        number=2,
        study="1.2.5",
        patient="burnt",
        BurnedInAnnotation="YES",
    )
    (root / "header/a/IM0001.dcm").write_bytes((root / "header/a/IM0001.dcm").read_bytes()[:150])
    (root / "notes.txt").write_text("not DICOM")

    done = import_dicom(root, tmp_path / "out", wanted={})

    assert done.written == ("good",)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]
    lines = {problem.case: str(problem) for problem in done.problems if problem.severity == "error"}
    assert len(lines) == 6
    assert (
        f"series 9 'T1 post' in gap/f: lacks 1 of its slices, the first after {gap[1].name} (6 mm where 3)"
        in lines["gap"]
    )
    assert "2 series for t1c: series 3 'Ax T1 POST' in two/b and series 9 'T1 +C' in two/f" in lines["two"]
    assert "IM0002.dcm is truncated: 120 of 160 bytes" in lines["cut"]
    assert "has two slices at one position" in lines["twice"]
    assert "text burnt into its pixels" in lines["burnt"]
    assert "header/a/IM0001.dcm: " in lines["header"]
    again = import_dicom(root / "two", tmp_path / "two", wanted=parse_wanted(["t1ce=9"]))
    assert again.written == ("two",)


def test_a_zip_file_is_read_and_names_that_lead_out_of_it_are_refused(tmp_path):
    write_patient(tmp_path / "anna")
    root = tmp_path / "in"
    root.mkdir()
    for name, prefix in [("anna", ""), ("evil", "../")]:
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path in sorted((tmp_path / "anna").rglob("*.dcm")):
                archive.write(path, prefix + str(path.relative_to(tmp_path / "anna")))
    (root / "cut.zip").write_bytes((root / "anna.zip").read_bytes()[300:])
    done = import_dicom(root, tmp_path / "out", wanted={})
    assert done.written == ("anna",)
    assert sorted(p.name for p in (tmp_path / "out/anna").iterdir()) == [
        *sorted(f"{name}.nii.gz" for name in FILES.values() if name == "flair"),
        "import.json",
        *sorted(f"{name}.nii.gz" for name in FILES.values() if name != "flair"),
    ]
    told = [str(problem) for problem in done.problems]
    assert any("evil.zip: has the member '../a/IM0000.dcm'" in line for line in told)
    assert any("cut.zip: cannot be unpacked" in line for line in told)
    assert not list(tmp_path.glob("a"))


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (HTJ2KLossless, "is stored as High-Throughput JPEG 2000 Image Compression"),
        (JPEGLSLossless, ".dcm cannot be unpacked: "),
    ],
)
def test_pixels_that_cannot_be_unpacked_refuse_the_case(tmp_path, syntax, words):
    path = write_series(tmp_path / "in", STACK, description="T2", number=1)[2]
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"no picture"])
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    done = import_dicom(tmp_path / "in", tmp_path / "out", wanted={})
    assert done.written == ()
    (error,) = [problem for problem in done.problems if problem.severity == "error"]
    assert words in str(error)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("description", "agent", "modality"),
    [
        ("AX T1 POST GD", "", "t1c"), ("t1_mprage_sag_iso_+C", "", "t1c"), ("Ax T1 FSE", "Gadovist", "t1c"),
        ("AX T1 PRE", "", "t1n"), ("T1 without contrast", "", "t1n"), ("t1_se_tra", "", "t1n"),
        ("T1W_3D_TFE", "NONE", "t1n"), ("Sag T1 FLAIR", "", "t1n"), ("MPRAGE KM", "", "t1c"),
        ("T2 FLAIR 3D", "", "t2f"), ("t2_tirm_tra_dark-fluid", "", "t2f"), ("Ax T2 PROPELLER", "", "t2w"),
        ("T2* GRE", "", None), ("ep2d_diff_3scan_trace", "", None), ("3-plane loc", "", None),
        ("T1 KM-frei", "", "t1n"), ("T1 vor KM", "", "t1n"), ("T1 ohne KM", "", "t1n"),
        ("T1 o KM", "", "t1n"), ("T1 nach KM", "", "t1c"), ("t1_fl2d no gd", "", "t1n"),
        ("T1 non-contrast", "None", "t1n"), ("T1 preGd", "", "t1n"), ("T1 MPRAGE with MoCo", "", "t1n"),
        ("T1 SE with fatsat", "", "t1n"), ("T1 SE with fatsat", "Gadovist", "t1c"),
        ("T1 w/o fatsat +C", "", "t1c"), ("SAG T1 W/O", "", "t1n"), ("T1 postop", "", "t1n"),
        ("T1 PRE FS", "NO CONTRAST", "t1n"), ("Ax T1", "NO CONTRAST", "t1n"), ("Ax T1", "Without", "t1n"),
        ("T1 sans gado", "", "t1n"), ("T1 with contrast", "Dotarem", "t1c"), ("Ax SWAN", "", None),
        ("ADC (10^-6 mm²/s)", "", None), ("FSE PD AXIAL OBL", "", None),
    ],
)  # fmt: skip
def test_the_modality_is_told_by_words_then_by_contrast_tags(tmp_path, description, agent, modality):
    write_series(
        tmp_path,
        STACK,
        description=description,
        number=1,
        ContrastBolusAgent=agent,
        SpecificCharacterSet="ISO_IR 192",
    )
    (series,) = series_in(tmp_path, tmp_path / "scratch")
    assert modality_of(series)[0] == modality


@pytest.mark.parametrize(
    ("description", "agent"),
    [
        ("AX T1 PRE", "Gadovist"), ("T1 ohne KM", "Dotarem"), ("T1 POST GD", "NO CONTRAST"),
        ("T1 vor und nach KM", ""), ("T1 post - pre", ""),
    ],
)  # fmt: skip
def test_a_contradiction_about_contrast_agent_refuses_the_study_until_the_user_decides(
    tmp_path, description, agent
):
    write_patient(tmp_path / "in")
    write_series(
        tmp_path / "in/f", STACK, description=description, number=9, study="1.2.3", ContrastBolusAgent=agent
    )
    done = import_dicom(tmp_path / "in", tmp_path / "out", wanted={})
    assert done.written == ()
    (error,) = [str(problem) for problem in done.problems]
    assert f"series 9 '{description}' in f: {CONTRADICTION}" in error
    assert "--series t1n=9 or --series t1c=9" in error
    again = import_dicom(tmp_path / "in", tmp_path / "out", wanted=parse_wanted(["t1n=2", "t1c=9"]))
    assert again.written == ("in",)
    other = import_dicom(tmp_path / "in", tmp_path / "other", wanted=parse_wanted(["t1n=2", "t1c=3"]))
    assert other.written == ("in",)


def test_the_two_echoes_of_one_series_can_be_chosen(tmp_path):
    for echo in (20.0, 100.0):
        write_series(tmp_path / f"in/{echo}", STACK + int(echo), description="PD T2", number=7, EchoTime=echo)
    done = import_dicom(tmp_path / "in", tmp_path / "out", wanted=parse_wanted(["t2=7e2"]))
    assert done.written == ("in",)
    array, _ = read_volume(tmp_path / "out/in/t2.nii.gz")
    assert array.min() == STACK.min() + 100


def test_a_series_option_without_a_modality_is_refused():
    with pytest.raises(UsageError, match="write MODALITY=SERIES"):
        parse_wanted(["t9=4"])
