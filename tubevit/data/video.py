"""Files to uint8 pixels: videos by timestamp, images, told apart by their content."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import os
import pathlib

import av
import cv2
import numpy as np

from tubevit.data.warp import centre_crop, frame_size, sample_grids, square_map, to_rgb
from tubevit.errors import DecodeError
from tubevit.tubes import TubeSet
from tubevit.windows import TubeBatch, WindowPlan, take_windows

# What can be decoded: a path, the bytes of an encoded file, or pixels (H, W, 3) or (T, H, W, 3) uint8.
Media = str | os.PathLike | bytes | np.ndarray

# Containers round presentation times (Matroska to 1 ms): a frame may be this much later than the time asked for.
TIME_TOLERANCE = 1e-3
# A file that ends early (a damaged tail, a stream-copied trim: 152 of 191 declared frames were there in one) is used
# from this share of the requested span on.
MIN_COVERAGE = 0.5
MAX_DELAY = 16  # frames that a decoder holds back to put them into order
# Names in files need not be UTF-8. From 19 on PyAV replaces what is not; before, it has to be told.
METADATA = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
_OF_THE_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EACCES}
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")


def media_kind(media: Media) -> str:
    """`image` or `video`, by the first bytes of the file or the rank of the pixels; an animated GIF is a video.

    Raises:
        DecodeError: the file is missing, empty or not readable.
    """
    if isinstance(media, np.ndarray):
        return "image" if media.ndim == 3 else "video"
    if isinstance(media, bytes):
        head = media[:16]
    else:
        try:
            with open(media, "rb") as file:
                head = file.read(16)
        except _NO_FILE as error:  # others are the disk's or the system's: the file may be whole
            raise DecodeError(f"cannot read {media}: {error.strerror}") from error
    if not head:
        raise DecodeError(f"{media_name(media)} is empty (0 bytes)")
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return "image" if webp or head.startswith(_IMAGE_MAGIC) else "video"


def media_name(media: Media) -> str:
    """What messages call it."""
    return str(media) if isinstance(media, str | os.PathLike) else "the file"


@contextlib.contextmanager
def open_video(media: Media):
    """The container and its video stream: not the cover picture of music.

    Raises:
        DecodeError: missing, empty, not a video, or of a codec that is not known.
    """
    media_kind(media)  # clear errors for missing and empty files
    # An absolute path: FFmpeg takes what stands before a colon for a protocol.
    file = io.BytesIO(media) if isinstance(media, bytes) else os.path.abspath(media)
    try:
        container = av.open(file, **METADATA)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
            raise
        raise DecodeError(f"cannot read {media_name(media)} as a video: {_reason(error)}") from error
    with container:
        covers = av.stream.Disposition.attached_pic  # of music
        stream = next((stream for stream in container.streams.video if not stream.disposition & covers), None)
        if stream is None:
            raise DecodeError(f"{media_name(media)} has no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"cannot read {media_name(media)} as a video: its codec is not known")
        stream.codec_context.thread_count = 1
        yield container, stream


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _upright(frame: av.VideoFrame) -> av.VideoFrame | np.ndarray:
    """The frame itself where `warp.sample` takes it, else (H, W, 3) RGB, turned as its metadata says."""
    if frame.format.name == "yuv420p" and frame.width % 2 == 0 and frame.height % 2 == 0 and not frame.rotation:
        return frame
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _frame_seconds(stream) -> float:
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)


def declared_seconds(container, stream) -> float | None:
    """Duration as the file declares it; None where it does not (the stream's is often missing in webm)."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska declares when it ends, not how long it is.
    first = (stream.start_time or 0) * stream.time_base if "matroska" in container.format.name else 0
    return container.duration / av.time_base - float(first)


def _measured_seconds(media: Media) -> float:
    """Duration by the time stamps of what is stored, for files that declare none: live recordings, bare streams."""
    with open_video(media) as (container, stream):
        packets, times = 0, []
        with contextlib.suppress(av.FFmpegError):
            for packet in container.demux(stream):
                packets += packet.size > 0
                times += [] if packet.pts is None else [packet.pts]
        extent = (
            float((max(times) - min(times)) * stream.time_base) if times else (packets - 1) * _frame_seconds(stream)
        )
        return extent + _frame_seconds(stream)


def video_seconds(media: Media) -> float | None:
    """How long a video is, as it declares or by its time stamps; None of pixels.

    Raises:
        DecodeError: no video in it.
    """
    if isinstance(media, np.ndarray):
        return None
    with open_video(media) as (container, stream):
        return declared_seconds(container, stream) or _measured_seconds(media)


def timed_frames(container, stream, start: float):
    """Frames with their presentation times in seconds from the stream's beginning, from a key frame <= start on."""
    unit = float(stream.time_base)  # as a fraction it would cost 10 % of decoding
    first = (stream.start_time or 0) * unit
    frames, head, back = container.decode(stream), [], 0.0
    while start > 0 and stream.start_time is not None:  # without time stamps nothing can be found
        target = start - back
        with contextlib.suppress(av.FFmpegError, OverflowError):  # not seekable: decode from the beginning
            container.seek(int((target + first) / unit), stream=stream)
        frames = container.decode(stream)
        head = list(itertools.islice(frames, 1))
        if target < -1 or (head and (head[0].pts is None or head[0].pts * unit - first <= start)):
            break
        back = 2 * back + 1  # seeking goes by decoding time: the key frame that it found is shown later
    step = _frame_seconds(stream)
    time = -step
    for frame in itertools.chain(head, frames):
        time = time + step if frame.pts is None else frame.pts * unit - first
        yield time, frame


def decode_frames(
    media: Media, frames: int | None = None, fps: float | None = None, clip_position: float = 0.5
) -> list[av.VideoFrame | np.ndarray]:
    """Decodes a clip by timestamp: the frame for time t is the last one whose presentation time is <= t.

    Times past the end hold the last frame. Frame counts and frame rates that the file declares are not relied on.

    Args:
        media: path, encoded bytes or pixels (T, H, W, 3) of a video.
        frames: T; None takes every frame.
        fps: frames per second to sample at; None spreads T frames evenly over the whole video.
        clip_position: where a clip shorter than the video lies, 0 (beginning) to 1 (end); without fps, where the
            frame of each of T equal parts lies.

    Returns:
        T frames as `warp.sample` takes them: decoded yuv420p, or (H, W, 3) uint8 RGB.

    Raises:
        DecodeError: no video in it, nothing decodable, damaged inside the clip, or it ends before half of the clip.
    """
    if isinstance(media, np.ndarray):
        return _frames_of_pixels(media, frames, clip_position)
    with open_video(media) as (container, stream):
        declared = declared_seconds(container, stream)
        if frames is None:
            return _every_frame(media_name(media), container, stream, declared)
        seconds = declared or _measured_seconds(media)
        if fps is None:
            step = seconds / frames
            start = step * min(clip_position, 0.99)
        else:
            start, step = max(seconds - frames / fps, 0.0) * clip_position, 1 / fps
        return _at_times(media_name(media), container, stream, start + step * np.arange(frames), step, seconds)


def _at_times(name: str, container, stream, times: np.ndarray, step: float, seconds: float) -> list:
    picked: list[av.VideoFrame] = []
    current, shown, error = None, 0.0, None
    latest = times + TIME_TOLERANCE
    try:
        for time, frame in timed_frames(container, stream, float(times[0])):
            while current is not None and len(picked) < len(times) and latest[len(picked)] < time:
                picked.append(current)
            if len(picked) == len(times):
                break
            current, shown = frame, time
    except av.FFmpegError as caught:
        error = caught
    if len(picked) < len(times):
        end = end_of_last_frame(name, container, stream, current, shown, error)
        check_coverage(name, float(times[0]), min(len(times) * step, seconds - times[0]), end, error)
        picked += [current] * (len(times) - len(picked))
    return upright_frames(name, picked)


def end_of_last_frame(
    name: str, container, stream, last: av.VideoFrame | None, time: float, error: Exception | None
) -> float:
    """When the last frame, shown from `time` on, ends.

    Raises if there is none, or if more can be decoded behind the error than decoders hold back: only a damaged tail
    is left out.
    """
    if last is None:
        raise DecodeError(f"cannot decode {name}: {_reason(error) if error else 'it holds no frame'}")
    end = time + (float(last.duration * stream.time_base) if last.duration else _frame_seconds(stream))
    more = 0
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream) if error else ():
            with contextlib.suppress(av.FFmpegError):
                more += len(packet.decode())
            if more > MAX_DELAY:
                raise DecodeError(f"{name} is damaged at {end:.2f} s: {_reason(error)}") from error
    return end


