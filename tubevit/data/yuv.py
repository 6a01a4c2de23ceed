"""Colours of decoded frames: YUV to RGB by the matrix and the range that each frame declares."""

import functools

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange

from tubevit.errors import DecodeError

PLANAR = ("yuv420p", "yuvj420p")  # 8-bit 4:2:0, whose planes are sampled before conversion
UNSPECIFIED = 2  # the code of ITU-T H.273 for a matrix that is not known; it is taken as BT.601
# FFmpeg's scaler truncates: its values are up to 2.9 levels below the exact ones. Subtracting this from the values that
# our matrices give keeps them within 2 levels of the scaler and within 1.1 of the exact values.
BIAS = 0.4
# OpenCV, which converts BT.601 in limited range, rounds: its greens are up to 3 levels above those of the scaler.
# Subtracting one level keeps them within 2.
_GREEN = (0, 1, 0, 0)
# The shares of red and blue in luma, by the code of the matrix.
_LUMA = {
    1: (0.2126, 0.0722),  # BT.709
    UNSPECIFIED: (0.299, 0.114),
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
_NOT_CONVERTED = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE ST 2085", 12: "derived from the primaries",
    13: "derived from the primaries, with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re",
    17: "YCgCo-Ro",
}  # fmt: skip


def settle_colours(frame: av.VideoFrame, name: str) -> None:
    """Replace codes without a meaning for YUV, such as reserved ones, by `UNSPECIFIED`.

    Args:
        frame: a decoded frame, whose tags are changed in place.
        name: the name of the file for messages.

    Raises:
        DecodeError: the frame has a matrix that FFmpeg's scaler cannot convert either.
    """
    if frame.colorspace in _LUMA:
        return
    if frame.colorspace in _NOT_CONVERTED and not frame.format.is_rgb:
        raise DecodeError(
            f"{name} has the colour matrix {_NOT_CONVERTED[frame.colorspace]}; expected that of BT.601, BT.709, "
            "BT.2020 (non-constant luminance), SMPTE 240M or FCC"
        )
    frame.colorspace = UNSPECIFIED


def is_full_range(frame: av.VideoFrame) -> bool:
    """Return whether luma and chroma use all values from 0 to 255, not those from 16 to 235 and 240."""
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")


def has_planes(frame: av.VideoFrame) -> bool:
    """Return whether a frame is 8-bit 4:2:0 of even size."""
    return frame.format.name in PLANAR and frame.width % 2 == 0 and frame.height % 2 == 0


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Return views of the planes of an 8-bit planar frame, (rows, columns) uint8 each."""
    return [
        np.asarray(memoryview(plane)).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    ]


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Convert a decoded frame with settled colours to (H, W, 3) uint8; a channel for transparency is dropped."""
    if has_planes(frame):  # faster than FFmpeg's scaler
        return i420_to_rgb(frame.to_ndarray(), conversion(frame))
    return frame.to_ndarray(format="rgb24")  # uses the tags of the frame


def conversion(frame: av.VideoFrame) -> np.ndarray | None:
    """Return the (3, 4) float32 matrix from Y, U, V, 1 to RGB, or None for BT.601 in limited range."""
    return _conversion(*_LUMA[frame.colorspace], is_full_range(frame))


@functools.cache
def _conversion(red: float, blue: float, full: bool) -> np.ndarray | None:
    if (red, blue) == _LUMA[UNSPECIFIED] and not full:
        return None
    green = 1 - red - blue
    luma, chroma, black = (1, 1, 0) if full else (255 / 219, 255 / 224, 16)
    of_v, of_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    matrix = np.array([[luma, 0, of_v], [luma, -of_u * blue / green, -of_v * red / green], [luma, of_u, 0]])
    return np.column_stack([matrix, -matrix @ [black, 128, 128] - BIAS]).astype(np.float32)


def i420_to_rgb(i420: np.ndarray, matrix: np.ndarray | None, output: np.ndarray | None = None) -> np.ndarray:
    """Convert planes of 8-bit 4:2:0 to RGB; each chroma value stands for its four pixels.

    Args:
        i420: (H * 3 / 2, W) uint8, luma above U and V.
        matrix: see `conversion`.
        output: (H, W, 3) uint8 to write to; None allocates it.
    """
    if matrix is None:
        rgb = cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420, dst=output)
        return cv2.subtract(rgb, _GREEN, dst=rgb)  # pyright: ignore[reportCallIssue, reportArgumentType]
    height, width = len(i420) * 2 // 3, i420.shape[1]
    halves = i420[height:].reshape(2, height // 2, width // 2)
    chroma = [cv2.resize(half, (width, height), interpolation=cv2.INTER_NEAREST) for half in halves]
    return cv2.transform(cv2.merge([i420[:height], *chroma]), matrix, dst=output)
