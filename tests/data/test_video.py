import fractions

import av
import cv2
import numpy as np
import pytest

from tests.data.clips import indices, paint, set_rotation, write_audio, write_clip
from tubevit import read_image, read_video
from tubevit.data.video import DecodeError, centre_crop, crop_resize, decode_clip, media_kind

CONSTANT = tuple(range(0, 40 * 100, 40))  # 25 a second for 4 seconds
# Gaps between 10 and 400 ms, as of screen recordings.
VARIABLE = tuple(np.cumsum(np.random.default_rng(0).integers(10, 400, 60)).tolist())
CONTAINERS = {  # how each is written, and the unit of its times
    "clip.mp4": {},
    "long_gop.mp4": {"stream": {"g": "250", "bf": "3"}},
    "clip.mkv": {"codec": "mpeg4"},  # no stream duration, 0 frames
    "clip.webm": {"codec": "libvpx"},
    "short_gop.mp4": {"stream": {"g": "12", "bf": "3"}},
    "open_gop.mp4": {"stream": {"g": "12", "bf": "3", "flags": "-cgop", "x264-params": "open-gop=1"}},
    "clip.mov": {"codec": "mpeg4", "stream": {"g": "12", "bf": "2"}},
    "444.mp4": {"pixels": "yuv444p"},
}


def declared(path, first):
    """Milliseconds that a file declares, which muxers get wrong where the rate varies: here by up to one frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.duration:
            return float(1000 * stream.duration * stream.time_base)
        return container.duration / 1000 - first  # Matroska declares its end


def shown(times, start, fps, frames):
    """What decode_clip must show: the last frame at or before each time, the first or last one beyond the ends."""
    asked = start + np.arange(frames) * 1000 / fps
    times = np.array(times) - times[0]
    return np.clip(np.searchsorted(times, asked + 1, side="right") - 1, 0, len(times) - 1).tolist()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """`clips(name, times)`: the file, written once."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name, times):
        path = folder / f"{hash(times)}_{name}"
        return path if path.exists() else write_clip(path, times, **CONTAINERS[name])

    return get


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_are_those_of_the_timestamps(clips, name, times):
    path = clips(name, times)
    length = declared(path, times[0])
    assert abs(length - (times[-1] - times[0] + 40)) < (1 if times == CONSTANT else 400)
    for fps, frames in [(25, 16), (10, 16), (7.3, 9), (50, 30), (3, 5)]:
        for position in (0.0, 0.5, 1.0):
            clip = decode_clip(path, frames, fps, position)
            assert clip.shape == (frames, 48, 64, 3) and clip.dtype == np.uint8
            start = max(length - frames * 1000 / fps, 0) * position
            assert indices(clip) == shown(times, start, fps, frames)


@pytest.mark.parametrize("first", [0, 7, 2_000])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm"])
def test_times_count_from_the_first_frame(clips, name, first):
    path = clips(name, tuple(first + time for time in CONSTANT))
    assert indices(decode_clip(path, 16, 25, 0.0)) == list(range(16))
    assert indices(decode_clip(path, 16, 25, 1.0)) == list(range(84, 100))
    assert indices(decode_clip(path, 10)) == list(range(0, 100, 10))  # spread evenly


def test_past_the_end_the_last_frame_is_held(clips):
    path = clips("clip.mp4", CONSTANT[:10])
    assert indices(decode_clip(path, 16, 25)) == [*range(10), *[9] * 6]
    assert indices(decode_clip(path, 4, 1)) == [0, 9, 9, 9]


def test_without_a_frame_rate_frames_spread_over_the_whole(clips):
    path = clips("clip.mp4", CONSTANT)
    assert indices(decode_clip(path, 4)) == [0, 25, 50, 75]
    assert indices(decode_clip(path, 200)) == sorted([*range(100), *range(100)])
    assert indices(decode_clip(path)) == list(range(100))  # every frame


def test_a_stream_that_declares_no_duration(tmp_path):
    path = write_clip(tmp_path / "live.webm", CONSTANT, "libvpx", container_options={"live": "1"})
    assert indices(decode_clip(path, 16, 25, 1.0)) == list(range(16))
    assert indices(decode_clip(path, 4)) == [0, 25, 50, 75]


@pytest.mark.parametrize("size", [(47, 61), (48, 61), (90, 32), (16, 200)])
@pytest.mark.parametrize("codec, pixels, suffix", [("ffv1", "bgr0", "mkv"), ("libx264", "yuv444p", "mp4")])
def test_odd_and_oblong_frames(tmp_path, codec, pixels, suffix, size):
    path = write_clip(tmp_path / f"odd.{suffix}", CONSTANT[:20], codec, pixels, size)
    clip = read_video(path, 8, 25)
    assert clip.shape == (1, 8, *size, 3)
    assert indices(clip[0]) == list(range(6, 14))  # from the middle
    if codec == "ffv1":  # lossless
        np.testing.assert_array_equal(clip[0], [paint(i, *size) for i in range(6, 14)])
    assert read_video(path, 8, 25, size=30).shape == (1, 8, 30, 30, 3)


