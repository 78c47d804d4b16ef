"""The command line: help with an example at every verb, one line and an exit code for every known problem,
light imports.
"""

import errno
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from brats_seg.cli import app, main

VERBS = sorted(
    command.name or command.callback.__name__.replace("_", "-")
    for command in app.registered_commands
    if command.callback
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "-h"], terminal_width=200)
    assert result.exit_code == 0
    assert f"Example: brats-seg {verb}" in result.output


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_whole_in_a_narrow_window(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "-h"], terminal_width=80, env={"COLUMNS": "80"})
    assert max(map(len, result.output.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.output  # it stands for letters that are cut off


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from brats_seg.cli import main\n"
        "try: main(['-h'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'monai', 'numpy', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    return text


@pytest.fixture
def empty_bank(tmp_path: Path) -> Path:
    (tmp_path / "bank").mkdir()
    return tmp_path / "bank"


def test_an_unknown_config_is_usage(empty_bank: Path, tmp_path: Path, capsys) -> None:
    assert run("train", str(empty_bank), str(tmp_path / "run"), "--config", "unet2") == 2
    assert "the names are" in one_line(capsys.readouterr().err)


def test_a_folder_that_is_no_bank_is_input(empty_bank: Path, tmp_path: Path, capsys) -> None:
    assert run("train", str(empty_bank), str(tmp_path / "run"), "--config", "demo") == 1
    assert "brats-seg preprocess" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("fold", ["-1", "one", "1.5"])
def test_a_fold_is_a_number_or_all(empty_bank: Path, tmp_path: Path, fold: str, capsys) -> None:
    assert run("train", str(empty_bank), str(tmp_path / "run"), "--config", "demo", f"--fold={fold}") == 2
    assert f"--fold {fold}" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("part", ["3/2", "0/2", "1", "a/b", "1/"])
def test_a_part_is_one_of_n(tmp_path: Path, part: str, capsys) -> None:
    (tmp_path / "scans").mkdir()
    assert run("preprocess", str(tmp_path / "scans"), str(tmp_path / "bank"), "--part", part) == 2
    assert f"--part {part}" in one_line(capsys.readouterr().err)


def test_a_missing_folder_is_usage(tmp_path: Path) -> None:
    assert run("verify", str(tmp_path / "nothing")) == 2


@pytest.mark.parametrize("verb", [("evaluate",), ("report", "--output", "report.html")])
def test_the_cavity_joins_a_region_that_there_is(verb: tuple[str, ...], empty_bank: Path, capsys) -> None:
    assert run(*verb, str(empty_bank), str(empty_bank), "--cavity-in", "edema") == 2
    assert "--cavity-in edema: unknown; the regions are whole, core, active" in one_line(
        capsys.readouterr().err
    )


def test_an_empty_folder_has_no_case(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    assert run("verify", str(tmp_path / "scans")) == 1


def test_the_demo_wants_an_empty_folder(tmp_path: Path, capsys) -> None:
    (tmp_path / "something").touch()
    assert run("demo", str(tmp_path)) == 2
    assert "not an empty folder" in one_line(capsys.readouterr().err)


def test_the_package_itself_is_light() -> None:
    subprocess.run(
        [sys.executable, "-c", "import brats_seg, sys; assert 'torch' not in sys.modules"], check=True
    )


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "scans" / "a.nii.gz"))

    monkeypatch.setattr("brats_seg.pipeline.phantom", full)
    assert run("phantom", str(tmp_path / "scans")) == 1
    assert "a.nii.gz: the disk is full" in one_line(capsys.readouterr().err)


def test_a_bank_below_a_file_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert run("phantom", str(tmp_path / "file" / "scans"), "--size", "48", "--cases", "1") == 1
    assert "file" in one_line(capsys.readouterr().err)


def test_percentiles_that_do_not_rise_are_usage(tmp_path: Path, capsys) -> None:
    (tmp_path / "scans").mkdir()
    assert run("preprocess", str(tmp_path / "scans"), str(tmp_path / "bank"), "--percentiles", "99", "1") == 2
    assert "--percentiles 99 1" in one_line(capsys.readouterr().err)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out == f"brats-seg {version('brats-seg')}\n"
