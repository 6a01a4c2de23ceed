"""Section 3.6 in the encoder: frozen blocks, the gate of equation 8, added attention layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import assert_close, encode, read_parameters
from tests.models.test_flops import matmul_flops
from tubevit.models.config import ModelConfig
from tubevit.models.encoder import Encoder

DEPTH, WIDTH, TOKENS = 4, 12, 7


@pytest.fixture
def encoder(randomised):
    def build(**fields):
        fields = dict(width=WIDTH, depth=DEPTH, num_heads=2, mlp_dim=20, tubes="small", **fields)
        return randomised(lambda: Encoder(ModelConfig(name="x", **fields), jnp.float32, rngs=nnx.Rngs(0)))

    return build


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def state_of(module):
    return nnx.to_pure_dict(nnx.state(module))


def output(module, key=None):
    """Op by op: how XLA fuses a run of one block rounds otherwise than the loop over several, in the last bits."""
    with jax.disable_jit():
        return np.asarray(module(normal(2, TOKENS, WIDTH), key))


def loss(module):
    """A function of parameters and tokens, the parameters and the tokens."""
    graph, state = nnx.split(module)

    def value(state, tokens):
        return (nnx.merge(graph, state)(tokens) * normal(2, TOKENS, WIDTH, seed=9)).sum()

    return value, state, normal(2, TOKENS, WIDTH)


def gradients(module):
    """Those of the parameters, as nested dicts, and of the tokens."""
    value, *arguments = loss(module)
    run = jax.jit(jax.grad(value, (0, 1)), compiler_options={"xla_backend_optimization_level": 0})
    state, tokens = run(*arguments)
    return nnx.to_pure_dict(state), tokens


def with_gate(module, value):
    module.gate[...] = jnp.full_like(module.gate[...], value)
    return module


def ungated(module):
    """The same parameters by path, but for the gate."""
    return {name: value for name, value in state_of(module).items() if name != "gate"}


@pytest.mark.parametrize("options", [dict(dropout=0.3, stochastic_depth=0.3), dict(gate_layer=2, add_attention=1)])
def test_freezing_changes_no_bit_of_the_output(encoder, options):
    key = jax.random.key(0) if "dropout" in options else None
    expected = output(encoder(**options), key)
    for below in range(1, DEPTH + 1):
        np.testing.assert_array_equal(output(encoder(freeze_below=below, **options), key), expected)


@pytest.mark.parametrize("below, options", [(1, {}), (DEPTH, {}), (2, dict(gate_layer=2, remat="full"))])
def test_frozen_blocks_get_no_gradient_and_the_others_theirs(encoder, below, options):
    expected, expected_tokens = gradients(encoder(**options))
    found, tokens = gradients(encoder(freeze_below=below, **options))
    assert_close(tokens, expected_tokens, 2e-6)
    blocks, expected_blocks = (jax.tree.leaves(tree.pop("blocks")) for tree in (found, expected))
    for leaf, other in zip(blocks, expected_blocks, strict=True):
        assert not leaf[:below].any()
        assert all(layer.any() for layer in other)
        if below < DEPTH:
            assert_close(leaf[below:], other[below:], 2e-6)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(leaf, other, 2e-6)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("gate", [False, True])
def test_frozen_blocks_cost_no_backward_pass(encoder, scan, gate):
    """Of tokens that are not trained: the backward pass is twice the forward pass of the trained blocks alone."""

    def flops(below, differentiate):
        value, state, tokens = loss(
            encoder(freeze_below=below, scan=scan, attention="einsum", gate_layer=below if gate else None)
        )
        function = jax.grad(value) if differentiate else value
        return matmul_flops(jax.make_jaxpr(function)(state, tokens).jaxpr)

    forward = flops(0, False)
    for below in (0, 1, 3):
        assert flops(below, True) == forward + 2 * forward * (DEPTH - below) // DEPTH


@pytest.mark.parametrize("layer", range(DEPTH))
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_closed_gate_changes_no_bit_of_the_output(encoder, layer, per_channel):
    gated = with_gate(encoder(gate_layer=layer, gate_per_channel=per_channel), 0)
    assert gated.gate.shape == ((WIDTH,) if per_channel else ())
    plain = encoder()
    nnx.update(plain, ungated(gated))
    expected = output(plain)
    np.testing.assert_array_equal(output(gated), expected)
    assert np.abs(output(with_gate(gated, 0.5)) - expected).max() > 0.01


def test_the_gate_begins_closed_and_layer_scale_at_its_value():
    config = ModelConfig(
        name="x", width=WIDTH, depth=1, num_heads=2, mlp_dim=20, tubes="small", layer_scale=1, gate_layer=0
    )
    module = Encoder(config, jnp.float32, rngs=nnx.Rngs(0))
    assert module.gate.dtype == jnp.float32 and module.gate.shape == () and float(module.gate[...]) == 0
    for scale in (module.blocks.scale1, module.blocks.scale2):
        assert scale.dtype == jnp.float32 and scale.shape == (1, WIDTH) and (scale[...] == 1).all()


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradient_of_the_gate_by_finite_differences(encoder, per_channel, alpha):
    """Also at 0, where it must not vanish; the differences are those of the float64 reference."""
    module = with_gate(encoder(gate_layer=1, gate_per_channel=per_channel, freeze_below=1), alpha)
    found = np.asarray(gradients(module)[0]["gate"], np.float64)
    params = {f"encoder/{name}": value for name, value in read_parameters(module).items()}
    weights, tokens = (np.asarray(normal(2, TOKENS, WIDTH, seed=seed), np.float64) for seed in (9, 0))

    def value(gate):
        return (encode({**params, "encoder/gate": gate}, module.config, tokens) * weights).sum()

    expected = np.zeros_like(found)
    for index in np.ndindex(found.shape):
        step = np.zeros_like(found)
        step[index] = 1e-5
        expected[index] = (value(alpha + step) - value(alpha - step)) / 2e-5
    assert np.abs(expected).min() > 1e-3
    assert_close(found, expected, 1e-5)


def test_added_layers_are_as_many_as_asked_for_and_zeros_in_them_change_nothing(encoder):
    """A new layer whose output is 0 leaves the pretrained ViT as it is: it stands beside a residual."""
    module, plain = encoder(add_attention=3), encoder()
    assert module.added.norm.scale.shape == (3, WIDTH)
    out = module.added.attention.out
    out.kernel[...], out.bias[...] = jnp.zeros_like(out.kernel[...]), jnp.zeros_like(out.bias[...])
    nnx.update(plain, {name: value for name, value in state_of(module).items() if name != "added"})
    np.testing.assert_array_equal(output(module), output(plain))
