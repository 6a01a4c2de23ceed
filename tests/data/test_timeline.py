"""The length of the pictures, time stamps that jump, run backwards or are missing, and animated images."""

import io
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from tests.data.clips import indices, paint, write_clip, write_clip_with_sound
from tubevit.data.container import media_kind, open_video
from tubevit.data.decode import decode_clip, decode_media
from tubevit.data.recode import validated_bytes
from tubevit.data.stream import stream_clips
from tubevit.data.warp import crop_map, frame_size, sample
from tubevit.errors import DecodeError, UserError

FRAME = Fraction(1, 25)
B_FRAMES = {"bf": "2"}
SOUNDING = {  # codecs of picture and sound
    "clip.mp4": (("libx264", B_FRAMES), "aac"),
    "clip.mov": (("mpeg4", B_FRAMES), "aac"),
    "clip.3gp": (("libx264", B_FRAMES), "aac"),
    "clip.mkv": (("libx264", B_FRAMES), "aac"),
    "clip.webm": (("libvpx", {}), "libopus"),
    "clip.avi": (("mpeg4", {}), "mp2"),
    "b_frames.avi": (("libx264", B_FRAMES), "mp2"),
    "clip.flv": (("libx264", B_FRAMES), "aac"),
    "plain.flv": (("flv", {}), "aac"),
    "clip.wmv": (("wmv2", {}), "wmav2"),
    "b_frames.asf": (("libx264", B_FRAMES), "wmav2"),
    "clip.mpg": (("mpeg2video", B_FRAMES), "mp2"),
    "clip.vob": (("mpeg2video", B_FRAMES), "mp2"),
    "clip.ts": (("libx264", B_FRAMES), "aac"),
    "mpeg2.ts": (("mpeg2video", B_FRAMES), "mp2"),
    "clip.m2ts": (("libx264", B_FRAMES), "aac"),
}


def numbers(media, every, fps=None):
    """The frames at 0, `every`, 2 * `every` ... seconds."""
    clips = [clip.frames for clip in stream_clips(media, 1, fps, every)]
    return indices(np.concatenate([sample(clip, crop_map(0, 0, *frame_size(clip[0]), 64), 64) for clip in clips]))


