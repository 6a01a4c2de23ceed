"""Videos and images as a model takes them."""

import os

import numpy as np

from tubevit.data.decode import Decoded, decode_clip, decode_frames, decode_image
from tubevit.tubes import TubeSet
from tubevit.windows import TubeBatch, take_windows


def read_video(
    path: str | os.PathLike,
    frames: int | None = None,
    fps: float | None = None,
    size: int | None = None,
    tubes: TubeSet | None = None,
) -> np.ndarray | TubeBatch:
    """Read a video as a batch of one clip, e.g. `model(read_video(path, **model.input))`.

    Args:
        path: any file that FFmpeg reads, also an animated GIF, PNG or WebP.
        frames: T; None takes every frame.
        fps: frames per second to sample at, from the middle of the video; None spreads T frames over all of it.
        size: rows and columns of a centred square; None keeps those of the file.
        tubes: tubes of a model, `model.config.tubes`: only the pixels that they read are computed.

    Returns:
        (1, T, H, W, 3) uint8, 0..255, or the windows of the tubes, which hold the same values.

    Raises:
        DecodeError: the file is missing, empty, truncated or not a video.
        UserError: the clip is too small for a tube.
    """
    if size is not None:
        return Decoded("video", decode_frames(path, frames, fps)).pixels(size, tubes)
    clip = decode_clip(path, frames, fps)[None]
    return clip if tubes is None else take_windows(clip, tubes)


def read_image(
    path: str | os.PathLike, size: int | None = None, tubes: TubeSet | None = None
) -> np.ndarray | TubeBatch:
    """Read an image as a batch of one.

    Args:
        path: JPEG, PNG, WebP, BMP or TIFF.
        size: rows and columns of a centred square; None keeps those of the file.
        tubes: see `read_video`; those of temporal size 1 are used.

    Returns:
        (1, H, W, 3) uint8, 0..255, or the windows of the tubes.

    Raises:
        DecodeError: the file is missing, empty, damaged or not an image.
        UserError: the image is too small for a tube, or no tube takes images.
    """
    image = decode_image(path)
    if size is not None:
        return Decoded("image", [image]).pixels(size, tubes)
    return image[None] if tubes is None else take_windows(image[None], tubes)
