"""Colours against FFmpeg's own scaler, run as a filter, and against the arithmetic of the standards in float64."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.clips import set_rotation
from tubevit.data.decode import decode_clip, decode_frames
from tubevit.data.recode import validated_bytes
from tubevit.data.video import read_video
from tubevit.data.yuv import settle_colours, to_rgb
from tubevit.errors import DecodeError
from tubevit.tubes import Tube, TubeSet
from tubevit.windows import take_windows

# The code, FFmpeg's name, and the shares of red and blue in luma.
MATRICES = {
    2: ("bt601", 0.299, 0.114), 1: ("bt709", 0.2126, 0.0722), 5: ("bt470bg", 0.299, 0.114),
    6: ("smpte170m", 0.299, 0.114), 9: ("bt2020", 0.2627, 0.0593), 7: ("smpte240m", 0.212, 0.087),
    4: ("fcc", 0.3, 0.11),
}  # fmt: skip
RANGES = {0: "tv", 1: "tv", 2: "pc"}
COLOURS = [
    [[255, 255, 255], [0, 0, 0], [128, 128, 128], [0, 186, 0]],
    [[191, 0, 0], [0, 0, 191], [0, 191, 191], [191, 191, 0]],
    [[200, 40, 90], [30, 180, 220], [230, 200, 170], [60, 50, 40]],
]
SIDE = 64  # of a patch; smaller ones suffer in the encoder


def yuv_of(colours, matrix, full):
    """(..., 3) uint8 of RGB."""
    _, red, blue = MATRICES[matrix]
    r, g, b = np.moveaxis(np.array(colours) / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    yuv = np.stack([y, (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)], axis=-1)
    scaled = yuv * 255 + [0, 128, 128] if full else yuv * [219, 224, 224] + [16, 128, 128]
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def rgb_of(yuv, matrix, full):
    """(..., 3) float64, 0..255, of YUV."""
    _, red, blue = MATRICES[matrix]
    values = yuv.astype(float)
    values = (values - [0, 128, 128]) / 255 if full else (values - [16, 128, 128]) / [219, 224, 224]
    y, u, v = np.moveaxis(values, -1, 0)
    r, b = y + (2 - 2 * red) * v, y + (2 - 2 * blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return (np.stack([r, g, b], axis=-1) * 255).clip(0, 255)


def bars(matrix=2, tag=0, pixels="yuv420p", colours=COLOURS, side=SIDE, shape=None):
    """A frame of flat patches with tags."""
    values = yuv_of(colours, matrix, tag == 2).repeat(side, axis=0).repeat(side, axis=1)
    height, width = shape or values.shape[:2]
    planes = np.ascontiguousarray(values[:height, :width].transpose(2, 0, 1))
    frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
    frame.colorspace, frame.color_range = matrix, tag
    return frame.reformat(format=pixels)  # between formats of the same colours, only chroma is averaged


def middles(pixels, side=SIDE):
    """The colours in the middles of the patches: (rows, columns, 3)."""
    return pixels[side // 2 :: side, side // 2 :: side].astype(float)


def by_ffmpeg(frame, matrix, tag):
    graph, name = av.filter.Graph(), MATRICES[matrix][0]
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
    source = graph.add("buffer", f"{size}:time_base=1/25:colorspace={frame.colorspace}:range={frame.color_range}")
    nodes = [source, graph.add("scale", f"in_color_matrix={name}:in_range={RANGES[tag]}")]
    nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
    for one, two in zip(nodes, nodes[1:]):
        one.link_to(two)
    graph.configure()
    frame.pts = 0
    source.push(frame)
    return nodes[-1].pull().to_ndarray()


def write(path, frames, codec="ffv1", pixels=None, **options):
    """Encodes frames without loss, tagged as the first one."""
    with av.open(path, "w", **options) as container:
        track = container.add_stream(codec, rate=8, options={"qp": "0"} if codec == "libx264" else {})
        track.codec_context.time_base = track.time_base = Fraction(1, 8)
        track.width, track.height, track.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        track.codec_context.colorspace, track.codec_context.color_range = frames[0].colorspace, frames[0].color_range
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, Fraction(1, 8)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


@pytest.mark.parametrize("tag", RANGES)
@pytest.mark.parametrize("matrix", MATRICES)
def test_planes_of_many_colours(matrix, tag):
    """8-bit 4:2:0: FFmpeg cuts off, so that a value between its and the exact one is as close to both as can be."""
    colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3))
    frame = bars(matrix, tag, colours=colours, side=8)
    found = middles(to_rgb(frame), 8)
    exact = rgb_of(yuv_of(colours, matrix, tag == 2), matrix, tag == 2)
    assert np.abs(found - exact).max() <= (1.6 if matrix in (2, 5, 6) and tag != 2 else 1.1)
    assert np.abs(found - middles(by_ffmpeg(frame, matrix, tag), 8)).max() <= 2


FILES = {
    "ffv1.mkv": ("ffv1", "yuv420p"), "422.mkv": ("ffv1", "yuv422p"), "444.mp4": ("libx264", "yuv444p"),
    "10.mkv": ("ffv1", "yuv420p10le"), "444_10.mkv": ("ffv1", "yuv444p10le"), "alpha.mkv": ("ffv1", "yuva420p"),
    "h264.mp4": ("libx264", "yuv420p"), "h264.ts": ("libx264", "yuv420p"), "nv12.mkv": ("rawvideo", "nv12"),
    "odd.mkv": ("ffv1", "yuv420p"), "odd_444.mkv": ("ffv1", "yuv444p"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_its_shard_and_ffmpeg_agree(tmp_path, name):
    """On flat patches: as it is, cropped, its windows, turned, and encoded again, upright and turned."""
    codec, pixels = FILES[name]
    shape = (SIDE * 3 - 1, SIDE * 4 - 3) if name.startswith("odd") else None
    tubes = TubeSet((Tube((1, 4, 4), (1, 4, 4)),))
    for matrix in MATRICES:
        for tag in RANGES:
            path = tmp_path / f"{matrix}_{tag}_{name}"
            write(str(path), [bars(matrix, tag, pixels, shape=shape)], codec)
            expected = middles(by_ffmpeg(first_frame(path), matrix, tag))
            exact = rgb_of(yuv_of(COLOURS, matrix, tag == 2), matrix, tag == 2)
            assert np.abs(expected - exact).max() <= 3.5  # FFmpeg cuts off; another matrix would be off by 10 to 50
            clip = decode_clip(path)
            assert np.abs(middles(clip[0]) - expected).max() <= 2
            square = read_video(path, 1, size=SIDE * 3)  # the middle, from half a patch on
            inner = square[0, 0][SIDE // 2 :: SIDE, ::SIDE][:, 1:].astype(float)
            assert np.abs(inner - expected[:, 1:3]).max() <= 2
            windows = read_video(path, 1, size=SIDE * 3, tubes=tubes).windows[0]
            np.testing.assert_array_equal(windows, take_windows(square, tubes).windows[0])
            assert validated_bytes(path, SIDE * 3) == path.read_bytes()
            small = shard(path)
            assert np.abs(small - exact).max() <= 3  # the encoder loses something, too
            assert (
                np.abs(small - middles(by_ffmpeg(first_frame(path, SIDE * 3 // 2), matrix, tag), SIDE // 2)).max() <= 2
            )
            if path.suffix == ".mp4":
                set_rotation(path, 1)
                np.testing.assert_array_equal(decode_clip(path), np.rot90(clip, -1, axes=(1, 2)))
                assert np.abs(np.rot90(shard(path)) - exact).max() <= 3


def first_frame(path, short_side=None):
    """Of the file, or of its shard."""
    with av.open(io.BytesIO(validated_bytes(path, short_side))) as container:
        return next(container.decode(video=0))


def shard(path):
    """The colours of the patches after encoding again with half the size."""
    return middles(decode_clip(validated_bytes(path, SIDE * 3 // 2))[0], SIDE // 2)


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("utvideo.avi", "utvideo", "gbrp"),
        ("ffv1.mkv", "ffv1", "bgra"),
        ("gray.mkv", "ffv1", "gray"),
        ("png.mov", "png", "rgb24"),
        ("animation.mov", "qtrle", "argb"),
    ],
)
def test_colours_without_a_matrix(tmp_path, name, codec, pixels):
    """RGB and grey are kept as they are; the shard is right, too."""
    stored = np.array(COLOURS, np.uint8).repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=pixels)
    expected = frame.to_ndarray(format="rgb24")
    assert pixels == "gray" or (expected == stored).all()
    write(str(tmp_path / name), [frame], codec)
    np.testing.assert_array_equal(decode_clip(tmp_path / name)[0], expected)
    assert np.abs(shard(tmp_path / name) - middles(expected)).max() <= 3


def test_each_frame_has_its_own_colours(tmp_path):
    """Joined recordings: the stream says one thing at its beginning and another one later; the shard has one."""
    kinds, joined = [(1, 1), (6, 1), (9, 2), (1, 1)], b""
    for matrix, tag in kinds:
        write(str(tmp_path / "one.h264"), [bars(matrix, tag)], "libx264")
        joined += (tmp_path / "one.h264").read_bytes()
    path = tmp_path / "joined.h264"
    path.write_bytes(joined)
    for kind, pixels, cropped in zip(kinds, decode_clip(path), read_video(path, size=SIDE * 3)[0], strict=True):
        expected = middles(by_ffmpeg(bars(*kind), *kind))
        assert np.abs(middles(pixels) - expected).max() <= 2
        assert np.abs(cropped[SIDE // 2 :: SIDE, ::SIDE][:, 1:] - expected[:, 1:3]).max() <= 2
    small = validated_bytes(path, SIDE * 3 // 2)
    for pixels, (matrix, tag) in zip(decode_clip(small), kinds, strict=True):
        exact = rgb_of(yuv_of(COLOURS, matrix, tag == 2), matrix, tag == 2)
        assert np.abs(middles(pixels, SIDE // 2) - exact).max() <= 5  # converted and encoded
    with av.open(io.BytesIO(small)) as container:
        assert {(frame.colorspace, frame.color_range) for frame in container.decode(video=0)} == {(1, 1)}


def test_shards_keep_the_declared_colours(tmp_path):
    """As other programs see them; what is not declared stays so."""
    for matrix, tag in ((1, 1), (9, 2), (2, 0), (2, 2), (6, 1)):
        path = tmp_path / f"{matrix}.mp4"
        write(str(path), [bars(matrix, tag)], "libx264")
        with av.open(io.BytesIO(validated_bytes(path, SIDE))) as container:
            frame = next(container.decode(video=0))
            assert (frame.colorspace, frame.color_range) == (matrix, tag)


@pytest.mark.parametrize("code, name", [(8, "YCgCo"), (10, "constant luminance"), (14, "ICtCp")])
def test_matrices_that_are_refused(tmp_path, code, name):
    """FFmpeg's scaler does not convert them either."""
    for size in (None, (191, 253)):
        frame = bars(shape=size)
        frame.colorspace = code
        path = tmp_path / "clip.mkv"
        write(str(path), [frame])
        for read in (lambda: decode_frames(path), lambda: validated_bytes(path), lambda: validated_bytes(path, SIDE)):
            with pytest.raises(DecodeError, match=f"colour matrix .*{name}; expected"):
                read()


@pytest.mark.parametrize("code", [0, 3, 99])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_codes_without_a_meaning_are_untagged(pixels, code):
    frame, plain = bars(pixels=pixels), bars(pixels=pixels)
    frame.colorspace = code
    settle_colours(frame, "it")
    np.testing.assert_array_equal(to_rgb(frame), to_rgb(plain))
