import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.models import reference
from tubevit.tubes import PRESETS, Tube, TubeSet, as_tube_set
from tubevit.visualize import attention, layout

TUBES = "4x8x8/8x16x16%2x1x1_1x8x8/16x16x16"
SMALL = dict(tubes=TUBES, frames=16, size=32)


def clips(count=2, size=32, frames=16):
    return np.random.default_rng(0).integers(0, 256, (count, frames, size, size, 3), np.uint8)


def expected_weights(model, video):
    """softmax(q k / sqrt(d)) of each layer in float64 NumPy, each layer's input by the reference."""
    config, params = model.config, reference.read_parameters(model)
    tokens, _ = reference.tokenize(params, config, video)
    blocks, added = (reference.below(params, f"encoder/{part}/") for part in ("blocks", "added"))

    def weights_of(x, layer, norm):
        x = reference.layer_norm(x, layer, norm, config)
        kernel, bias = layer["attention/qkv/kernel"], layer["attention/qkv/bias"]
        query, key, _ = np.einsum("bnd,dihe->ibhne", x, kernel) + bias[:, None, :, None]
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    found, x = [], tokens
    for index in range(config.depth):
        number = index - (config.depth - config.add_attention)
        if number >= 0:
            layer = {name: value[number] for name, value in added.items()}
            found.append(weights_of(x, layer, "norm"))
            normed = reference.layer_norm(x, layer, "norm", config)
            x = x + np.stack([reference.attend(each, layer, config) for each in normed])
        layer = {name: value[index] for name, value in blocks.items()}
        found.append(weights_of(x, layer, "norm1"))
        normed = reference.layer_norm(x, layer, "norm1", config)
        x = x + np.stack([reference.attend(each, layer, config) for each in normed])
        x = x + reference.mlp(reference.layer_norm(x, layer, "norm2", config), layer, config)
        if index == config.gate_layer:
            x = x + np.tanh(params["encoder/gate"]) * tokens
    return found


@pytest.mark.parametrize("fields", [{}, {"add_attention": 1, "gate_layer": 0, "class_token": True, "pooling": "query"}])
def test_weights_are_softmax_of_queries_and_keys(tiny, fields):
    model, video = tiny(**SMALL, **fields), clips()
    tokens, found = model.encoder.attention_weights(model.tokenize(video)[0])
    expected = expected_weights(model, video)
    assert len(found) == len(expected) == 2 + fields.get("add_attention", 0)
    for layer, wanted in zip(found, expected):
        assert wanted.max() > 4 / wanted.shape[-1]  # not even
        np.testing.assert_allclose(layer, wanted.mean(axis=1), rtol=0, atol=2e-5)
    np.testing.assert_allclose(tokens, model.encode(video), rtol=0, atol=2e-5)  # the layers had the right inputs


def test_token_weights_are_those_of_the_prediction(tiny):
    model, video = tiny(**SMALL), clips()
    pooling, rolled = attention.token_weights(model, video)
    weights = expected_weights(model, video)
    encoded = reference.encode(
        params := reference.read_parameters(model), model.config, reference.tokenize(params, model.config, video)[0]
    )
    wanted = reference.pool(params, model.config, encoded)[1]
    np.testing.assert_allclose(pooling, wanted, rtol=0, atol=2e-5)
    for clip in range(2):  # from the output back to the input, row by row
        row = wanted[clip]
        for layer in reversed(weights):
            row = 0.5 * row + 0.5 * row @ layer[clip].mean(axis=0)
        np.testing.assert_allclose(rolled[clip], row, rtol=0, atol=2e-5)
    np.testing.assert_allclose(rolled.sum(axis=1), 1, atol=1e-5)


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
