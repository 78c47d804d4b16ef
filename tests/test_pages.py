"""The commands and links of the README and of the pages under docs/ are right."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from brats_seg import cli
from brats_seg.core.config import load_config
from brats_seg.studies.strategies import load_experiment

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[str]:
    """The `brats-seg` commands of the code blocks, without their comments, in order."""
    lines = re.sub(r" \\\n +", " ", "\n".join(blocks(page, "", "bash"))).splitlines()
    plain = [" ".join(shlex.split(line, comments=True)) for line in lines if line.startswith("brats-seg")]
    return [re.sub(r" && brats-seg .*", "", line) for line in plain]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_has_a_verb_and_options_that_exist(page: Path) -> None:
    for line in commands(page):
        words = line.replace("experiment advise", "experiment-advise").split()[1:]  # as cli.py has it
        command = get_command(cli.app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | {"-h"}, line
        configs = [words[at + 1] for at, word in enumerate(words) if word == "--config"]
        overrides = tuple(words[at + 1] for at, word in enumerate(words) if word == "--set")
        for name in configs:
            if re.fullmatch(r"[a-z0-9_]+", name):  # not NAME or FILE, and no file of the reader
                load = load_config if command.name == "train" else load_experiment
                load(name, overrides=overrides)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_line_of_a_page_is_wider_than_120_columns(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_to_a_file_resolves(page: Path) -> None:
    generated = {"cli.md", "knobs.md", "configs.md"}  # made by tools/site/reference.py
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"https?://", target) and Path(target).name not in generated:
            assert (page.parent / target).exists(), target


def test_the_yaml_and_python_of_the_pages_are_read(tmp_path: Path) -> None:
    for page in (DOCS / "start" / "first-study.md", DOCS / "howto" / "compare-strategies.md"):
        (tmp_path / "question.yaml").write_text(blocks(page, "yaml")[0])
        assert len(load_experiment(tmp_path / "question.yaml").strategies) == 2
    for page in PAGES:
        for text in blocks(page, "python"):
            ast.parse(text)
