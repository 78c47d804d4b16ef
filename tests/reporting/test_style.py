"""One place holds the look: its colors can be told apart, and no other file names one."""

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import is_color_like, to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

import brats_seg
from brats_seg.reporting import style
from brats_seg.reporting.pages import page_templates
from brats_seg.scans.labels import MERGED, REGIONS, TISSUES

PACKAGE = Path(brats_seg.__file__).parent
GRAYS = tuple(f"#{level:02x}{level:02x}{level:02x}" for level in range(0, 256, 5))
LITERAL = re.compile(
    r"(?<![&\w])#(?:[0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})\b|\b(?:rgba?|hsla?)\(", re.IGNORECASE
)

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0: linear RGB as a protanope, deuteranope and
# tritanope sees it.
SIGHTS = {
    "full": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def seen_lab(color: str, sight: str) -> np.ndarray:
    """CIELAB of a `#rrggbb` color as this sight has it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIGHTS[sight]) @ linear, 0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    return rgb2lab(srgb[None, None])[0, 0]


def difference(first: str, second: str, sight: str) -> float:
    """CIEDE2000 between two colors as this sight has them."""
    return float(deltaE_ciede2000(seen_lab(first, sight), seen_lab(second, sight)))


@pytest.mark.parametrize("sight", SIGHTS)
def test_colors_of_tissues_and_regions_stay_apart_for_every_sight(sight: str) -> None:
    # The core and the active tumor have the colors of the tissue class at their center.
    colors = {style.color_of(name) for name in (*TISSUES[1:], *REGIONS)}
    assert len(colors) == 6
    assert min(difference(a, b, sight) for a, b in itertools.combinations(colors, 2)) > 20


@pytest.mark.parametrize("sight", SIGHTS)
def test_tissue_colors_stay_apart_from_a_gray_scan_and_a_white_page(sight: str) -> None:
    for tissue in TISSUES[1:]:
        color = style.color_of(tissue)
        assert min(difference(color, gray, sight) for gray in GRAYS) > 15
        assert difference(color, style.PAPER, sight) > 18


def test_what_is_wrong_has_no_tissue_color() -> None:
    for color in (style.OVER, style.UNDER):
        assert min(difference(color, style.color_of(t), "full") for t in TISSUES[1:]) > 12


def test_every_class_and_region_has_a_color_and_words() -> None:
    for name in (*TISSUES, MERGED, *REGIONS):
        assert style.has_color(name)
        assert style.color_of(name) != style.QUIET
        assert "_" not in style.words(name)
    assert style.words("non_enhancing_core") == "non-enhancing core"
    assert style.color_of("no tissue") == style.QUIET


def color_names(source: str) -> list[str]:
    """Color names that a call or a dict is given: `color="red"`, `{"facecolor": "white"}`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        pairs: list[tuple[object, ast.expr]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            keys = (key.value if isinstance(key, ast.Constant) else None for key in node.keys)
            pairs = list(zip(keys, node.values, strict=True))
        for name, value in pairs:
            if "color" in str(name) and isinstance(value, ast.Constant):
                found += [value.value] * (value.value != "none" and is_color_like(value.value))
    return found


def test_the_search_for_color_names_finds_them() -> None:
    assert color_names('draw(color="red", label="blue", **{"edgecolors": "white"})') == ["red", "white"]
    assert color_names('draw(color=style.INK, facecolor="none")') == []
    assert LITERAL.findall("a { color: #fff; background: RGB(0 0 0) }") == ["#fff", "RGB("]
    assert not LITERAL.search('<a href="#scores">&#177;</a> # 123 cases')


def test_no_other_file_names_a_color() -> None:
    pages = [path for suffix in ("html", "css", "md") for path in (PACKAGE / "reporting").glob(f"*.{suffix}")]
    sources = [path for path in PACKAGE.rglob("*.py") if path != Path(style.__file__)]
    assert len(pages) >= 5
    assert len(sources) > 50
    found = {
        str(path.relative_to(PACKAGE)): literals
        for path in (*pages, *sources)
        if (literals := LITERAL.findall(path.read_text(encoding="utf-8")))
    }
    named = {
        str(path.relative_to(PACKAGE)): names
        for path in sources
        if (names := color_names(path.read_text(encoding="utf-8")))
    }
    assert (found, named) == ({}, {})


def test_every_color_that_a_page_uses_is_written_into_it() -> None:
    used = {
        name: set(
            re.findall(r"var\(--([a-z]+)\)", (PACKAGE / "reporting" / name).read_text(encoding="utf-8"))
        )
        for name in ("style.css", "report.html", "experiment.html", "predictions.html", "viewer.html")
    }
    for name, variables in used.items():
        given = style.css_variables("dark" if name == "viewer.html" else "light")
        # `--color`, `--tissue`: of one element, in its own `style`; `--n`, `--share`: numbers.
        absent = variables - set(re.findall(r"--([a-z]+):", given)) - {"color", "tissue", "n", "share"}
        assert absent == set(), name


def test_numbers_as_text() -> None:
    assert [style.number(x) for x in (0.12345, None, float("nan"))] == ["0.123", "–", "–"]
    assert [style.signed(x, 1) for x in (-1.25, 0.0, None)] == ["\u22121.2", "+0.0", "–"]
    assert [style.percent(x) for x in (0.1234, None)] == ["12.3", "–"]
    assert style.count(1234567) == "1\u202f234\u202f567"
    assert (style.digits_of("hd95_mm"), style.digits_of("dice")) == (1, 3)


def test_letters_are_readable_on_every_class() -> None:
    assert (style.ink_on(style.SCAN), style.ink_on(style.PAPER)) == (style.PAPER, style.INK)


def test_pages_take_the_colors_from_the_one_place() -> None:
    page = page_templates({}).from_string("{{ 'edema' | color }} {{ css_variables('light') }}").render()
    assert page.startswith(style.TISSUE_COLORS["edema"])
    assert f"--ink: {style.INK};" in page
