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
from brats_seg.core.config import Config
from brats_seg.core.errors import UsageError
from brats_seg.core.knobs import knob_sections, knobs_of
from brats_seg.core.settings import config_names

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

    monkeypatch.setattr("brats_seg.phantoms.cohort.write_cohort", full)
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


def test_configs_says_of_each_config_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("configs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("demo") + 1].endswith("Expect on the held-out phantoms: whole Dice above 0.80.")
    for name in config_names():
        assert lines[lines.index(name) + 1]
    assert run("configs", "studies") == 0
    assert "mnist_quick" in capsys.readouterr().out.splitlines()
    assert run("configs", "demo") == 0
    assert "epochs: 8" in capsys.readouterr().out
    assert run("configs", "demos") == 2


def test_knobs_says_values_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("knobs", "patch") == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "patch.size\n"
        "  Voxels along each axis: two numbers (y, x) or three (z, y, x).\n"
        "  values: list of: whole number (above 0)\n"
        "  default: [64, 64]\n"
    )
    assert run("knobs") == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()][:3] == [
        "network", "task", "patch",
    ]  # fmt: skip
    assert run("knobs", "patches") == 2
    assert "the sections are network, task, patch" in one_line(capsys.readouterr().err)


def test_every_knob_has_a_meaning() -> None:
    for name, section in knob_sections(Config).items():
        for knob in knobs_of(name, section):
            assert knob.meaning, knob.name


@pytest.mark.parametrize(
    ("argv", "heavy"),
    [
        (["verify", "SCANS"], {"torch", "monai", "pandas", "matplotlib", "numba"}),
        (["verify", "BANK"], {"torch", "monai", "pandas", "matplotlib"}),
        (["preprocess", "SCANS", "NEW"], {"torch", "monai", "pandas", "matplotlib"}),
        (["evaluate", "SCANS", "SCANS"], {"torch", "monai"}),
        (["phantom", "NEW", "--cases", "1", "--size", "48"], {"torch", "monai"}),
    ],
)
def test_verbs_that_use_no_network_load_no_library_for_it(
    tmp_path: Path, argv: list[str], heavy: set[str]
) -> None:
    (tmp_path / "SCANS").mkdir()
    (tmp_path / "BANK").mkdir()
    (tmp_path / "BANK" / "bank.json").write_text("{}")
    paths = [str(tmp_path / word) if word.isupper() else word for word in argv]
    code = (
        "import sys\n"
        "from brats_seg.cli import main\n"
        f"try: main({paths})\n"
        "except SystemExit: pass\n"
        f"assert not {heavy} & set(sys.modules), sorted({heavy} & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_shell_can_complete_verbs() -> None:
    asked = {"_BRATS_SEG_COMPLETE": "complete_bash", "COMP_WORDS": "brats-seg pre", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['brats-seg']; from brats_seg.cli import app; app(prog_name='brats-seg')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["prepare", "preprocess", "predict", "predict-case"]


@pytest.mark.parametrize("verb", ["experiment", "study"])
def test_every_worker_of_a_cluster_must_see_the_folder_that_the_work_reads(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of phantoms' banks, which is made first, and the folder of images that the YAML names."""
    needed: list[Path] = []

    def joined(address: str | None, *, needs: list[Path], **more: object) -> None:
        needed.extend(needs)
        raise UsageError("seen")

    monkeypatch.setattr(f"brats_seg.commands.{verb}.joined_cluster", joined)
    folder, out = tmp_path / "read", str(tmp_path / "out")
    commands = {
        "experiment": ("experiment", str(folder), out, "--config", "traits_quick"),
        "study": ("study", "run", "mnist", out, "--set", f"images.folder={folder}"),
    }
    assert run(*commands[verb], "--cluster", "local") == 2
    assert needed == [folder]
    assert folder.is_dir() is (verb == "experiment")
