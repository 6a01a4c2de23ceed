"""Media files of drawn containers, codecs, colours, orientations, times and sound show what was encoded.

More cases, or others: FUZZ_CASES=300 pytest tests/data/test_fuzz_media.py --hypothesis-seed=N
"""

import dataclasses
import os
from fractions import Fraction

import av
import hypothesis
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from hypothesis import strategies as st

from tests.data.clips import indices, paint, set_display_matrix
from tubevit.data.container import open_video
from tubevit.data.decode import decode_clip
from tubevit.data.recode import validated_bytes
from tubevit.data.stream import stream_clips

RATE = 25
ORIENTATIONS = {  # the display matrix, and what undoes it
    (1, 0, 0, 1): lambda clip: clip,
    (-1, 0, 0, 1): lambda clip: clip[:, :, ::-1],
    (1, 0, 0, -1): lambda clip: clip[:, ::-1],
    (-1, 0, 0, -1): lambda clip: clip[:, ::-1, ::-1],
    (0, 1, -1, 0): lambda clip: np.rot90(clip, 1, (1, 2)),
    (0, -1, 1, 0): lambda clip: np.rot90(clip, -1, (1, 2)),
    (0, 1, 1, 0): lambda clip: clip.swapaxes(1, 2),
    (0, -1, -1, 0): lambda clip: clip[:, ::-1, ::-1].swapaxes(1, 2),
}
H264 = ("libx264", {"bf": "2", "preset": "veryfast", "crf": "8"}, ("yuv420p", "yuv422p", "yuv444p"))
MPEG2 = ("mpeg2video", {"bf": "2", "qmin": "2", "qmax": "3"}, ("yuv420p",))
MPEG4 = ("mpeg4", {"qmin": "2", "qmax": "3"}, ("yuv420p",))
VP9 = ("libvpx-vp9", {"crf": "8", "b": "0", "cpu-used": "8"}, ("yuv420p", "yuv444p"))
CONTAINERS = {  # codecs of pictures and of sound, and whether times of pictures may be any
    "mp4": ((H264, MPEG4), "aac", True),
    "mov": ((H264, MPEG4), "aac", True),
    "mkv": ((H264, VP9, MPEG2), "aac", True),
    "webm": ((VP9,), "libopus", True),
    "flv": ((H264,), "aac", True),
    "ts": ((H264, MPEG2), "aac", True),
    "mpg": ((MPEG2,), "mp2", False),
    "avi": ((MPEG4, H264), "mp2", False),
}
MATRICES = (2, 1, 5, 7, 9)  # none, BT.709, BT.601, SMPTE 240M, BT.2020


@dataclasses.dataclass(frozen=True)
class Case:
    """What is written: frame `i` is shown at `times[i]`, in frames, with a patch of one colour below its number."""

    container: str
    codec: tuple
    pixels: str
    matrix: int
    full: bool
    orientation: tuple
    times: tuple
    sound: tuple | None
    colour: tuple
    size: tuple


@st.composite
def cases(draw):
    container = draw(st.sampled_from(sorted(CONTAINERS)))
    codecs, _, any_times = CONTAINERS[container]
    codec = draw(st.sampled_from(codecs))
    count = draw(st.integers(6 if container == "ts" else 2, 30))  # FFmpeg opens no shorter transport stream
    start = draw(st.integers(0, 60)) if any_times else 0
    gap, at = (draw(st.integers(0, 120)), draw(st.integers(1, count - 1))) if any_times else (0, 1)
    times = tuple(start + i + gap * (i >= at) for i in range(count))
    sound = draw(st.none() | st.tuples(st.integers(0, 2), st.integers(1, 4))) if not start else None
    return Case(
        container, codec, draw(st.sampled_from(codec[2])), draw(st.sampled_from(MATRICES)), draw(st.booleans()),
        draw(st.sampled_from(list(ORIENTATIONS))) if container in ("mp4", "mov") else (1, 0, 0, 1),
        times, sound, draw(st.tuples(*[st.integers(20, 235)] * 3)), draw(st.sampled_from([(64, 96), (80, 64)])),
    )  # fmt: skip


