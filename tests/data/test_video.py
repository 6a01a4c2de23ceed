import fractions
import io

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.clips import CountedPath, indices, paint, set_rotation, write_audio, write_clip
from tubevit import read_image, read_video
from tubevit.data.container import media_kind
from tubevit.data.decode import decode_clip, decode_frames, decode_image, decode_media
from tubevit.data.stream import stream_clips
from tubevit.errors import DecodeError

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
    "clip.ts": {},
    "clip.flv": {"codec": "flv1"},
    "444.mp4": {"pixels": "yuv444p"},
}


def length(path, times):
    """Milliseconds until the last frame ends, which lasts 40 ms; a transport stream stores no durations."""
    if path.suffix != ".ts":
        return times[-1] - times[0] + 40
    with av.open(str(path)) as container:
        return container.duration / 1000


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
    milliseconds = length(path, times)
    assert abs(milliseconds - (times[-1] - times[0] + 40)) <= 40
    for fps, frames in [(25, 16), (10, 16), (7.3, 9), (50, 30), (3, 5)]:
        for position in (0.0, 0.5, 1.0):
            clip = decode_clip(path, frames, fps, position)
            assert clip.shape == (frames, 48, 64, 3) and clip.dtype == np.uint8
            start = max(milliseconds - frames * 1000 / fps, 0) * position
            assert indices(clip) == shown(times, start, fps, frames)
            np.testing.assert_array_equal(decode_clip(path.read_bytes(), frames, fps, position), clip)


def test_avi(tmp_path):
    """It stores no presentation times, only a rate."""
    options = {"codec": "mpeg4", "stream": {"g": "12"}, "unit": fractions.Fraction(1, 25)}
    path = write_clip(tmp_path / "clip.avi", range(100), **options)
    for position, start in ((0.0, 0), (0.5, 42), (1.0, 84)):
        assert indices(decode_clip(path, 16, 25, position)) == list(range(start, start + 16))


@pytest.mark.parametrize("first", [0, 7, 2_000])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm"])
def test_times_count_from_the_first_frame(clips, name, first):
    path = clips(name, tuple(first + time for time in CONSTANT))
    assert indices(decode_clip(path, 16, 25, 0.0)) == list(range(16))
    assert indices(decode_clip(path, 16, 25, 1.0)) == list(range(84, 100))
    assert indices(decode_clip(path, 10)) == list(range(5, 100, 10))  # the middle of each of ten parts


def test_past_the_end_the_last_frame_is_held(clips):
    path = clips("clip.mp4", CONSTANT[:10])
    assert indices(decode_clip(path, 16, 25)) == [*range(10), *[9] * 6]
    assert indices(decode_clip(path, 4, 1)) == [0, 9, 9, 9]


def test_without_a_frame_rate_frames_spread_over_the_whole(clips):
    path = clips("clip.mp4", CONSTANT)
    assert indices(decode_clip(path, 4)) == [12, 37, 62, 87]
    assert indices(decode_clip(path, 4, clip_position=0.0)) == [0, 25, 50, 75]
    assert indices(decode_clip(path, 4, clip_position=1.0)) == [24, 49, 74, 99]
    assert indices(decode_clip(path, 200)) == sorted([*range(100), *range(100)])
    assert indices(decode_clip(path)) == list(range(100))  # every frame


@pytest.mark.parametrize("name", ["live.webm", "bare.h264"])
def test_a_stream_that_declares_no_duration(tmp_path, name):
    stored = {"codec": "libvpx", "container_options": {"live": "1"}} if name == "live.webm" else {"format": "h264"}
    path = write_clip(tmp_path / name, CONSTANT, **stored)
    for media in (path, path.read_bytes()):
        assert indices(decode_clip(media, 4)) == [12, 37, 62, 87]
        assert indices(decode_clip(media, 16, 25, 0.0)) == list(range(16))
        assert indices(decode_clip(media, 16, 25, 1.0)) == list(range(84, 100))