def is_frame_by_frame(media, expected):
    """Whether everything agrees that these frames are shown, 25 a second, and nothing else."""
    with open_video(media) as video:
        assert video.seconds == pytest.approx(len(expected) / 25, abs=0.003)
        times = [time for time, _ in video.timed_frames()]
    np.testing.assert_allclose(times, np.arange(len(expected)) / 25, atol=0.003)
    assert indices(decode_clip(media)) == expected
    assert indices(decode_clip(media, len(expected))) == expected
    assert (
        indices(decode_clip(media, 5, clip_position=0.55)) == expected[len(expected) * 11 // 100 :: len(expected) // 5]
    )
    for number in (0.3, 0.52, 0.77, 0.95):  # each of them sought
        index = int(number * len(expected))
        position = (index + 0.5) / 25 / (len(expected) / 25 - 1 / 25)
        if position < 1:
            assert indices(decode_clip(media, 1, 25, position)) == [expected[index]]
    assert numbers(media, 0.2, 25) == expected[::5]
    assert decode_media(media, 2).seconds == pytest.approx(len(expected) / 25, abs=0.003)


SOUNDS = {
    "longer": {"sound_seconds": 7.0},
    "earlier": {"first": 1.0, "sound_seconds": 4.0},
    "later": {"sound_first": 1.0},
    "shorter": {"sound_seconds": 0.4},
}
# Two of the four for each container; test_fuzz_media.py draws more.
TRIED = [(name, sound) for i, name in enumerate(SOUNDING) for j, sound in enumerate(SOUNDS) if (i + j) % 2 == 0]


@pytest.mark.parametrize("name, sound", TRIED)
def test_sound_changes_nothing(tmp_path, name, sound):
    path = write_clip_with_sound(tmp_path / name, *SOUNDING[name], **SOUNDS[sound])
    if name.endswith(".avi") and sound == "earlier":  # FFmpeg puts the gap behind the first frame
        assert indices(decode_clip(path)) == list(range(50))
    else:
        is_frame_by_frame(path, list(range(50)))


def transport_stream(path, first, frames=50, codec="libx264"):
    """Frames whose time stamps begin at `first` seconds."""
    options = {"g": "12", "bf": "2"} if codec == "libx264" else {"g": "12"}
    return write_clip(path, range(round(first * 25), round(first * 25) + frames), codec, unit=FRAME, stream=options)


WRAP = 2**33 / 90_000  # seconds at which time stamps of 33 bits begin again


@pytest.mark.parametrize(
    "firsts",
    [(1, 1), (1, 600), (600, 1), (1, 14, 3), (5, 4000, 4002, 1)],
    ids=["again", "forward", "back", "two_jumps", "jump_and_on"],
)
@pytest.mark.parametrize("suffix, codec", [("ts", "libx264"), ("ts", "mpeg2video"), ("mpg", "mpeg2video")])
def test_joined_recordings(tmp_path, firsts, suffix, codec):
    """A jump counts as one frame's step."""
    parts = [transport_stream(tmp_path / f"{i}.{suffix}", first, codec=codec) for i, first in enumerate(firsts)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for media in (path, path.read_bytes()):
        is_frame_by_frame(media, [*range(50)] * len(firsts))


def test_a_gap_in_a_transport_stream(tmp_path):
    """Of less than 10 s: nothing changes during this time. Here the second part begins 0.4 s after the first one."""
    content = b"".join(transport_stream(tmp_path / f"{first}.ts", first).read_bytes() for first in (1, 3.4, 1.2))
    assert decode_media(content, 2).seconds == pytest.approx(6.4, abs=0.003)
    assert numbers(content, 0.2, 25) == [*range(0, 50, 5), 49, 49, *range(0, 50, 5), *range(0, 50, 5)]


@pytest.mark.parametrize("before", [1.0, 70.0])
def test_time_stamps_that_wrap_around(tmp_path, before):
    """The clock of 33 bits begins again after 26.5 hours."""
    first = WRAP - before
    path = transport_stream(tmp_path / "clip.ts", first, 100)
    is_frame_by_frame(path, [*range(100)])
    more = transport_stream(tmp_path / "more.ts", 3).read_bytes()
    is_frame_by_frame(path.read_bytes() + more, [*range(100), *range(50)])
    slow = range(round(25 * first), round(25 * first) + 20 * 125, 125)  # one frame in five seconds
    path = write_clip(tmp_path / "slow.ts", slow, "mpeg2video", unit=FRAME)
    with open_video(path) as video:
        np.testing.assert_allclose([time for time, _ in video.timed_frames()], np.arange(20) * 5, atol=0.003)
    assert numbers(path, 10.0, 25) == [*range(0, 20, 2)]


def test_a_gap_is_time(tmp_path):
    """Screen recordings show a picture for minutes, in a format whose time stamps do not jump."""
    times = [0, 40, 80, 60_080, 60_120]
    for name in ("clip.mkv", "clip.mp4"):
        path = write_clip(tmp_path / name, times, "mpeg4")
        assert decode_media(path, 2).seconds == pytest.approx(60.16, abs=0.002)
        assert numbers(path, 10.0, 25) == [0, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["a.avi", "a.asf"])
def test_b_frames_without_presentation_times(tmp_path, name):
    path = write_clip(tmp_path / name, range(100), unit=FRAME, stream={"bf": "3", "g": "25"})
    is_frame_by_frame(path, [*range(100)])
    is_frame_by_frame(validated_bytes(path, 40), [*range(100)])


def test_a_shard_keeps_all_frames_of_joined_recordings(tmp_path):
    parts = [transport_stream(tmp_path / f"{first}.ts", first).read_bytes() for first in (0, 600, 3)]
    encoded = validated_bytes(b"".join(parts), 40)
    with av.open(io.BytesIO(encoded)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 150
    is_frame_by_frame(encoded, [*range(50)] * 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv", "a.gif", "a.mpg"])
def test_one_frame(tmp_path, name):
    codec, pixels = {"a.gif": ("gif", "rgb8"), "a.mpg": ("mpeg2video", "yuv420p")}.get(name, ("libx264", "yuv420p"))
    codec = {"a.flv": "flv"}.get(name, codec)
    path = write_clip(tmp_path / name, [0], codec, pixels, unit=FRAME)
    assert indices(decode_clip(path, 3)) == indices(decode_clip(path, 3, 25)) == [0, 0, 0]
    assert 0 < decode_media(path, 2).seconds <= 0.1
    assert len(list(stream_clips(path, 2, 25, 1.0))) == 1


def test_an_edit_list_begins_behind_the_key_frame(tmp_path):
    """As a trim by stream copy writes it: pictures before the cut are decoded but not shown."""
    whole = write_clip(tmp_path / "whole.mp4", range(100), unit=FRAME, stream={"g": "50", "bf": "2"})
    path = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        track = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (time - round(0.4 / packet.time_base) for time in (packet.pts, packet.dts))
                packet.stream = track
                new.mux(packet)
    is_frame_by_frame(path, [*range(10, 100)])


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.webm"])
def test_a_truncated_file_with_sound(tmp_path, name):
    video, sound = SOUNDING[name.replace("a.", "clip.")]
    content = write_clip_with_sound(tmp_path / name, video, sound, sound_seconds=4.0).read_bytes()
    with pytest.raises(DecodeError, match="is truncated: of the"):
        decode_clip(content[: len(content) * 2 // 5])
    assert 40 <= len(decode_clip(content[: len(content) * 9 // 10])) <= 50  # the pictures end after 2 s


@pytest.mark.parametrize("every", [1e-9, 0.039, 5e-324])
def test_clips_shorter_than_a_frame_apart_are_refused(tmp_path, every):
    path = write_clip(tmp_path / "a.mp4", range(0, 1000, 40))
    refused = rf"at least 0.04 s, the duration of a frame of .*a.mp4; found {every:g}"
    if every < 1e-38:  # before the file is opened
        refused = f"every must be above 0, of a size that fits into float32; found {every!r}"
    with pytest.raises(UserError, match=refused):
        next(stream_clips(path, 4, 8, every))
    assert len(list(stream_clips(path, 1, 25, 0.04))) == 25


DURATIONS = [40, 80, 120, 40, 500, 40, 60]


def animation(frames, suffix, **options):
    """Pillow's file of frames (H, W, 3 or 4) uint8, and the frames as Pillow reads them."""
    buffer = io.BytesIO()
    first, *others = map(PIL.Image.fromarray, frames)
    first.save(buffer, suffix, save_all=True, append_images=others, **{"duration": DURATIONS, **options})
    read = PIL.Image.open(buffer)
    shown = []
    for number in range(getattr(read, "n_frames", 1)):
        read.seek(number)
        shown.append(np.asarray(read.convert("RGB")))
    return buffer.getvalue(), np.array(shown)


@pytest.mark.parametrize(
    "suffix, options, transparent",
    [("WEBP", {"lossless": True}, False), ("WEBP", {"lossless": True}, True), ("WEBP", {}, False), ("WEBP", {}, True)]
    + [("PNG", {}, False), ("PNG", {}, True), ("GIF", {}, False)],
)
def test_animated_images(tmp_path, suffix, options, transparent):
    """Frames change in a rectangle only, which the formats store as such, over a part that may be transparent."""
    frames = []
    for number in range(7):
        frame = np.full((47, 61, 4 if transparent else 3), 255, np.uint8)
        frame[..., :3] = paint(0, 47, 61)
        frame[10:30, 16:40, :3] = paint(number, 20, 24)
        if transparent:
            frame[30:, : 8 * number, 3] = 0
        frames.append(frame)
    content, shown = animation(frames, suffix, **options)
    path = tmp_path / f"a.{suffix.lower()}"
    path.write_bytes(content)
    assert media_kind(path) == media_kind(content) == "video"
    np.testing.assert_array_equal(decode_clip(path), shown)
    with open_video(path) as video:
        assert [round(1000 * time) for time, _ in video.timed_frames()] == [0, *np.cumsum(DURATIONS)[:-1]]
        assert round(1000 * video.seconds) == sum(DURATIONS)
    parts = list(stream_clips(content, 1, 25, 0.22))
    assert [next(i for i, each in enumerate(shown) if np.array_equal(each, part.frames[0])) for part in parts] == [
        0,
        2,
        4,
        4,
    ]


@pytest.mark.parametrize("suffix", ["WEBP", "PNG"])
def test_still_images_stay_images(suffix):
    for frames in ([paint(5)], [paint(5)] * 2):  # Pillow stores equal frames as one
        content, _ = animation(frames, suffix, duration=40)
        if len(frames) == 1 or PIL.Image.open(io.BytesIO(content)).n_frames == 1:
            assert media_kind(content) == "image"


def test_a_damaged_animation(tmp_path):
    content, shown = animation([paint(i) for i in range(7)], "WEBP", lossless=True)
    for length in (len(content) // 3, len(content) - 7):
        try:
            assert len(decode_clip(content[:length])) <= 7
        except DecodeError as error:
            assert "\n" not in str(error)
