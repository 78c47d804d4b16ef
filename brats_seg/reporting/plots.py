"""A figure or a picture -> the bytes of an image, within a page."""

import base64
import io
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from brats_seg.reporting.figures import MOST_CHART_COLORS, Picture


@dataclass(frozen=True)
class Plot:
    """A figure in a page: its address, its width in CSS pixels, and its alternative text."""

    uri: str
    width: int
    alt: str


def png(content: Figure | Picture) -> bytes:
    """A figure (150 dots an inch) or a picture as the bytes of a PNG file; the same content always gives the
    same bytes.
    """
    file = io.BytesIO()
    if isinstance(content, Figure):
        content.savefig(
            file, format="png", dpi=150, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None}
        )
    image = Image.open(file).convert("RGB") if isinstance(content, Figure) else Image.fromarray(content)
    # A palette halves the bytes: exact for an overlay, no visible change for a chart; scans in a figure have
    # too many colors for it.
    if image.getcolors(MOST_CHART_COLORS) is not None:
        image = image.quantize(256, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def plot(figure: Figure, *, alt: str) -> Plot:
    """A figure for a page, drawn at 150 dots an inch and shown at 96, with the alternative text `alt`."""
    content = png(figure)
    width = int.from_bytes(content[16:20], "big")  # the first field of a PNG file's header
    return Plot(data_uri(content), round(width * 96 / 150), alt)


def data_uri(png_bytes: bytes) -> str:
    """PNG bytes as an address inside a page (a data URL)."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")
