"""Templates -> pages: what all HTML and Markdown pages are rendered with."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from brats_seg.reporting.figures import color_of, words


def page_templates(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """The templates of this room; a name that a template uses and nobody gives is an error.

    Args:
        filters: those of one page, beside `number`, `count`, `color` and `words`.
    """
    pages = Environment(
        loader=PackageLoader("brats_seg", "reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shared: dict[str, Callable[..., Any]] = {
        "number": number,
        "count": lambda n: f"{n:,}".replace(",", "\u202f"),
        "color": color_of,
        "words": words,
    }
    pages.filters |= {**shared, **filters}
    return pages


def number(x: float | None, digits: int = 3) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "–" if x is None or math.isnan(x) else f"{x:.{digits}f}"
