import math

import numpy as np
import pytest
from flax import nnx

from tests.models.reference import read_parameters
from tubevit.errors import UserError
from tubevit.models.position import position_embedding
from tubevit.models.tokenizer import as_windows
from tubevit.models.variants import create_model

CENTRES = np.array([[0.0, 0.0, 0.0], [3.5, 7.5, 219.5], [31.0, 219.5, 7.5], [-2.5, 0.5, 100.0]])


@pytest.mark.parametrize("width, spare", [(4, 4), (6, 0), (96, 0), (768, 0), (1024, 4), (1280, 2)])
def test_layout_frequencies_and_zero_fill(width, spare):
    found = position_embedding(CENTRES, width)
    assert found.dtype == np.float32 and found.shape == (4, width)
    assert not found[:, width - spare :].any()
    bands = (width - spare) // 6
    for j in {0, 1, bands // 2, bands - 1} if bands > 1 else range(bands):
        omega = 1 / 10_000 ** (j / bands)
        for row, (t, y, x) in zip(found, CENTRES * omega):
            expected = [math.sin(t), math.cos(t), math.sin(y), math.cos(y), math.sin(x), math.cos(x)]
            np.testing.assert_allclose(row[6 * j : 6 * j + 6], expected, rtol=0, atol=1e-7)
    if bands:  # no band is degenerate: the lowest frequency still tells frames and pixels apart
        assert len(np.unique(found[:, 6 * bands - 6 : 6 * bands], axis=0)) == len(CENTRES)


def test_never_among_the_parameters():
    """The exact set of parameters: a change of any name or shape breaks checkpoints."""
    model = nnx.eval_shape(lambda: create_model("tubevit_nano8", num_classes=8))
    assert {"/".join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))} == {
        "tokenizer/tubes/0/kernel": (4, 4, 4, 3, 48),
        "tokenizer/tubes/0/bias": (48,),
        "tokenizer/tubes/1/kernel": (8, 2, 2, 3, 24),
        "tokenizer/tubes/1/bias": (24,),
        "tokenizer/tubes/2/kernel": (2, 6, 6, 3, 96),
        "tokenizer/tubes/2/bias": (96,),
        "tokenizer/tubes/3/kernel": (1, 8, 8, 3, 96),
        "tokenizer/tubes/3/bias": (96,),
        "encoder/blocks/norm1/scale": (3, 96),
        "encoder/blocks/norm1/bias": (3, 96),
        "encoder/blocks/attention/qkv/kernel": (3, 96, 3, 3, 32),
        "encoder/blocks/attention/qkv/bias": (3, 3, 3, 32),
        "encoder/blocks/attention/out/kernel": (3, 3, 32, 96),
        "encoder/blocks/attention/out/bias": (3, 96),
        "encoder/blocks/norm2/scale": (3, 96),
        "encoder/blocks/norm2/bias": (3, 96),
        "encoder/blocks/mlp/up/kernel": (3, 96, 384),
        "encoder/blocks/mlp/up/bias": (3, 384),
        "encoder/blocks/mlp/down/kernel": (3, 384, 96),
        "encoder/blocks/mlp/down/bias": (3, 96),
        "encoder/norm/scale": (96,),
        "encoder/norm/bias": (96,),
        "pooling/score/kernel": (96, 1),
        "heads/default/kernel": (96, 8),
        "heads/default/bias": (8,),
    }


def test_rows_and_columns_of_a_frame_that_is_not_square(tiny):
    """Without kernels and biases tokens are the embedding alone: rows in the third and fourth channel of a band."""
    model = tiny(tubes="1x8x8/1x8x8", width=24)
    projection = model.tokenizer.tubes["0"]
    projection.kernel[...], projection.bias[...] = 0 * projection.kernel[...], 0 * projection.bias[...]
    tokens, centres = model.tokenize(np.zeros((1, 2, 24, 40, 3), np.uint8))
    tokens = np.asarray(tokens).reshape(2, 3, 5, 24)
    for t in range(2):
        for y in range(3):
            for x in range(5):
                expected = [f(c) for c in (t, 8 * y + 3.5, 8 * x + 3.5) for f in (math.sin, math.cos)]
                np.testing.assert_allclose(tokens[t, y, x, :6], expected, rtol=0, atol=1e-6)
    assert centres.tolist()[-1] == [1, 19.5, 35.5]


LEARNED = dict(tubes="4x8x8/4x8x8+1x0x0_1x8x6/8x8x10", frames=11, size=40)  # grids (2, 5, 5) and (2, 5, 4)


@pytest.fixture(scope="module")
def learned(tiny):
    """A model with learned positions, and what they add to the tokens of the same model without positions."""
    model, without = tiny(position="learned", **LEARNED), tiny(position="none", **LEARNED)
    nnx.update(without.tokenizer, nnx.state(model.tokenizer))
    return model, lambda video: np.asarray(model.tokenize(video)[0] - without.tokenize(video)[0])


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)


