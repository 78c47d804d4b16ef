"""The reference pages that are made from the code while the site is built: the command line, the knobs of a
training, and the configs that travel with the package.
"""

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from brats_seg.cli import app
from brats_seg.core.config import Config

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
        lines += [f"## `{name}`", "", _plain(command.help or ""), "", *_parameters(command)]
        if command.epilog:
            example = re.sub(r" {3,}\((.*)\)$", r"  # \1", command.epilog.removeprefix("Example: "))
            lines += ["", "Example:", "", "```", example, "```"]
        lines.append("")
    return "\n".join(lines)


def knobs_page() -> str:
    """Markdown: each section of a training config with the name, type and default of its knobs."""
    lines = ["# Knobs of a training", ""]
    lines += ["Change a knob with `--set section.knob=value`, or write it into a YAML file.", ""]
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        lines += [f"## `{name}`", "", _plain(section.__doc__ or ""), ""]
        lines += ["| knob | values | default | meaning |", "|---|---|---|---|"]
        meanings = knob_meanings(section)
        for knob, its in section.model_fields.items():
            cells = (f"`{name}.{knob}`", _values(its), f"`{_default(its)}`", meanings[knob])
            lines.append(_row(cells))
        lines.append("")
    return "\n".join(lines)


def knob_meanings(section: type[BaseModel]) -> dict[str, str]:
    """The string under each knob of a section, in its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    return {
        knob.target.id: _plain(under.value.value)
        for knob, under in itertools.pairwise(body)
        if isinstance(knob, ast.AnnAssign) and isinstance(under, ast.Expr)
    }


def configs_page() -> str:
    """Markdown: each YAML file that travels with the package, with the comment that it begins with."""
    lines = ["# Configs that travel with the package", ""]
    lines += ["`--config NAME` finds them by name. A copy of the file is a start for your own.", ""]
    for shelf, title in SHELVES.items():
        lines += [f"## {title}", ""]
        for path in sorted((CONFIGS / shelf).glob("*.yaml")):
            lines += [f"### `{path.stem}`", "", "```yaml", *_opening_comment(path), "```", ""]
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
        value = "" if getattr(one, "is_flag", False) else _type(one.type_descriptor.annotation)
        given = one.default not in (None, False)
        yield _row((f"`{name}`", value, f"`{one.default}`" if given else "", _plain(one.help or "")))


def _values(field: FieldInfo) -> str:
    return _type(field.annotation) + _bounds(field.metadata)


def _type(kind: Any) -> str:
    """A type in words: `Literal["a", "b"] | None` is "`a`, `b` or none"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in arguments)
    if origin is tuple:
        inner = [_type(one) for one in arguments if one is not ...]
        return f"list of: {inner[0]}" if ... in arguments else f"[{', '.join(inner)}]"
    if origin is list:
        return f"{_type(arguments[0])}, repeated"
    if origin is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])}"
    words = {Path: "path", int: "whole number", float: "number", str: "text", bool: "true or false"}
    words[NoneType] = "null"
    return words.get(kind, f"section `{getattr(kind, '__name__', kind)}`")


def _bounds(metadata: Any) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{words} {getattr(one, sign):g}"
        for item in metadata
        for one in (item.metadata if isinstance(item, FieldInfo) else [item])
        for sign, words in signs.items()
        if getattr(one, sign, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, BaseModel):
        return "see its section"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "null" if value is None else str(value)


def _opening_comment(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def _plain(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
