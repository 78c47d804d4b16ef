"""The reference pages that are made from the code while the site is built: the command line, the knobs of a
training, and the configs that come with the package.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from brats_seg.cli import app
from brats_seg.core.config import Config
from brats_seg.core.knobs import knob_sections, knobs_of, one_line, values_in_words
from brats_seg.core.settings import opening_comment

CONFIGS = Path(__file__).parents[2] / "configs"
SHELVES = {"": "Training", "experiments": "Experiments", "studies": "Image studies"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code (called by mkdocs)."""
    for name, page in (("cli", cli_page()), ("knobs", knobs_page()), ("configs", configs_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    worker = Path(__file__).with_name("iframe-worker.js")
    files.append(File.generated(config, "assets/iframe-worker.js", content=worker.read_text()))
    return files


def cli_page() -> str:
    """Markdown: each verb with its arguments, its options and its example."""
    lines = ["# Command line", ""]
    lines += ["Exit codes: 0 done, 1 the input has problems (each is named), 2 wrong usage.", ""]
    for name, command in _verbs(get_command(app), "brats-seg"):
        lines += [f"## `{name}`", "", one_line(command.help or ""), "", *_parameters(command)]
        if command.epilog:
            example = re.sub(r" {3,}\((.*)\)$", r"  # \1", command.epilog.removeprefix("Example: "))
            lines += ["", "Example:", "", "```", example, "```"]
        lines.append("")
    return "\n".join(lines)


def knobs_page() -> str:
    """Markdown: each section of a training config with the name, type and default of its knobs."""
    lines = ["# Knobs of a training", ""]
    lines += ["Change a knob with `--set section.knob=value`, or write it into a YAML file.", ""]
    for name, section in knob_sections(Config).items():
        lines += [f"## `{name}`", "", one_line(section.__doc__ or ""), ""]
        lines += ["| knob | values | default | meaning |", "|---|---|---|---|"]
        for knob in knobs_of(name, section):
            lines.append(_row((f"`{knob.name}`", knob.values, f"`{knob.default}`", knob.meaning)))
        lines.append("")
    return "\n".join(lines)


def configs_page() -> str:
    """Markdown: each YAML file that comes with the package, with the comment that it begins with."""
    lines = ["# Configs that come with the package", ""]
    lines += ["`--config NAME` finds them by name. A copy of the file is a start for your own.", ""]
    for shelf, title in SHELVES.items():
        lines += [f"## {title}", ""]
        for path in sorted((CONFIGS / shelf).glob("*.yaml")):
            lines += [f"### `{path.stem}`", "", "```yaml", *opening_comment(path), "```", ""]
    return "\n".join(lines)


def _verbs(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for verb, one in command.commands.items():
            yield from _verbs(one, f"{name} {verb}")
    else:
        yield name, command


def _parameters(command: Any) -> Iterator[str]:
    yield "| argument or option | value | default | meaning |"
    yield "|---|---|---|---|"
    for one in command.params:
        if one.param_type_name == "argument":
            name = (one.metavar or one.name).upper()
        else:
            name = " ".join(("/".join([*one.opts, *one.secondary_opts]), one.metavar or "")).strip()
        value = "" if getattr(one, "is_flag", False) else values_in_words(one.type_descriptor.annotation)
        given = one.default not in (None, False)
        yield _row((f"`{name}`", value, f"`{one.default}`" if given else "", one_line(one.help or "")))


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