def check_coverage(name: str, start: float, span: float, end: float, error: Exception | None) -> None:
    """Raises DecodeError where what could be decoded ends before a part of the span that is too small."""
    if end - start < MIN_COVERAGE * span:
        raise DecodeError(
            f"{name} is truncated: of the {span:.2f} s from {start:.2f} s on, decoding ends at {end:.2f} s"
            + (f" ({_reason(error)})" if error else "")
        )


def upright_frames(name: str, picked: list[av.VideoFrame]) -> list:
    """Frames as `warp.sample_grids` takes them; a held one is the same object again.

    Raises:
        DecodeError: they are not of one size.
    """
    upright, last = [], None
    for frame in picked:
        upright.append(upright[-1] if frame is last else _upright(frame))
        last = frame
    if len({frame_size(frame) for frame in upright}) > 1:
        raise DecodeError(f"{name} changes its size from frame to frame")
    return upright


def _every_frame(name: str, container, stream, declared: float | None) -> list:
    decoded, error = [], None
    try:
        decoded.extend(timed_frames(container, stream, 0.0))
    except av.FFmpegError as caught:  # what came before it is in the list
        error = caught
    time, last = decoded[-1] if decoded else (0.0, None)
    check_coverage(name, 0.0, declared or 0.0, end_of_last_frame(name, container, stream, last, time, error), error)
    return upright_frames(name, [frame for _, frame in decoded])