@pytest.mark.parametrize("size", [(47, 61), (48, 61), (90, 32), (16, 200)])
@pytest.mark.parametrize(
    "codec, pixels, suffix",
    [
        ("ffv1", "bgr0", "mkv"),
        ("libx264", "yuv444p", "mp4"),
        ("ffv1", "yuv420p", "mkv"),
        ("ffv1", "yuv420p10le", "mkv"),
    ],
)
def test_odd_and_oblong_frames(tmp_path, codec, pixels, suffix, size):
    path = write_clip(tmp_path / f"odd.{suffix}", CONSTANT[:20], codec, pixels, size)
    clip = read_video(path, 8, 25)
    assert clip.shape == (1, 8, *size, 3)
    assert indices(clip[0]) == list(range(6, 14))  # from the middle
    if pixels == "bgr0":  # lossless
        np.testing.assert_array_equal(clip[0], [paint(i, *size) for i in range(6, 14)])
    assert read_video(path, 8, 25, size=30).shape == (1, 8, 30, 30, 3)


def test_colours_of_420_are_those_of_rgb(tmp_path):
    """Three flat colours through H.264: the fast conversion is right to the rounding of BT.601."""
    from tubevit.data.moving_digits import write_video

    colours = np.array([[200, 40, 90], [30, 180, 220], [128, 128, 128]], np.uint8)
    write_video(tmp_path / "flat.mp4", np.broadcast_to(colours[:, None, None], (3, 32, 32, 3)))
    clip = decode_clip(tmp_path / "flat.mp4")
    assert np.abs(clip.astype(int) - colours[:, None, None]).max() <= 4


