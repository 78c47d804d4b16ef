import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from brats_seg.reporting import figures, plots, style

CLASSES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
BLACK = np.zeros((20, 16, 3), np.uint8)


def opened(content: Figure | np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(plots.png(content))).convert("RGB")


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
    edema = np.round(style.rgb_bytes(style.color_of("edema")))
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
        lambda: figures.picture_row({"a": BLACK, "b": BLACK}, classes=CLASSES, inches=2.0),
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
    assert plots.png(draw()) == plots.png(draw())


def test_row_shares_of_an_absent_class_are_nan() -> None:
    shares = figures.row_shares(np.array([[3, 1], [0, 0]]))
    assert shares[0].tolist() == [0.75, 0.25]
    assert np.isnan(shares[1]).all()


def test_data_uri_holds_the_bytes() -> None:
    assert plots.data_uri(b"abc") == "data:image/png;base64,YWJj"
