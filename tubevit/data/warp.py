"""Crop, resize, flip, shear, rotation: one affine map from output to source, sampled once for every frame of a clip.

Coordinates are continuous, (x, y) from the upper left corner: pixel i covers i to i + 1. A map is a (3, 3) float64
matrix that takes a point of the output to the point of the source that is shown there.
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import cv2
import numpy as np

FILL = 128  # grey where a map leaves the source
_FILL_YUV = (126, 128, 128)  # the same in BT.601 of limited range

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

    A map that only crops, resizes and flips inside the frame is rounded to whole pixels of the source.

    Args:
        frames: T frames of one size, RGB (H, W, 3) uint8 or decoded yuv420p of even size: of those the planes are
            sampled, and only the result is converted to RGB.
        matrix: (3, 3), of output (x, y, 1) to source.
        size: rows and columns of the output.

    Returns:
        (T, size, size, 3) uint8.
    """
    output = np.empty((len(frames), size, size, 3), np.uint8)
    for i, frame in enumerate(frames):
        if i and frame is frames[i - 1]:  # held
            output[i] = output[i - 1]
        elif isinstance(frame, np.ndarray):
            _sample_plane(frame, matrix, output[i], (FILL,) * 3)
        elif size % 2 == 0:
            _sample_yuv(frame, matrix, output[i])
        else:
            _sample_plane(to_rgb(frame), matrix, output[i], (FILL,) * 3)
    return output


def centre_crop(frames: Sequence[av.VideoFrame | np.ndarray], size: int) -> np.ndarray:
    """The largest centred square of every frame, resized: (T, size, size, 3) uint8."""
    return sample(frames, square_map(*frame_size(frames[0]), size), size)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded yuv420p frame of even size as (H, W, 3) uint8."""
    return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)  # faster than swscale


def _sample_yuv(frame: av.VideoFrame, matrix: np.ndarray, output: np.ndarray) -> None:
    size, half = len(output), len(output) // 2
    planes = np.empty(size * size + 2 * half * half, np.uint8)  # I420
    luma, chroma = planes[: size * size].reshape(size, size), planes[size * size :].reshape(2, half, half)
    box = _box(matrix, frame_size(frame), size, whole=2)
    if box is not None:  # chroma has to show the same rectangle
        matrix = crop_map(*box, size) @ (flip_map(size) if matrix[0, 0] < 0 else np.eye(3))
    to_half = np.diag([0.5, 0.5, 1]) @ matrix @ np.diag([2.0, 2, 1])
    _sample_plane(_plane(frame.planes[0]), matrix, luma, _FILL_YUV[0])
    for i in (0, 1):
        _sample_plane(_plane(frame.planes[i + 1]), to_half, chroma[i], _FILL_YUV[1])
    cv2.cvtColor(planes.reshape(-1, size), cv2.COLOR_YUV2RGB_I420, dst=output)


def _plane(plane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _sample_plane(plane: np.ndarray, matrix: np.ndarray, output: np.ndarray, fill) -> None:
    """Samples (H, W) or (H, W, 3) into an output of the same rank."""
    factor = int(np.hypot(*matrix[:2, :2]).min() + 1e-6)  # of reduction, by the smaller of the two axes
    height, width = plane.shape[:2]
    if factor >= 2 and min(height, width) >= factor:
        height, width = height // factor, width // factor
        plane = plane[: height * factor, : width * factor]
        plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
        matrix = np.diag([1 / factor, 1 / factor, 1]) @ matrix
    box = _box(matrix, (height, width), len(output))
    if box is None:
        centred = matrix[:2] + [[0, 0, matrix[0, :2].sum() / 2 - 0.5], [0, 0, matrix[1, :2].sum() / 2 - 0.5]]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(
            plane,
            centred,
            output.shape[1::-1],
            dst=output,
            flags=flags,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        return
    top, left, rows, columns = box
    cv2.resize(plane[top : top + rows, left : left + columns], output.shape[1::-1], dst=output)
    if matrix[0, 0] < 0:
        output[:] = output[:, ::-1].copy()


def _box(matrix: np.ndarray, shape: tuple[int, int], size: int, whole: int = 1) -> tuple[int, int, int, int] | None:
    """Top, left, height, width of what a map shows, in multiples of `whole` pixels.

    None if it does more than crop, resize and flip left to right inside the frame.
    """
    if matrix[0, 1] or matrix[1, 0] or matrix[1, 1] <= 0:
        return None
    (x0, y0, _), (x1, y1, _) = (matrix @ [0, 0, 1]), (matrix @ [size, size, 1])
    edges = np.array([[y0, y1], sorted((x0, x1))]) / whole
    if (edges < -1e-6).any() or (edges[:, 1] > np.array(shape) / whole + 1e-6).any():
        return None
    start = np.round(edges[:, 0]).astype(int) * whole
    extent = np.maximum(np.round(edges[:, 1] - edges[:, 0]).astype(int), 1) * whole
    start = np.minimum(start, np.array(shape) - extent)  # rounding both up would leave the frame
    return (*start.tolist(), *extent.tolist())
