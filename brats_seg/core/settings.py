"""Settings as frozen models: read YAML, apply `--set section.key=value`, write a resolved copy."""

import difflib
import itertools
import logging
import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brats_seg.core.errors import InputError, UsageError, printable, refuse
from brats_seg.core.files import MOST_YAML_BYTES, parse_yaml, read_text, shown

logger = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0, le=1)]


Rules = tuple[tuple[object, str], ...]
"""For each rule whether it is broken (any value that counts as true), and the reason for the user."""


class Ruled(BaseModel):
    """A model whose fields must fit together. `_rules` checks this and gives the reasons."""

    def _rules(self) -> Rules:
        """The rules between the fields, most basic first."""
        return ()

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        refuse(*self._rules(), error=ValueError)
        return self


class Section(Ruled):
    """A group of knobs. It is immutable. A misspelled name, or a number that is not finite (`.nan`, `.inf`),
    is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def unless(default: Any) -> Any:
    """The field of a knob that was added later. A config in which the knob has its default is written without
    it.
    """
    return Field(exclude_if=lambda value: value == default)


S = TypeVar("S", bound=Section)


def load_settings(
    model: type[S], source: str | Path | None, *, shelf: str = "", overrides: tuple[str, ...] = ()
) -> S:
    """Read a YAML file, or a config of the package by its name, and apply the overrides.

    Args:
        model: model of the settings.
        source: a path, or a name such as `unet2d_cpu`; None for the defaults.
        shelf: folder of `configs/` with the names: "" for training, "experiments", "studies".
        overrides: `section.key=value` each, the value read as YAML.

    Raises:
        UsageError: the file or name does not exist, the file is not YAML, or no knob has this key or accepts
            this value (the message gives the nearest correct one).
    """
    return parse_settings(model, load_tree(source, shelf=shelf, overrides=overrides))


def load_tree(
    source: str | Path | None, *, shelf: str = "", overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`load_settings` without the check of the mapping, for a file that names its own kind."""
    tree = _read(_locate(source, shelf)) if source is not None else {}
    for override in overrides:
        lay_over(tree, override)
    return tree


def parse_settings(model: type[S], tree: dict[str, Any]) -> S:
    """Check a nested mapping, as read from YAML. Raises `UsageError` with the path of every wrong key or
    value.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        more = f"; and {len(errors) - _FEW} more" if len(errors) > _FEW else ""
        raise UsageError("; ".join(_describe(e, model) for e in errors[:_FEW]) + more) from None


def dump_config(config: Section) -> str:
    """The whole resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_names(shelf: str = "") -> tuple[str, ...]:
    """Names of the configs of the package in one shelf."""
    return tuple(sorted(p.stem for p in (_configs() / shelf).glob("*.yaml")))


def config_path(name: str, shelf: str = "") -> Path:
    """Path of a config of the package."""
    return _configs() / shelf / f"{name}.yaml"


def opening_comment(path: Path) -> tuple[str, ...]:
    """The lines of the comment at the start of a config, without the comment signs."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return tuple(line.removeprefix("#").removeprefix(" ").rstrip() for line in lines)


RENAMED = {"best": "drift_dice"}
"""Old names of configs, and their present names."""
_FEW = 5  # number of wrong knobs in a message


def _configs() -> Path:
    packaged = Path(str(files("brats_seg"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def _locate(source: str | Path, shelf: str) -> Path:
    if not shelf and source in RENAMED and not os.path.isfile(source):
        logger.warning("--config %s: this config is now called %s", source, RENAMED[str(source)])
        source = RENAMED[str(source)]
    for path in (Path(source), _configs() / shelf / f"{source}.yaml"):
        if os.path.isfile(path):  # also False for a name that the system does not accept
            return path
    names = config_names(shelf)
    close = difflib.get_close_matches(str(source), names, n=1)
    hint = f", did you mean '{close[0]}'" if close else ""
    raise UsageError(
        f"--config {source}: no such file, and no config with this name{hint}; the names are "
        f"{', '.join(names)}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(read_text(path, limit=MOST_YAML_BYTES))
    except InputError as error:
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"{path}: not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a config is a mapping of sections; found {type(tree).__name__}")
    return tree


def lay_over(tree: dict[str, Any], override: str) -> None:
    """Set one knob, `section.key=value` with the value as YAML, in a nested mapping. Raises `UsageError` if
    the override has another form.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UsageError(
            f"--set {printable(override, limit=120)}: write section.key=value, for example "
            "sampler.kind=balanced"
        )
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {printable(override, limit=120)}: the value is not YAML: {error}") from None
    for key in keys[:-1]:
        if key == "augment" and isinstance(tree.get(key), str):
            tree[key] = {"preset": tree[key]}
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {printable(override, limit=120)}: '{key}' is a value, not a section")
    if keys[-2:] == ["augment", "preset"]:
        tree.clear()  # a preset sets every knob; otherwise the knobs of the file would change the preset
    tree[keys[-1]] = value


def _describe(error: Any, model: type[BaseModel]) -> str:
    where = printable(".".join(str(part) for part in error["loc"]), limit=100)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, _knobs(model), n=1, cutoff=0.5)
        return f"config: no knob '{where}'" + (f"; did you mean '{close[0]}'?" if close else "")
    got = "" if isinstance(error["input"], dict) else f" (got {shown(error['input'])})"
    return f"config: {f'{where}: ' if where else ''}{error['msg'].removeprefix('Value error, ')}{got}"


def _knobs(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _knobs(field.annotation, prefix + name + ".")
    return names
