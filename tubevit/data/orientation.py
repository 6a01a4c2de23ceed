"""The eight orientations of decoded frames, as display matrices of phones, cameras and editors declare them."""

import math

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type

from tubevit.data.yuv import planes

# Whether rows and columns are exchanged, and whether the result is then flipped upside down and left to right.
Orientation = tuple[bool, bool, bool]


def display_orientation(frame: av.VideoFrame) -> Orientation | None:
    """Return how a frame is to be turned for display, to the closest of the eight orientations; None if not at all."""
    try:
        # `frame.side_data` would be a reference cycle, which holds the frame until garbage is collected.
        side_data = SideDataContainer(frame)  # pyright: ignore[reportCallIssue]
        if Type.DISPLAYMATRIX not in side_data:
            return None
        # Rows (a, b, u), (c, d, v), (x, y, w): a point (p, q) is shown at (a p + c q + x, b p + d q + y).
        a, b, _, c, d = np.frombuffer(bytes(side_data[Type.DISPLAYMATRIX]), np.int32)[:5].tolist()
    except ValueError:  # PyAV 18 refuses kinds of side data that it does not know; at least the angle is there
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return (False, d < 0, a < 0) if d < 0 or a < 0 else None


def turned(pixels: np.ndarray, orientation: Orientation | None) -> np.ndarray:
    """Return a view of a frame or a plane, (H, W) or (H, W, 3), in its orientation for display."""
    if orientation is None:
        return pixels
    exchange, flip_y, flip_x = orientation
    pixels = pixels.swapaxes(0, 1) if exchange else pixels
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def turned_size(width: int, height: int, orientation: Orientation | None) -> tuple[int, int]:
    """Return (width, height) for display, given those of the file, or the other way round."""
    return (height, width) if orientation and orientation[0] else (width, height)


def turned_planes(frame: av.VideoFrame, orientation: Orientation | None) -> av.VideoFrame:
    """Return an 8-bit 4:2:0 frame of even size in its orientation for display, without its metadata."""
    if orientation is None:
        return frame
    width, _ = turned_size(frame.width, frame.height, orientation)
    values = np.concatenate([turned(plane, orientation).ravel() for plane in planes(frame)])
    return av.VideoFrame.from_ndarray(values.reshape(-1, width), format="yuv420p")
