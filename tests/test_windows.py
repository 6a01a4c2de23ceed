"""Windows as data: against loops, and against what the tokenizer takes from clips on the device."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import tubevit
from tubevit.errors import UserError
from tubevit.models.config import Head
from tubevit.models.tokenizer import as_windows
from tubevit.tubes import PRESETS, TubeSet
from tubevit.windows import TubeBatch, WindowPlan, take_windows, whole_grid, window_shapes

OVERLAPPING = "3x9x10/4x6x8+1x2x0%2x3x1_1x12x12/8x8x8"
HEADS = {"motion": Head(8, "video"), "digit": Head(10, "image")}


def clips(*shape, batch=2):
    return np.random.default_rng(0).integers(1, 256, (batch, *shape, 3), np.uint8)


def by_loops(clip, tube, padding):
    """(N, f, k_t * k_y * k_x * 3), pixel by pixel."""
    times, rows, columns = tube.indices(clip.shape[:3], padding)
    tokens = []
    for token in np.ndindex(*(index.shape[0] for index in (times, rows, columns))):
        subs = []
        for sub in np.ndindex(*(index.shape[1] for index in (times, rows, columns))):
            axes = [index[i, j] for index, i, j in zip((times, rows, columns), token, sub)]
            values = np.zeros((*map(len, axes), 3), clip.dtype)
            for place in np.ndindex(*map(len, axes)):
                t, y, x = (int(axis[i]) for axis, i in zip(axes, place))
                if all(o <= p < s for p, o, s in zip((t, y, x), tube.offset, clip.shape)):
                    values[place] = clip[t, y, x]
            subs.append(values.ravel())
        tokens.append(subs)
    return np.array(tokens)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("text", [OVERLAPPING, "4x4x4/8x16x16%2x1x1_8x2x2/3x16x16+2x4x4%1x2x2"])
def test_equal_loops(text, padding):
    tubes, clip = TubeSet.from_text(text, padding), clips(11, 23, 34)[0]
    batch = take_windows(clip[None], tubes)
    for tube, found in zip(tubes.tubes, batch.windows):
        np.testing.assert_array_equal(found[0], by_loops(clip, tube, padding))
    assert batch.dense_shape == (1, 11, 23, 34, 3) and batch.nbytes == tubes.values_read((11, 23, 34))


def by_index(clip, tube, padding):
    """The same by one index into a clip with black around it."""
    around = 40
    dark = np.zeros([size + 2 * around for size in clip.shape[:3]] + [3], clip.dtype)
    read = tuple(slice(around + offset, around + size) for offset, size in zip(tube.offset, clip.shape))
    dark[read] = clip[tuple(slice(offset, None) for offset in tube.offset)]
    indices = tube.indices(clip.shape[:3], padding)
    pixels = dark[np.ix_(*(index.ravel() + around for index in indices))]
    pixels = pixels.reshape(*(size for index in indices for size in index.shape), 3)
    return pixels.transpose(0, 3, 6, 1, 4, 7, 2, 5, 8, 9).reshape(-1, tube.sub_windows, 3 * tube.volume)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, padding):
    tubes = TubeSet(PRESETS[name].tubes, padding)
    video = clips(67, 67, 80, batch=1)
    batch = take_windows(video, tubes)
    batch.check()
    assert [window.shape[1:] for window in batch.windows] == window_shapes(tubes, (67, 67, 80))
    for tube, found in zip(tubes.tubes, batch.windows, strict=True):
        np.testing.assert_array_equal(found[0], by_index(video[0], tube, padding))


def test_clips_that_are_too_small():
    with pytest.raises(UserError, match="a clip of 9x64x64 .* is too small for tube 16x4x4"):
        take_windows(clips(9, 64, 64), PRESETS["paper"])
    with pytest.raises(UserError, match="takes no images"):
        take_windows(clips(64, 64), PRESETS["dense_2x16x16"])


@pytest.mark.parametrize("text", [str(PRESETS["small"]), OVERLAPPING])
def test_equal_what_the_device_takes(text):
    tubes, video = TubeSet.from_text(text, "same"), clips(17, 35, 50)
    expected = jax.jit(as_windows, static_argnums=1)(video, tubes)
    for one, two in zip(take_windows(video, tubes).windows, expected.windows, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("padding, dtype", [("same", np.uint8), ("valid", np.float32)])
def test_a_model_gives_the_same_for_windows(tiny, padding, dtype):
    model = tiny(heads=HEADS, padding=padding)
    forward = jax.jit(lambda video, head: model(video, head=head), static_argnums=1)
    for video, head in ((clips(17, 64, 75), "motion"), (clips(64, 75), "digit")):
        video = video if dtype == np.uint8 else (video / 127.5 - 1).astype(np.float32)
        found = forward(take_windows(video, model.config.tubes), head)
        np.testing.assert_allclose(found, forward(video, head), rtol=0, atol=1e-5)


def test_only_the_tokens_of_its_tubes_are_accepted(tiny):
    model = tiny(heads=HEADS)
    video, image = clips(16, 64, 64), clips(64, 64)
    batch = take_windows(video, model.config.tubes)
    with pytest.raises(UserError, match="the windows belong to tubes 2x.* the model has 4x4x4/8x16x16"):
        model(take_windows(video, PRESETS["dense_2x16x16"]), head="motion")
    with pytest.raises(UserError, match=r"head 'motion' takes videos .*; found \(2, 64, 64, 3\)"):
        model(take_windows(image, model.config.tubes), head="motion")
    with pytest.raises(UserError, match=r"head 'digit' takes images .*; found a video of shape \(2, 16, 64, 64, 3\)"):
        model(batch, head="digit")
    with pytest.raises(UserError, match=r"windows of tube .* must be \(2, \d+, 2, 192\); found \(2, \d+, 2, 192\)"):
        model(TubeBatch(batch.windows, batch.tubes, (24, 64, 64)), head="motion")
    with pytest.raises(UserError, match="expected windows of 4 tubes; found 3"):
        model(TubeBatch(batch.windows[1:], batch.tubes, batch.shape), head="motion")
    with pytest.raises(UserError, match="uint8 0..255 or float -1..1; found int32"):
        model(jax.tree.map(lambda x: x.astype(np.int32), batch), head="motion")


def test_a_batch_is_a_pytree(tiny):
    batch = take_windows(clips(16, 64, 64), PRESETS["small"])
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in (0, 1)]
    assert halves[0].shape == batch.shape and halves[0].tubes == batch.tubes
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
    assert all((one == two).all() for one, two in zip(joined.windows, batch.windows))


TUBES = TubeSet.from_text("2x8x8/2x8x8")
TAKE = "batch = take_windows(np.zeros((1, 4, 16, 16, 3), np.uint8), TubeSet.from_text('2x8x8/2x8x8'))"
IMPORT = "from tubevit.tubes import TubeSet; from tubevit.windows import take_windows"
UNPICKLE = f"batch = pickle.loads({pickle.dumps(take_windows(np.zeros((1, 4, 16, 16, 3), np.uint8), TUBES))!r})"


@pytest.mark.parametrize(
    "lines",
    [(IMPORT, "import jax", TAKE), (IMPORT, TAKE, "import jax"), ("import jax, pickle", UNPICKLE)],
    ids=["windows first", "batch first", "jax first, unpickled"],
)
def test_a_batch_is_a_pytree_in_any_order_of_imports(lines):
    check = "assert jax.tree.map(np.shape, batch).windows == ((1, 8, 1, 384),)"
    subprocess.run([sys.executable, "-c", "\n".join(["import numpy as np", *lines, check])], check=True)


def test_reading_is_the_share_of_pixels_read():
    """The grids hold what at least one tube reads, and nothing else."""
    for name in ("paper", "charades", "small"):
        tubes, shape = PRESETS[name], (64, 224, 224)
        read, reading = np.zeros(shape, bool), WindowPlan(PRESETS[name], shape)
        for grid in reading.grids:
            read[grid.index] = True
        assert read.mean() == tubes.pixels_read(shape)
    assert whole_grid((2, 3, 4)).shape == (2, 3, 4)


def test_needs_numpy_only():
    program = "import sys, tubevit.windows; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert tubevit.TubeBatch is TubeBatch and tubevit.take_windows is take_windows
