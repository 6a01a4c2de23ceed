"""Damaged files end in pixels or in a clear error; in a process of their own, which a crash of a decoder takes down.

More cases, or others: python -m tests.data.test_fuzz FOLDER CASES SEED. FOLDER keeps the file of the last case.
"""

import dataclasses
import faulthandler
import gc
import os
import pathlib
import re
import resource
import subprocess
import sys

import av
import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.data.clips import write_clip
from tubevit.data.container import METADATA, media_kind
from tubevit.data.decode import decode_clip, decode_frames, decode_image
from tubevit.data.warp import centre_crop
from tubevit.errors import DecodeError

CASES = 600
SECONDS = 20  # for one case; the slowest took 0.3
GROWTH = 64  # MiB, from case 100 on
ROOT = pathlib.Path(__file__).parents[2]
TIMES = tuple(range(0, 12 * 40, 40))
VIDEOS = {
    "a.mp4": {"stream": {"g": "5"}, "container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"stream": {"g": "4"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {"stream": {"g": "250", "bf": "2"}},
    "a.webm": {"codec": "libvpx"},
    "live.webm": {"codec": "libvpx-vp9", "container_options": {"live": "1"}, "stream": {"cpu-used": "8"}},
    "a.avi": {"codec": "mpeg4"},
    "a.mov": {"codec": "mpeg4", "stream": {"g": "6"}},
    "10bit.mkv": {"codec": "ffv1", "pixels": "yuv420p10le", "size": (31, 33)},
    "a.gif": {"codec": "gif", "pixels": "rgb8"},
}
IMAGES = (".jpg", ".png")


def intact_files(folder):
    """Content by name: twelve frames each, a photo of noise."""
    files = {name: write_clip(folder / name, TIMES, **{"size": (32, 48), **how}) for name, how in VIDEOS.items()}
    files = {name: path.read_bytes() for name, path in files.items()}
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8), (5, 5), 0)
    return files | {f"a{suffix}": cv2.imencode(suffix, photo)[1].tobytes() for suffix in IMAGES}


def places(content):
    """Mostly behind what would be found out first."""
    last = max(len(content) - 1, 0)
    return st.integers(0, last) | st.integers(last // 2, last)


def intact(draw, content, files):
    return content


def truncated(draw, content, files):
    return content[: draw(places(content))]


def bits_flipped(draw, content, files):
    content = bytearray(content)
    for position in draw(st.lists(places(content), min_size=1, max_size=40)) if content else ():
        content[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


def spliced(draw, content, files):
    """A part is replaced by a part of this or another file."""
    other = draw(st.sampled_from([content, *files.values()]))
    start, length, origin = draw(places(content)), draw(st.integers(0, 2000)), draw(places(other))
    return content[:start] + other[origin : origin + length] + content[start + draw(st.integers(0, 2000)) :]


def overwritten(draw, content, files):
    """Bytes that mean the most where they are a size, a count or a time."""
    start, fill = draw(places(content)), draw(st.sampled_from([b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]))
    length = draw(st.sampled_from([1, 2, 4, 8, 64]))
    return content[:start] + (fill * length)[:length] + content[start + length :]


DAMAGE = (intact, truncated, bits_flipped, bits_flipped, spliced, overwritten, overwritten)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is read, and how."""

    number: int
    name: str  # of the intact file
    damage: tuple[str, ...]
    suffix: str
    frames: int | None
    fps: float | None
    position: float
    size: int | None
    in_memory: bool


@st.composite
def damaged(draw, files):
    """The case, and the content of the file."""
    name = draw(st.sampled_from(sorted(files)))
    steps = draw(st.lists(st.sampled_from(DAMAGE), min_size=1, max_size=2))
    content = files[name]
    for step in steps:
        content = step(draw, content, files)
    renamed = draw(st.sampled_from(sorted(pathlib.Path(other).suffix for other in files)))
    reading = dict(
        suffix=draw(st.sampled_from([pathlib.Path(name).suffix, renamed])),
        frames=draw(st.sampled_from([1, 7, 16, None])),
        fps=draw(st.sampled_from([None, 2.5, 25.0, 1000.0])),
        position=draw(st.sampled_from([0.0, 0.5, 1.0])),
        size=draw(st.sampled_from([None, 16, 17])),
        in_memory=draw(st.booleans()),
    )
    return Case(0, name, tuple(step.__name__ for step in steps), **reading), content


def run(case, media):
    """What became of it: `pixels` or `refused`; anything else is raised."""
    try:
        if media_kind(media) == "image":
            pixels, rank = decode_image(media), 3
        elif case.size is None:
            pixels, rank = decode_clip(media, case.frames, case.fps, case.position), 4
        else:
            pixels, rank = centre_crop(decode_frames(media, case.frames, case.fps, case.position), case.size), 4
            assert pixels.shape[1:] == (case.size, case.size, 3)
    except DecodeError as error:
        assert "\n" not in str(error)
        return "refused"
    assert pixels.dtype == np.uint8 and pixels.ndim == rank and pixels.shape[-1] == 3 and pixels.size
    assert rank == 3 or len(pixels) == (case.frames or len(pixels))
    return "pixels"


def past_the_header(content):
    """Whether the damage, if any, lies behind what tells the format and the streams."""
    try:
        if media_kind(content) == "image":
            return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
        import io

        with av.open(io.BytesIO(content), **METADATA) as container:
            return len(container.streams.video) > 0
    except (DecodeError, av.FFmpegError, cv2.error, ValueError):
        return False


def resident():
    """MiB."""
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def main(folder, cases, seed):
    """The supervised process: prints what it does, so that a case that kills it is known."""
    folder = pathlib.Path(folder)
    files = intact_files(folder)
    count = {"pixels": 0, "refused": 0, "past the header": 0}
    before = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        derandomize=not seed,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(damaged(files))
    def every_case(drawn):
        case = dataclasses.replace(drawn[0], number=count["pixels"] + count["refused"])
        path = folder / f"case{case.suffix}"
        path.write_bytes(drawn[1])
        print(case, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        count[run(case, drawn[1] if case.in_memory else path)] += 1
        faulthandler.cancel_dump_traceback_later()
        count["past the header"] += past_the_header(drawn[1])
        if case.number == 100:
            before.update(resident=resident(), descriptors=descriptors())

    every_case()
    print("grown by", round(resident() - before["resident"], 1), descriptors() - before["descriptors"])
    # Not getrusage's: that of a process begins with what its parent had.
    status = pathlib.Path("/proc/self/status").read_text()
    print("peak", int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) // 1024)
    print("counted", *count.values())


def test_damaged_files(tmp_path):
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.data.test_fuzz", str(tmp_path), str(CASES), "0"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    *said, grown, peak, counted = ran.stdout.splitlines()
    if ran.returncode:
        pytest.fail(f"exit code {ran.returncode} in the last of these cases:\n{counted}\n{ran.stderr[-3000:]}")
    pixels, refused, past = map(int, counted.split()[1:])
    assert pixels + refused >= CASES and past >= 300
    assert pixels >= 100 and refused >= 100  # neither is the rule
    megabytes, more_descriptors = map(float, grown.split()[2:])
    assert megabytes < GROWTH and more_descriptors == 0
    assert int(peak.split()[1]) < 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
