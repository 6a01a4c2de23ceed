"""Film strips of moments: the frames of their times, and what cannot be shown."""

import numpy as np
import pytest

from tests.data.clips import indices, write_clip
from tubevit.evaluation.search import Moment
from tubevit.models.config import ModelConfig
from tubevit.visualize import moments, style
from tubevit.visualize.page import write_page


@pytest.fixture(scope="module")
def config():
    return ModelConfig("tiny", 24, 1, 2, 40, tubes="small", frames=16, fps=8.0, size=64)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """10 s at 25 FPS, of which each frame shows its number."""
    return write_clip(tmp_path_factory.mktemp("clips") / "long.mp4", range(0, 10000, 40), size=(64, 96))


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00.0"), (61.25, "1:01.3"), (59.96, "1:00.0"), (3723.5, "1:02:03.5"), (35999.9, "9:59:59.9")],
)
def test_times_as_a_clock_shows_them(seconds, text):
    assert moments.clock(seconds) == text


def strips(section):
    """{name: (times, title, drawn pixels)} of the strips of a section."""
    found = {}
    with style.themed(style.LIGHT):
        for picture in section.pictures:
            (axes,) = picture.draw().axes
            times = [text.get_text() for text in axes.texts]
            found[picture.name] = (times, axes.get_title(loc="left"), np.asarray(axes.images[0].get_array()))
    return found


def shown(pixels, count):
    """The numbers that the frames of a strip show."""
    width = (pixels.shape[1] + style.GAP) // count
    frames = [pixels[:, i * width : (i + 1) * width - style.GAP] for i in range(count)]
    return indices((np.stack(frames) * 255).astype(np.uint8))


def test_strips_show_the_frames_of_the_moment(config, video, tmp_path):
    found = [(video, [Moment(str(video), 2.0, 5.0, 0.75), Moment(str(video), None, None, 0.5)])]
    (section,) = moments.sections(config, found)
    drawn = strips(section)
    assert list(drawn) == ["query_0", "moment_0_1", "moment_0_2"]
    times, title, pixels = drawn["moment_0_1"]
    assert times == ["0:02.0", "0:02.5", "0:03.0", "0:03.5", "0:04.0", "0:04.5"]
    assert title.replace("\n", " ") == style.wrapped(f"1.  {video},  0:02.0 to 0:05.0,  similarity 0.750").replace(
        "\n", " "
    )
    assert shown(pixels, 6) == [50, 62, 75, 87, 100, 112]
    # Of a whole file, what the model saw: 2 s from its middle, that is from 4 s on.
    clip = 4 + style.evenly(6, 16) / 8
    for name in ("query_0", "moment_0_2"):
        times, title, pixels = drawn[name]
        assert times == [moments.clock(time) for time in clip] and shown(pixels, 6) == [
            int(t * 25 + 1e-3) for t in clip
        ]
    page = write_page(tmp_path / "out", "Similar moments", {}, [section])
    assert open(page).read().count("<img") == 3


def test_what_cannot_be_shown_is_left_out_with_the_reason(config, video, said):
    found = [(video, [Moment("gone.mp4", 1.0, 3.0, 0.9), Moment(str(video), 100.0, 102.0, 0.8)])]
    (section,) = moments.sections(config, found)
    assert list(strips(section)) == ["query_0"]
    assert "1. is left out: cannot read gone.mp4" in section.caption and "2. is left out: " in section.caption
    assert len([line for line in said if "gone.mp4" in line]) == 1


def test_images_large_pictures_and_small_ones(config, tmp_path):
    import cv2

    for name, shape in {"large.png": (900, 1500), "small.png": (30, 20)}.items():
        cv2.imwrite(str(tmp_path / name), np.full((*shape, 3), 90, np.uint8))
    found = [(tmp_path / "large.png", [Moment(str(tmp_path / "small.png"), None, None, 0.9)])]
    (section,) = moments.sections(config, found)
    (no_times, title, large), (_, _, small) = strips(section).values()
    assert no_times == [] and title.startswith("Query: ") and large.shape[:2] == (216, 360)
    assert small.shape[0] >= 128 and small.shape[0] * 2 == small.shape[1] * 3
