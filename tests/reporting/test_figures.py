import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from brats_seg.reporting import figures
from brats_seg.scans.labels import MERGED, REGIONS, TISSUES

CLASSES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
BLACK = np.zeros((20, 16, 3), np.uint8)

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
    rgb = np.array(figures.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIGHTS[sight]) @ linear, 0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    return rgb2lab(srgb[None, None])[0, 0]


def opened(content: Figure | np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(figures.png(content))).convert("RGB")


@pytest.mark.parametrize("sight", SIGHTS)
def test_tissue_colors_stay_apart_for_every_sight(sight: str) -> None:
    tumor = [figures.color_of(t) for t in TISSUES[1:]]
    assert (
        min(
            deltaE_ciede2000(seen_lab(a, sight), seen_lab(b, sight))
            for a, b in itertools.combinations(tumor, 2)
        )
        > 20
    )


def test_every_class_and_region_has_a_color_and_words() -> None:
    for name in (*TISSUES, MERGED, *REGIONS):
        assert figures.color_of(name) != figures.QUIET
        assert "_" not in figures.words(name)
    assert figures.words("non_enhancing_core") == "non-enhancing core"


def test_gray_levels_clip_at_the_window() -> None:
    pixels = np.array([[-5, 0, 50, 100, 900]], dtype=np.int16)
    assert figures.gray_levels(pixels, low=0.0, high=100.0).tolist() == [[0, 0, 128, 255, 255]]


def test_overlay_leaves_healthy_and_outside_gray_and_draws_the_border_solid() -> None:
    gray = np.full((20, 20), 100, np.uint8)
    labels = np.zeros((20, 20), np.uint8)
    labels[0:2] = 255
    labels[6:14, 6:14] = 2
    picture = figures.overlay(gray, labels, classes=CLASSES, scale=2, opacity=0.5)
    assert picture.shape == (40, 40, 3)
    edema = np.round(np.array(figures.to_rgb(figures.color_of("edema"))) * 255)
    assert np.ptp(picture[:12], axis=2).max() == 0
    assert (picture[12, 12:28] == edema).all()  # the first row of the class
    assert (picture[10, 12:28] != edema).any(axis=1).all()
    assert np.abs(picture[20, 20] - (picture[0, 0] + edema) / 2).max() <= 1


def test_overlay_stretches_thick_rows() -> None:
    gray = np.zeros((10, 30), np.uint8)
    assert figures.overlay(gray, gray, classes=CLASSES, scale=2, aspect=3.0).shape == (60, 60, 3)


def test_overlay_refuses_a_label_without_a_class() -> None:
    gray = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="label 7 has no class"):
        figures.overlay(gray, np.full((4, 4), 7, np.uint8), classes=CLASSES)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.integers(1, 3))
def test_the_png_of_an_overlay_is_the_overlay(seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    gray = rng.integers(0, 256, (30, 25), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (30, 25))
    picture = figures.overlay(gray, labels, classes=CLASSES, scale=scale)
    assert (np.asarray(opened(picture)) == picture).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.box_plot(
            {"whole": [0.9, 0.8, 0.7, float("nan")], "core": [0.5], "active": []},
            label="Dice",
            limits=(0.0, 1.0),
        ),
        lambda: figures.line_chart(
            {"whole": ([1.0, 2.0, 3.0], [0.1, float("nan"), 0.3])}, x_label="epoch", y_label="Dice"
        ),
        lambda: figures.mix_chart(
            {"requested": np.full(5, 0.2), "drawn": np.array([0.9, 0.04, 0.03, 0.02, 0.01])}, classes=CLASSES
        ),
        lambda: figures.confusion_chart(np.diag([5, 4, 3, 2, 0]), classes=CLASSES),
        lambda: figures.volume_chart({"edema": ([0.0, 10.0], [1.0, 300.0])}),
        lambda: figures.volume_chart({}),
        lambda: figures.reliability_chart(
            {"whole": [{"mean_probability": 0.1, "share_inside": 0.2, "n_voxels": 900}], "core": []}
        ),
        lambda: figures.reliability_chart({"active": []}),
        lambda: figures.picture_grid(
            [[np.zeros((20, 16, 3), np.uint8)] * 2],
            row_names=["FLAIR"],
            column_names=["a", "b"],
            classes=CLASSES,
        ),
    ],
    ids=[
        "box",
        "line",
        "mix",
        "confusion",
        "volume",
        "no volume",
        "reliability",
        "no reliability",
        "pictures",
    ],
)
def test_a_figure_is_drawn_and_drawn_again_the_same(draw: Callable[[], Figure]) -> None:
    image = opened(draw())
    assert min(image.size) > 100
    assert len(image.getcolors(1 << 20)) > 3
    assert figures.png(draw()) == figures.png(draw())


def test_row_shares_of_an_absent_class_are_nan() -> None:
    shares = figures.row_shares(np.array([[3, 1], [0, 0]]))
    assert shares[0].tolist() == [0.75, 0.25]
    assert np.isnan(shares[1]).all()


def test_data_uri_holds_the_bytes() -> None:
    assert figures.data_uri(b"abc") == "data:image/png;base64,YWJj"
