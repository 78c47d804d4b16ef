"""The README's commands are the ones that are run."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands() -> list[str]:
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)


def test_two_commands_of_one_line_each() -> None:
    demo, tests = commands()
    assert demo.endswith("brats-seg demo")
    assert tests.endswith("python -m pytest")


def test_continuous_integration_runs_the_second_word_for_word() -> None:
    assert commands()[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_room_of_the_tree_exists_and_every_room_is_in_the_tree() -> None:
    tree = (ROOT / "README.md").read_text()
    for room in sorted(
        p.name for p in (ROOT / "brats_seg").iterdir() if p.is_dir() and (p / "__init__.py").exists()
    ):
        assert f"{room}/" in tree
