import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import assert_close, pool, read_parameters
from tubevit.models.pooling import AttentionPooling


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1, 100])  # scores of several hundred must not overflow
def test_weights_sum_to_one_and_pooling_equals_the_reference(randomised, dtype, scale):
    pooling = randomised(lambda: AttentionPooling(20, rngs=nnx.Rngs(0)))
    tokens = jnp.asarray(scale * np.random.default_rng(0).normal(size=(3, 17, 20)), dtype)
    weights, pooled = pooling.weights(tokens), pooling(tokens)
    assert weights.dtype == pooled.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-6)
    params = {f"pooling/{name}": value for name, value in read_parameters(pooling).items()}
    expected, expected_weights = pool(params, np.asarray(tokens, np.float64))
    assert expected_weights.max() > 2 / 17  # not a mean
    assert_close(weights, expected_weights, 1e-6 * scale)  # float32 scores err with their size
    assert_close(pooled, expected, 1e-6 * scale)
