"""Both paths of the input give the same windows: whole clips whose windows are taken, and only the pixels read."""

import dataclasses
import itertools

import av
import numpy as np
import pytest

from tests.data.clips import indices, write_clip
from tubevit.data import colour, warp
from tubevit.data.augment import Augment
from tubevit.data.joint import joint_batches
from tubevit.data.pipeline import SampleLoader, evaluation_rows, iterate
from tubevit.data.sources import open_source
from tubevit.data.video import read_image, read_video
from tubevit.data.views import Views
from tubevit.data.warp import sample, sample_grids, square_map
from tubevit.tubes import PRESETS, TubeSet
from tubevit.windows import TubeBatch, WindowPlan, take_windows, whole_grid

ALL = Augment(
    random_crop=True, area=0.3, flip=True, rand_layers=3, rand_magnitude=9.0, colour_jitter=0.4, erasing=0.5,
    frame_order="shuffled",
)  # fmt: skip
T = 64


@pytest.fixture(scope="module")
def frames():
    """{kind: T frames with detail at all scales}: decoded ones of even size, and RGB of odd size; one is held.

    The colours of the decoded ones change from frame to frame.
    """
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (T, 57, 91, 3), np.uint8)
    decoded = []
    for i in range(T):
        frame = av.VideoFrame(146, 98, "yuv420p")
        frame.colorspace, frame.color_range = [(2, 0), (1, 1), (9, 2)][i % 3]
        for plane in frame.planes:
            plane.update(rng.integers(16, 236, plane.buffer_size, np.uint8).tobytes())
        decoded.append(frame)
    return {"decoded": [*decoded[:7], *decoded[6:-1]], "rgb": list(rgb)}


def whole_pixels(size):
    return [whole_grid((T, size, size))]


def same(parts, tubes, clip):
    batch = take_windows(clip[None], tubes)
    expected = (*batch.windows, *batch.chosen)
    for one, two in zip(WindowPlan(tubes, clip.shape[:3]).arrays(parts), expected, strict=True):
        np.testing.assert_array_equal(one, two[0])


