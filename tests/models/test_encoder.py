import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from tests.models.reference import assert_close, encode, read_parameters
from tubevit.errors import UserError
from tubevit.models.block import Mlp, dropout, gelu, normalise
from tubevit.models.config import REMAT, ModelConfig
from tubevit.models.encoder import Encoder
from tubevit.models.patterns import TokenLayout

DEPTH, WIDTH = 3, 12
GATED = dict(gate_layer=1, add_attention=1, freeze_below=1, layer_scale=0.1)
GRID = dict(tubes="4x8x8/4x8x8", frames=8, class_token=True)
LAYOUT = TokenLayout((2, 1, 3), 1)
OPTIONS = {
    "plain": {},
    "gated": GATED,
    "divided": dict(pattern="divided", freeze_below=1, **GRID),
    "factorised_encoder": dict(pattern="factorised_encoder", temporal_depth=2, **GRID),
}


def sizes(**fields):
    fields = dict(width=WIDTH, depth=DEPTH, num_heads=2, mlp_dim=20, tubes="small", attention="einsum") | fields
    return ModelConfig(name="x", **fields)


@pytest.fixture
def encoder(randomised):
    return lambda **fields: randomised(lambda: Encoder(sizes(**fields), jnp.float32, rngs=nnx.Rngs(0)))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(module):
    """With dropout: recomputation and the unrolled loop must draw the same masks."""

    def loss(module, tokens):
        encoded = module(tokens, jax.random.key(1), LAYOUT)
        return (encoded * normal(*encoded.shape, seed=9)).sum()

    # The lowest level halves the time to compile.
    run = jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.leaves(run(module, normal(3, 7, WIDTH)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_neither_the_loop_nor_recomputation_changes_values_or_gradients(encoder, options):
    fields = dict(dropout=0.3, stochastic_depth=0.3, **options)
    expected = value_and_gradients(encoder(**fields))
    variants = [dict(scan=False, remat="full")]  # the same loop runs all patterns
    if options is GATED:
        variants = [dict(remat="names"), dict(scan=False, remat="full")]
    for variant in variants:
        for a, b in zip(value_and_gradients(encoder(**fields, **variant)), expected, strict=True):
            assert_close(a, b, 2e-6)


def test_remat_policies_go_from_least_memory_to_most(encoder):
    """The leaves of a vjp function are what the forward pass keeps for the backward pass."""

    def kept(remat):
        module = encoder(remat=remat)
        saved = jax.eval_shape(lambda module, x: jax.vjp(lambda m, x: m(x), module, x)[1], module, normal(2, 9, WIDTH))
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    sizes = [kept(name) for name in REMAT]
    assert sizes == sorted(set(sizes)), sizes


# The scale gives the tokens the variance of epsilon, which shows that of the first normalisation.
@pytest.mark.parametrize("scale, epsilon", [(1, 1e-6), (1e-3, 1e-6), (1e-6, 1e-12)])
def test_equals_the_reference(encoder, scale, epsilon):
    module, tokens = encoder(norm_epsilon=epsilon), scale * normal(2, 7, WIDTH)
    params = {f"encoder/{name}": value for name, value in read_parameters(module).items()}
    assert_close(module(tokens), encode(params, module.config, np.asarray(tokens, np.float64)), 5e-6)


def transparent(module):
    """Makes each branch of layer l add 1 to a channel of its own, 2 l and 2 l + 1, so that masks can be read off."""
    attend, mlp = module.blocks.attention.out, module.blocks.mlp.down
    for layer, branch in ((attend, 0), (mlp, 1)):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        layer.bias[...] = jnp.eye(2 * DEPTH, WIDTH)[branch::2]
    module.norm = lambda x: x
    return module


def test_stochastic_depth_rises_from_0_to_its_rate(encoder):
    module, rate, samples = transparent(encoder(stochastic_depth=0.6)), 0.6, 4000
    tokens = jnp.zeros((samples, 2, WIDTH))
    run = jax.jit(lambda key: module(tokens, key))
    out = np.asarray(run(jax.random.key(0)))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])  # whole samples, not tokens
    masks = out[:, 0, : 2 * DEPTH] > 0
    keep = 1 - np.repeat(np.linspace(0, rate, DEPTH), 2)
    np.testing.assert_allclose(out[:, 0, : 2 * DEPTH], masks / keep, rtol=1e-6, atol=0)  # the mean is preserved
    assert masks[:, :2].all()
    assert np.abs(masks.mean(axis=0) - keep).max() < 4 * 0.5 / samples**0.5
    together = np.corrcoef(masks[:, 2:].T) - np.eye(2 * DEPTH - 2)
    assert np.abs(together).max() < 4 / samples**0.5  # each layer and branch draws its own
    np.testing.assert_array_equal(out, run(jax.random.key(0)))
    assert (out != run(jax.random.key(1))).any()
    np.testing.assert_array_equal(module(tokens)[..., : 2 * DEPTH], 1)  # off without a key


