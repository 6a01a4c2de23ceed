import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import assert_close, difference, pool, read_parameters
from tubevit.models.config import POOLINGS, ModelConfig
from tubevit.models.pooling import POOLING

SIZES = dict(name="x", width=20, depth=1, num_heads=4, mlp_dim=30, tubes="small")


@pytest.fixture
def pooling(randomised):
    def build(kind, **fields):
        config = ModelConfig(pooling=kind, **SIZES, **fields)
        return config, randomised(lambda: POOLING[kind](config, rngs=nnx.Rngs(0)))

    return build


def expected_of(config, module, tokens):
    params = {f"pooling/{name}": value for name, value in read_parameters(module).items()}
    return pool(params, config, np.asarray(tokens, np.float64))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1, 100])  # scores of several hundred must not overflow
@pytest.mark.parametrize("kind", ["linear", "query", "map"])
def test_weights_sum_to_one_and_pooling_equals_the_reference(pooling, kind, dtype, scale):
    config, module = pooling(kind)
    if kind != "linear":
        module.probe[...] = 10 * module.probe[...]
    tokens = jnp.asarray(scale * normal(3, 17, 20), dtype)
    weights, pooled = module.weights(tokens), module(tokens)
    assert weights.dtype == pooled.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-6)
    expected, expected_weights = expected_of(config, module, tokens)
    assert expected_weights.max() > 2 / 17  # not a mean
    assert_close(weights, expected_weights, 1e-6 * scale)  # float32 scores err with their size
    assert_close(pooled, expected, 1e-6 * scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind, class_token", [("mean", False), ("mean", True), ("cls", True)])
def test_mean_and_class_token(pooling, kind, class_token, dtype):
    config, module = pooling(kind, class_token=class_token)
    tokens = jnp.asarray(normal(3, 17, 20), dtype)
    assert not jax.tree.leaves(nnx.state(module))  # no parameters
    weights, pooled = module.weights(tokens), module(tokens)
    assert weights.dtype == pooled.dtype == jnp.float32
    for found, expected in zip((pooled, weights), expected_of(config, module, tokens), strict=True):
        assert_close(found, expected, 1e-6)
    # The class token alone decides, or has no say.
    changed = module(tokens.at[:, 1:].set(0) if kind == "cls" else tokens.at[:, : int(class_token)].set(9))
    np.testing.assert_array_equal(changed, pooled)


def test_map_is_the_query_with_an_mlp_beside_a_residual(pooling):
    config, module = pooling("map")
    _, query = pooling("query")
    params = nnx.to_pure_dict(nnx.state(module))
    nnx.update(query, {name: params[name] for name in ("probe", "query", "key_value", "out")})
    tokens = jnp.asarray(normal(2, 9, 20), jnp.float32)
    assert difference(module(tokens), query(tokens)) > 0.1
    module.mlp.down.kernel[...], module.mlp.down.bias[...] = jnp.zeros((30, 20)), jnp.zeros(20)
    np.testing.assert_array_equal(module(tokens), query(tokens))


@pytest.mark.parametrize("kind", ["query", "map", "linear", "mean"])
def test_the_order_of_tokens_does_not_matter(pooling, kind):
    _, module = pooling(kind)
    tokens = jnp.asarray(normal(2, 9, 20), jnp.float32)
    assert_close(module(tokens[:, ::-1]), module(tokens), 1e-6)
    np.testing.assert_allclose(module.weights(tokens[:, ::-1])[:, ::-1], module.weights(tokens), rtol=0, atol=1e-6)


def test_the_attentive_probe_is_float32_which_cudnn_does_not_take(pooling):
    tokens = jnp.asarray(normal(2, 9, 20), jnp.bfloat16)
    _, module = pooling("attentive", attention="cudnn", precision="bfloat16")
    np.testing.assert_array_equal(module(tokens), pooling("attentive")[1](tokens))


def test_every_pooling_of_the_configuration_is_built():
    assert tuple(POOLING) == POOLINGS
