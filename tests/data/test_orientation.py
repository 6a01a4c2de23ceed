import io
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from tests.data.clips import set_display_matrix
from tests.data.test_yuv import write
from tubevit.data.decode import decode_clip
from tubevit.data.recode import validated_bytes

# What each display matrix (a, b, c, d) does, after the standards of MP4 and QuickTime.
MATRICES = {
    "upright": ((1, 0, 0, 1), lambda image: image),
    "mirrored left to right": ((-1, 0, 0, 1), np.fliplr),
    "mirrored upside down": ((1, 0, 0, -1), np.flipud),
    "turned by 180 degrees": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "turned clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "turned counterclockwise": ((0, -1, 1, 0), np.rot90),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed along the other diagonal": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    "degenerate": ((0, 0, 0, 0), lambda image: image),
}
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def corners(image):
    """The colours of the quarters: (2, 2, 3) of 0 and 255."""
    height, width = image.shape[:2]
    middles = image[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]
    return np.where(middles > 128, 255, 0)


def stored(path, codec="libx264", pixels="yuv420p"):
    image = CORNERS.repeat(48, axis=0).repeat(64, axis=1)
    return write(str(path), [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)], codec)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("name", MATRICES)
def test_eight_orientations(tmp_path, name, pixels):
    """In decoding and in shards, whose kept bytes keep the matrix and whose encoded ones need none."""
    matrix, shown = MATRICES[name]
    path = tmp_path / "clip.mp4"
    stored(path, pixels=pixels)
    plain = decode_clip(path)[0]
    set_display_matrix(path, *matrix)
    np.testing.assert_array_equal(corners(shown(plain)), shown(CORNERS))
    np.testing.assert_array_equal(decode_clip(path)[0], shown(plain))
    assert validated_bytes(path, 96) == path.read_bytes()
    encoded = validated_bytes(path, 48)
    small = decode_clip(encoded)[0]
    assert small.shape == ((64, 48, 3) if shown(plain).shape[0] > 96 else (48, 64, 3))
    np.testing.assert_array_equal(corners(small), shown(CORNERS))
    with av.open(io.BytesIO(encoded)) as container:
        assert not next(container.decode(video=0)).rotation


@pytest.mark.parametrize("degrees", range(-180, 181, 20))
@pytest.mark.parametrize("mirrored", [False, True])
def test_other_angles_are_rounded(tmp_path, degrees, mirrored):
    """To the closest multiple of 90 degrees clockwise, after mirroring left to right."""
    path = tmp_path / "clip.mp4"
    stored(path)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    set_display_matrix(path, -cos if mirrored else cos, -sin if mirrored else sin, -sin, cos)
    expected = np.rot90(np.fliplr(CORNERS) if mirrored else CORNERS, -round(degrees / 90))
    np.testing.assert_array_equal(corners(decode_clip(path)[0]), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_in_a_row(tmp_path, orientation):
    """Motion JPEG of a camera, each frame with EXIF: PyAV 18 does not know the kind of side data that it makes."""
    make = b"Camera\0"
    entries = b"\x01\x0f\0\x02\0\0\0\x07\0\0\0\x26" + b"\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0"
    tag = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\x02" + entries + b"\0\0\0\0" + make
    image = CORNERS.repeat(48, axis=0).repeat(64, axis=1)
    jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    jpeg = jpeg[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + jpeg[2:]
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        track = container.add_stream("mjpeg", rate=8)
        track.width, track.height, track.pix_fmt = 128, 96, "yuvj420p"
        for i in range(3):
            packet = av.Packet(jpeg)
            packet.stream, packet.pts, packet.dts, packet.time_base = track, i, i, Fraction(1, 8)
            packet.is_keyframe = True
            container.mux(packet)
    expected = np.rot90(CORNERS, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    for clip in (decode_clip(path), decode_clip(validated_bytes(path, 48))):
        assert len(clip) == 3
        for frame in clip:
            np.testing.assert_array_equal(corners(frame), expected)
