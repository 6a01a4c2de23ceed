"""Animated PNG and WebP files, which are videos; still ones are images."""

import io
from typing import BinaryIO

import cv2
import numpy as np

from tubevit.errors import DecodeError

_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 65535  # milliseconds for which a frame of an animated PNG can be shown


def is_webp(head: bytes) -> bool:
    """Whether a file that begins with these bytes, 12 or more, is a WebP file."""
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def is_animated(file: BinaryIO) -> bool:
    """Whether a file is a PNG or WebP of several frames. Only the headers of its chunks are read.

    The position in the file changes.
    """
    file.seek(0)
    head = file.read(12)
    if head.startswith(_PNG):
        return _png_is_animated(file)
    return is_webp(head) and _webp_is_animated(file)


def _png_is_animated(file: BinaryIO) -> bool:
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
        if header[4:] == b"acTL":  # it precedes the first frame
            return int.from_bytes(file.read(4), "big") > 1
        file.seek(int.from_bytes(header[:4], "big") + 4, io.SEEK_CUR)
    return False


def _webp_is_animated(file: BinaryIO) -> bool:
    frames = 0
    while len(header := file.read(8)) == 8 and frames < 2:
        frames += header[:4] == b"ANMF"
        size = int.from_bytes(header[4:], "little")
        file.seek(size + size % 2, io.SEEK_CUR)
    return frames > 1


def webp_as_png(name: str, file: BinaryIO) -> BinaryIO:
    """Convert an animated WebP to an animated PNG, without loss: FFmpeg does not decode animated WebP.

    All frames are decoded at once, as whole pictures. Raises DecodeError, with `name`, if the file is damaged.
    """
    file.seek(0)
    try:
        decoded, animation = cv2.imdecodeanimation(np.frombuffer(file.read(), np.uint8))
        if decoded:
            animation.durations = [min(int(each), _LONGEST) for each in animation.durations]
            return io.BytesIO(cv2.imencodeanimation(".png", animation)[1].tobytes())
    except cv2.error:
        pass
    raise DecodeError(f"cannot read {name} as an animated WebP: it is damaged")
