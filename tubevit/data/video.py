"""Files to uint8 pixels: videos by timestamp, images, told apart by their content."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib

import av
import cv2
import numpy as np

from tubevit.errors import UserError

# Containers round presentation times (Matroska to 1 ms): a frame may be this much later than the time asked for.
TIME_TOLERANCE = 1e-3
# Stream-copied trims declare more than they hold (152 of 191 frames were there in one): less is a truncated file.
MIN_COVERAGE = 0.75
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")

cv2.setNumThreads(0)  # parallelism comes from clips


class DecodeError(UserError):
    """A file that cannot be read as a video or an image; the message names it and says why."""


def media_kind(path: str | os.PathLike) -> str:
    """`image` or `video`, by the first bytes of the file; an animated GIF is a video.

    Raises:
        DecodeError: the file is missing, empty or not readable.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise DecodeError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise DecodeError(f"{path} is empty (0 bytes)")
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return "image" if webp or head.startswith(_IMAGE_MAGIC) else "video"


def _open(path: str | os.PathLike):
    media_kind(path)  # clear errors for missing and empty files
    try:
        return av.open(os.fspath(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"cannot read {path} as a video: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    if frame.format.name == "yuv420p" and frame.width % 2 == 0 and frame.height % 2 == 0:
        rgb = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)  # faster than swscale
    else:
        rgb = frame.to_ndarray(format="rgb24")
    return np.rot90(rgb, round(frame.rotation / 90)) if frame.rotation else rgb


def _declared_seconds(container, stream) -> float | None:
    """Duration as the file declares it; None where it does not (the stream's is often missing in webm)."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska declares when it ends, not how long it is.
    first = (stream.start_time or 0) * stream.time_base if "matroska" in container.format.name else 0
    return container.duration / av.time_base - float(first)


def _timed_frames(container, stream, start: float):
    """Frames with their presentation times in seconds from the stream's beginning, from a key frame <= start on."""
    first = float((stream.start_time or 0) * stream.time_base)
    frames, head, back = container.decode(stream), [], 0.0
    while start > 0:
        target = max(start - back, 0.0)
        with contextlib.suppress(av.FFmpegError):  # not seekable: decode from the beginning
            container.seek(int((target + first) / stream.time_base), stream=stream)
        frames = container.decode(stream)
        head = list(itertools.islice(frames, 1))
        if target == 0 or (head and (head[0].pts is None or head[0].pts * stream.time_base - first <= start)):
            break
        back = 2 * back + 1  # seeking goes by decoding time: the key frame that it found is shown later
    step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    time = -step
    for frame in itertools.chain(head, frames):
        time = time + step if frame.pts is None else float(frame.pts * stream.time_base) - first
        yield time, frame


def decode_clip(
    path: str | os.PathLike, frames: int | None = None, fps: float | None = None, position: float = 0.5
) -> np.ndarray:
    """Decodes a clip by timestamp: the frame for time t is the last one whose presentation time is <= t.

    Times past the end hold the last frame. Frame counts and frame rates that the file declares are not relied on.

    Args:
        path: of the video.
        frames: T; None takes every frame.
        fps: frames per second to sample at; None spreads T frames evenly over the whole video.
        position: where in the video the clip lies if it is shorter, 0 (beginning) to 1 (end).

    Returns:
        (T, H, W, 3) uint8.

    Raises:
        DecodeError: no video in it, nothing decodable, or it ends long before what it declares.
    """
    with _open(path) as container:
        if not container.streams.video:
            raise DecodeError(f"{path} has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        declared = _declared_seconds(container, stream)
        if frames is None or (fps is None and declared is None):
            return _every_frame(path, container, stream, frames)
        if fps is None:
            start, step = 0.0, declared / frames
        else:
            start, step = max((declared or 0.0) - frames / fps, 0.0) * position, 1 / fps
        times = start + step * np.arange(frames) + TIME_TOLERANCE
        return _sample(path, container, stream, times, declared)


def _sample(path, container, stream, times: np.ndarray, declared: float | None) -> np.ndarray:
    picked: list[av.VideoFrame] = []
    current, reached, error = None, 0.0, None
    try:
        for time, frame in _timed_frames(container, stream, float(times[0])):
            while current is not None and len(picked) < len(times) and times[len(picked)] < time:
                picked.append(current)
            if len(picked) == len(times):
                break
            current, reached = frame, time
    except av.FFmpegError as caught:  # a damaged tail keeps what was decoded
        error = caught
    if current is None:
        raise DecodeError(f"cannot decode {path}: {_reason(error) if error else 'it holds no frame'}")
    if len(picked) < len(times) and declared:
        wanted = min(float(times[-1]), declared) - times[0]
        if reached - times[0] + declared / max(stream.frames, len(times)) < MIN_COVERAGE * wanted:
            raise DecodeError(
                f"{path} is truncated: it declares {declared:.2f} s, decoding ends at {reached:.2f} s"
                + (f" ({_reason(error)})" if error else "")
            )
    picked += [current] * (len(times) - len(picked))
    converted = {id(frame): None for frame in picked}
    for frame in picked:
        if converted[id(frame)] is None:
            converted[id(frame)] = _to_rgb(frame)
    return np.stack([converted[id(frame)] for frame in picked])


def _every_frame(path, container, stream, frames: int | None) -> np.ndarray:
    try:
        clip = np.stack([_to_rgb(frame) for _, frame in _timed_frames(container, stream, 0.0)])
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"cannot decode {path}: {_reason(error)}") from error
    return clip if frames is None else clip[np.arange(frames) * len(clip) // frames]


def decode_image(path: str | os.PathLike) -> np.ndarray:
    """(H, W, 3) uint8, upright (EXIF orientation is applied).

    Raises:
        DecodeError: not a readable image.
    """
    media_kind(path)
    image = cv2.imdecode(np.frombuffer(pathlib.Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DecodeError(f"cannot read {path} as an image: it is damaged, or of a format that is not known")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def crop_resize(clip: np.ndarray, box: tuple[float, float, float], size: int) -> np.ndarray:
    """Cuts the same square out of all frames and resizes it.

    Args:
        clip: (T, H, W, 3) uint8.
        box: top, left and side of the square, in pixels.
        size: rows and columns of the result.

    Returns:
        (T, size, size, 3) uint8.
    """
    top, left, side = (int(round(v)) for v in box)
    clip = clip[:, top : top + side, left : left + side]
    if clip.shape[1:3] == (size, size):
        return np.ascontiguousarray(clip)
    kind = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=kind) for frame in clip])


def centre_crop(clip: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of every frame, resized: (T, H, W, 3) -> (T, size, size, 3)."""
    height, width = clip.shape[1:3]
    side = min(height, width)
    return crop_resize(clip, ((height - side) // 2, (width - side) // 2, side), size)


def read_video(
    path: str | os.PathLike, frames: int | None = None, fps: float | None = None, size: int | None = None
) -> np.ndarray:
    """A video as a batch of one clip, `model(read_video(path, **model.input))`.

    Args:
        path: any file that FFmpeg reads, animated GIFs included.
        frames: T; None takes every frame.
        fps: frames per second to sample at, from the middle of the video; None spreads T frames over all of it.
        size: rows and columns, of a centred square; None keeps those of the file.

    Returns:
        (1, T, H, W, 3) uint8, 0..255.

    Raises:
        DecodeError: the file is missing, empty, truncated or not a video.
    """
    clip = decode_clip(path, frames, fps)
    return (clip if size is None else centre_crop(clip, size))[None]


def read_image(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
    """An image as a batch of one.

    Args:
        path: JPEG, PNG, WebP, BMP or TIFF.
        size: rows and columns, of a centred square; None keeps those of the file.

    Returns:
        (1, H, W, 3) uint8, 0..255.

    Raises:
        DecodeError: the file is missing, empty, damaged or not an image.
    """
    image = decode_image(path)[None]
    return image if size is None else centre_crop(image, size)
