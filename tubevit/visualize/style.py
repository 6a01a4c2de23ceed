"""Matplotlib figures without global state, and the colours of light and dark pages."""

import contextlib
import dataclasses
import textwrap
import unicodedata
from collections.abc import Iterable

import numpy as np

from tubevit.errors import optional_import

WIDTH, LINE = 7.2, 0.17  # inches: width of figures of frames, height of a line of their titles
COLUMNS, GAP = 8, 4  # frames side by side, pixels between two frames
_CHARACTERS = 84  # characters of a title that fit into WIDTH


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page and its pictures: background, text, secondary text, lines, data series."""

    ground: str
    ink: str
    muted: str
    line: str
    series: tuple[str, ...]


# The series have the colours of docs/figures/tubes.svg, lighter on the dark background.
LIGHT = Theme("#ffffff", "#1b222c", "#5f6b7a", "#d3dae2", ("#d9622b", "#2a7fb8", "#4c9a3f", "#8a5bb0", "#8f6b1f"))
DARK = Theme("#12161c", "#e6eaef", "#9aa6b4", "#343d49", ("#f28a57", "#62b0e3", "#7cc46d", "#bb93dd", "#cfa64c"))


def plotting():
    """Import matplotlib; raises UserError if it is not installed."""
    return optional_import("matplotlib", "drawing", "plot")


@contextlib.contextmanager
def themed(theme: Theme):
    """Give figures that are made inside the colours of a theme."""
    matplotlib = plotting()
    settings = {
        "figure.facecolor": theme.ground, "axes.facecolor": theme.ground, "savefig.facecolor": theme.ground,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted, "ytick.color": theme.muted, "axes.edgecolor": theme.muted,
        "grid.color": theme.line, "axes.prop_cycle": matplotlib.cycler(color=theme.series),
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlelocation": "left", "svg.hashsalt": "tubevit", "savefig.dpi": 200,
        "text.parse_math": False,  # class names may contain $
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float):
    """Make an empty matplotlib Figure with constrained layout; width and height in inches."""
    plotting()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float):
    """Make a figure with one pair of axes; returns both. Width and height in inches."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def ground() -> np.ndarray:
    """Return the background colour of figures, (3,) float 0..1."""
    matplotlib = plotting()
    return np.array(matplotlib.colors.to_rgb(matplotlib.rcParams["figure.facecolor"]))


def colour(index: int) -> str:
    """Return the colour of series `index`."""
    colours = plotting().rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]


def is_dark() -> bool:
    """Whether the background is dark."""
    return bool(ground().mean() < 0.5)


def show_image(axes, pixels: np.ndarray, **settings):
    """Show (H, W, 3) or (H, W) pixels as squares, without ticks and frame."""
    axes.set_axis_off()
    return axes.imshow(pixels, interpolation="nearest", **settings)


def without_frame(axes) -> None:
    """Hide the frame and the tick marks of axes; the labels stay."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def size_text(sizes: Iterable[int]) -> str:
    """Write sizes for display, such as 8×16×16."""
    return "×".join(map(str, sizes))


def tile(images: np.ndarray, columns: int, gap: int, fill: np.ndarray) -> np.ndarray:
    """Arrange images (n, h, w, 3) in rows of `columns`, with `gap` pixels of colour `fill` (3,) in between."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), images.dtype)
    sheet[:] = fill
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def wrapped(text: str, columns: int = 1) -> str:
    """Wrap a title to the width of one of the columns of a figure of `WIDTH`; each line is `LINE` high.

    A wide letter, such as a Chinese one, takes the place of two.
    """
    second = "\0"  # the other half of a wide letter; neither names nor pictures can have it
    places = "".join(letter + second * (unicodedata.east_asian_width(letter) in "WF") for letter in text)
    return textwrap.fill(places, _CHARACTERS // columns).replace(second, "")


def evenly(count: int, total: int) -> np.ndarray:
    """Return up to `count` evenly spaced indices below `total`, starting at 0."""
    count = min(count, total)
    return np.arange(count) * total // count
