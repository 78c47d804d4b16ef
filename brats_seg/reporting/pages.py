"""Templates -> pages: the rendering of all HTML and Markdown pages."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from brats_seg.reporting import style


@cache
def shared_templates() -> Environment:
    """The templates of pages without filters of their own; each is compiled once."""
    return page_templates({})


def page_templates(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """The templates of this package. A name in a template without a value is an error.

    Args:
        filters: those of one page, besides `number`, `signed`, `percent`, `count`, `color` and `words`.
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
        "number": style.number,
        "signed": style.signed,
        "percent": style.percent,
        "count": style.count,
        "color": style.color_of,
        "words": style.words,
    }
    pages.filters |= {**shared, **filters}
    pages.globals["css_variables"] = style.css_variables
    return pages