@pytest.mark.parametrize("codec, pixels", [("ffv1", "yuv420p10le"), ("ffv1", "yuv422p"), ("mjpeg", "yuvj420p")])
def test_colours_of_other_formats(tmp_path, codec, pixels):
    """More bits, more chroma and the full range of values: the colours are those of 8-bit 4:2:0."""
    plain = decode_clip(write_clip(tmp_path / "plain.mkv", CONSTANT[:9], "ffv1"))
    clip = decode_clip(write_clip(tmp_path / "other.mkv", CONSTANT[:9], codec, pixels))
    assert np.abs(clip.astype(int) - plain)[:, :, 2::8].max() <= 3  # inside the bars
    assert set(np.unique(clip[:, 4:-4, 4::8] // 8)) <= {1, 2, 29}  # 16 and 235, as painted


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_metadata(tmp_path, quarters):
    path = write_clip(tmp_path / "phone.mp4", CONSTANT[:8])
    stored = decode_clip(path)
    set_rotation(path, quarters)
    np.testing.assert_array_equal(decode_clip(path), np.rot90(stored, -quarters, axes=(1, 2)))
    np.testing.assert_array_equal(decode_clip(path.read_bytes()), np.rot90(stored, -quarters, axes=(1, 2)))
    assert read_video(path, 4, 25, size=32).shape == (1, 4, 32, 32, 3)


def test_names_and_metadata_that_ffmpeg_stumbles_over(tmp_path, monkeypatch):
    """A colon in a relative name is no protocol; a title that is not UTF-8 (old AVI files) is no reason to refuse."""
    monkeypatch.chdir(tmp_path)
    path = write_clip(tmp_path / "12:30%02d é.avi", CONSTANT[:20], "mpeg4")
    content = path.read_bytes().replace(b"Lavf", b"L\xe4vf")
    path.write_bytes(content)
    for media in ("12:30%02d é.avi", content):
        assert indices(decode_clip(media, 8, 25, 0.0)) == list(range(8))


def test_a_change_of_size_is_refused_where_it_shows(tmp_path):
    both = b"".join(
        write_clip(tmp_path / f"{height}.h264", CONSTANT[:50], size=(height, 64), format="h264").read_bytes()
        for height in (48, 64)
    )
    assert indices(decode_clip(both, 16, 25, 0.0)) == list(range(16))
    with pytest.raises(DecodeError, match="the file changes its size"):
        decode_clip(both)


def test_a_cover_picture_is_not_a_video(tmp_path):
    """Music files carry their cover as a video stream; a clip may carry its thumbnail as the first one."""
    cover = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    path = write_clip(tmp_path / "clip.mp4", CONSTANT[:20])
    plain = decode_clip(path)
    with_cover = tmp_path / "cover.mp4"
    attach(path, with_cover, cover)
    np.testing.assert_array_equal(decode_clip(with_cover), plain)
    attach(write_audio(tmp_path / "audio.wav"), tmp_path / "music.mp4", cover)
    with pytest.raises(DecodeError, match="no video stream"):
        decode_clip(tmp_path / "music.mp4")


def attach(source, target, cover):
    """Copies the streams of a file behind that of a picture."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        picture = new.add_stream("png", rate=1)
        picture.width = picture.height = 8
        picture.pix_fmt = "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        copied = new.add_stream_from_template(old.streams[0])
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        new.mux(packet)
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = copied
                new.mux(packet)


def test_animated_gif(tmp_path):
    path = write_clip(tmp_path / "a.gif", range(0, 80, 4), "gif", "rgb8", unit=fractions.Fraction(1, 100))
    assert media_kind(path) == "video"
    assert indices(decode_clip(path, 20, 25)) == list(range(20))
    assert indices(decode_clip(path, 5)) == [2, 6, 10, 14, 18]
    np.testing.assert_array_equal(decode_clip(path.read_bytes(), 5), decode_clip(path, 5))


def cut(source, target, share):
    target.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return target


BAD_FILES = {
    "missing.mp4": lambda path, whole: None,
    "folder.mp4": lambda path, whole: path.mkdir(),
    "empty.mp4": lambda path, whole: path.write_bytes(b""),
    "photo.heic": lambda path, whole: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "photo.avif": lambda path, whole: path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
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
        if path.is_file():
            with pytest.raises(DecodeError, match=r"^(cannot \w+ )?the file "):
                decode_clip(path.read_bytes(), frames, fps, position)


def test_a_damaged_tail_keeps_what_was_decoded(tmp_path, whole):
    path = cut(whole / "clip.mkv", tmp_path / "tail.mkv", 0.75)
    with av.open(str(whole / "clip.mkv")) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    last = sum(packet.pos + packet.size <= path.stat().st_size for packet in packets) - 1
    assert 80 <= last < 99
    assert indices(decode_clip(path, 100, 25, 0.0)) == [*range(last), *[last] * (100 - last)]


def test_damage_in_the_middle_is_refused_where_it_shows(tmp_path):
    """Only a tail may be missing: otherwise frames that are there would be left out."""
    path = write_clip(tmp_path / "clip.mp4", CONSTANT, "mpeg4", stream={"g": "1"})
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(container.streams.video[0]) if packet.size]
    content = bytearray(path.read_bytes())
    content[starts[60] : starts[61]] = bytes(starts[61] - starts[60])
    assert indices(decode_clip(bytes(content), 16, 25, 0.0)) == list(range(16))
    assert indices(decode_clip(bytes(content), 16, 25, 1.0)) == list(range(84, 100))
    for frames, fps in ((None, None), (90, 25), (16, None)):
        with pytest.raises(DecodeError, match="the file is damaged at 2.40 s"):
            decode_clip(bytes(content), frames, fps, 0.0)
    content[starts[60] : starts[-1]] = bytes(starts[-1] - starts[60])
    assert indices(decode_clip(bytes(content), 90, 25, 0.0)) == [*range(60), *[59] * 30]


@pytest.mark.parametrize("position", [0.0, 0.5])
def test_half_of_the_requested_span_must_be_there(tmp_path, whole, position):
    """Of 100 declared frames some are there: a clip is refused if they cover less than half of its span."""
    path = cut(whole / "faststart.mp4", tmp_path / "cut.mp4", 0.7)
    there = len(decode_clip(path))
    assert 50 <= there <= 60
    for frames in (20, 40, 70, 100, 200):
        span = min(frames, 100)
        start = (100 - span) * position
        covered = min(there - start, span)
        if covered >= span / 2:
            shown_indices = indices(decode_clip(path, frames, 25, position))
            assert shown_indices == np.clip(np.arange(frames) + int(start), 0, there - 1).tolist()
        else:
            with pytest.raises(DecodeError, match=f"truncated: of the {span / 25:.2f} s from {start / 25:.2f} s"):
                decode_clip(path, frames, 25, position)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_shown_upright(tmp_path, orientation):
    """The eight orientations of EXIF, as cameras write them into a JPEG."""
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16], stored[:16, 16:] = (255, 0, 0), (0, 255, 0)
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    jpeg = cv2.imencode(".jpg", stored[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    jpeg = jpeg[:2] + b"\xff\xe1" + (len(tag) + 8).to_bytes(2, "big") + b"Exif\0\0" + tag + jpeg[2:]
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    turned = stored.transpose(1, 0, 2) if orientation >= 5 else stored
    flips = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    upright = turned[:: flips[0], :: flips[1]]
    for media in (jpeg, tmp_path / "photo.jpg"):
        image = decode_image(media)
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright)[4:-4:8, 4:-4:8].max() < 20


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
    np.testing.assert_array_equal(decode_image(renamed.read_bytes()), read[0])
    assert read_image(renamed, size=32).shape == (1, 32, 32, 3)


def picture(mode: str, suffix: str) -> tuple[bytes, np.ndarray]:
    """An encoded picture in one of Pillow's modes, and what it shows as RGB."""
    colours = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), (61, 47))
    if mode == "I;16":  # 16 bits of grey
        grey = colours[..., 0]
        file = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
        return file, np.repeat(grey[..., None], 3, axis=2)
    image = Image.fromarray(colours).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(colours[..., 1]))  # is dropped
    file = io.BytesIO()
    image.save(file, suffix, **({"quality": 100} if suffix == "JPEG" else {}))
    return file.getvalue(), colours if mode == "RGBA" else np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "mode, suffix, most", [("I;16", "PNG", 0), ("RGBA", "PNG", 0), ("P", "PNG", 0), ("L", "PNG", 0), ("1", "PNG", 0),
                           ("L", "JPEG", 1), ("CMYK", "JPEG", 3), ("LA", "PNG", 0), ("RGB", "TIFF", 0)],
)  # fmt: skip
def test_images_of_other_colours_than_8_bit_rgb(mode, suffix, most):
    file, expected = picture(mode, suffix)
    found = decode_image(file)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= most


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + b"0" * 50, b"not an image", None])
def test_images_that_are_refused(tmp_path, content):
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match="photo.png"):
        read_image(path)


