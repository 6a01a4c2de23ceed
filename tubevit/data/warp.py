"""Crop, resize, flip, shear, rotation: one affine map from output to source, sampled once for every frame of a clip.

Coordinates are continuous, (x, y) from the upper left corner: pixel i covers i to i + 1. A map is a (3, 3) float64
matrix that takes a point of the output to the point of the source that is shown there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import av
import cv2
import numpy as np

FILL = 128  # grey where a map leaves the source
_TOLERANCE = 1e-6  # of a pixel, for rounding errors of products of maps

cv2.setNumThreads(0)  # parallelism comes from clips


def crop_map(top: float, left: float, height: float, width: float, size: int) -> np.ndarray:
    """A rectangle of the source, resized to (size, size)."""
    return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1.0]])


def square_map(height: int, width: int, size: int, position: float = 0.5) -> np.ndarray:
    """The largest square of a frame, resized to (size, size).

    Args:
        height, width: of the frame.
        size: of the output.
        position: where the square lies along the longer side, 0 (left or top) to 1.
    """
    side = min(height, width)
    return crop_map((height - side) * position, (width - side) * position, side, side, size)


def flip_map(size: int) -> np.ndarray:
    """Left and right exchanged, of an output (size, size)."""
    return np.array([[-1.0, 0, size], [0, 1, 0], [0, 0, 1]])


def frame_size(frame: av.VideoFrame | np.ndarray) -> tuple[int, int]:
    """(height, width)."""
    return frame.shape[:2] if isinstance(frame, np.ndarray) else (frame.height, frame.width)


def sample(frames: Sequence[av.VideoFrame | np.ndarray], matrix: np.ndarray, size: int) -> np.ndarray:
    """Samples the same map from all frames, bilinearly; reductions by 2 and more first average whole blocks of pixels.

    A map that only crops, resizes and flips left to right inside the frame is rounded to whole pixels of the source
    (whole blocks where it reduces): no edge of the rectangle moves by more than about a pixel of the output. Other maps
    are exact; output pixels whose centres lie outside of the frame are `FILL`.

    Args:
        frames: T frames of one size, RGB (H, W, 3) uint8 or decoded yuv420p of even size: of those the planes are
            sampled, and only the result is converted to RGB.
        matrix: (3, 3), of output (x, y, 1) to source.
        size: rows and columns of the output.

    Returns:
        (T, size, size, 3) uint8.
    """
    as_rgb = size % 2 or any(isinstance(frame, np.ndarray) for frame in frames)
    sample_frame = (_rgb_sampler if as_rgb else _yuv_sampler)(frame_size(frames[0]), matrix, size)
    output = np.empty((len(frames), size, size, 3), np.uint8)
    for i, frame in enumerate(frames):
        if i and frame is frames[i - 1]:  # held
            output[i] = output[i - 1]
        else:
            sample_frame(frame, output[i])
    _fill_outside(output, frame_size(frames[0]), matrix)
    return output


def centre_crop(frames: Sequence[av.VideoFrame | np.ndarray], size: int) -> np.ndarray:
    """The largest centred square of every frame, resized: (T, size, size, 3) uint8."""
    return sample(frames, square_map(*frame_size(frames[0]), size), size)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded yuv420p frame of even size as (H, W, 3) uint8."""
    return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)  # faster than swscale


