"""Colour operations on clips, the same for all frames: brightness, contrast, saturation, sharpness, erasing and more.

The functions change a contiguous clip (T, H, W, 3) uint8 in place. For one frame they match Pillow's ImageEnhance and
ImageOps, rounding included. Statistics that Pillow computes on an image are computed on the whole clip.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Self

import cv2
import numpy as np

from tubevit.windows import PixelGrid

_GREY = np.array([19595, 38470, 7471]) / 2**16  # BT.601 luma, as Pillow weights it
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
# Added before rounding to nearest, it truncates instead, except in 2 of 1000 cases.
_CUT_OFF = -0.498


def brightness(clip: np.ndarray, factor: float) -> None:
    """Scale all values; 0 gives black, 1 changes nothing."""
    _look_up(clip, _blend_table(0, factor))


def contrast(clip: np.ndarray, factor: float) -> None:
    """Scale the distance from the mean grey of the clip; 0 gives that grey, 1 changes nothing."""
    mean = np.mean([cv2.mean(frame)[:3] for frame in clip], axis=0)
    _look_up(clip, _blend_table(int(mean @ _GREY + 0.5), factor))


def saturation(clip: np.ndarray, factor: float) -> None:
    """Scale the distance of each pixel from its grey; 0 removes colour, 1 changes nothing."""
    for frame in clip:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(frame, factor, grey, 1 - factor, _CUT_OFF, dst=frame)


def sharpness(clip: np.ndarray, factor: float) -> None:
    """Scale the distance from the smoothed frame; 0 gives that frame, 1 changes nothing. Border pixels are kept."""
    if min(clip.shape[1:3]) < 3:
        return  # there are only border pixels
    for frame in clip:
        smooth = cv2.filter2D(frame, -1, _SMOOTH)
        inner = frame[1:-1, 1:-1]
        inner[:] = cv2.addWeighted(inner, factor, smooth[1:-1, 1:-1], 1 - factor, _CUT_OFF)


def posterize(clip: np.ndarray, bits: float) -> None:
    """Keep the highest bits, 0 to 8 (rounded), of each value."""
    np.bitwise_and(clip, np.uint8(256 - (1 << 8 - round(bits))), out=clip)


def solarize(clip: np.ndarray, threshold: float) -> None:
    """Invert values at or above a threshold, 0 to 256."""
    values = np.arange(256, dtype=np.uint8)
    _look_up(clip, np.where(values < threshold, values, 255 - values))


def autocontrast(clip: np.ndarray, _: float = 0) -> None:
    """Stretch the values of each channel to 0..255, unless they are all equal. The argument is not used."""
    rows = clip.reshape(-1, clip.shape[2] * 3)  # long rows: the reduction is vectorised
    lows = rows.min(axis=0).reshape(-1, 3).min(axis=0).tolist()
    highs = rows.max(axis=0).reshape(-1, 3).max(axis=0).tolist()
    tables = np.tile(np.arange(256.0), (3, 1))
    for table, low, high in zip(tables, lows, highs):
        if high > low:
            scale = 255 / (high - low)
            table[:] = np.clip(table * scale - low * scale, 0, 255)
    _look_up(clip, tables.T.astype(np.uint8))


def equalize(clip: np.ndarray, _: float = 0) -> None:
    """Equalise the histogram of each channel. The argument is not used."""
    tables = [_equalizing_table(_histogram(clip, channel)) for channel in range(3)]
    _look_up(clip, np.stack(tables, axis=-1))


# These change each pixel by itself; the others depend on its neighbours or on the whole clip.
POINTWISE = (brightness, saturation, posterize, solarize)


def sample_jitter(strength: float, rng: np.random.Generator) -> list[tuple[Callable, float]]:
    """Sample the order of brightness, contrast and saturation, and a factor from 1 - strength to 1 + strength each."""
    changes = rng.permutation([brightness, contrast, saturation])  # pyright: ignore[reportCallIssue, reportArgumentType]
    return [(change, rng.uniform(1 - strength, 1 + strength)) for change in changes]


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Noise that replaces a rectangle in all frames (random erasing, Zhong et al. 2020).

    Attributes:
        top, left: corner of the rectangle.
        pixels: (rows, columns, 3) uint8.
    """

    top: int
    left: int
    pixels: np.ndarray

    @classmethod
    def sample(cls, size: int, rng: np.random.Generator) -> Self:
        """Sample a rectangle of a frame (size, size), and its noise.

        The area is drawn from 2 % to 33 % of the frame, height over width from 0.3 to 3.3 (on a logarithmic scale);
        sides are limited to those of the frame.
        """
        area, shape = size * size * rng.uniform(0.02, 0.33), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        rows, columns = min(round(np.sqrt(area * shape)), size), min(round(np.sqrt(area / shape)), size)
        top, left = (int(rng.integers(size - side + 1)) for side in (rows, columns))
        return cls(top, left, rng.integers(0, 256, (rows, columns, 3), np.uint8))

    def paste(self, clip: np.ndarray, grid: PixelGrid) -> None:
        """Replace the pixels of a grid, (times, rows, columns, 3), in place."""
        rows, columns = grid.rows - self.top, grid.columns - self.left  # in the rectangle
        in_rows, in_columns = ((0 <= i) & (i < n) for i, n in zip((rows, columns), self.pixels.shape))
        pixels = self.pixels[np.ix_(rows[in_rows], columns[in_columns])]
        clip[:, np.flatnonzero(in_rows)[:, None], np.flatnonzero(in_columns)] = pixels


def _blend_table(anchor: int, factor: float) -> np.ndarray:
    """Return the table (256,) that scales distances from an anchor in float32; clipped to 0..255, truncated."""
    distance = np.arange(256, dtype=np.float32) - np.float32(anchor)
    return np.clip(np.float32(anchor) + np.float32(factor) * distance, 0, 255).astype(np.uint8)


def _equalizing_table(histogram: np.ndarray) -> np.ndarray:
    """Return the table (256,) with steps of equal counts; the highest value is not counted, it becomes 255 anyway."""
    step = int(histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
    if step == 0:  # a single value, or fewer pixels than values
        return np.arange(256, dtype=np.uint8)
    before = np.cumsum(histogram) - histogram
    return np.minimum((before + step // 2) // step, 255).astype(np.uint8)


def _histogram(frames: Iterable[np.ndarray], channel: int) -> np.ndarray:
    counts = (cv2.calcHist([frame], [channel], None, [256], [0, 256]) for frame in frames)
    return sum((count.ravel().astype(np.int64) for count in counts), start=np.zeros(256, np.int64))


def _look_up(clip: np.ndarray, table: np.ndarray) -> None:
    """Replace values in place by those of a table, (256,) for all channels or (256, 3)."""
    table = table.reshape(1, 256, -1)
    for frame in clip:
        if table.shape[2] == 1:
            frame = frame.reshape(len(frame), -1)  # faster
        cv2.LUT(frame, table, dst=frame)