def test_a_file_is_opened_once(tmp_path):
    video = write_clip(tmp_path / "clip.mp4", CONSTANT)
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.arange(36 * 48 * 3, dtype=np.uint8).reshape(36, 48, 3))
    for path, kind, seconds in ((video, "video", 4.0), (image, "image", None)):
        counted = CountedPath(path)
        decoded = decode_media(counted, 16, 8)
        assert counted.count == 1 and (decoded.kind, decoded.seconds) == (kind, seconds)
        read = read_image(path, 32) if kind == "image" else read_video(path, 16, 8, 32)
        np.testing.assert_array_equal(decoded.pixels(32), read)
        counted = CountedPath(path)
        parts = list(stream_clips(counted, 16, 8, 1.0))
        assert counted.count == 1 and {(part.kind, part.seconds) for part in parts} == {(kind, seconds)}
    counted = CountedPath(video)
    decode_frames(counted, 16)
    assert counted.count == 1


def test_an_image_that_declares_too_many_pixels_asks_for_no_memory():
    encoded = bytearray(cv2.imencode(".png", np.zeros((40, 56, 3), np.uint8))[1].tobytes())
    encoded[16:24] = (40_000).to_bytes(4, "big") * 2
    with pytest.raises(DecodeError, match="more than 268435456 pixels"):
        decode_image(bytes(encoded))
