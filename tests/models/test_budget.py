"""Models with a budget against ones that get the same tokens by hand; and the tokens that elastic training draws."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tubevit.budget import Budget, numbered
from tubevit.checkpoint.metadata import config_from_metadata, model_metadata
from tubevit.errors import UserError
from tubevit.models.config import Head
from tubevit.models.elastic import draw, elastic_models
from tubevit.models.flops import count_flops, num_tokens
from tubevit.windows import take_windows

HEADS = {"motion": Head(8, "video"), "digit": Head(10, "image")}
FIELDS = dict(class_token=True, padding="same", position="learned", depth=1)  # windows reach outside the clip
SHAPE = (16, 64, 64)


def clips(*shape, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *shape, 3), np.uint8)


def by_hand(model, video, numbers):
    """Pooled features of the tokens with these numbers, (n,) or (B, n), and the class token."""
    tokens, _ = model.tokenize(video)
    numbers = jnp.broadcast_to(numbers, (len(tokens), numbers.shape[-1])) + 1
    kept = jnp.concatenate([tokens[:, :1], jnp.take_along_axis(tokens, numbers[..., None], 1)], 1)
    return model.pool(model.encoder(kept))


@pytest.mark.parametrize("budget", ["25%", "40%:tube", "25%:motion"])
def test_the_same_tokens_by_hand(tiny, budget):
    model, whole = tiny(HEADS, budget=budget, **FIELDS), tiny(HEADS, **FIELDS)
    features, expected = jax.jit(model.features), jax.jit(lambda video, at: by_hand(whole, video, at))
    for video in (clips(*SHAPE), clips(64, 64)):
        windows = take_windows(video, model.config.tubes)
        numbers = np.concatenate(numbered(windows.kept, windows.tubes.grid(windows.clip_shape)), axis=-1)
        for given in (video, windows):
            np.testing.assert_allclose(features(given), expected(video, numbers), rtol=0, atol=1e-5)
        _, centres = jax.jit(model.tokenize)(windows)
        np.testing.assert_array_equal(
            centres[..., 1:, :], windows.tubes.with_budget(None).centres(windows.clip_shape)[numbers]
        )
        assert np.isnan(centres[..., 0, :]).all()


def test_what_a_budget_costs(tiny):
    model, whole = tiny(budget="25%").config, tiny().config
    assert num_tokens(model, SHAPE) == 44 and num_tokens(model, (1, 64, 64)) == 16
    few, all_ = count_flops(model, SHAPE), count_flops(whole, SHAPE)
    assert few.tokenizer < all_.tokenizer / 3 and few.encoder < all_.encoder / 4
    assert config_from_metadata(json.loads(json.dumps(model_metadata(model)))) == model
    assert model.replace(budget="50%").tubes.budget == Budget(0.5) and model.replace(budget=None) == whole
    assert model.replace(tubes="core", size=32).tubes.budget == model.budget


def test_windows_of_another_budget_are_refused(tiny):
    video, model = clips(*SHAPE), tiny(budget="25%")
    all_windows = take_windows(video, tiny().config.tubes)
    np.testing.assert_array_equal(model(all_windows), model(take_windows(video, model.config.tubes)))
    with pytest.raises(UserError, match="windows are those of 25%; this call takes all tokens"):
        tiny()(take_windows(video, model.config.tubes))
    with pytest.raises(UserError, match="windows are those of all tokens; this call takes 25%:motion"):
        tiny(budget="25%:motion")(all_windows)


def test_models_that_need_all_tokens(tiny):
    for fields in (dict(pattern="divided", class_token=True), dict(position="rope")):
        with pytest.raises(UserError, match="needs all tokens of a single tube.*; found budget 50%"):
            tiny(budget="50%", tubes="2x8x8/2x8x8", **fields)


def test_draws():
    """Each row draws by itself: all tokens alike, and in a quarter of the rows those of one tube come last."""
    grids, rows, budget = [(2, 2, 2), (1, 4, 1), (3, 1, 4)], 4000, Budget(0.5, "random")
    found = np.asarray(draw(jax.random.key(0), budget, grids, rows))
    assert found.shape == (rows, 12) and (np.diff(found, axis=1) > 0).all()
    np.testing.assert_array_equal(found, draw(jax.random.key(0), budget, grids, rows))
    assert (found != np.asarray(draw(jax.random.key(1), budget, grids, rows))).any(1).mean() > 0.9
    counts = np.stack([(low <= found) & (found < high) for low, high in ((0, 8), (8, 12), (12, 24))]).sum(-1)
    for tube, size in enumerate((8, 4, 12)):
        none = math.comb(24 - size, 12) / math.comb(24, 12)  # of the rows in which no tube comes last
        expected = 1 / 12 + (11 / 12) * none if size < 12 else 1 / 12 + (3 / 4) * none
        assert abs((counts[tube] == 0).mean() - expected) < 0.03, tube  # 6 standard deviations
    for tube, tokens in zip(grids, np.split(np.bincount(found.ravel(), minlength=24) / rows, (8, 12))):
        assert abs(tokens - tokens.mean()).max() < 0.05, tube
    alone = np.asarray(draw(jax.random.key(0), Budget(0.25, "random"), [(1, 8, 8)], 9))
    assert alone.shape == (9, 16) and len(np.unique(alone)) > 40


def test_a_random_budget_draws_with_a_key_only(tiny):
    model, whole, video = tiny(budget="25%:random", **FIELDS), tiny(**FIELDS), clips(*SHAPE)
    tokens, centres = jax.jit(model.tokenize)(video, jax.random.key(3))
    numbers = np.asarray(draw(jax.random.key(3), model.config.budget, model.config.tubes.grid(SHAPE), 2))
    expected, at = jax.jit(whole.tokenize)(video)
    for row in range(2):
        np.testing.assert_allclose(tokens[row, 1:], expected[row, 1:][numbers[row]], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(centres[row, 1:], at[1:][numbers[row]])
    kept = take_windows(video, model.config.tubes)
    assert jax.jit(model.tokenize)(kept)[0].shape[1] == len(numbers[0]) + 1 == 53


def test_a_smaller_budget_draws_a_part_of_a_larger_one(tiny):
    """The teacher sees all tokens of the budget that it teaches."""
    model = tiny().config
    grids = model.tubes.grid(model.shape)
    less, more = (draw(jax.random.key(7), Budget(share, "random"), grids, 5) for share in (0.25, 0.6))
    for few, many in zip(np.asarray(less), np.asarray(more)):
        assert len(few) < len(many) and set(few) <= set(many)


def test_models_of_a_run(tiny):
    model = tiny().config
    assert elastic_models(model, "") == [model]
    found = elastic_models(model, "100%, 25%,50%")
    assert [each.budget for each in found] == [Budget(0.25, "random"), Budget(0.5, "random"), None]
    with pytest.raises(UserError, match="train.elastic: .*without a rule"):
        elastic_models(model, "25%:even,50%:motion")