def picture(case, index):
    """(H, W, 3) uint8: the number above, the colour below."""
    height, width = case.size
    patch = np.broadcast_to(np.array(case.colour, np.uint8), (height // 2, width, 3))
    return np.concatenate([paint(index, height // 2, width), patch])


def write(path, case):
    """Encodes the pictures, and silence from `sound[0]` seconds on for `sound[1]` seconds."""
    codec, options, _ = case.codec
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=RATE, options={"g": "12", **options})
        track.height, track.width, track.pix_fmt = *case.size, case.pixels
        track.codec_context.color_range = ColorRange.JPEG if case.full else ColorRange.MPEG
        track.codec_context.colorspace = case.matrix
        audio = None
        if case.sound:
            audio = container.add_stream(CONTAINERS[case.container][1], rate=48000, layout="mono")
            samples = np.zeros((1, 48000 * case.sound[1]), np.float32)
            context = audio.codec_context
            resampler = av.AudioResampler(context.format, "mono", 48000, context.frame_size or 1024)
        for index, time in enumerate(case.times):
            frame = av.VideoFrame.from_ndarray(picture(case, index), format="rgb24")
            ranges = {"dst_color_range": ColorRange.JPEG if case.full else ColorRange.MPEG}
            matrix = 5 if case.matrix == 2 else case.matrix  # without a tag it is taken as BT.601
            frame = frame.reformat(format=case.pixels, dst_colorspace=matrix, **ranges)
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 48000 * case.sound[0], Fraction(1, 48000)
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(audio.encode(part))
    if case.orientation != (1, 0, 0, 1):
        set_display_matrix(path, *case.orientation)


def by_ffmpeg(path):
    """The colour of the patch in the first frame, by FFmpeg's scaler as a filter."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        scale, sink = graph.add("scale"), graph.add("buffersink")
        form = graph.add("format", "rgb24")
        for a, b in ((source, scale), (scale, form), (form, sink)):
            a.link_to(b)
        graph.configure()
        graph.push(frame)
        return patch(graph.pull().to_ndarray()[None])[0]


def patch(clip):
    """(T, 3): the middle of the lower half."""
    height, width = clip.shape[1:3]
    return np.median(clip[:, height * 5 // 8 : height * 7 // 8, width // 4 : -width // 4], axis=(1, 2))


def shown(case, seconds, times):
    """The number of the frame at each time."""
    starts = np.array(case.times) / RATE - case.times[0] / RATE
    return [int(np.searchsorted(starts, time + 1e-3, side="right") - 1) for time in times]


def check(path, case):
    seconds = (case.times[-1] - case.times[0] + 1) / RATE
    with open_video(path) as video:
        assert video.seconds == pytest.approx(seconds, abs=0.004)
        every = max(0.48, video.shortest_frame)
    undo = ORIENTATIONS[case.orientation]
    frames = undo(decode_clip(path))
    numbers = lambda clip: indices(clip[:, : clip.shape[1] // 2])  # noqa: E731
    assert numbers(frames) == list(range(len(case.times)))
    assert np.abs(patch(frames[:1])[0] - by_ffmpeg(path)).max() <= 2.5  # the median of values within 2
    # Away from the changes of pictures, which some containers round to milliseconds.
    clip = undo(decode_clip(path, 7, clip_position=0.37))
    times = [seconds / 7 * (i + 0.37) for i in range(7)]
    far = [min(abs(time * RATE % 1), 1 - time * RATE % 1) > 0.1 for time in times]
    expected = shown(case, seconds, times)
    assert [n for n, ok in zip(numbers(clip), far) if ok] == [n for n, ok in zip(expected, far) if ok]
    starts = [clip.start for clip in stream_clips(path, 1, RATE, every)]
    assert len(starts) == pytest.approx(seconds / every, abs=1)
    small = decode_clip(validated_bytes(path, 48))
    assert len(small) == len(case.times)


CASES = os.environ.get("FUZZ_CASES")


@hypothesis.settings(max_examples=int(CASES or 15), deadline=None, derandomize=not CASES, database=None)
@hypothesis.given(case=cases())
def test_what_was_encoded_is_shown(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("media") / f"clip.{case.container}"
    write(path, case)
    check(path, case)
