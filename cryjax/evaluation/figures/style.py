"""What all figures share: colours safe for colour-blind readers, and saving."""

import io
import pathlib
from typing import BinaryIO, TypeVar

from matplotlib import axes as axes_lib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
SKY, AMBER, GREEN, PURPLE, BLACK = "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#000000"
PALE = "#c8c8c8"

# A path, or an open binary file.
Place = TypeVar("Place", pathlib.Path, BinaryIO)


def save(figure: Figure, path: Place, note: str, *, dpi: int = 110) -> Place:
    """Writes a figure, with a note in its corner; without pyplot, so no state is left behind."""
    if note:
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=8, color=ORANGE)
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi)
    # With its own palette of 256 colours it takes half the bytes and looks the same.
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(path, format="png", optimize=True, dpi=(dpi, dpi))
    return path


def plain(ax: axes_lib.Axes) -> None:
    """Hides the top and right spines, where there is no axis."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def short(name: str, most: int = 18) -> str:
    """A name cut to what fits."""
    return name if len(name) <= most else name[: most - 1] + "…"


def literal(name: str) -> str:
    """A name escaped so that Matplotlib sees no math."""
    return name.replace("$", r"\$")