def test_learned_tables_at_the_shape_of_the_model(learned):
    model, added = learned
    tables = [np.asarray(getattr(model.position, str(i))[...]) for i in range(2)]
    assert [table.shape for table in tables] == [(2, 5, 5, 24), (2, 5, 4, 24)]
    for sample in added(pixels(11, 40, 40)):
        np.testing.assert_allclose(sample, np.concatenate([t.reshape(-1, 24) for t in tables]), rtol=0, atol=2e-6)
    for sample in added(pixels(40, 40)):  # an image takes the first frame of the 2D tube
        np.testing.assert_allclose(sample, tables[1][0].reshape(-1, 24), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(19, 40, 40), (11, 32, 40), (11, 40, 48), (7, 40, 40), (32, 40), (40, 48), (5, 4)])
def test_learned_positions_refuse_other_shapes(learned, shape):
    """Fewer and more frames, rows, columns; the message names both shapes."""
    with pytest.raises(UserError) as error:
        learned[0].tokenize(pixels(*shape))
    found = "x".join(map(str, shape if len(shape) == 3 else (1, *shape)))
    if shape == (5, 4):
        assert "too small" in str(error.value)
    else:
        words = ["learned positions of tube", "fit clips of 11x40x40", f"found {found}", "position='fixed'"]
        words.append("read_video(path, **model.input) and read_image(path, size=40)")
        assert not [word for word in words if word not in str(error.value)], str(error.value)


@pytest.mark.parametrize("shape", [(11, 48, 48), (48, 48)])
def test_learned_positions_of_another_size_can_be_resized(learned, shape):
    with pytest.raises(UserError, match=r"found \d+x48x48: load_model\(\.\.\., size=48\) resizes those"):
        learned[0].tokenize(pixels(*shape))


def test_learned_positions_of_2d_tubes_only(tiny):
    """The 3D tubes keep the fixed embedding and take clips of any length that the 2D tube's grid allows."""
    model, fixed = tiny(position="learned_2d", **LEARNED), tiny(**LEARNED)
    assert [name for name in read_parameters(model) if name.startswith("position")] == ["position/1"]
    nnx.update(fixed.tokenizer, nnx.state(model.tokenizer))
    for frames, count in ((11, 50), (13, 75)):
        found, expected = (np.asarray(m.tokenize(pixels(frames, 40, 40))[0])[:, :count] for m in (model, fixed))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match="learned positions of tube 1x8x6/8x8x10 fit clips of 11x40x40"):
        model.tokenize(pixels(17, 40, 40))


def test_a_clip_of_one_frame_is_an_image_to_2d_tubes_alone(tiny):
    """With padding `same` a 3D tube fits into one frame, but its table is not that of an image."""
    model = tiny(position="learned", padding="same", **LEARNED)
    model.tokenize(pixels(40, 40))
    with pytest.raises(UserError, match="learned positions of tube 4x8x8/4x8x8.1x0x0.*found 2x40x40"):
        model.tokenize(pixels(2, 40, 40))
    model = tiny(position="learned", padding="same", **{**LEARNED, "tubes": "4x8x8/4x8x8_1x8x6/8x8x10"})
    with pytest.raises(UserError, match="learned positions of tube 4x8x8/4x8x8 .*found 1x40x40"):
        model.tokenize(pixels(1, 40, 40))


def test_no_position_adds_nothing_and_has_no_parameters(tiny):
    model, video = tiny(position="none", **LEARNED), pixels(13, 44, 41)
    assert not [name for name in read_parameters(model) if name.startswith("position")]
    np.testing.assert_array_equal(model.tokenize(video)[0], model.tokenizer(as_windows(video, model.config.tubes)))


def test_fixed_without_stride_counts_tokens(tiny):
    model = tiny(position="fixed_no_stride", **LEARNED)
    without = tiny(position="none", **LEARNED)
    nnx.update(without.tokenizer, nnx.state(model.tokenizer))
    video = pixels(11, 40, 40)
    added = np.asarray(model.tokenize(video)[0] - without.tokenize(video)[0])[0]
    places = [*np.ndindex(2, 5, 5), *np.ndindex(2, 5, 4)]
    for row, place in zip(added, places, strict=True):
        expected = [f(c) for c in place for f in (math.sin, math.cos)]
        np.testing.assert_allclose(row[:6], expected, rtol=0, atol=2e-6)


def test_the_exponent_as_printed_leaves_twelve_channels_that_vary():
    found = position_embedding(CENTRES, 768, literal=True)
    np.testing.assert_allclose(found[:, 6:12:2], np.sin(CENTRES / 1e4), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(found[:, :6], position_embedding(CENTRES, 768)[:, :6])
    assert np.ptp(found[:, 12:], axis=0).max() < 1e-5 and np.isfinite(found).all()
    assert np.ptp(found[:, :12], axis=0).min() > 0
