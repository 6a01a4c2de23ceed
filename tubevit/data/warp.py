"""Crop, resize, flip, shear and rotation as one affine map from output to source, sampled once for all frames.

Coordinates are continuous, (x, y) from the upper left corner: pixel i covers i to i + 1. A map is a (3, 3) float64
matrix that takes a point of the output to the point of the source that it shows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import av
import cv2
import numpy as np

from tubevit.data.yuv import conversion, i420_to_rgb, planes, to_rgb
from tubevit.windows import PixelGrid, whole_grid

Frame = av.VideoFrame | np.ndarray  # decoded, `yuv.has_planes`, or RGB (H, W, 3) uint8
FILL = 128  # grey for points outside the source
_TOLERANCE = 1e-6  # pixels, for rounding errors in products of maps


@functools.cache
def use_one_opencv_thread() -> None:
    """Turn off the threads of OpenCV in this process: loaders decode several clips at once instead."""
    cv2.setNumThreads(0)


def crop_map(top: float, left: float, height: float, width: float, size: int) -> np.ndarray:
    """Return the map that resizes a rectangle of the source to (size, size)."""
    return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1.0]])


def square_map(height: int, width: int, size: int, crop_position: float = 0.5, share: float = 1.0) -> np.ndarray:
    """Return the map that resizes a square of a frame (height, width) to (size, size).

    Args:
        height, width: of the frame, in pixels.
        size: of the output, in pixels.
        crop_position: place of the square along the longer side, 0 (left or top) to 1. It is centred along the other.
        share: side of the square as a share of the shorter side, above 0 to 1.
    """
    side = min(height, width) * share
    down, right = (crop_position, 0.5) if height > width else (0.5, crop_position)
    return crop_map((height - side) * down, (width - side) * right, side, side, size)


def flip_map(size: int) -> np.ndarray:
    """Return the map that mirrors an output (size, size) horizontally."""
    return np.array([[-1.0, 0, size], [0, 1, 0], [0, 0, 1]])


def frame_size(frame: Frame) -> tuple[int, int]:
    """Return (height, width)."""
    return frame.shape[:2] if isinstance(frame, np.ndarray) else (frame.height, frame.width)


def sample(frames: Sequence[Frame], matrix: np.ndarray, size: int) -> np.ndarray:
    """Sample all pixels of all frames, (T, size, size, 3) uint8; see `sample_grids`."""
    return sample_grids(frames, matrix, size, [whole_grid((len(frames), size, size))])[0]


def sample_grids(
    frames: Sequence[Frame], matrix: np.ndarray, size: int, grids: Sequence[PixelGrid]
) -> list[np.ndarray]:
    """Sample the same map from all frames, bilinearly; reductions by 2 or more first average whole blocks of pixels.

    A map that only crops, resizes and flips left to right inside the frame is rounded to whole pixels of the source
    (whole blocks if it reduces): no edge of the rectangle moves by more than about a pixel of the output. Other maps
    are exact; output pixels with centres outside the frame are `FILL`.

    Args:
        frames: T frames of one size, RGB (H, W, 3) uint8 or decoded 8-bit 4:2:0 of even size. The planes of the
            latter are sampled first and only the result is converted to RGB, by the colours that each frame declares.
        matrix: (3, 3) map from output (x, y, 1) to source.
        size: rows and columns of the output.
        grids: output pixels to compute; their values do not depend on the other grids.

    Returns:
        For each grid (times, rows, columns, 3) uint8.
    """
    shape = frame_size(frames[0])
    as_rgb = size % 2 or any(isinstance(frame, np.ndarray) for frame in frames)
    sampler = (_RgbSampler if as_rgb else _YuvSampler)(shape, matrix, size, grids)
    outputs = [np.empty((*grid.shape, 3), np.uint8) for grid in grids]
    places = [{time: place for place, time in enumerate(grid.times.tolist())} for grid in grids]
    for time, frame in enumerate(frames):
        readers = [i for i, place in enumerate(places) if time in place]
        prepared = None
        for i in readers:
            place = places[i][time]
            if time and frame is frames[time - 1] and time - 1 in places[i]:  # a repeated frame
                outputs[i][place] = outputs[i][place - 1]
                continue
            prepared = sampler.prepare(frame) if prepared is None else prepared  # pyright: ignore[reportArgumentType]
            sampler.sample(prepared, i, outputs[i][place])  # pyright: ignore[reportArgumentType]
    for output, grid in zip(outputs, grids):
        _fill_outside(output, shape, matrix, size, grid)
    return outputs


def centre_crop(frames: Sequence[Frame], size: int) -> np.ndarray:
    """Sample the largest centred square of each frame: (T, size, size, 3) uint8."""
    return sample(frames, square_map(*frame_size(frames[0]), size), size)


class _YuvSampler:
    """Samples the planes of 8-bit 4:2:0: for each chroma value that a grid needs, all its four pixels."""

    def __init__(self, shape: tuple[int, int], matrix: np.ndarray, size: int, grids: Sequence[PixelGrid]):
        half, factor = size // 2, _reduction(matrix)
        box = _box(matrix, shape, size, 2 * factor, align=2)  # whole blocks of chroma
        if box is None:
            to_half = np.diag([0.5, 0.5, 1]) @ matrix @ np.diag([2.0, 2, 1])
            self._luma = _Blocks.from_map(shape, matrix, size, factor)
            self._chroma = _Blocks.from_map((shape[0] // 2, shape[1] // 2), to_half, half, factor)
        else:
            flip = matrix[0, 0] < 0
            self._luma = _Blocks.from_box(box, factor, size, flip)
            self._chroma = _Blocks.from_box([edge // 2 for edge in box], factor, half, flip)
        self._grids = [self._prepare_grid(grid) for grid in grids]

    def _prepare_grid(self, grid: PixelGrid):
        halves = [np.unique(index // 2) for index in (grid.rows, grid.columns)]
        wholes = [(2 * index[:, None] + np.arange(2)).ravel() for index in halves]
        chosen = [np.searchsorted(whole, index) for whole, index in zip(wholes, (grid.rows, grid.columns))]
        all_chosen = all(len(index) == len(whole) for index, whole in zip(chosen, wholes))
        points = self._luma.points(*wholes), self._chroma.points(*halves)
        rows, columns = map(len, wholes)
        i420 = np.empty((rows * 3 // 2, columns), np.uint8)
        chroma = i420[rows:].reshape(2, rows // 2, columns // 2)
        return points, i420, (i420[:rows], *chroma), None if all_chosen else np.ix_(*chosen)

    def prepare(self, frame: av.VideoFrame) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Return the blocks of each plane, which are interpolated, and their conversion to RGB."""
        parts = zip(planes(frame), (self._luma, self._chroma, self._chroma))
        return [blocks.reduce(plane) for plane, blocks in parts], conversion(frame)

    def sample(self, prepared: tuple[list[np.ndarray], np.ndarray | None], i: int, output: np.ndarray) -> None:
        """Write the pixels of grid `i`, (rows, columns, 3), to `output`."""
        (luma, chroma), i420, parts, chosen = self._grids[i]
        all_blocks, to_rgb_matrix = prepared
        for blocks, points, part in zip(all_blocks, (luma, chroma, chroma), parts):
            _interpolate(blocks, points, part)
        if chosen is None:
            i420_to_rgb(i420, to_rgb_matrix, output)
        else:
            output[:] = i420_to_rgb(i420, to_rgb_matrix)[chosen]


