"""The time line of a video: when each picture is shown, also where time stamps jump, run backwards or are missing."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import av
import av.container

# A file that ends early (a damaged tail, a stream-copied trim: one held 152 of 191 declared frames) is used if it
# covers at least this share of the requested span.
MIN_COVERAGE = 0.5
MAX_DELAY = 16  # frames that a decoder holds back to reorder them
# Seconds. In a format whose time stamps may be discontinuous, a longer step forward is a jump: FFmpeg has the same
# threshold. A shorter one, or any in another format, is time during which the picture does not change.
JUMP = 10.0
_MAY_JUMP = 0x200  # AVFMT_TS_DISCONT: MPEG transport and program streams, Ogg
# These formats store decoding times only. FFmpeg derives presentation times from them, but not for these codecs.
_DECODING_TIMES = {"avi", "asf"}, {"h264", "hevc", "vvc"}


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When the pictures of a video are shown, counted from the beginning of the first one.

    Attributes:
        seconds: until the last picture ends. Sound does not count.
        frame_seconds: duration of a frame at the average frame rate.
        last_seconds: duration of the last picture.
        first: time stamp of the first picture, in seconds. None if positions cannot be sought by time stamp; such a
            video is decoded from its beginning.
        begin: time stamp to seek for the beginning, in units of the stream.
        keys: time stamps of all key frames, in units of the stream, for formats in which the first stamps after seeking
            are not reliable; else None.
        jump: a longer step forward, in seconds, is a jump.
        decoding_times: whether frames are timed by their decoding times, for lack of presentation times.
    """

    seconds: float
    frame_seconds: float
    last_seconds: float
    first: float | None = None
    begin: int = 0
    keys: frozenset[int] | None = None
    jump: float = math.inf
    decoding_times: bool = False

    def times(self, frames: Iterable[av.VideoFrame], unit: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield the time in seconds and the frame, for consecutive frames with time stamps in `unit`s of seconds.

        Times only increase. A frame whose time stamp jumps, runs backwards or is missing comes one frame's duration
        after the frame before it. Where time stamps ran backwards by a few frames and then catch up, so do the times.
        """
        line = _Line(self.frame_seconds, self.jump)
        begin = None
        for frame in frames:
            stamp = _stamp(frame, self.decoding_times)
            stamp = None if stamp is None else stamp * unit
            time = line.advance(stamp)
            if begin is None:
                begin = 0.0 if stamp is None or self.first is None else stamp - self.first
            yield begin + time, frame


class _Line:
    """Turns time stamps in seconds into times that only increase, from 0 on; see `Timeline.times`."""

    def __init__(self, frame_seconds: float, jump: float):
        self.time, self._frame_seconds, self._jump = -frame_seconds, frame_seconds, jump
        self._stamp = None
        self._ahead = 0.0  # seconds by which the time stamps still have to catch up

    def advance(self, stamp: float | None) -> float:
        """Return the time of the next picture, whose time stamp is given or missing."""
        step = self._frame_seconds
        if stamp is not None and self._stamp is not None:
            step = stamp - self._stamp
            if self.is_jump(step):
                step, self._ahead = self._frame_seconds, 0.0
            elif step <= 0:
                self._ahead += self._frame_seconds - step
                step = self._frame_seconds
            else:
                caught = min(self._ahead, max(step - self._frame_seconds, 0.0))
                step, self._ahead = step - caught, self._ahead - caught
        self.time += step
        if stamp is not None:
            self._stamp = stamp
        elif self._stamp is not None:
            self._stamp += self._frame_seconds
        return self.time

    def is_jump(self, step: float) -> bool:
        """Whether a step between time stamps is neither time nor reordering."""
        return step > self._jump or step < -MAX_DELAY * self._frame_seconds


def _stamp(item: av.Packet | av.VideoFrame, decoding_times: bool) -> int | None:
    return item.dts if decoding_times or item.pts is None else item.pts


def read_timeline(container: av.container.InputContainer, stream: Any) -> Timeline | None:
    """Read the time line of a video stream from its first and last packets, without decoding.

    The length is that of the pictures. Most formats declare a duration that includes the sound, or an estimate, and
    MP4 declares one without reordering: it is too short by up to a frame where the frame rate varies.

    Args:
        container: has just been opened; stands at its beginning again unless None is returned.
        stream: PyAV's video stream.

    Returns:
        The time line, or None if this does not suffice: `scan_timeline` then reads all packets.
    """
    if container.format.flags & _MAY_JUMP or not container.duration or _has_decoding_times(container, stream):
        return None
    with contextlib.suppress(av.FFmpegError):
        first = next((packet for packet in container.demux(stream) if _is_key(packet)), None)
        if first is not None:
            end = (container.start_time or 0) + container.duration
            container.seek(int(end / av.time_base / stream.time_base), stream=stream)
            scan = _Scan(container, stream, first)
            container.seek(scan.begin, stream=stream)
            return scan.timeline() if scan.increases and scan.pictures else None
    return None


def scan_timeline(container: av.container.InputContainer, stream: Any) -> Timeline:
    """Read the time line of a video stream from all packets, without decoding; see `read_timeline`.

    Joined recordings are as long as their parts together. The container has just been opened, and must be opened again
    to decode it.
    """
    timeline = _Scan(container, stream).timeline()
    if "mov" in container.format.name and stream.duration:  # the index lists pictures that are not there
        declared = float(stream.duration * stream.time_base)
        return dataclasses.replace(timeline, seconds=max(timeline.seconds, declared))
    return timeline


def _frame_seconds(stream) -> float:
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)


def _has_decoding_times(container, stream) -> bool:
    formats, codecs = _DECODING_TIMES
    codec = stream.codec_context
    return container.format.name in formats and codec.name in codecs and bool(codec.has_b_frames)


def _is_key(packet: av.Packet) -> bool:
    return packet.is_keyframe and packet.size > 0 and _stamp(packet, False) is not None


class _Scan:
    """Reads the remaining packets of a container.

    Attributes:
        pictures: number of packets of the video stream that are shown.
        increases: whether decoding times never run backwards or jump.
        begin: see `Timeline`.
    """

    def __init__(self, container, stream, first: av.Packet | None = None):
        """Read them; `first` is the first key frame of the stream if it was read before."""
        self._container, self._stream, self._unit = container, stream, float(stream.time_base)
        self._may_jump = bool(container.format.flags & _MAY_JUMP)
        self._frame_seconds = self._last_seconds = _frame_seconds(stream)
        self._line = _Line(self._frame_seconds, JUMP if self._may_jump else math.inf)
        self.pictures, self.increases, self.begin = 0, True, 0
        self._keys: set[int] = set()
        self._reached = 0.0  # when the last packet of any stream ends, in seconds
        self._decoded = self._first = self._last = None
        self._decodable = False  # not before the first key frame, also of a part
        if first is not None:
            self._add(first)
            self.pictures = 0
        with contextlib.suppress(av.FFmpegError):  # a damaged tail
            for packet in container.demux():
                stamp = _stamp(packet, False)
                if stamp is not None:
                    self._reached = max(self._reached, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream is stream and packet.size:
                    self._add(packet)

    def _add(self, packet: av.Packet) -> None:
        self.pictures += not packet.is_discard
        decoded = None if packet.dts is None else packet.dts * self._unit
        if decoded is not None:
            step = 0.0 if self._decoded is None else decoded - self._decoded
            self.increases &= step >= 0 and not self._line.is_jump(step)
            self._decodable &= not self._line.is_jump(step)
            self._decoded = decoded
        self._decodable |= packet.is_keyframe
        if not self._decodable:
            return
        # One tick of the clock is what demuxers say if they do not know. In MP4 a duration is the step to the next
        # decoding time, so what counts for the picture that is shown last is the duration of the last packet.
        ticks = packet.duration or 0
        self._last_seconds = ticks * self._unit if ticks > 1 else self._frame_seconds
        self._line.advance(decoded)
        stamp = _stamp(packet, False)
        if stamp is None:
            return
        if packet.is_keyframe and self._may_jump:
            self._keys.add(stamp)
        shown = stamp * self._unit
        if self._first is None or self._last is None:
            if packet.is_discard and self._stream.start_time is not None:  # an edit list begins behind the key frame
                shown = self._stream.start_time * self._unit
            self._first = self._last = shown
            self.begin = stamp if packet.dts is None else packet.dts
        elif not packet.is_discard:
            self._last = max(self._last, shown)

    def timeline(self) -> Timeline:
        """Return the time line. A truncated file keeps the duration that it declares, which it will not reach."""
        decoding_times = _has_decoding_times(self._container, self._stream)
        first, seconds = None, self._line.time + self._last_seconds
        if self.increases and not decoding_times and self._first is not None and self._last is not None:
            first, seconds = self._first, self._last - self._first + self._last_seconds
        seconds = seconds or self.pictures * self._frame_seconds  # there is no key frame
        average = self._frame_seconds
        if self._stream.average_rate is None and self.pictures:
            average = seconds / self.pictures
        declared = (self._container.duration or 0) / av.time_base
        if self._stream.duration:
            declared = self._stream.duration * self._unit
        if self._reached < MIN_COVERAGE * declared:
            seconds = declared
        return Timeline(
            seconds,
            average,
            self._last_seconds,
            first=first if self._stream.start_time is not None else None,
            begin=self.begin,
            keys=frozenset(self._keys) if self._may_jump else None,
            jump=JUMP if self._may_jump else math.inf,
            decoding_times=decoding_times,
        )