def test_dropout_differs_by_layer_and_place_and_is_off_without_a_key(encoder):
    module, rate, samples = transparent(encoder(dropout=0.25)), 0.25, 1000
    tokens = jnp.zeros((samples, 2, WIDTH)).at[..., -1].set(1)
    out = np.asarray(jax.jit(lambda key: module(tokens, key))(jax.random.key(0)))
    # After attention, after the MLP, and in the last channel that of the tokens themselves.
    out = out[..., [*range(2 * DEPTH), WIDTH - 1]].reshape(samples, -1)
    masks = out > 0
    np.testing.assert_allclose(out, masks / np.float32(1 - rate), rtol=1e-6, atol=0)
    assert np.abs(masks.mean(axis=0) - 0.75).max() < 4 * (0.75 * 0.25 / samples) ** 0.5
    assert np.abs(np.corrcoef(masks.T) - np.eye(masks.shape[1])).max() < 5 / samples**0.5
    np.testing.assert_array_equal(module(tokens)[..., [*range(2 * DEPTH), WIDTH - 1]], 1)  # off without a key


def test_dropout_inside_the_mlp(randomised):
    mlp = randomised(lambda: Mlp(sizes(width=8, mlp_dim=8), jnp.float32, rngs=nnx.Rngs(0)))
    mlp.down.kernel[...], mlp.down.bias[...] = jnp.eye(8), jnp.zeros(8)
    x = normal(50, 4, 8)
    ratio = np.asarray(jax.jit(lambda key: mlp(x, 0.5, key) / mlp(x))(jax.random.key(0)))
    assert set(np.round(ratio, 5).ravel().tolist()) == {0.0, 2.0} and abs(ratio.mean() - 1) < 0.1


@pytest.mark.parametrize("kind, other", [("exact", "tanh"), ("tanh", "exact")])
def test_gelu(kind, other):
    x = np.linspace(-12, 12, 4801)
    found, expected = np.asarray(gelu(jnp.asarray(x, jnp.float32), kind), np.float64), reference.gelu(x, kind)
    # The sum 1 + erf is as fine as the last place of 1, and x multiplies its error, up to 6 where it is not 0 or 2.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=6 * float(jnp.finfo(jnp.float32).eps))
    assert np.abs(expected - reference.gelu(x, other)).max() > 4e-4
    assert gelu(jnp.ones(1, jnp.bfloat16), kind).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_preserves_the_mean(dtype):
    """Also where `1 - rate` is not a number of bfloat16: a mask drawn in it would keep 70.3 % here, not 70 %."""
    ones = jnp.ones((1000, 1000), dtype)
    kept = np.asarray(dropout(ones, 0.3, jax.random.key(0)), np.float32)
    assert abs((kept > 0).mean() - 0.7) < 4 * 0.21**0.5 / 1000
    assert abs(kept.max() * 0.7 - 1) <= float(jnp.finfo(dtype).eps)
    assert dropout(ones, 0.3, None) is ones and dropout(ones, 0.0, jax.random.key(0)) is ones


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(remat="ful"), ["remat 'ful'", "'full'"]),
        (dict(attention="einsun"), ["'einsun'", "'einsum'"]),
        (dict(dropout=1.0), ["dropout", "below 1"]),
        (dict(stochastic_depth=-0.1), ["stochastic_depth", "-0.1"]),
    ],
)
def test_errors_name_the_choices(encoder, fields, words):
    with pytest.raises(UserError) as error:
        encoder(**fields)
    assert not [word for word in words if word not in str(error.value)], str(error.value)


@pytest.mark.parametrize("fields", [{"pattern": "divided"}, {"pattern": "factorised_encoder", "temporal_depth": 1}])
def test_a_key_enables_dropout_in_every_pattern(tiny, fields):
    model = tiny(tubes="4x16x16/4x16x16", size=32, depth=1, class_token=True, pooling="cls", dropout=0.5, **fields)
    drawn = nnx.jit(lambda model, key: model(np.zeros((1, 16, 32, 32, 3), np.uint8), key=key))
    one, two, again = (drawn(model, jax.random.key(seed)) for seed in (0, 1, 0))
    assert not np.allclose(one, two) and np.array_equal(one, again)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_and_its_gradients_equal_the_definition(dtype):
    """In float64, of the same rounded inputs; the mean of the rows is not small against their deviation."""
    x, gradient = (3 * normal(2, 5, 96) + 2).astype(dtype), normal(2, 5, 96, seed=1).astype(dtype)
    scale, bias = 1 + 0.1 * normal(96, seed=2), normal(96, seed=3)
    out, pull = jax.vjp(lambda *arguments: normalise(*arguments, 1e-6), x, scale, bias)
    d_x, d_scale, d_bias = pull(gradient)
    assert out.dtype == d_x.dtype == dtype and d_scale.dtype == d_bias.dtype == jnp.float32
    wide, g, factor, shift = (np.asarray(a, np.float64) for a in (x, gradient, scale, bias))
    deviation = np.sqrt(wide.var(axis=-1, keepdims=True) + 1e-6)
    normal_rows = (wide - wide.mean(axis=-1, keepdims=True)) / deviation
    # The Jacobian of a row: (I - 1/D - n n^T / D) / deviation.
    size = wide.shape[-1]
    jacobian = np.eye(size) - 1 / size - normal_rows[..., :, None] * normal_rows[..., None, :] / size
    expected_x = np.einsum("bnij,bnj->bni", jacobian, g * factor) / deviation
    pairs = [
        (out, normal_rows * factor + shift), (d_x, expected_x),
        (d_scale, (g * normal_rows).sum((0, 1))), (d_bias, g.sum((0, 1))),
    ]  # fmt: skip
    for found, expected in pairs:
        assert_close(np.asarray(found, np.float32), expected, 1e-5 if dtype == jnp.float32 else 0.02)
