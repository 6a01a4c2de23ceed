"""Colours of a clip, the same for all of its frames: brightness, contrast, saturation, sharpness, histograms, erasing.

The functions change a contiguous clip (T, H, W, 3) uint8 in place. One frame comes out as Pillow's ImageEnhance and
ImageOps give it (Pillow's rounding included); what they measure on an image is measured here on the whole clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from tubevit.windows import PixelGrid

_GREY = np.array([19595, 38470, 7471]) / 2**16  # BT.601 luma, as Pillow weights it
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
# Added before rounding to the nearest it cuts off decimals instead, save for the last 2 in 1000.
_CUT_OFF = -0.498


def brightness(clip: np.ndarray, factor: float) -> None:
    """Scales all values; 0 is black, 1 changes nothing."""
    _look_up(clip, _blend_table(0, factor))


def contrast(clip: np.ndarray, factor: float) -> None:
    """Scales the distance from the mean grey of the clip; 0 is that grey, 1 changes nothing."""
    mean = np.mean([cv2.mean(frame)[:3] for frame in clip], axis=0)
    _look_up(clip, _blend_table(int(mean @ _GREY + 0.5), factor))


def saturation(clip: np.ndarray, factor: float) -> None:
    """Scales the distance of each pixel from its grey; 0 has no colour, 1 changes nothing."""
    for frame in clip:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(frame, factor, grey, 1 - factor, _CUT_OFF, dst=frame)


def sharpness(clip: np.ndarray, factor: float) -> None:
    """Scales the distance from the smoothed frame; 0 is that, 1 changes nothing. Pixels of the rim stay."""
    if min(clip.shape[1:3]) < 3:
        return  # all rim
    for frame in clip:
        smooth = cv2.filter2D(frame, -1, _SMOOTH)
        inner = frame[1:-1, 1:-1]
        inner[:] = cv2.addWeighted(inner, factor, smooth[1:-1, 1:-1], 1 - factor, _CUT_OFF)


def posterize(clip: np.ndarray, bits: float) -> None:
    """Keeps the highest bits, 0 to 8, rounded."""
    np.bitwise_and(clip, np.uint8(256 - (1 << 8 - round(bits))), out=clip)


def solarize(clip: np.ndarray, threshold: float) -> None:
    """Inverts values at or above a threshold, 0 to 256."""
    values = np.arange(256, dtype=np.uint8)
    _look_up(clip, np.where(values < threshold, values, 255 - values))


def autocontrast(clip: np.ndarray, _: float = 0) -> None:
    """Stretches the values of each channel to 0 .. 255; a flat channel stays. There is no strength."""
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
    """Spreads the values of each channel, so that all become equally frequent. There is no strength."""
    tables = [_equalizing_table(_histogram(clip, channel)) for channel in range(3)]
    _look_up(clip, np.stack(tables, axis=-1))


# These change each pixel by itself; the others look at its neighbours, or at the whole clip.
POINTWISE = (brightness, saturation, posterize, solarize)


def sample_jitter(strength: float, rng: np.random.Generator) -> list[tuple[Callable, float]]:
    """Brightness, contrast and saturation in random order, each factor drawn from 1 - strength to 1 + strength."""
    changes = rng.permutation([brightness, contrast, saturation])
    return [(change, rng.uniform(1 - strength, 1 + strength)) for change in changes]


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Noise that takes the place of a rectangle in all frames (Zhong et al. 2020, random erasing).

    Attributes:
        top, left: where it lies.
        pixels: (rows, columns, 3) uint8.
    """

    top: int
    left: int
    pixels: np.ndarray

    @classmethod
    def sample(cls, size: int, rng: np.random.Generator) -> Noise:
        """Of a frame (size, size).

        Its area is drawn from 2 % to 33 % of the frame, its height over width from 0.3 to 3.3 (on a logarithmic
        scale); a side longer than the frame's is cut to that.
        """
        area, shape = size * size * rng.uniform(0.02, 0.33), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        rows, columns = min(round(np.sqrt(area * shape)), size), min(round(np.sqrt(area / shape)), size)
        top, left = (int(rng.integers(size - side + 1)) for side in (rows, columns))
        return cls(top, left, rng.integers(0, 256, (rows, columns, 3), np.uint8))

    def put(self, clip: np.ndarray, grid: PixelGrid) -> None:
        """Changes the pixels of a grid, (times, rows, columns, 3), in place."""
        (rows, from_rows), (columns, from_columns) = (
            (np.flatnonzero(inside), index[inside] - first)
            for index, first, length in zip((grid.rows, grid.columns), (self.top, self.left), self.pixels.shape)
            for inside in [(index >= first) & (index < first + length)]
        )
        clip[:, rows[:, None], columns] = self.pixels[from_rows[:, None], from_columns]


def _blend_table(anchor: int, factor: float) -> np.ndarray:
    """(256,): values moved from an anchor in float32, cut to 0 .. 255, decimals cut off."""
    distance = np.arange(256, dtype=np.float32) - np.float32(anchor)
    return np.clip(np.float32(anchor) + np.float32(factor) * distance, 0, 255).astype(np.uint8)


def _equalizing_table(histogram: np.ndarray) -> np.ndarray:
    """(256,): steps of equal counts; the highest value counts for nothing, since it becomes 255 in any case."""
    step = int(histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
    if step == 0:  # a single value, or fewer pixels than values
        return np.arange(256, dtype=np.uint8)
    before = np.cumsum(histogram) - histogram
    return np.minimum((before + step // 2) // step, 255).astype(np.uint8)


def _histogram(frames: Iterable[np.ndarray], channel: int) -> np.ndarray:
    """(256,) int64."""
    counts = (cv2.calcHist([frame], [channel], None, [256], [0, 256]) for frame in frames)
    return sum(count.ravel().astype(np.int64) for count in counts)


def _look_up(clip: np.ndarray, table: np.ndarray) -> None:
    """`table`: (256,) for all channels or (256, 3)."""
    table = table.reshape(1, 256, -1)
    for frame in clip:
        if table.shape[2] == 1:
            frame = frame.reshape(len(frame), -1)  # faster
        cv2.LUT(frame, table, dst=frame)