def _frames_of_pixels(clip: np.ndarray, frames: int | None, clip_position: float) -> list[np.ndarray]:
    """T frames of a decoded clip, whose rate is not known: consecutive ones."""
    if frames is None:
        return list(clip)
    start = int(max(len(clip) - frames, 0) * clip_position)
    return [clip[min(start + i, len(clip) - 1)] for i in range(frames)]


def decode_clip(
    media: Media, frames: int | None = None, fps: float | None = None, clip_position: float = 0.5
) -> np.ndarray:
    """As `decode_frames`, converted: (T, H, W, 3) uint8."""
    converted = []
    for frame in (decoded := decode_frames(media, frames, fps, clip_position)):
        held = converted and frame is decoded[len(converted) - 1]
        converted.append(converted[-1] if held else frame if isinstance(frame, np.ndarray) else to_rgb(frame))
    return np.stack(converted)


def decode_image(media: Media) -> np.ndarray:
    """(H, W, 3) uint8, upright (EXIF orientation is applied).

    Raises:
        DecodeError: not a readable image.
    """
    media_kind(media)
    if isinstance(media, np.ndarray):
        return media
    encoded = media if isinstance(media, bytes) else pathlib.Path(media).read_bytes()
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # declared sizes beyond its limits
        raise DecodeError(f"cannot read {media_name(media)} as an image: {_reason(error)}") from error
    if image is None:
        raise DecodeError(
            f"cannot read {media_name(media)} as an image: it is damaged, or of a format that is not known"
        )
    return image


def read_video(
    path: str | os.PathLike,
    frames: int | None = None,
    fps: float | None = None,
    size: int | None = None,
    tubes: TubeSet | None = None,
) -> np.ndarray | TubeBatch:
    """A video as a batch of one clip, `model(read_video(path, **model.input))`.

    Args:
        path: any file that FFmpeg reads, animated GIFs included.
        frames: T; None takes every frame.
        fps: frames per second to sample at, from the middle of the video; None spreads T frames over all of it.
        size: rows and columns, of a centred square; None keeps those of the file.
        tubes: those of a model, `model.config.tubes`: of the square, only the pixels that they read.

    Returns:
        (1, T, H, W, 3) uint8, 0..255, or the windows of its tubes, which hold the same values.

    Raises:
        DecodeError: the file is missing, empty, truncated or not a video.
        UserError: the clip is too small for a tube.
    """
    if size is None:
        clip = decode_clip(path, frames, fps)[None]
        return clip if tubes is None else take_windows(clip, tubes)
    return square_clip(decode_frames(path, frames, fps), size, tubes)


def read_image(
    path: str | os.PathLike, size: int | None = None, tubes: TubeSet | None = None
) -> np.ndarray | TubeBatch:
    """An image as a batch of one.

    Args:
        path: JPEG, PNG, WebP, BMP or TIFF.
        size: rows and columns, of a centred square; None keeps those of the file.
        tubes: see `read_video`; those of temporal size 1 are taken.

    Returns:
        (1, H, W, 3) uint8, 0..255, or the windows of its tubes.

    Raises:
        DecodeError: the file is missing, empty, damaged or not an image.
        UserError: the image is too small for a tube, or no tube takes images.
    """
    image = decode_image(path)[None]
    if size is None:
        return image if tubes is None else take_windows(image, tubes)
    if tubes is None:
        return centre_crop(image, size)
    batch = square_clip(image, size, tubes.for_images())
    return dataclasses.replace(batch, shape=batch.shape[1:])


def square_clip(frames: list, size: int, tubes: TubeSet | None) -> np.ndarray | TubeBatch:
    """The centred square, (1, T, size, size, 3), or the windows of its tubes."""
    if tubes is None:
        return centre_crop(frames, size)[None]
    shape = (len(frames), size, size)
    reading = WindowPlan(tubes, shape)
    parts = sample_grids(frames, square_map(*frame_size(frames[0]), size), size, reading.grids)
    return TubeBatch(tuple(window[None] for window in reading.windows(parts)), tubes, shape)
