"""Draw docs/figures/sparse_input.png: the pixels of a clip that are sent to the device, and their size in bytes.

python docs/figures/sparse_input.py      # needs pip install 'tubevit[plot]'
"""

from __future__ import annotations

import pathlib

import numpy as np

from tubevit.data.moving_digits import render_clip
from tubevit.tubes import PRESETS, Tube
from tubevit.visualize.style import size_text
from tubevit.windows import take_windows

PRESET, COLUMNS, GAP, DARK = "small", 8, 6, 0.4
COLOURS = ("#d9622b", "#2a7fb8", "#4c9a3f", "#8a5bb0")
INCH = 64  # pixels of the clip


def digit() -> np.ndarray:
    """Render a clip of the embedded data, (16, 64, 64, 3) uint8, brightened."""
    clip, _ = render_clip(25, 1, np.random.default_rng(11))
    return np.clip(1.7 * clip.astype(np.float32) + 30, 0, 255).astype(np.uint8)


def read(clip: np.ndarray) -> np.ndarray:
    """Mark the pixels that at least one tube reads, (T, H, W) bool."""
    shape, tubes = clip.shape[:3], PRESETS[PRESET]
    mask = np.zeros(shape, bool)
    for tube in tubes.tubes:
        times, rows, columns = (np.unique(index) for index in tube.indices(shape, tubes.padding))
        mask[np.ix_(times, rows, columns)] = True
    return mask


def packed(windows: np.ndarray, tube: Tube, height: int) -> np.ndarray:
    """Arrange all windows of a tube as pixels (height, n, 3), with the frames of a window side by side."""
    k_t, k_y, k_x = tube.kernel
    tiles = windows.reshape(-1, k_t, k_y, k_x, 3).swapaxes(1, 2).reshape(-1, k_y, k_t * k_x, 3)
    lines = height // k_y
    columns = -(-len(tiles) // lines)
    filled = np.full((lines * columns, *tiles.shape[1:]), 255, np.uint8)
    filled[: len(tiles)] = tiles
    return filled.reshape(lines, columns, k_y, k_t * k_x, 3).swapaxes(1, 2).reshape(lines * k_y, -1, 3)


def boxes(tube: Tube, shape, time: int) -> list[tuple[int, int]]:
    """List where the windows that read frame `time` start, as (row, column)."""
    times, rows, columns = tube.indices(shape)
    if time not in times:
        return []
    return [(y, x) for y in rows[..., 0].ravel() for x in columns[..., 0].ravel()]


def main(path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    clip, tubes = digit(), PRESETS[PRESET]
    frames, height, width = clip.shape[:3]
    mask, batch = read(clip), take_windows(clip[None], tubes)
    across, lines = COLUMNS * (width + GAP) - GAP, -(-frames // COLUMNS)
    down = lines * (height + GAP) - GAP
    packed_height = 128
    total_height = down + packed_height + 44
    figure = pyplot.figure(figsize=((across + 24) / INCH, (total_height + 12) / INCH), dpi=2 * INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-12, across + 12), ylim=(total_height - 4, -16))
    axes.axis("off")
    text = dict(fontsize=8.2, color="#222", va="bottom")
    grey = DARK * clip.mean(axis=-1, keepdims=True)
    shown = np.where(mask[..., None], clip, grey).astype(np.uint8)
    axes.text(0, -3, f"A clip of {frames}×{height}×{width}: the {mask.mean():.0%} of its pixels that tubes read, "
              "other pixels dark", weight="bold", **text)  # fmt: skip
    for time in range(frames):
        top, left = time // COLUMNS * (height + GAP), time % COLUMNS * (width + GAP)
        axes.imshow(shown[time], extent=(left, left + width, top + height, top), interpolation="nearest")
        for tube, colour in zip(tubes.tubes[:3], COLOURS):
            for y, x in boxes(tube, (frames, height, width), time):
                _, k_y, k_x = tube.kernel
                axes.add_patch(Rectangle((left + x, top + y), k_x, k_y, fill=False, lw=0.6, ec=colour))
        axes.add_patch(Rectangle((left, top), width, height, fill=False, lw=0.6, ec="#8d99a6"))
        axes.text(left + 2, top + height - 1.5, str(time), fontsize=5.5, color="#222",
                  bbox=dict(fc="white", ec="none", pad=0.8, alpha=0.8))  # fmt: skip
    top = down + 30
    share = batch.nbytes / clip.nbytes
    axes.text(0, top - 3, f"Sent to the device: {batch.nbytes / 1e3:.0f} kB instead of {clip.nbytes / 1e3:.0f} kB "
              f"({share:.0%}; pixels of two windows are sent twice)", weight="bold", **text)  # fmt: skip
    side = clip.size / 3 / packed_height
    axes.add_patch(Rectangle((0, top), side, packed_height, fill=False, lw=0.8, ec="#8d99a6", ls="--"))
    left = 0.0
    for i, (tube, windows, colour) in enumerate(zip(tubes.tubes, batch.windows, COLOURS)):
        image = packed(windows, tube, packed_height)
        extent = (left, left + image.shape[1], top + len(image), top)
        axes.imshow(image, extent=extent, interpolation="nearest")
        axes.add_patch(Rectangle((left, top), image.shape[1], len(image), fill=False, lw=1.4, ec=colour))
        left += image.shape[1]
        kind = f"{size_text(tube.kernel)}: {windows.shape[1]} tokens of {tube.sub_windows}"
        kind += " windows" if tube.sub_windows > 1 else " window"
        axes.add_patch(Rectangle((side * 0.34, top + 14 + 15 * i), 8, 8, color=colour))
        axes.text(side * 0.34 + 13, top + 23 + 15 * i, f"tube {kind}, {windows.nbytes / 1e3:.1f} kB", **text)
    axes.text(side * 0.34, top + 23 + 15 * 4.5, "dashed: all pixels of the clip at the same scale", **text)
    figure.savefig(path)


if __name__ == "__main__":
    main(pathlib.Path(__file__).with_suffix(".png"))