@pytest.mark.parametrize("size", [96, 45])
@pytest.mark.parametrize("kind", ["decoded", "rgb"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_with_every_augmentation(frames, name, kind, size):
    """For the same seed exactly the same values; frames of 96 are enlarged in part and reduced in part."""
    tubes, some = TubeSet(PRESETS[name].tubes, "same"), frames[kind]
    grids = WindowPlan(tubes, (T, size, size)).grids
    for seed in range(3):
        transform = ALL.sample_transform(warp.frame_size(some[0]), T, size, np.random.default_rng(seed))
        same(transform(some, size, grids), tubes, transform(some, size, whole_pixels(size))[0])


@pytest.mark.parametrize("budget", ["20%", "10%:tube", "25%:motion", "15%:random"])
@pytest.mark.parametrize("kind", ["decoded", "rgb"])
def test_every_budget(frames, kind, budget):
    """Only the pixels of kept tokens are computed, where they are known beforehand; a tube may have none."""
    tubes, some = TubeSet(PRESETS["paper"].tubes, "same").with_budget(budget), frames[kind]
    grids = WindowPlan(tubes, (T, 96, 96)).grids
    where = square_map(*warp.frame_size(some[0]), 96)
    same(sample_grids(some, where, 96, grids), tubes, sample_grids(some, where, 96, whole_pixels(96))[0])
    if budget == "10%:tube":
        assert [bool(grid.times.size) for grid in grids] == [True, False, False, False]


def test_all_operations_were_met():
    """Those that the seeds of the test above do not draw are drawn by more."""
    pointwise, geometric, noise = set(), set(), 0
    for seed in range(200):
        transform = ALL.sample_transform((98, 146), T, 96, np.random.default_rng(seed))
        assert not transform.pointwise  # the contrast of the jitter
        plain = dataclasses.replace(ALL, colour_jitter=0.0).sample_transform(
            (98, 146), T, 96, np.random.default_rng(seed)
        )
        pointwise |= {plain.pointwise}
        geometric.add(bool(plain.matrix[0, 1]))
        noise += plain.noise is not None
    assert pointwise == geometric == {True, False} and 70 < noise < 130


@pytest.mark.parametrize("change, value", [*zip(colour.POINTWISE, (1.7, 0.2, 4.4, 99.0))])
def test_pointwise_colours(frames, change, value, monkeypatch):
    """They need no other pixels, and none are computed."""
    plain = dataclasses.replace(ALL, rand_layers=0, colour_jitter=0.0, erasing=1.0)
    tubes, asked = TubeSet.from_text("4x4x4/8x16x16%2x1x1_2x6x6/8x16x16"), []
    reading = WindowPlan(tubes, (T, 64, 64))
    for some in frames.values():
        transform = plain.sample_transform(warp.frame_size(some[0]), T, 64, np.random.default_rng(5))
        transform = dataclasses.replace(transform, changes=((change, value),))
        whole = transform(some, 64, whole_pixels(64))[0]
        points = warp._Blocks.points
        with monkeypatch.context() as patch:
            patch.setattr(
                warp._Blocks, "points", lambda self, y, x: asked.append(len(y) * len(x)) or points(self, y, x)
            )
            same(transform(some, 64, reading.grids), tubes, whole)
        assert transform.pointwise
    assert max(asked) <= 24 * 24


@pytest.mark.parametrize("change", [colour.contrast, colour.autocontrast, colour.equalize, colour.sharpness])
def test_colours_of_the_whole_clip(frames, change):
    tubes = PRESETS["small"]
    transform = Augment().sample_transform((98, 146), T, 64, np.random.default_rng(0))
    transform = dataclasses.replace(transform, changes=((colour.brightness, 0.5), (change, 0.3)))
    assert not transform.pointwise
    parts = transform(frames["decoded"], 64, WindowPlan(tubes, (T, 64, 64)).grids)
    same(parts, tubes, transform(frames["decoded"], 64, whole_pixels(64))[0])


def test_the_right_frames_and_places(tmp_path):
    """Numbers painted into the frames of a real file come out where the tubes read them."""
    path = write_clip(tmp_path / "a.mp4", range(0, 3200, 40), size=(64, 64))
    tubes = TubeSet.from_text("4x8x8/8x16x16_1x64x64/5x64x64")
    batch = read_video(path, frames=40, fps=12.5, size=64, tubes=tubes)
    whole = batch.windows[1].reshape(8, 64, 64, 3)
    assert indices(whole) == [10 * i for i in range(8)]  # every fifth frame at half of the rate
    clip = read_video(path, frames=40, fps=12.5, size=64)
    for one, two in zip(batch.windows, take_windows(clip, tubes).windows, strict=True):
        np.testing.assert_array_equal(one, two)
    assert indices(clip[0]) == list(range(0, 80, 2))


def test_held_frames_are_sampled_once(frames, monkeypatch):
    made, reduce = [], warp._Blocks.reduce
    monkeypatch.setattr(warp._Blocks, "reduce", lambda self, plane: made.append(1) or reduce(self, plane))
    some = [frames["rgb"][0]] * T
    grids = WindowPlan(PRESETS["small"], (T, 48, 48)).grids
    parts = sample_grids(some, square_map(57, 91, 48), 48, grids)
    assert len(made) < 10 and len(sample(some, square_map(57, 91, 48), 48)) == T
    assert all((part == part[0]).all() for part in parts)


@pytest.fixture(scope="module")
def loads(digits_cache):
    """{path: {name: (SampleLoader, batch size)}} of clips and images."""
    tubes = TubeSet.from_text("4x8x8/8x16x16_1x8x8/16x16x16")
    augment = dataclasses.replace(ALL, rand_layers=1, colour_jitter=0.0, frame_order="forward")
    dense = {
        name: (SampleLoader(open_source(source, "train"), 16, 8.0, 48, augment), size)
        for name, source, size in (("clips", "moving_digits", 3), ("stills", "still_digits", 5))
    }
    read = {"clips": tubes, "stills": tubes.for_images()}
    sparse = {name: (dataclasses.replace(load, tubes=read[name]), size) for name, (load, size) in dense.items()}
    return {"dense": dense, "tubes": sparse}


@pytest.mark.parametrize("settings", [{}, {"threads": 2, "workers": 1}], ids=str)
def test_batches_of_a_run(loads, settings):
    """The same files, labels and pixels at every step, from threads and from processes; the dense ones are counted."""
    streams = {path: joint_batches(loads[path], 3, first=2, **settings) for path in loads}
    counted = {"dense": 0, "tubes": 0}
    for dense, sparse in itertools.islice(zip(*streams.values()), 6):
        for name, (load, size) in loads["tubes"].items():
            one, two = dense[name], sparse[name]
            expected = take_windows(one["pixels"], load.tubes)
            assert isinstance(two["pixels"], TubeBatch) and two["pixels"].dense_shape == one["pixels"].shape
            assert two["pixels"].tubes == load.tubes and len(two["dense"]) == size
            for a, b in zip(two["pixels"].windows, expected.windows, strict=True):
                np.testing.assert_array_equal(a, b)
            for key in ("label", "file", "broken"):
                np.testing.assert_array_equal(one[key], two[key])
            counted["dense"] += one["dense"].sum()
            counted["tubes"] += two["dense"].sum()
    assert counted["dense"] == 0 < counted["tubes"] < 6 * 8 / 2
    for stream in streams.values():
        stream.close()


@pytest.mark.parametrize("name, views", [("clips", "2x3"), ("stills", "1x3"), ("clips", "1x1")])
def test_views_of_an_evaluation(loads, name, views):
    views, streams = Views.from_text(views), []
    for path in ("dense", "tubes"):
        load = loads[path][name][0]
        streams.append((load, iterate(evaluation_rows(load, views, 7, 0), 7)))
    (_, dense), (load, sparse) = streams
    for one, two in zip(dense, sparse, strict=True):
        pixels = load.batch(two)["pixels"]
        np.testing.assert_array_equal(one["mask"], two["mask"])
        for view in range(views.spatial):
            expected = take_windows(one["pixels"][:, view], load.tubes).windows
            for a, b in zip(pixels.windows, expected, strict=True):
                np.testing.assert_array_equal(a[:, view], b)


def test_files_of_a_user(digits_cache, tmp_path):
    tubes = TubeSet.from_text("4x8x8/8x16x16_1x8x8/16x16x16", "same")
    video, image = next((digits_cache).rglob("*.mp4")), next((digits_cache).rglob("*.png"))
    for settings in ({"frames": 13, "size": 37}, {"frames": 12}):
        clip = read_video(video, **settings)
        found = read_video(video, **settings, tubes=tubes)
        for one, two in zip(found.windows, take_windows(clip, tubes).windows, strict=True):
            np.testing.assert_array_equal(one, two)
    for settings in ({"size": 37}, {}):
        found = read_image(image, **settings, tubes=tubes)
        expected = take_windows(read_image(image, **settings), tubes)
        assert found.shape == expected.shape and found.tubes == expected.tubes
        np.testing.assert_array_equal(found.windows[0], expected.windows[0])
