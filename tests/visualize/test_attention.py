import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from tubevit.models.attention import Attention
from tubevit.tubes import PRESETS, Tube, TubeSet, as_tube_set
from tubevit.visualize import attention, layout
from tubevit.windows import take_windows

TUBES = "4x8x8/8x16x16%2x1x1_1x8x8/16x16x16"
SMALL = dict(tubes=TUBES, frames=16, size=32)


def clips(count=2, size=32, frames=16):
    return np.random.default_rng(0).integers(0, 256, (count, frames, size, size, 3), np.uint8)


def through(row, layers):
    """A row of weights, through (attention + identity) / 2 of each layer, from the last to the first."""
    for layer in reversed(layers):
        row = (row + row @ layer) / 2
    return row


@pytest.mark.parametrize("fields", [{}, {"add_attention": 1, "gate_layer": 0, "class_token": True, "pooling": "query"}])
def test_weights_are_softmax_of_queries_and_keys(tiny, fields):
    model, video = tiny(**SMALL, **fields), clips()
    params = reference.read_parameters(model)
    tokens, found = model.encoder.attention_weights(model.tokenize(video)[0])
    encoder, inputs = reference.below(params, "encoder/"), reference.tokenize(params, model.config, video)[0]
    assert len(found) == 2 + fields.get("add_attention", 0)
    for clip, start in enumerate(inputs):
        reference.encode_clip(encoder, model.config, start, record=(expected := []))
        assert len(found) == len(expected)
        for layer, wanted in zip(found, expected):
            assert wanted.max() > 2 / wanted.shape[-1]  # not even
            np.testing.assert_allclose(layer[clip], wanted, rtol=0, atol=2e-5)
    np.testing.assert_allclose(tokens, model.encode(video), rtol=0, atol=2e-5)  # the layers had the right inputs


def test_weights_of_all_heads_are_never_held_at_once(tiny):
    layer = Attention(tiny(num_heads=3).config, jnp.float32, rngs=nnx.Rngs(0))
    traced = str(jax.make_jaxpr(layer.weights)(jnp.zeros((2, 40, 24))))
    assert "f32[2,40,40]" in traced and "[2,3,40,40]" not in traced


GRID, SHAPE = (2, 2, 3), (6, 16, 24)  # 12 tokens of 3x8x8
DENSE = dict(tubes="3x8x8/3x8x8", frames=6, size=24)
FACTORISED = dict(pattern="factorised_encoder", temporal_depth=2, **DENSE)
PATTERNS = {
    "joint": {},
    "divided": dict(pattern="divided", class_token=True, pooling="cls", **DENSE),
    "divided, no class token": dict(pattern="divided", **DENSE),
    "factorised_dot": dict(pattern="factorised_dot", **DENSE),
    "cls": dict(class_token=True, pooling="query", **FACTORISED),
    "mean": dict(frame_pooling="mean", **FACTORISED),
    "mean, class token": dict(frame_pooling="mean", class_token=True, **FACTORISED),
    "none": dict(frame_pooling="none", **FACTORISED),
    "rope": dict(position="rope", class_token=True, **DENSE),
}


def rolled_by_matrices(params, config, start, pooling):
    """Rollout of one clip through the whole (N, N) matrices of the reference."""
    first, places, dense = int(config.class_token), GRID[1] * GRID[2], len(config.tubes.tubes) == 1
    if config.pattern != "factorised_encoder":
        encoder = reference.below(params, "encoder/")
        reference.encode_clip(encoder, config, start, GRID if dense else None, record=(layers := []))
        return through(pooling, layers)
    reference.encode_factorised(params, config, start, GRID, in_frames := [], over_time := [])
    result = np.zeros(len(start))
    shares = {"cls": np.eye(first + places)[0], "mean": np.array([0] * first + [1 / places] * places)}
    if config.frame_pooling == "none":
        columns = [through(row, layers) for row, layers in zip(pooling.reshape(GRID[0], -1).T, over_time)]
        rows = np.stack(columns, axis=1)
    else:
        frames = through(pooling, *over_time)
        result[:first] = frames[:first]
        rows = frames[first:, None] * shares[config.frame_pooling]
    for t, (row, layers) in enumerate(zip(rows, in_frames)):
        row = through(row, layers)
        result[:first] += row[:first]
        result[first + t * places : first + (t + 1) * places] = row[first:]
    return result


