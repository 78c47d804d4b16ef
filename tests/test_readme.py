"""The README's commands are the ones that are run."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands() -> list[str]:
    """The commands that begin in a new virtual environment, each as one line."""
    text = re.sub(r" \\\n +", " ", (ROOT / "README.md").read_text())
    return re.findall(r"^python3 -m venv .*$", text, flags=re.MULTILINE)


def test_two_commands() -> None:
    demo, tests = commands()
    assert demo.endswith("brats-seg demo")
    assert tests.endswith("python -m pytest")


def test_continuous_integration_runs_the_second_word_for_word() -> None:
    assert commands()[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_lines_are_short_and_few() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100


def test_torch_is_the_version_of_the_constraints() -> None:
    (version,) = re.findall(r"torch==[\d.]+", (ROOT / "README.md").read_text())
    assert version in (ROOT / "constraints.txt").read_text().splitlines()


def test_every_package_is_in_the_tree_of_the_architecture() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text()
    for package in sorted(
        p.name for p in (ROOT / "brats_seg").iterdir() if p.is_dir() and (p / "__init__.py").exists()
    ):
        assert f"{package}/" in tree
