"""What all figures share: colours, safe for colour-blind readers, and how one is written."""

import pathlib
from typing import BinaryIO, TypeVar

from matplotlib import axes as axes_lib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
SKY, AMBER, GREEN, PURPLE, BLACK = "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#000000"
PALE = "#c8c8c8"

# A file, or an open one in memory.
Place = TypeVar("Place", pathlib.Path, BinaryIO)


def save(figure: Figure, path: Place, note: str, *, dpi: int = 110) -> Place:
    """Writes a figure, with a note in its corner; without pyplot, so no state is left behind."""
    if note:
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=8, color=ORANGE)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=dpi)
    return path


def plain(ax: axes_lib.Axes) -> None:
    """Takes the frame away above and at the right, where no axis is."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def short(name: str, most: int = 18) -> str:
    """A name cut to what fits."""
    return name if len(name) <= most else name[: most - 1] + "…"


def literal(name: str) -> str:
    """A name in which Matplotlib sees no mathematics."""
    return name.replace("$", r"\$")