class _RgbSampler:
    def __init__(self, shape: tuple[int, int], matrix: np.ndarray, size: int, grids: Sequence[PixelGrid]):
        factor = _reduction(matrix)
        box = _box(matrix, shape, size, factor)
        if box is None:
            self._blocks = _Blocks.from_map(shape, matrix, size, factor)
        else:
            self._blocks = _Blocks.from_box(box, factor, size, matrix[0, 0] < 0)
        self._points = [self._blocks.points(grid.rows, grid.columns) for grid in grids]

    def prepare(self, frame: Frame) -> np.ndarray:
        """Return the blocks of a frame, which are interpolated."""
        return self._blocks.reduce(frame if isinstance(frame, np.ndarray) else to_rgb(frame))

    def sample(self, prepared: np.ndarray, i: int, output: np.ndarray) -> None:
        """Write the pixels of grid `i`, (rows, columns, 3), to `output`."""
        _interpolate(prepared, self._points[i], output)


def _interpolate(blocks: np.ndarray, points: tuple[np.ndarray, np.ndarray], output: np.ndarray) -> None:
    cv2.remap(blocks, *points, cv2.INTER_LINEAR, dst=output, borderMode=cv2.BORDER_REPLICATE)


def _reduction(matrix: np.ndarray) -> int:
    """Return the whole factor by which pixels are averaged first; the axis that is reduced less limits it."""
    return max(int(np.hypot(*matrix[:2, :2]).min() + _TOLERANCE), 1)