def _yuv_sampler(shape: tuple[int, int], matrix: np.ndarray, size: int) -> Callable:
    half = size // 2
    factor = _reduction(matrix)
    to_half = np.diag([0.5, 0.5, 1]) @ matrix @ np.diag([2.0, 2, 1])
    box = _box(matrix, shape, size, 2 * factor, align=2)  # whole blocks of chroma
    if box is None:
        sample_luma = _warper(shape, matrix, size, factor)
        sample_chroma = _warper((shape[0] // 2, shape[1] // 2), to_half, half, factor)
    else:
        sample_luma = _cropper(box, factor, matrix[0, 0] < 0)
        sample_chroma = _cropper([edge // 2 for edge in box], factor, matrix[0, 0] < 0)
    planes = np.empty(size * size + 2 * half * half, np.uint8)  # I420
    luma, chroma = planes[: size * size].reshape(size, size), planes[size * size :].reshape(2, half, half)

    def sample_frame(frame, output):
        sample_luma(_plane(frame.planes[0]), luma)
        for i in (0, 1):
            sample_chroma(_plane(frame.planes[i + 1]), chroma[i])
        cv2.cvtColor(planes.reshape(-1, size), cv2.COLOR_YUV2RGB_I420, dst=output)

    return sample_frame


def _plane(plane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _rgb_sampler(shape: tuple[int, int], matrix: np.ndarray, size: int) -> Callable:
    factor = _reduction(matrix)
    box = _box(matrix, shape, size, factor)
    if box is None:
        sample_rgb = _warper(shape, matrix, size, factor)
    else:
        sample_rgb = _cropper(box, factor, matrix[0, 0] < 0)

    def sample_frame(frame, output):
        sample_rgb(frame if isinstance(frame, np.ndarray) else to_rgb(frame), output)

    return sample_frame


def _reduction(matrix: np.ndarray) -> int:
    """By which whole factor pixels are averaged first: what the axis that is reduced less allows."""
    return max(int(np.hypot(*matrix[:2, :2]).min() + _TOLERANCE), 1)


def _box(matrix: np.ndarray, shape: tuple[int, int], size: int, whole: int, align: int = 1) -> list[int] | None:
    """Top, left, height, width of what a map shows: heights and widths are multiples of `whole`, the others of `align`.

    None if the map does more than crop, resize and flip left to right inside the frame.
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


def _cropper(box: Sequence[int], factor: int, flip: bool) -> Callable:
    """A function (plane, output): cuts out, reduces, resizes."""
    top, left, height, width = box

    def crop(plane, output):
        plane = _reduced(plane[top : top + height, left : left + width], factor)
        cv2.resize(plane, output.shape[1::-1], dst=output)
        if flip:
            cv2.flip(output, 1, dst=output)

    return crop


def _warper(shape: tuple[int, int], matrix: np.ndarray, size: int, factor: int) -> Callable:
    """A function (plane, output): any map; the outermost pixels continue for two blocks beyond the frame."""
    (top, bottom), (left, right) = (  # what is read, whole blocks
        _block_range(ends.min(), ends.max(), available, factor)
        for ends, available in zip(_corners(matrix, size), shape)
    )
    margin = 2 * factor  # faster than to let OpenCV continue them
    below, beside = margin + max(bottom - shape[0], 0), margin + max(right - shape[1], 0)
    to_blocks = np.array([[1, 0, margin - left], [0, 1, margin - top], [0, 0, factor]]) / factor
    inside = to_blocks @ matrix
    inside[:2, 2] += inside[:2, :2].sum(axis=1) / 2 - 0.5  # OpenCV counts from centres of pixels

    def warp(plane, output):
        plane = cv2.copyMakeBorder(plane[top:bottom, left:right], margin, below, margin, beside, cv2.BORDER_REPLICATE)
        cv2.warpAffine(
            _reduced(plane, factor),
            inside[:2],
            output.shape[1::-1],
            dst=output,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(FILL,) * 3,
        )

    return warp


def _corners(matrix: np.ndarray, size: int) -> np.ndarray:
    """(2, 4): y and x of the points of the source at the corners of the output."""
    return (matrix @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])[1::-1]


def _block_range(low: float, high: float, available: int, factor: int) -> tuple[int, int]:
    """First and last pixel of the blocks that interpolation reads; one at least, beginning inside the frame."""
    first = min(max(int(np.floor(low)) - 2 * factor, 0), available - 1)
    last = min(max(int(np.ceil(high)) + 2 * factor, first + 1), available)
    return first, first + -(-(last - first) // factor) * factor


def _fill_outside(output: np.ndarray, shape: tuple[int, int], matrix: np.ndarray) -> None:
    """Makes pixels of (T, size, size, 3) grey that a map takes from outside of a frame of (height, width)."""
    size, limits = output.shape[1], np.array(shape)[:, None] + _TOLERANCE
    corners = _corners(matrix, size)
    if ((corners >= -_TOLERANCE) & (corners <= limits)).all():
        return
    middles = np.arange(size) + 0.5
    outside = np.zeros((size, size), bool)
    for (along_x, along_y, start), limit in zip(matrix[1::-1], shape):
        points = along_x * middles + along_y * middles[:, None] + start
        outside |= (points < 0) | (points >= limit)
    grey = np.full(output.shape[1:], FILL, np.uint8)
    for frame in output:
        cv2.copyTo(grey, outside.astype(np.uint8), frame)


def _reduced(plane: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return plane
    return cv2.resize(plane, (plane.shape[1] // factor, plane.shape[0] // factor), interpolation=cv2.INTER_AREA)
