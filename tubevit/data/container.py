"""Media files: opened once, told apart by their content; the timestamps of videos."""

import contextlib
import dataclasses
import errno
import io
import itertools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import av.container
import av.stream
import numpy as np

from tubevit.data.animation import is_animated, is_webp, webp_as_png
from tubevit.data.timeline import MAX_DELAY, MIN_COVERAGE, Timeline, read_timeline, scan_timeline
from tubevit.errors import DecodeError, RunError

# What can be decoded: a path, the bytes of an encoded file, or pixels (H, W, 3) or (T, H, W, 3) uint8.
Media = str | os.PathLike | bytes | np.ndarray

# Names in files need not be UTF-8. From version 19 on PyAV replaces invalid bytes by itself.
METADATA: dict = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
_SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EACCES}
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PHOTOS = (b"heic", b"heix", b"mif1", b"avif")  # FFmpeg takes them for videos, sometimes of one tile of the picture
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")


def media_name(media: Media) -> str:
    """Return the name of a file for messages."""
    return str(media) if isinstance(media, str | os.PathLike) else "the file"


def media_kind(media: Media) -> str:
    """Return `image` or `video`, by the content of a file or the rank of pixels; animated images are videos.

    Raises DecodeError if the file is missing, empty or not readable.
    """
    if isinstance(media, np.ndarray):
        return "image" if media.ndim == 3 else "video"
    with open_media(media) as (kind, _):
        return kind


@contextlib.contextmanager
def open_media(media: str | os.PathLike | bytes) -> Iterator[tuple[str, BinaryIO]]:
    """Open an encoded file; yields its `media_kind` and the file. Raises DecodeError if it is missing or empty."""
    try:
        file = io.BytesIO(media) if isinstance(media, bytes) else open(media, "rb", buffering=0)
    except _MISSING as error:  # any other error is the system's: the file may be intact
        raise DecodeError(f"cannot read {media}: {error.strerror}") from error
    with file:
        head = file.read(16)
        if not head:
            raise DecodeError(f"{media_name(media)} is empty (0 bytes)")
        if head[4:8] == b"ftyp" and head[8:12] in _PHOTOS:
            raise DecodeError(
                f"{media_name(media)} is a HEIC or AVIF photo, which is not read: convert it to JPEG or PNG"
            )
        still = (is_webp(head) or head.startswith(_IMAGE_MAGIC)) and not is_animated(file)
        file.seek(0)
        yield "image" if still else "video", file


@contextlib.contextmanager
def naming_file(name: str) -> Iterator[None]:
    """Turn an error of the disk or the network, after which a file may be intact, into a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot read {name}: {error.strerror}" if error.strerror else str(error)) from error


def reason(error: Exception | None) -> str:
    """Return the shortest text of an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that is open for decoding.

    Attributes:
        media: the path or the bytes.
        container: PyAV's container.
        stream: PyAV's video stream.
        timeline: when its pictures are shown.
    """

    media: str | os.PathLike | bytes
    container: av.container.InputContainer
    stream: Any  # a VideoStream; PyAV declares its time base as optional
    timeline: Timeline

    @property
    def name(self) -> str:
        """The name of the file for messages."""
        return media_name(self.media)

    @property
    def seconds(self) -> float:
        """The duration of the pictures; sound does not count."""
        return self.timeline.seconds

    @property
    def shortest_frame(self) -> float:
        """The duration of a frame, in seconds; of a variable frame rate, that of the fastest frames."""
        return 1 / float(max(self.stream.average_rate or 0, self.stream.base_rate or 0) or 25)

    def timed_frames(self, start: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decode from a key frame at or before `start` on; yields presentation times in seconds and frames."""
        unit = float(self.stream.time_base)  # as a fraction it would cost 10 % of decoding
        first, begin, keys = self.timeline.first, self.timeline.begin, self.timeline.keys
        frames, head, back = self.container.decode(self.stream), [], 0.0
        while start > 0 and first is not None:
            target = start - back
            with contextlib.suppress(av.FFmpegError, OverflowError):  # not seekable: decode from the beginning
                if target > 0 or keys is None:
                    self.container.seek(int((target + first) / unit) if target > 0 else begin, stream=self.stream)
                else:  # the first packets may precede those that are found by time stamp
                    self.container.seek(0, unsupported_byte_offset=True)
            frames = self.container.decode(self.stream)
            head = list(itertools.islice(frames, 1))
            stamp = head[0].pts if head else None
            if target <= 0:
                break
            if stamp is not None and (keys is None or stamp in keys) and stamp * unit - first <= start:
                break
            back = 2 * back + 1  # seeking goes by decoding time: the key frame that it found is shown later
        yield from self.timeline.times(itertools.chain(head, frames), unit)

    def end_of_last_frame(self, last: av.VideoFrame | None, time: float, error: Exception | None) -> float:
        """Return when the last decoded frame, shown at `time`, ends; `error` ended decoding, or None.

        Raises:
            DecodeError: there is no frame, or more frames follow the error than decoders hold back. Only a damaged
                tail may be left out.
        """
        if last is None:
            raise DecodeError(f"cannot decode {self.name}: {reason(error) if error else 'it holds no frame'}")
        end = time + self.timeline.last_seconds
        more = 0
        with contextlib.suppress(av.FFmpegError):
            for packet in self.container.demux(self.stream) if error else ():
                with contextlib.suppress(av.FFmpegError):
                    more += len(packet.decode())
                if more > MAX_DELAY:
                    raise DecodeError(f"{self.name} is damaged at {end:.2f} s: {reason(error)}") from error
        return end

    def check_coverage(self, start: float, span: float, end: float, error: Exception | None) -> None:
        """Raise DecodeError if decoding ended before `MIN_COVERAGE` of a span that begins at `start`."""
        if end - start < MIN_COVERAGE * span:
            asked, cause = f"of the {span:.2f} s from {start:.2f} s on", f" ({reason(error)})" if error else ""
            raise DecodeError(f"{self.name} is truncated: {asked}, decoding ends at {end:.2f} s{cause}")


@contextlib.contextmanager
def open_video(media: str | os.PathLike | bytes, file: BinaryIO | None = None) -> Iterator[Video]:
    """Open a video, or the `file` that `open_media` has opened; the cover picture of music is no video.

    The length of the video is measured, so its last packets are read.

    Raises DecodeError if the file is missing, empty, not a video, or its codec is unknown.
    """
    if file is None:
        with open_media(media) as (_, file), open_video(media, file) as video:
            yield video
        return
    name = media_name(media)
    if is_webp(file.read(12)):
        file = webp_as_png(name, file)
    with _open_stream(name, file) as (container, stream):
        timeline = read_timeline(container, stream)
        if timeline is not None:
            yield Video(media, container, stream, timeline)
            return
    with _open_stream(name, file) as (container, stream):
        timeline = scan_timeline(container, stream)
    with _open_stream(name, file) as (container, stream):  # not every format can be read again from its beginning
        yield Video(media, container, stream, timeline)


@contextlib.contextmanager
def _open_stream(name: str, file: BinaryIO) -> Iterator[tuple[av.container.InputContainer, Any]]:
    file.seek(0)
    try:
        container = av.open(file, **METADATA)
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            raise
        if not isinstance(error, av.FFmpegError | ValueError) and error.errno != errno.EINVAL:
            raise  # the file cannot be read; EINVAL: the damaged file says to seek before its beginning
        raise DecodeError(f"cannot read {name} as a video: {reason(error)}") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
        if stream is None:
            raise DecodeError(f"{name} has no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"cannot read {name} as a video: its codec is not known")
        stream.codec_context.thread_count = 1
        yield container, stream