def _box(matrix: np.ndarray, shape: tuple[int, int], size: int, whole: int, align: int = 1) -> list[int] | None:
    """Return top, left, height and width of the rectangle that a map shows, or None if it is no such rectangle.

    Height and width are multiples of `whole`, top and left of `align`. A map that does more than crop, resize and flip
    left to right inside the frame gives None.
    """
    if matrix[0, 1] or matrix[1, 0] or matrix[1, 1] <= 0 or min(shape) < whole:
        return None
    edges = np.sort(_corners(matrix, size)[:, ::3])  # (y, x), (first, last)
    if (edges < -_TOLERANCE).any() or (edges[:, 1] > np.array(shape) + _TOLERANCE).any():
        return None
    starts, extents = [], []
    for (first, last), available in zip(edges.tolist(), shape):
        extent = min(max(round((last - first) / whole), 1), available // whole) * whole
        start = round((first + last - extent) / 2 / align) * align
        starts.append(min(max(start, 0), available - extent))
        extents.append(extent)
    return starts + extents


@dataclasses.dataclass(frozen=True, eq=False)
class _Blocks:
    """The blocks of a plane that are interpolated, and where.

    Attributes:
        read: rows and columns of the plane.
        edges: number of pixels by which the border is replicated (top, bottom, left, right); empty for none.
        factor: reduction by averaging.
        map: (2, 3), from an output pixel (column, row, 1) to x and y among the blocks, relative to their centres.
    """

    read: tuple[slice, slice]
    edges: tuple[int, ...]
    factor: int
    map: np.ndarray

    @classmethod
    def from_box(cls, box: Sequence[int], factor: int, size: int, flip: bool) -> Self:
        """Return the blocks for a rectangle that is resized to (size, size)."""
        top, left, height, width = box
        y, x = height // factor / size, width // factor / size
        across = [-x, 0, (size - 0.5) * x - 0.5] if flip else [x, 0, 0.5 * x - 0.5]
        read = slice(top, top + height), slice(left, left + width)
        return cls(read, (), factor, np.array([across, [0, y, 0.5 * y - 0.5]]))

    @classmethod
    def from_map(cls, shape: tuple[int, int], matrix: np.ndarray, size: int, factor: int) -> Self:
        """Return the blocks for any map; the border is replicated for two blocks beyond the frame."""
        (top, bottom), (left, right) = (  # whole blocks
            _block_range(ends.min(), ends.max(), available, factor)
            for ends, available in zip(_corners(matrix, size), shape)
        )
        margin = 2 * factor
        edges = margin, margin + max(bottom - shape[0], 0), margin, margin + max(right - shape[1], 0)
        to_blocks = np.array([[1, 0, margin - left], [0, 1, margin - top], [0, 0, factor]]) / factor
        inside = (to_blocks @ matrix)[:2]
        inside[:, 2] += inside[:, :2].sum(axis=1) / 2 - 0.5
        return cls((slice(top, bottom), slice(left, right)), edges, factor, inside)

    def reduce(self, plane: np.ndarray) -> np.ndarray:
        """Return the blocks of a plane."""
        part = plane[self.read]
        if self.edges:
            part = cv2.copyMakeBorder(part, *self.edges, cv2.BORDER_REPLICATE)  # pyright: ignore[reportCallIssue]
        if self.factor == 1:
            return part
        size = part.shape[1] // self.factor, part.shape[0] // self.factor
        return cv2.resize(part, size, interpolation=cv2.INTER_AREA)

    def points(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of output pixels among the blocks: (rows, columns) float32 each."""
        x, y = (along_x * columns + along_y * rows[:, None] + start for along_x, along_y, start in self.map)
        return x.astype(np.float32), y.astype(np.float32)


def _corners(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return y and x, (2, 4), of the source points at the corners of the output."""
    return (matrix @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])[1::-1]


def _block_range(low: float, high: float, available: int, factor: int) -> tuple[int, int]:
    """Return the start and the end of the blocks that interpolation reads: at least one, starting inside the frame."""
    first = min(max(int(np.floor(low)) - 2 * factor, 0), available - 1)
    last = min(max(int(np.ceil(high)) + 2 * factor, first + 1), available)
    return first, first + -(-(last - first) // factor) * factor


def _fill_outside(output: np.ndarray, shape: tuple[int, int], matrix: np.ndarray, size: int, grid: PixelGrid) -> None:
    """Fill the pixels of a grid that show points outside the frame (height, width)."""
    corners, limits = _corners(matrix, size), np.array(shape)[:, None] + _TOLERANCE
    if ((corners >= -_TOLERANCE) & (corners <= limits)).all():
        return
    outside = np.zeros((len(grid.rows), len(grid.columns)), bool)
    for (along_x, along_y, start), limit in zip(matrix[1::-1], shape):
        points = along_x * (grid.columns + 0.5) + along_y * (grid.rows[:, None] + 0.5) + start
        outside |= (points < 0) | (points >= limit)
    grey = np.full(output.shape[1:], FILL, np.uint8)
    for frame in output:
        cv2.copyTo(grey, outside.astype(np.uint8), frame)
