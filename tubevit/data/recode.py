"""Validation of media files for shards: a file must decode from beginning to end; large ones are encoded again."""

import io
import itertools
import pathlib
from collections.abc import Iterable, Iterator

import av.video.frame
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from tubevit.data.container import Media, media_kind, open_video
from tubevit.data.decode import decode_image
from tubevit.data.orientation import display_orientation, turned_planes, turned_size
from tubevit.data.timeline import MIN_COVERAGE
from tubevit.data.yuv import is_full_range, settle_colours
from tubevit.errors import DecodeError

CRF = 23  # quality of H.264, lower is better
PRESET = "veryfast"
KEY_FRAMES = 30  # distance of key frames: at 250, clips decode at half the speed
JPEG_QUALITY = 95
# Without these, the scaler and x264 choose by the instructions of the processor, and give other bytes on other hosts.
SCALER = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
X264 = "cpu-independent=1"


def validated_bytes(media: Media, short_side: int | None = None) -> bytes:
    """Decode a video or an image completely and return its encoded bytes, smaller if it is large.

    The bytes depend on the versions of PyAV and OpenCV, but not on the processor.

    Args:
        media: path, encoded bytes, or the pixels of an image (stored without loss, as PNG).
        short_side: in pixels; larger videos are encoded as H.264 (even sizes, upright, without sound, with the same
            presentation times), larger images as JPEG. Other files keep their bytes; None keeps those of all files.

    Raises:
        DecodeError: the file is missing, empty or damaged, holds no video, ends before half of its declared duration,
            changes its size, or has colours that cannot be converted to RGB.
    """
    if isinstance(media, np.ndarray):
        if media_kind(media) == "video":
            raise DecodeError("expected an encoded video; found pixels")
        media = cv2.imencode(".png", cv2.cvtColor(media, cv2.COLOR_RGB2BGR))[1].tobytes()
    kind = media_kind(media)
    encoded = media if isinstance(media, bytes) else pathlib.Path(media).read_bytes()
    if kind == "image":
        return _checked_image(encoded, short_side)
    frames = _frames(encoded)
    _, _, frame = first = next(frames)
    if short_side is not None and min(frame.width, frame.height) > short_side:
        try:
            return _encode_again(itertools.chain([first], frames), short_side)
        except av.FFmpegError as error:
            raise DecodeError(f"it cannot be encoded: {error.strerror or error}") from error
    for _ in frames:
        pass
    return encoded


def _checked_image(encoded: bytes, short_side: int | None) -> bytes:
    image = decode_image(encoded)
    if short_side is None or min(image.shape[:2]) <= short_side:
        return encoded
    scale = short_side / min(image.shape[:2])
    height, width = (round(size * scale) for size in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _frames(encoded: bytes) -> Iterator[tuple]:
    """Yield the stream, the time since its first picture in its time base, and the frame, for each frame."""
    try:
        with open_video(encoded) as video:
            stream, reached, time, size = video.stream, 0.0, -1, None
            for reached, frame in video.timed_frames():
                if size not in (None, (frame.width, frame.height)):
                    raise DecodeError("it changes its size from frame to frame")
                size = frame.width, frame.height
                settle_colours(frame, "it")
                time = max(round(reached / stream.time_base), time + 1)  # encoders take only increasing times
                yield stream, time, frame
            if size is None:
                raise DecodeError("it holds no frame")
            if reached + video.timeline.frame_seconds < MIN_COVERAGE * video.seconds:
                lengths = f"it declares {video.seconds:.2f} s, decoding ends at {reached:.2f} s"
                raise DecodeError(f"it is truncated: {lengths}")
    except av.FFmpegError as error:
        raise DecodeError(f"it cannot be decoded: {error.strerror or error}") from error


def _encode_again(frames: Iterable[tuple], short_side: int) -> bytes:
    """Encode the output of `_frames` as H.264 in mp4. B-frames and gaps would make the declared duration wrong."""
    buffer, track, colours = io.BytesIO(), None, {}
    with av.open(buffer, "w", format="mp4") as container:
        for stream, time, frame in frames:
            duration, orientation = frame.duration, display_orientation(frame)
            if track is None:
                rate = stream.average_rate or stream.guessed_rate or 25
                options = {"crf": str(CRF), "preset": PRESET, "g": str(KEY_FRAMES), "bf": "0", "x264-params": X264}
                track = container.add_stream("libx264", rate=rate, options=options)
                track.width, track.height = _even(*turned_size(frame.width, frame.height, orientation), short_side)
                track.pix_fmt = "yuv420p"
                track.codec_context.time_base = track.time_base = stream.time_base
                track.codec_context.thread_count = 1
                colours = _declare_colours(track.codec_context, frame)
            width, height = turned_size(track.width, track.height, orientation)
            small = frame.reformat(width, height, "yuv420p", interpolation=SCALER, threads=1, **colours)
            small = turned_planes(small, orientation)
            small.pts, small.time_base, small.duration = time, stream.time_base, duration
            small.pict_type = av.video.frame.PictureType.NONE  # otherwise the encoder follows that of the file
            container.mux(track.encode(small))
        if track is not None:
            container.mux(track.encode())
    return buffer.getvalue()


def _declare_colours(context: av.VideoCodecContext, frame: av.VideoFrame) -> dict[str, int]:
    """Copy the matrix and the range of the first frame to an encoder.

    Returns the arguments of `reformat` that convert other frames to them; frames that agree are not changed.
    """
    context.colorspace = frame.colorspace
    context.color_range = ColorRange.JPEG if is_full_range(frame) else frame.color_range
    scaler_matrix = frame.colorspace if frame.colorspace in list(Colorspace) else Colorspace.ITU601
    return {"dst_colorspace": scaler_matrix, "dst_color_range": context.color_range or ColorRange.MPEG}


def _even(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) with the given short side, both even: H.264 with subsampled chroma has no odd sizes."""
    scale = short_side / min(width, height)
    return 2 * round(width * scale / 2), 2 * round(height * scale / 2)
