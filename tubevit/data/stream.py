"""Clips at regular times of a video of any length, which is decoded once, from its beginning to its end."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import av
import numpy as np

from tubevit.data.video import (
    MIN_COVERAGE,
    TIME_TOLERANCE,
    Media,
    check_coverage,
    declared_seconds,
    end_of_last_frame,
    media_name,
    open_video,
    square_clip,
    timed_frames,
    upright_frames,
)
from tubevit.errors import UserError
from tubevit.tubes import TubeSet
from tubevit.windows import TubeBatch


@dataclasses.dataclass(frozen=True)
class Clip:
    """A part of a video, decoded.

    Attributes:
        frames: T, as `warp.sample` takes them: yuv420p, or (H, W, 3) uint8 RGB. Repeated ones are the same object.
        start, end: of the part, in seconds from the beginning of the video; None of a clip that stands for all of it.
    """

    frames: list
    start: float | None = None
    end: float | None = None

    def pixels(self, size: int, tubes: TubeSet | None = None) -> np.ndarray | TubeBatch:
        """The centred square as a batch of one, (1, T, size, size, 3) uint8, or the windows of its tubes."""
        return square_clip(self.frames, size, tubes)


@dataclasses.dataclass
class _Open:
    """A clip that is not complete: when it begins, in seconds, and its frames so far."""

    start: float
    picked: list


def stream_clips(media: Media, frames: int, fps: float | None, every: float) -> Iterator[Clip]:
    """The clips that begin at 0, `every`, 2 * `every`, ... seconds.

    The frame for time t is the last one whose presentation time is <= t, as in `decode_frames`. What is held are the
    frames of the clips that overlap with what is being decoded, however long the video is.

    Args:
        media: a path, or the bytes of an encoded file.
        frames: T.
        fps: frames per second to sample at; None spreads T frames evenly over `every` seconds.
        every: seconds from one beginning to the next.

    Yields:
        Each clip once it is decoded. The last ones hold the last frame if half of them or more lies in the video, and
        so does the first one of a video that is shorter.

    Raises:
        UserError: `every` is not positive.
        DecodeError: no video in it, nothing decodable, damaged, or it ends before half of what it declares.
    """
    if not 0 < every < float("inf"):
        raise UserError(f"expected a clip every so many seconds, more than 0; found {every:g}")
    step = every / frames if fps is None else 1 / fps
    span = step * frames
    times = step * (np.arange(frames) + (0.5 if fps is None else 0.0))
    latest = (times + TIME_TOLERANCE).tolist()
    clips: collections.deque[_Open] = collections.deque()
    begun = 0

    def show(frame: av.VideoFrame, until: float) -> Iterator[_Open]:
        """Gives a frame to the clips that take it, those that begin included; yields the complete ones."""
        nonlocal begun
        while begun * every < until:
            clips.append(_Open(begun * every, []))
            begun += 1
        for clip in clips:
            while len(clip.picked) < frames and clip.start + latest[len(clip.picked)] < until:
                clip.picked.append(frame)
        while clips and len(clips[0].picked) == frames:
            yield clips.popleft()

    name = media_name(media)
    with open_video(media) as (container, stream):
        current, shown, error = None, 0.0, None
        decoded = timed_frames(container, stream, 0.0)
        while True:
            try:
                time, frame = next(decoded, (None, None))
            except av.FFmpegError as caught:  # maybe the tail only, which `end_of_last_frame` tells
                error = caught
                break
            if frame is None:
                break
            if current is not None:
                for clip in show(current, time):
                    yield Clip(upright_frames(name, clip.picked), clip.start, clip.start + span)
            current, shown = frame, time
        end = end_of_last_frame(name, container, stream, current, shown, error)
        check_coverage(name, 0.0, declared_seconds(container, stream) or 0.0, end, error)
        complete = list(show(current, end))
        for clip in (*complete, *clips):
            if clip.start == 0 or end - clip.start >= MIN_COVERAGE * span:
                held = [current] * (frames - len(clip.picked))
                yield Clip(upright_frames(name, clip.picked + held), clip.start, min(clip.start + span, end))
