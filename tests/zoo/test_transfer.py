import jax
import numpy as np
import pytest
from flax import nnx

import tubevit
from tubevit.errors import UserError
from tubevit.models.tubevit import Head
from tubevit.zoo.checkpoint import parameters
from tubevit.zoo.transfer import initialise

LETTERS, NUMBERS = Head(3, "any", ("a", "b", "c")), Head(4)


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """A saved model with heads `letters` and `numbers`, and its path."""
    model = tiny({"letters": LETTERS, "numbers": NUMBERS}, depth=1)
    path = tmp_path_factory.mktemp("source") / "model"
    tubevit.save_model(model, path)
    return model, str(path)


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def begin(model, path, **settings):
    """Parameters by path: before, after, and the notes."""
    before = parameters(model)
    after, notes = initialise(before, model.config, path, **settings)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    return flat(before), flat(after), notes


def test_all_is_taken_over_where_all_is_the_same(source, tiny):
    model, path = source
    other = tiny({"letters": LETTERS, "numbers": NUMBERS}, seed=1, depth=1, frames=8, size=32, dropout=0.1)
    _, after, notes = begin(other, path)
    expected = flat(parameters(model))
    assert notes == [] and after.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(after[name], expected[name])


@pytest.mark.parametrize("head", [Head(5), Head(3, "any", ("a", "c", "b")), Head(3)])
def test_heads_of_other_labels_stay_new(source, tiny, head):
    model, path = source
    before, after, notes = begin(tiny({"letters": head, "extra": Head(2)}, seed=1, depth=1), path)
    assert notes == ["new heads: letters, extra", f"heads of {path} left out: letters, numbers"]
    stored = flat(parameters(model))
    for name in after:
        expected = before if name.startswith("heads/") else stored
        np.testing.assert_array_equal(after[name], expected[name])


def test_skip(source, tiny):
    model, path = source
    other = tiny({"letters": LETTERS}, seed=1, depth=1)
    before, after, _ = begin(other, path, skip=["pooling", "heads/letters"])
    for name in ("pooling/score/kernel", "heads/letters/kernel"):
        np.testing.assert_array_equal(after[name], before[name])
    with pytest.raises(UserError, match="init.skip: no parameter begins with 'poling'"):
        begin(other, path, skip=["poling"])


def test_what_does_not_fit_is_listed(source, tiny):
    _, path = source
    with pytest.raises(UserError) as error:
        begin(tiny({"letters": LETTERS}, depth=1, mlp_width=44, tubes="8x8x8/8x16x16"), path)
    message = str(error.value)
    assert "unexpected tokenizer/tubes/1/kernel" in message and "unexpected tokenizer/tubes/3/bias" in message
    assert "encoder/blocks/mlp/up/kernel: expected (1, 24, 44), found (1, 24, 40)" in message


def test_inflated_tubes_give_the_tokens_of_the_image(tiny, tmp_path):
    """A clip that repeats an image has, at each tube, the image's token."""
    image_model = tiny({}, depth=1, tubes="1x16x16/32x16x16", size=48, frames=1)
    tubevit.save_model(image_model, tmp_path / "image")
    model = tiny({}, seed=1, depth=1, tubes="4x16x16/4x16x16", size=48, frames=8)
    after, _ = initialise(parameters(model), model.config, str(tmp_path / "image"), tubes="inflate")
    inflated = nnx.merge(nnx.graphdef(model), after)
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
    kernel, bias = inflated.tokenizer.tubes["0"].kernel[...], inflated.tokenizer.tubes["0"].bias[...]
    clip = np.repeat(image[:, None], 8, axis=1)
    tokens = inflated.tokenizer(clip, model.config.tubes)
    expected = image_model.tokenizer(image[:, None], image_model.config.tubes)
    np.testing.assert_allclose(tokens.reshape(2, 2, 6, 24), np.stack([expected, expected], axis=1), atol=1e-5)
    assert kernel.shape == (4, 16, 16, 3, 24) and bias.shape == (24,)


@pytest.mark.parametrize("tubes", ["2x8x8/2x8x8", "2x16x16/2x16x16%2x1x1"])
def test_inflation_repeats_over_time_only(tiny, tmp_path, tubes):
    tubevit.save_model(tiny({}, depth=1, tubes="1x16x16/32x16x16", size=48, frames=1), tmp_path / "image")
    model = tiny({}, depth=1, tubes=tubes, size=48, frames=8)
    with pytest.raises(UserError, match="repeats a kernel of 16x16 pixels over time"):
        initialise(parameters(model), model.config, str(tmp_path / "image"), tubes="inflate")
    with pytest.raises(UserError, match="has no tube of one frame"):
        tubevit.save_model(model, tmp_path / "dense")
        initialise(parameters(model), model.config, str(tmp_path / "dense"), tubes="inflate")
