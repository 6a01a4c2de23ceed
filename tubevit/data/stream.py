"""Clips at regular times of a video of any length, which is decoded once from its beginning to its end."""

import collections
import dataclasses
import os
from collections.abc import Iterator

import av
import numpy as np

from tubevit.data.container import Video, open_media, open_video
from tubevit.data.decode import TIME_TOLERANCE, Decoded, decode_image, upright_frames
from tubevit.data.timeline import MIN_COVERAGE
from tubevit.errors import UserError
from tubevit.ranges import POSITIVE


def stream_clips(media: str | os.PathLike | bytes, frames: int, fps: float | None, every: float) -> Iterator[Decoded]:
    """Yield the clips of a video that begin at 0, `every`, 2 * `every`, ... seconds, or an image; see `decode_media`.

    The frame for time t is the last one whose presentation time is <= t, as in `decode_frames`. Only the frames of
    clips that overlap with the current time are held, however long the video is.

    Args:
        media: path or bytes of an encoded file, which is opened once.
        frames: T.
        fps: frames per second to sample at; None spreads T frames evenly over `every` seconds.
        every: seconds from one start to the next.

    Yields:
        Each clip once it is decoded. A clip that reaches beyond the end repeats the last frame; it is left out if
        less than half of it lies in the video, unless it is the first.

    Raises:
        UserError: `every` is not positive, or shorter than a frame of this video.
        DecodeError: the file holds no video or no frame, is damaged, or ends before half of its declared duration.
    """
    POSITIVE.check("every", every)
    with open_media(media) as (kind, file):
        if kind == "image":
            yield Decoded(kind, [decode_image(media, file)])
            return
        with open_video(media, file) as video:
            shortest = video.shortest_frame
            if every < 0.99 * shortest:  # containers round times
                expected = f"at least {shortest:.4g} s, the duration of a frame of {video.name}"
                raise UserError(f"the interval between clips must be {expected}; found {every:g} s")
            yield from _clips(video, frames, fps, every)


def _clips(video: Video, frames: int, fps: float | None, every: float) -> Iterator[Decoded]:
    step = every / frames if fps is None else 1 / fps
    span = step * frames
    times = step * (np.arange(frames) + (0.5 if fps is None else 0.0))
    latest = (times + TIME_TOLERANCE).tolist()
    partial: collections.deque[Decoded] = collections.deque()
    begun = 0

    def show(frame: av.VideoFrame, until: float) -> Iterator[Decoded]:
        """Add a frame to the clips that take it, also to those that begin now; yields the complete ones."""
        nonlocal begun
        while begun * every < until:
            start = begun * every
            partial.append(Decoded("video", [], start=start, first=start + float(times[0]), step=step))
            begun += 1
        for clip in partial:
            while len(clip.frames) < frames and clip.start + latest[len(clip.frames)] < until:
                clip.frames.append(frame)
        while partial and len(partial[0].frames) == frames:
            yield partial.popleft()

    def finish(clip: Decoded, end: float) -> Decoded:
        upright = upright_frames(video.name, clip.frames)
        return dataclasses.replace(clip, frames=upright, seconds=video.seconds, end=end)

    current, shown, error = None, 0.0, None
    decoded = video.timed_frames()
    while True:
        try:
            time, frame = next(decoded, (0.0, None))
        except av.FFmpegError as caught:  # perhaps the tail only: `end_of_last_frame` tells
            error = caught
            break
        if frame is None:
            break
        if current is not None:
            for clip in show(current, time):
                yield finish(clip, (clip.start or 0.0) + span)
        current, shown = frame, time
    end = video.end_of_last_frame(current, shown, error)
    video.check_coverage(0.0, video.seconds, end, error)
    complete = list(show(current, end))  # pyright: ignore[reportArgumentType]
    for clip in (*complete, *partial):
        if not clip.start or end - clip.start >= MIN_COVERAGE * span:
            clip.frames.extend([current] * (frames - len(clip.frames)))  # pyright: ignore[reportArgumentType]
            yield finish(clip, min((clip.start or 0.0) + span, end))
