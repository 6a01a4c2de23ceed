import gc

import av
import numpy as np
import pytest

import tubevit
from tests.data.clips import indices, write_audio, write_clip
from tubevit.data.stream import stream_clips
from tubevit.data.yuv import to_rgb
from tubevit.errors import DecodeError, UserError


def numbers(clips):
    """The painted numbers of the frames of each clip, with its start and end."""
    return [(clip.start, clip.end, indices(np.stack(list(map(to_rgb, clip.frames))))) for clip in clips]


def by_hand(times, starts, frames, step, offset=0.0):
    """Number of the last frame shown at each time of each clip, from the list of presentation times (ms)."""
    shown = np.array(times) / 1000
    asked = [[start + offset + step * i for i in range(frames)] for start in starts]
    return [[int(np.flatnonzero(shown <= time + 1e-3)[-1]) for time in row] for row in asked]


@pytest.mark.parametrize("fps", [8, 25, 7.3, 60])
@pytest.mark.parametrize("every", [np.pi / 30, np.e / 7, np.sqrt(3)])  # no ties with whole milliseconds
@pytest.mark.parametrize("rate", ["constant", "variable"])
def test_clips_are_those_cut_by_hand(tmp_path, fps, every, rate):
    steps = np.random.default_rng(3).integers(10, 120, 119) if rate == "variable" else np.full(119, 40)
    times = [0, *np.cumsum(steps).tolist()]
    video = write_clip(tmp_path / "a.mkv", times, stream={"g": "30", "bf": "2"})
    frames = 6
    clips = numbers(stream_clips(video, frames, fps, every))
    expected = by_hand(times, [start for start, _, _ in clips], frames, 1 / fps)
    last = times[-1] / 1000
    assert len(clips) > 1
    for number, ((start, end, found), wanted) in enumerate(zip(clips, expected, strict=True)):
        assert start == pytest.approx(number * every) and found == wanted
        # How long the last frame is shown is not known: up to the longest step.
        assert min(start + frames / fps, last) - 1e-6 <= end <= min(start + frames / fps, last + 0.12) + 1e-6
    assert end - start >= frames / fps / 2 - 1e-6 > last - len(clips) * every  # half of it lies in the video


def test_without_a_rate_frames_spread_over_each_part(tmp_path):
    times = list(range(0, 4000, 40))
    clips = numbers(stream_clips(write_clip(tmp_path / "a.mp4", times), 5, None, 1.0))
    assert [clip[:2] for clip in clips] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [clip[2] for clip in clips] == by_hand(times, range(4), 5, 0.2, 0.1)


def test_a_short_video_is_held_as_read_video_holds_it(tmp_path):
    video = write_clip(tmp_path / "a.mp4", range(0, 200, 40))
    ((start, end, found),) = numbers(stream_clips(video, 16, 8, 1.0))
    assert (start, end) == (0, pytest.approx(0.2, abs=0.01))
    assert found == indices(tubevit.read_video(video, 16, 8)[0])


def test_parts_that_end_at_their_first_time_or_before_it(tmp_path):
    """Spread over a second, two frames lie at 0.25 and 0.75 s; one of each two seconds lies in their middle."""
    short = write_clip(tmp_path / "short.mp4", range(0, 200, 40))
    assert numbers(stream_clips(short, 2, None, 1.0)) == [(0, pytest.approx(0.2), [4, 4])]
    video = write_clip(tmp_path / "a.mp4", range(0, 5000, 40))
    assert [clip.start for clip in stream_clips(video, 1, None, 2.0)] == [0, 2, 4]  # half of the last lies in it


def test_windows_of_tubes_hold_the_same_pixels(tmp_path):
    video = write_clip(tmp_path / "a.mp4", range(0, 3000, 40), size=(64, 96))
    tubes = tubevit.TubeSet.from_text("4x8x8/8x16x16_1x8x8/16x16x16")
    for clip in stream_clips(video, 16, 8, 0.5):
        windows = tubevit.take_windows(clip.pixels(32), tubes).windows
        for found, wanted in zip(clip.pixels(32, tubes).windows, windows, strict=True):
            np.testing.assert_array_equal(found, wanted)


def most_held(video):
    """The most decoded frames that are alive when a clip is handed out: of every 11th clip."""
    alive = lambda: sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())  # noqa: E731
    gc.collect()
    before = alive()
    return max(alive() - before for number, _ in enumerate(stream_clips(video, 8, 4, 0.5)) if number % 11 == 2)


def test_memory_does_not_grow_with_the_video(tmp_path):
    most = []
    for seconds in (6, 42):
        video = write_clip(tmp_path / f"{seconds}.mkv", range(0, seconds * 1000, 40), "mpeg4", stream={"g": "25"})
        most.append(most_held(video))
    # Clips of 2 s at 4 FPS that begin every 0.5 s share their frames: 8 of each, 6 more for those that have begun.
    assert 8 <= most[0] <= most[1] <= 8 + 6, most


def test_damage_and_what_is_no_video(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", range(0, 8000, 40), "mpeg4", stream={"g": "5"})
    data = bytearray(whole.read_bytes())
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 3 // 10])
    early = []
    with pytest.raises(DecodeError, match=r"cut.mkv is truncated: of the 8.00 s .* decoding ends at"):
        early.extend(stream_clips(tmp_path / "cut.mkv", 8, 8, 0.5))
    assert early  # what came before it was yielded
    (tmp_path / "tail.mkv").write_bytes(data[: len(data) * 9 // 10])
    clips = numbers(stream_clips(tmp_path / "tail.mkv", 8, 8, 0.5))
    assert 6 < clips[-1][1] < 8 and clips[:4] == numbers(stream_clips(whole, 8, 8, 0.5))[:4]
    with pytest.raises(DecodeError, match="has no video stream"):
        list(stream_clips(write_audio(tmp_path / "a.wav"), 8, 8, 1.0))
    for every in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="every must be .*above 0; found"):
            list(stream_clips(whole, 8, 8, every))
