"""Descriptions of the knobs of a training: name, values, default and meaning, read from the config models."""

import ast
import inspect
import itertools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Knob:
    """One knob: its name, its possible values, its default, and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def knob_sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections of a config by name."""
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def knobs_of(name: str, section: type[BaseModel]) -> tuple[Knob, ...]:
    """The knobs of a section, each named `section.knob`."""
    meanings = _meanings(section)
    return tuple(
        Knob(
            f"{name}.{knob}",
            values_in_words(its.annotation) + _bounds(its.metadata),
            _default(its),
            meanings[knob],
        )
        for knob, its in section.model_fields.items()
    )


def values_in_words(kind: Any) -> str:
    """A type in words: `Literal["a", "b"] | None` is "`a`, `b` or none"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values_in_words(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(values_in_words(one) for one in arguments)
    if origin is tuple:
        inner = [values_in_words(one) for one in arguments if one is not ...]
        return f"list of: {inner[0]}" if ... in arguments else f"[{', '.join(inner)}]"
    if origin is list:
        return f"{values_in_words(arguments[0])}, repeated"
    if origin is dict:
        return f"{values_in_words(arguments[0])}: {values_in_words(arguments[1])}"
    words = {Path: "path", int: "whole number", float: "number", str: "text", bool: "true or false"}
    words[NoneType] = "null"
    return words.get(kind, f"section `{getattr(kind, '__name__', kind)}`")


def one_line(text: str) -> str:
    """A docstring with the lines of each paragraph joined."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """The string under each knob of a section in the source code."""
    (of_class,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(of_class, ast.ClassDef)
    return {
        knob.target.id: one_line(str(under.value.value))
        for knob, under in itertools.pairwise(of_class.body)
        if isinstance(knob, ast.AnnAssign)
        and isinstance(knob.target, ast.Name)
        and isinstance(under, ast.Expr)
        and isinstance(under.value, ast.Constant)
    }


def _bounds(metadata: Any) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{words} {getattr(one, sign):g}"
        for item in metadata
        for one in (item.metadata if isinstance(item, FieldInfo) else [item])
        for sign, words in signs.items()
        if getattr(one, sign, None) is not None
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, BaseModel):
        return "see its section"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "null" if value is None else str(value)