def test_colours_of_420_are_those_of_rgb(tmp_path):
    """Three flat colours through H.264: the fast conversion is right to the rounding of BT.601."""
    from tubevit.data.moving_digits import write_video

    colours = np.array([[200, 40, 90], [30, 180, 220], [128, 128, 128]], np.uint8)
    write_video(tmp_path / "flat.mp4", np.broadcast_to(colours[:, None, None], (3, 32, 32, 3)))
    clip = decode_clip(tmp_path / "flat.mp4")
    assert np.abs(clip.astype(int) - colours[:, None, None]).max() <= 4


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_metadata(tmp_path, quarters):
    path = write_clip(tmp_path / "phone.mp4", CONSTANT[:8])
    stored = decode_clip(path)
    set_rotation(path, quarters)
    np.testing.assert_array_equal(decode_clip(path), np.rot90(stored, -quarters, axes=(1, 2)))


def test_animated_gif(tmp_path):
    path = write_clip(tmp_path / "a.gif", range(0, 80, 4), "gif", "rgb8", unit=fractions.Fraction(1, 100))
    assert media_kind(path) == "video"
    assert indices(decode_clip(path, 20, 25)) == list(range(20))
    assert indices(decode_clip(path, 5)) == [0, 4, 8, 12, 16]


def cut(source, target, share):
    target.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return target


BAD_FILES = {
    "missing.mp4": lambda path, whole: None,
    "folder.mp4": lambda path, whole: path.mkdir(),
    "empty.mp4": lambda path, whole: path.write_bytes(b""),
    "garbage.mp4": lambda path, whole: path.write_bytes(bytes(range(256)) * 64),
    "text.avi": lambda path, whole: path.write_text("path,label\n" * 99),
    "audio.wav": lambda path, whole: write_audio(path),
    "truncated.mp4": lambda path, whole: cut(whole / "clip.mp4", path, 0.3),  # the index lies at the end
    "truncated.mkv": lambda path, whole: cut(whole / "clip.mkv", path, 0.3),
    "head_only.mkv": lambda path, whole: cut(whole / "clip.mkv", path, 0.01),
    "front_index.mp4": lambda path, whole: cut(whole / "faststart.mp4", path, 0.4),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    noisy = {"stream": {"g": "1"}}
    write_clip(folder / "clip.mp4", CONSTANT, **noisy)
    write_clip(folder / "clip.mkv", CONSTANT, "mpeg4", **noisy)
    write_clip(folder / "faststart.mp4", CONSTANT, container_options={"movflags": "faststart"}, **noisy)
    return folder


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_files_that_are_refused(tmp_path, whole, name, position):
    path = tmp_path / name
    BAD_FILES[name](path, whole)
    for frames, fps in ((16, None), (90, 25)):
        with pytest.raises(DecodeError) as error:
            decode_clip(path, frames, fps, position)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_tail_keeps_what_was_decoded(tmp_path, whole):
    path = cut(whole / "clip.mkv", tmp_path / "tail.mkv", 0.75)
    shown_indices = indices(decode_clip(path, 100, 25, 0.0))
    last = shown_indices[-1]
    assert 85 <= last <= 95
    assert shown_indices == [*range(last), *[last] * (100 - last)]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "jpg", "webp"])
def test_images(tmp_path, suffix):
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), (61, 47))
    path = tmp_path / f"photo.{suffix}"
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    renamed = path.rename(tmp_path / "named_wrongly.mp4")
    assert media_kind(renamed) == "image"  # by content
    read = read_image(renamed)
    assert read.shape == (1, 47, 61, 3) and read.dtype == np.uint8
    if suffix in ("png", "bmp", "tiff"):
        np.testing.assert_array_equal(read[0], image)
    else:
        assert np.abs(read[0].astype(int) - image).mean() < 8
    assert read_image(renamed, size=32).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + b"0" * 50, b"not an image", None])
def test_images_that_are_refused(tmp_path, content):
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match="photo.png"):
        read_image(path)


def test_crop_geometry():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    np.testing.assert_array_equal(crop_resize(clip, (2.4, 3.6, 12), 12), clip[:, 2:14, 4:16])
    np.testing.assert_array_equal(centre_crop(clip, 20), clip[:, :, 5:25])
    np.testing.assert_array_equal(centre_crop(clip.transpose(0, 2, 1, 3), 20), clip.transpose(0, 2, 1, 3)[:, 5:25])
    halved = clip[:, :, 5:25].reshape(3, 10, 2, 10, 2, 3).mean(axis=(2, 4))  # shrinking averages areas
    assert np.abs(centre_crop(clip, 10) - halved).max() <= 0.5
    ramp = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None] * 10, (1, 20, 20, 3))
    grown = crop_resize(ramp, (5, 5, 10), 40)[0, :, 0, 0].astype(float)
    inner = slice(2, -2)  # linear: pixel centres are kept
    np.testing.assert_allclose(grown[inner], (5 + (np.arange(40)[inner] + 0.5) / 4 - 0.5) * 10, atol=1)
