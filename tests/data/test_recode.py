import ctypes
import io
import pathlib

import av
import numpy as np
import pytest

from tubevit.data import recode


@pytest.fixture
def without_simd(monkeypatch):
    """A function after which FFmpeg and x264 use no instructions that processors may lack."""
    maps = pathlib.Path("/proc/self/maps").read_text()
    (library,) = {line.split()[-1] for line in maps.splitlines() if "av.libs/libavutil" in line}
    force = ctypes.CDLL(library).av_force_cpu_flags

    def switch_off():
        force(0)
        monkeypatch.setattr(recode, "X264", f"{recode.X264}:asm=0")

    yield switch_off
    force(-1)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p10le"])
def test_encoded_bytes_do_not_depend_on_the_processor(pixels, without_simd):
    """Otherwise the workers of an engine would write other shards than the local command."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (40, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        track = container.add_stream("ffv1", rate=25)
        track.width, track.height, track.pix_fmt = 160, 120, pixels
        for i in range(6):
            picture = np.ascontiguousarray(scene[3 * i : 3 * i + 120, 5 * i : 5 * i + 160])
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    encoded = recode.validated_bytes(file.getvalue(), 70)
    without_simd()
    assert recode.validated_bytes(file.getvalue(), 70) == encoded
