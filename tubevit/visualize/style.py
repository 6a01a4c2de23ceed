"""The one place that imports matplotlib: figures without its global state, and the colours of light and dark pages."""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap

import numpy as np

from tubevit.errors import UserError

WIDTH, LINE = 7.2, 0.17  # inches: of figures of frames, of a line of their titles
COLUMNS, GAP = 8, 4  # frames side by side in them; pixels between two
_CHARACTERS = 84  # of a title that fit into the width


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page and of its pictures: behind them, of text, of text beside it, of lines, of series."""

    ground: str
    ink: str
    muted: str
    line: str
    series: tuple[str, ...]


# The series are those of docs/figures/tubes.svg; lighter on the dark ground.
LIGHT = Theme("#ffffff", "#1b222c", "#5f6b7a", "#d3dae2", ("#d9622b", "#2a7fb8", "#4c9a3f", "#8a5bb0", "#8f6b1f"))
DARK = Theme("#12161c", "#e6eaef", "#9aa6b4", "#343d49", ("#f28a57", "#62b0e3", "#7cc46d", "#bb93dd", "#cfa64c"))


def plotting():
    """The module matplotlib.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("pictures need matplotlib, which is not installed: pip install 'tubevit[plot]'") from error
    return matplotlib


@contextlib.contextmanager
def themed(theme: Theme):
    """Figures made inside have the colours of a theme."""
    matplotlib = plotting()
    settings = {
        "figure.facecolor": theme.ground, "axes.facecolor": theme.ground, "savefig.facecolor": theme.ground,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted, "ytick.color": theme.muted, "axes.edgecolor": theme.muted,
        "grid.color": theme.line, "axes.prop_cycle": matplotlib.cycler(color=theme.series),
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlelocation": "left", "svg.hashsalt": "tubevit", "savefig.dpi": 200,
        "text.parse_math": False,  # a $ in the name of a class is one
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float):
    """An empty matplotlib Figure, sizes in inches, whose axes arrange themselves."""
    plotting()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def ground() -> np.ndarray:
    """(3,) float 0..1: the colour behind figures."""
    plotting()
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(plotting().rcParams["figure.facecolor"]))


def colour(index: int) -> str:
    """The colour of series `index`."""
    colours = plotting().rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]


def is_dark() -> bool:
    """Whether text is lighter than what is behind it."""
    return bool(ground().mean() < 0.5)


def show_image(axes, pixels: np.ndarray, **settings):
    """Shows (H, W, 3) or (H, W) on axes without ticks and frame, every pixel a square."""
    axes.set_axis_off()
    return axes.imshow(pixels, interpolation="nearest", **settings)


def tile(images: np.ndarray, columns: int, gap: int, fill: np.ndarray) -> np.ndarray:
    """Images (n, h, w, 3) side by side, row after row of `columns`, `gap` pixels of colour `fill` (3,) between them."""
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
    """A title of so many lines of `LINE` that each fits into one of the columns of a figure of `WIDTH`."""
    return textwrap.fill(text, _CHARACTERS // columns)


def evenly(count: int, total: int) -> np.ndarray:
    """Up to `count` indices below `total`, evenly spaced from 0 on."""
    count = min(count, total)
    return np.arange(count) * total // count