@pytest.mark.parametrize("name", PATTERNS)
def test_rollout_is_the_product_of_all_layers(tiny, name):
    fields = PATTERNS[name] or SMALL
    model = tiny(**fields)
    video = np.random.default_rng(0).integers(0, 256, (2, *(SHAPE if PATTERNS[name] else (16, 32, 32)), 3), np.uint8)
    spread, rolled = attention.token_weights(model, video)
    params, config = reference.read_parameters(model), model.config
    starts = reference.tokenize(params, config, video)[0]
    encoded = reference.encode(params, config, starts, GRID if PATTERNS[name] else None)
    _, pooling = reference.pool(params, config, encoded)
    for clip, start in enumerate(starts):
        wanted = rolled_by_matrices(params, config, start, pooling[clip])
        np.testing.assert_allclose(rolled[clip], wanted, rtol=0, atol=2e-5)
    assert spread.shape == rolled.shape
    for weights in (spread, rolled):
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    if pooling.shape == spread.shape:
        np.testing.assert_allclose(spread, pooling, rtol=0, atol=2e-5)
    else:  # one token for each frame
        first, places = int(config.class_token), GRID[1] * GRID[2]
        np.testing.assert_allclose(spread[:, first::places], pooling[:, first:] / places, rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("text", [TUBES, "4x6x5/3x7x4+1x2x3_2x4x4/4x8x8%2x2x1"])
def test_paint_spreads_each_token_over_what_it_reads(text, padding):
    tubes, shape = TubeSet.from_text(text, padding), (16, 24, 20)
    tokens = [(tube, token) for tube in tubes.tubes for token in reference.windows(tube, shape, padding)]
    weights = np.random.default_rng(0).uniform(0.1, 1, len(tokens))
    expected = np.zeros(shape)
    for weight, (tube, token) in zip(weights, tokens):
        read = [place for place in reference.positions(token) if reference.inside(place, tube, shape)]
        for place in read:
            expected[place] += weight / len(read)
    found = attention.paint(weights, tubes, shape)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.sum() == pytest.approx(weights.sum())
    np.testing.assert_array_equal(found > 0, layout.pixels_read(tubes, shape).any(axis=0))


def test_images_are_painted_by_the_2d_tube(tiny):
    model, image = tiny(**SMALL, class_token=True), clips(1)[0, 0]
    pooling, rolled = attention.heat_maps(model, image)
    assert pooling.shape == rolled.shape == (1, 32, 32)
    weights = np.asarray(attention.token_weights(model, image[None])[0])[0]
    assert pooling.sum() == pytest.approx(1 - weights[0], abs=1e-5)  # the class token lies nowhere
    assert pooling[0, 0, 0] == pytest.approx(weights[1] / 64, rel=1e-5) and pooling[0, 0, 8] == 0  # stride 16


@pytest.mark.parametrize("budget", ["50%", "50%:motion"])
def test_tokens_that_are_not_kept_weigh_nothing(tiny, budget):
    model, clip, shape = tiny(**SMALL, budget=budget), clips(1)[0], (16, 32, 32)
    pooling, rolled = attention.heat_maps(model, clip)
    assert pooling.sum() == pytest.approx(1, abs=1e-5) == rolled.sum()
    batch, tubes = take_windows(clip[None], model.config.tubes), model.config.tubes.with_budget(None)
    weights = np.asarray(attention.token_weights(model, clip[None])[0])[0]
    expected, first = np.zeros(tubes.num_tokens(shape)), 0
    for kept, count in zip(batch.kept, tubes.kept(shape)):
        at, weights = np.ravel(kept), np.asarray(weights)
        expected[first + at], weights, first = weights[: len(at)], weights[len(at) :], first + count
    np.testing.assert_allclose(pooling, attention.paint(expected, tubes, shape), atol=1e-6)
    assert layout.pixels_read(model.config.tubes, shape).any(axis=0).mean() == pytest.approx(tubes.pixels_read(shape))


@pytest.mark.parametrize("name", PRESETS)
def test_read_pixels_of_every_preset(name):
    tubes, shape = PRESETS[name], (64, 96, 64)
    read = layout.pixels_read(name, shape)
    assert read.any(axis=0).mean() == pytest.approx(tubes.pixels_read(shape))
    for mask, tube in zip(read, tubes.tubes):
        expected = np.zeros(shape, bool)
        starts = (axis.ravel() for axis in tube.starts(shape))
        for t, y, x in itertools.product(*starts):
            expected[t : t + tube.kernel[0], y : y + tube.kernel[1], x : x + tube.kernel[2]] = True
        np.testing.assert_array_equal(mask, expected)


def test_figures_show_read_pixels_in_colour_and_others_in_grey():
    tubes = as_tube_set(Tube((1, 8, 8), (16, 16, 16)))
    clip = np.zeros((16, 128, 128, 3), np.uint8)
    clip[..., 0] = 200
    figure = layout.layout_figure(clip, dataclasses.replace(tubes))
    strip = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(strip[4, 4], [200 / 255, 0, 0])  # read: (0, 0) of frame 0
    assert np.ptp(strip[4, 12]) == 0 and np.ptp(strip[4, 132 + 4]) == 0  # between windows; in frame 2
    boxes = figure.axes[0].collections[0].get_paths()
    assert len(boxes) == 64  # those of frame 0 only
    bars = [bar.get_facecolor()[3] for bar in figure.axes[1].patches]
    assert len(bars) == 16 and bars[0] == 1 and max(bars[1:]) < 0.5


def test_heat_maps_lie_on_the_frames():
    frames, heat = np.full((2, 8, 8, 3), 0.5), np.zeros((2, 8, 8))
    heat[1, 2, 3] = 1
    painted = attention.painted(frames, heat, 1.0)
    changed = np.abs(painted - painted[0, 0, 0]).max(axis=-1) > 0.1
    assert changed.sum() == 1 and changed[1, 2, 3]
