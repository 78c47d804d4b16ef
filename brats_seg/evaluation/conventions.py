"""The rules a score can follow, by name, read from `rules/*.yaml`."""

from collections.abc import Iterator
from importlib.resources import files

import yaml

from brats_seg.core.errors import UsageError
from brats_seg.evaluation.lesions import LesionRule
from brats_seg.evaluation.table import Convention

_FILES = ("earlier", "brats2023", "brats2024", "brats2025", "brats2026")


def _read() -> Iterator[Convention]:
    for name in _FILES:
        text = (files("brats_seg.evaluation") / "rules" / f"{name}.yaml").read_text(encoding="utf-8")
        for key, tree in yaml.safe_load(text).items():
            lesions = LesionRule(**tree["lesions"]) if "lesions" in tree else None
            lists = {k: tuple(v) for k, v in tree.items() if isinstance(v, list)}
            yield Convention(name=key, **(tree | lists | {"lesions": lesions}))


CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _read()}
"""The rules a score can follow, by name."""


def convention_named(name: str) -> Convention:
    """The convention of that name. Raises `UsageError` with the choices."""
    if name not in CONVENTIONS:
        raise UsageError(f"--convention {name}: unknown; the conventions are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
