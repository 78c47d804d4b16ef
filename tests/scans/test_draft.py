"""The draft of a manifest: what names suggest, what they do not, and that `verify` reads it."""

from pathlib import Path

import pytest

from brats_seg.cli import main
from brats_seg.core.files import read_table
from brats_seg.phantoms.cohort import make_traits, write_cohort
from brats_seg.scans.layouts import find_cases


def ends(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases whose files are named by a hospital: `ax_t1_post_gd.nii.gz` says T1 with contrast agent."""
    root = tmp_path_factory.mktemp("odd")
    write_cohort(root / "brats", n_cases=2, layout="brats2021", size=48, seed=0, traits=make_traits({}))
    names = {
        "t1": "ax_T1_pre",
        "t1ce": "ax_t1-post",
        "t2": "ax-T2w",
        "flair": "cor_FLAIR",
        "seg": "tumor-seg",
    }
    for number, case in enumerate(sorted((root / "brats").glob("BraTS2021_*"))):
        (root / "scans" / f"patient{number}").mkdir(parents=True)
        for file in case.glob("*.nii.gz"):
            role = file.name.removesuffix(".nii.gz").rpartition("_")[2]
            file.rename(root / "scans" / f"patient{number}" / f"{names[role]}.nii.gz")
    return root


def test_a_folder_of_unknown_names_gets_a_draft_that_verify_reads(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = odd / "manifest_draft.csv"
    assert ends("verify", str(odd / "scans"), "--workers", "1") == 1
    assert f"`brats-seg verify {odd / 'scans'} --draft manifest.csv`" in capsys.readouterr().out
    assert ends("verify", str(odd / "scans"), "--draft", str(manifest), "--workers", "1") == 1
    said = capsys.readouterr().out
    assert f"draft of 2 cases, 2 empty cells: {manifest}" in said  # the schema of each
    columns, rows = read_table(manifest)
    assert list(columns) == ["case", "patient", "t1n", "t1c", "t2w", "t2f", "label", "schema"]
    assert rows[0] == {
        "case": "patient0", "patient": "patient0", "t1n": "scans/patient0/ax_T1_pre.nii.gz",
        "t1c": "scans/patient0/ax_t1-post.nii.gz", "t2w": "scans/patient0/ax-T2w.nii.gz",
        "t2f": "scans/patient0/cor_FLAIR.nii.gz", "label": "scans/patient0/tumor-seg.nii.gz", "schema": "",
    }  # fmt: skip
    assert ends("verify", str(manifest), "--schema", "brats2017", "--workers", "1") == 0


def test_names_that_say_nothing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "series7.nii.gz").touch()
    assert ends("verify", str(tmp_path / "scans"), "--draft", str(tmp_path / "m.csv")) == 1
    assert f"no place in the draft for {tmp_path / 'scans' / 'series7.nii.gz'}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("IM001.dcm", b""), ("IM001", b"\0" * 128 + b"DICM")])
def test_a_folder_of_dicom_is_called_by_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / name).write_bytes(content)
    (problem,) = find_cases(tmp_path).problems
    assert (problem.severity, problem.file) == ("error", str(tmp_path / "series"))
    assert problem.what == f"contains 1 DICOM files, such as {name}, which this verb does not read"
    assert problem.expected == f"scans: `brats-seg import {tmp_path} scans` makes them from DICOM series"
