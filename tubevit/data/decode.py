"""Encoded files to frames: videos by timestamp, images upright."""

import dataclasses
import os
from typing import BinaryIO

import av
import cv2
import numpy as np

from tubevit.data.container import Media, Video, media_kind, media_name, open_media, open_video, reason
from tubevit.data.orientation import display_orientation, turned
from tubevit.data.warp import Frame, centre_crop, frame_size, sample_grids, square_map
from tubevit.data.yuv import has_planes, settle_colours, to_rgb
from tubevit.errors import DecodeError
from tubevit.tubes import TubeSet
from tubevit.windows import TubeBatch, WindowPlan

# Containers round presentation times (Matroska to 1 ms): a frame may be this much later than the time asked for.
TIME_TOLERANCE = 1e-3
MAX_PIXELS = 2**28  # of an image; it takes 3 bytes each


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A decoded clip or image.

    Attributes:
        kind: `video` or `image`.
        frames: T frames, or the image, as `warp.sample` takes them: 8-bit 4:2:0 or (H, W, 3) uint8 RGB. Repeated
            frames are the same object.
        seconds: duration of the whole video; None for images and pixels.
        start, end: of a part of a video, in seconds from its beginning; None for a clip that stands for all of it.
        first, step: the time of the first frame, in seconds from the beginning of the video, and the time from one
            frame to the next, as they were asked for; None for images, pixels and every frame of a video.
    """

    kind: str
    frames: list[Frame]
    seconds: float | None = None
    start: float | None = None
    end: float | None = None
    first: float | None = None
    step: float | None = None

    def pixels(self, size: int, tubes: TubeSet | None = None) -> np.ndarray | TubeBatch:
        """Return the centred square as a batch of one: (1, T, size, size, 3) or, of an image, (1, size, size, 3) uint8.

        With `tubes` of a model, their windows are returned; see `tubevit.read_video`.
        """
        image = self.kind == "image"
        if tubes is None:
            pixels = centre_crop(self.frames, size)
            return pixels if image else pixels[None]
        tubes = tubes.for_images() if image else tubes
        plan = WindowPlan(tubes, (len(self.frames), size, size))
        parts = sample_grids(self.frames, square_map(*frame_size(self.frames[0]), size), size, plan.grids)
        shape = (size, size) if image else (len(self.frames), size, size)
        return TubeBatch.of([array[None] for array in plan.arrays(parts)], tubes, shape)


def decode_media(
    media: Media, frames: int | None = None, fps: float | None = None, clip_position: float = 0.5
) -> Decoded:
    """Decode an image, or a clip of a video; a file is opened once. Arguments as `decode_frames`.

    Raises DecodeError if the file is missing, empty, damaged, or neither a video nor an image.
    """
    if isinstance(media, np.ndarray):
        kind = media_kind(media)
        return Decoded(kind, [media] if kind == "image" else _frames_of_pixels(media, frames, fps, clip_position))
    with open_media(media) as (kind, file):
        if kind == "image":
            return Decoded(kind, [decode_image(media, file)])
        with open_video(media, file) as video:
            return _decode_clip(video, frames, fps, clip_position)


def decode_part(path: str | os.PathLike, frames: int, start: float, end: float) -> Decoded:
    """Decode T frames of a part of a video, from `start` on at equal distances; see `decode_frames`.

    Args:
        path: a video.
        frames: T.
        start, end: of the part, in seconds from the beginning of the video.
    """
    step = (end - start) / frames
    with open_video(path) as video:
        picked = _frames_at(video, start + step * np.arange(frames), step)
        return Decoded("video", picked, video.seconds, start, end, start, step)


def decode_frames(
    media: Media, frames: int | None = None, fps: float | None = None, clip_position: float = 0.5
) -> list[Frame]:
    """Decode a clip by timestamp: the frame for time t is the last one whose presentation time is <= t.

    Times past the end repeat the last frame. Declared frame counts and frame rates are not relied on.

    Args:
        media: path, encoded bytes or pixels (T, H, W, 3) of a video.
        frames: T; None takes every frame.
        fps: frames per second to sample at; None spreads T frames evenly over the whole video.
        clip_position: where a clip shorter than the video lies, 0 (beginning) to 1 (end); without fps, where the
            frame of each of T equal parts lies.

    Returns:
        T frames as `warp.sample` takes them: decoded 8-bit 4:2:0, or (H, W, 3) uint8 RGB.

    Raises:
        DecodeError: the file holds no video or no frame, is damaged inside the clip, or ends before half of it.
    """
    if isinstance(media, np.ndarray):
        return _frames_of_pixels(media, frames, fps, clip_position)
    with open_video(media) as video:
        return _decode_clip(video, frames, fps, clip_position).frames


def _decode_clip(video: Video, frames: int | None, fps: float | None, clip_position: float) -> Decoded:
    if frames is None:
        return Decoded("video", _every_frame(video), video.seconds)
    if fps is None:
        step = video.seconds / frames
        first = step * min(clip_position, 0.99)
    else:
        first, step = max(video.seconds - frames / fps, 0.0) * clip_position, 1 / fps
    picked = _frames_at(video, first + step * np.arange(frames), step)
    return Decoded("video", picked, video.seconds, first=first, step=step)


def _frames_at(video: Video, times: np.ndarray, step: float) -> list[Frame]:
    picked: list = []
    current, shown, error = None, 0.0, None
    latest = times + TIME_TOLERANCE
    try:
        for time, frame in video.timed_frames(float(times[0])):
            while current is not None and len(picked) < len(times) and latest[len(picked)] < time:
                picked.append(current)
            if len(picked) == len(times):
                break
            current, shown = frame, time
    except av.FFmpegError as caught:
        error = caught
    if len(picked) < len(times):
        end = video.end_of_last_frame(current, shown, error)
        video.check_coverage(float(times[0]), min(len(times) * step, video.seconds - times[0]), end, error)
        picked += [current] * (len(times) - len(picked))
    return upright_frames(video.name, picked)


def _every_frame(video: Video) -> list[Frame]:
    decoded, error = [], None
    try:
        decoded.extend(video.timed_frames())
    except av.FFmpegError as caught:  # the frames before it are in the list
        error = caught
    time, last = decoded[-1] if decoded else (0.0, None)
    video.check_coverage(0.0, video.seconds, video.end_of_last_frame(last, time, error), error)
    return upright_frames(video.name, [frame for _, frame in decoded])


def upright_frames(name: str, picked: list) -> list[Frame]:
    """Return frames for `warp.sample_grids`, repeated ones as one object.

    Raises DecodeError if sizes differ or the colours cannot be converted to RGB.
    """
    upright, last = [], None
    for frame in picked:
        upright.append(upright[-1] if frame is last else _upright(name, frame))
        last = frame
    if len({frame_size(frame) for frame in upright}) > 1:
        raise DecodeError(f"{name} changes its size from frame to frame")
    return upright


def _upright(name: str, frame: av.VideoFrame) -> Frame:
    """Return the frame itself if `warp.sample` takes it, else (H, W, 3) RGB, turned as its metadata says."""
    settle_colours(frame, name)
    orientation = display_orientation(frame)
    if orientation is None and has_planes(frame):
        return frame
    return turned(to_rgb(frame), orientation)


def _frames_of_pixels(clip: np.ndarray, frames: int | None, fps: float | None, clip_position: float) -> list[Frame]:
    """Return T frames of a decoded clip: spread over it without `fps`, else consecutive, as its own rate is unknown."""
    if frames is None:
        return list(clip)
    if fps is None:
        return [clip[int((i + min(clip_position, 0.99)) * len(clip) / frames)] for i in range(frames)]
    start = int(max(len(clip) - frames, 0) * clip_position)
    return [clip[min(start + i, len(clip) - 1)] for i in range(frames)]


def decode_clip(
    media: Media, frames: int | None = None, fps: float | None = None, clip_position: float = 0.5
) -> np.ndarray:
    """Decode a clip as `decode_frames` does, converted to (T, H, W, 3) uint8 RGB."""
    decoded, converted = decode_frames(media, frames, fps, clip_position), []
    for i, frame in enumerate(decoded):
        if i and frame is decoded[i - 1]:
            converted.append(converted[-1])
        else:
            converted.append(frame if isinstance(frame, np.ndarray) else to_rgb(frame))
    return np.stack(converted)


def decode_image(media: Media, file: BinaryIO | None = None) -> np.ndarray:
    """Decode an image, or the `file` that `open_media` has opened, to (H, W, 3) uint8; EXIF orientation is applied.

    Raises DecodeError if the file is missing, empty, damaged or not an image.
    """
    if isinstance(media, np.ndarray):
        return media
    if file is None:
        with open_media(media) as (_, file):
            return decode_image(media, file)
    encoded = file.read()
    if _declared_pixels(encoded[:26]) > MAX_PIXELS:  # a damaged header could ask for all memory
        raise DecodeError(f"cannot read {media_name(media)} as an image: it declares more than {MAX_PIXELS} pixels")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # the declared size is beyond OpenCV's limit
        raise DecodeError(f"cannot read {media_name(media)} as an image: {reason(error)}") from error
    if image is None:
        raise DecodeError(f"cannot read {media_name(media)} as an image: it is damaged or its format is not known")
    return image


def _declared_pixels(head: bytes) -> int:
    """Return the number of pixels that the header of a PNG or BMP declares, 0 for other formats."""
    start, order = (16, "big") if head.startswith(b"\x89PNG") else (18, "little")
    if not head.startswith((b"\x89PNG", b"BM")):
        return 0
    width, height = (int.from_bytes(head[i : i + 4], order, signed=True) for i in (start, start + 4))
    return abs(width * height)
