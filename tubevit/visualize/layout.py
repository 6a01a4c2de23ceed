"""The layout of tubes over a clip: which pixels each tube reads, and when."""

import numpy as np

from tubevit.tubes import Tube, TubeSet, as_tube_set
from tubevit.visualize import style
from tubevit.windows import WindowPlan

_SMALLEST = 128  # smallest drawn height of a frame, in pixels
_FADED = 0.35  # contrast of pixels that no tube reads


def pixels_read(tubes: str | Tube | TubeSet, shape: tuple[int, int, int]) -> np.ndarray:
    """Mark the pixels that all tokens of each tube read, (tubes, T, H, W) bool, regardless of the budget.

    Raises UserError if the clip is too small.
    """
    tubes = as_tube_set(tubes).with_budget(None)
    read = np.zeros((len(tubes.tubes), *shape), bool)
    for mask, grid in zip(read, WindowPlan(tubes, shape).grids):
        mask[grid.index] = True
    return read


def enlarged(frames: np.ndarray) -> tuple[np.ndarray, int]:
    """Enlarge frames (n, H, W, ...) by a whole factor to a visible size; returns the factor as well."""
    scale = -(-_SMALLEST // frames.shape[1])
    return frames.repeat(scale, axis=1).repeat(scale, axis=2), scale


def layout_figure(clip: np.ndarray, tubes: str | Tube | TubeSet):
    """Draw what each tube reads of a clip (T, H, W, 3) uint8 as a matplotlib figure: pixels in colour, frames as bars.

    Raises UserError if the clip is too small for a tube.
    """
    tubes, shape = as_tube_set(tubes), clip.shape[:3]
    read = pixels_read(tubes, shape)
    shown = style.evenly(style.COLUMNS, shape[0])
    frames, scale = enlarged(clip[shown] / 255)
    faded = style.ground() + _FADED * (frames.mean(axis=-1, keepdims=True) - style.ground())
    row = style.WIDTH * shape[1] / shape[2] / len(shown)
    figure = style.new_figure(style.WIDTH, len(read) * (row + 0.5) + 0.2)
    figure.get_layout_engine().set(h_pad=0.01, hspace=0.01)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    heights = [row, 0.07] * len(read)
    axes = figure.subplots(2 * len(read), 1, gridspec_kw={"height_ratios": heights})
    for i, tube in enumerate(tubes.tubes):
        mask, _ = enlarged(read[i][shown])
        strip = style.tile(np.where(mask[..., None], frames, faded), len(shown), style.GAP, style.ground())
        style.show_image(axes[2 * i], strip)
        axes[2 * i].set_anchor("S")  # close to its bar
        axes[2 * i].set_title(_describe(tube, tubes, read[i]), color=style.colour(i))
        boxes = _windows(tube, tubes, shape, shown, scale)
        line = min(0.5, 0.2 * min(tube.kernel[1:]) * 72 * row / shape[1])  # points: thin around small windows
        axes[2 * i].add_collection(_outlines(boxes, style.colour(i), line))
        _time_bar(axes[2 * i + 1], read[i].any(axis=(1, 2)), shown, style.colour(i))
    axes[-1].set_xlabel("frame")
    return figure


def _describe(tube: Tube, tubes: TubeSet, read: np.ndarray) -> str:
    grid = style.size_text(tube.grid(read.shape, tubes.padding))
    windows = f" of {tube.sub_windows} windows" if tube.sub_windows > 1 else ""
    tokens = tube.num_tokens(read.shape, tubes.padding)
    return f"{style.size_text(tube.kernel)}: {grid} = {tokens} tokens{windows}, {read.mean():.1%} of the pixels"


def _outlines(boxes: list[np.ndarray], edge: str, width: float):
    """Make a matplotlib collection of outlines of boxes, each (4, 2) corners (x, y)."""
    style.plotting()
    from matplotlib.collections import PolyCollection

    return PolyCollection(boxes, facecolors="none", edgecolors=edge, linewidths=width)


def _windows(tube: Tube, tubes: TubeSet, shape, shown: np.ndarray, scale: int) -> list[np.ndarray]:
    """Return the corners (x, y) of each window in each shown frame that it reads, (4, 2) in drawn pixels."""
    times, rows, columns = (axis.ravel() for axis in tube.starts(shape, tubes.padding))
    duration, height, width = tube.kernel
    corners = np.array([(0, 0), (0, width), (height, width), (height, 0)])
    frame_size = np.array(shape[1:])
    boxes = []
    for place, frame in enumerate(shown):
        if not ((times <= frame) & (frame < times + duration)).any():
            continue
        left = place * (shape[2] * scale + style.GAP)
        inside = (np.clip(corners + (y, x), 0, frame_size) for y in rows for x in columns)
        boxes += [box[:, ::-1] * scale + (left - 0.5, -0.5) for box in inside]
    return boxes


def _time_bar(axes, read: np.ndarray, shown: np.ndarray, fill: str) -> None:
    """Draw one cell per frame, filled if the tube reads the frame; shown frames are numbered."""
    axes.bar(np.arange(len(read)), 1, width=0.86, color=[(fill, 1.0 if each else 0.15) for each in read])
    axes.set(xlim=(-0.5, len(read) - 0.5), ylim=(0, 1), yticks=[], xticks=shown)
    axes.tick_params(pad=1)
    style.without_frame(axes)
