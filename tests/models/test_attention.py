"""Attention: by einsums against JAX; by the kernel, interpreted, against float64 NumPy and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.test_util import check_grads

from tests.models.reference import assert_close
from tubevit.errors import UserError
from tubevit.models import attention_kernel
from tubevit.models.abstract import abstract_parameters, graph_of
from tubevit.models.attention import FEWEST_TOKENS, attention, implementation_for
from tubevit.models.attention_rows import attention_of_rows
from tubevit.models.config import ModelConfig
from tubevit.models.encoder import Encoder
from tubevit.models.variants import model_config


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def scaled(implementation, dtype=jnp.float32):
    """Output and gradients of attention on queries large enough for a peaked softmax."""
    arguments = [jnp.asarray(s * normal(2, 37, 3, 8, seed=i), dtype) for i, s in enumerate((2, 2, 1))]
    weights = jnp.asarray(normal(2, 37, 3, 8, seed=3), dtype)

    @jax.jit
    def run(*arguments):
        out, pull = jax.vjp(lambda *x: attention(*x, implementation), *arguments)
        return out, *pull(weights)

    return run(*arguments)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("implementation", ["einsum", "splash"])
def test_attention_equals_that_of_jax(implementation):
    for found, expected in zip(scaled(implementation), scaled("xla"), strict=True):
        assert_close(found, expected, 1e-6)


@pytest.mark.standard_promotion
def test_einsum_attention_in_bfloat16():
    """bfloat16 keeps 8 bits: the output is off by one unit of the last place, much as that of JAX is."""
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    arguments = [jnp.asarray(normal(2, 37, 3, 8, seed=i), jnp.bfloat16) for i in range(3)]
    run = jax.jit(attention, static_argnums=3)
    expected = run(*(x.astype(jnp.float32) for x in arguments), "einsum")  # of the same rounded inputs
    error = {name: np.abs(np.asarray(run(*arguments, name), np.float32) - expected).max() for name in ("einsum", "xla")}
    assert error["einsum"] <= eps * np.abs(expected).max()
    assert error["einsum"] <= 1.5 * error["xla"]
    for found, expected in zip(scaled("einsum", jnp.bfloat16), scaled("einsum"), strict=True):
        assert found.dtype == jnp.bfloat16
        assert_close(found, expected, 8 * eps)


def test_gradients_of_einsum_attention_by_finite_differences():
    arguments = [normal(1, 5, 2, 4, seed=i) for i in range(3)]
    run = jax.jit(lambda *x: attention(*x, "einsum"))
    check_grads(run, arguments, order=1, modes=("fwd", "rev"), rtol=2e-3, eps=1e-2)


def expected_of_rows(rows, heads, d_out):
    """Output and gradient of the rows in float64: for each clip and head, from the definition."""
    rows, d_out = np.asarray(rows, np.float64), np.asarray(d_out, np.float64)
    out, gradient, width = np.zeros_like(d_out), np.zeros_like(rows), d_out.shape[2] // heads
    for clip in range(len(rows)):
        for head in range(heads):
            places = [slice((i * heads + head) * width, (i * heads + head + 1) * width) for i in range(3)]
            (query, key, value), d = (rows[clip][:, place] for place in places), d_out[clip][:, places[0]]
            scores = query @ key.T / np.sqrt(width)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[clip][:, places[0]] = weights @ value
            of_weights = d @ value.T
            of_scores = weights * (of_weights - (weights * of_weights).sum(axis=1, keepdims=True)) / np.sqrt(width)
            for place, part in zip(places, (of_scores @ key, of_scores.T @ query, weights.T @ d)):
                gradient[clip][:, place] = part
    return out, gradient


@functools.partial(jax.jit, static_argnames="heads")
def differentiated(rows, bias, kernel, d_out, heads):
    """Output, and the gradients of the rows, the bias and the kernel."""
    out, pull = jax.vjp(lambda *x: attention_of_rows(*x, heads), rows, bias, kernel)
    return out, *pull(d_out)


def check_kernel(batch, tokens, heads, width, dtype, tolerance, out_width=24):
    """The largest differences stay below `tolerance` of the largest value; without `out_width` nothing is projected."""
    rows = (2 * normal(batch, tokens, 3 * heads * width)).astype(dtype)
    bias, kernel = 0.5 * normal(3 * heads * width, seed=1), None
    if out_width:
        kernel = normal(heads * width, out_width, seed=3).astype(dtype)
    d_out = normal(batch, tokens, out_width or heads * width, seed=2).astype(dtype)
    out, d_rows, d_bias, d_kernel = differentiated(rows, bias, kernel, d_out, heads)
    assert out.dtype == d_rows.dtype == dtype and d_bias.dtype == jnp.float32
    by = np.eye(heads * width) if kernel is None else np.asarray(kernel, np.float64)
    d = np.asarray(d_out, np.float64)
    attended, gradient = expected_of_rows(rows + bias.astype(dtype), heads, d @ by.T)
    pairs = [(out, attended @ by), (d_rows, gradient), (d_bias, gradient.sum((0, 1)))]
    pairs += [] if kernel is None else [(d_kernel, np.einsum("bnh,bnd->hd", attended, d))]
    for found, expected in pairs:
        assert_close(np.asarray(found, np.float32), expected, tolerance)


@pytest.mark.parametrize(
    "tokens, heads, width, out_width",
    [
        (539, 2, 64, 24),  # two heads share 128 lanes
        (196, 8, 80, 24),  # 8 heads of 80 fill 640 lanes
        (1_100, 1, 128, None),  # several chunks in both directions, and a rest
        (704, 8, 80, 24),
        (1_176, 2, 64, 24),
        (2_499, 2, 64, 24),
    ],
)
def test_the_kernel_equals_the_definition(tokens, heads, width, out_width):
    check_kernel(1, tokens, heads, width, jnp.float32, 1e-5, out_width)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(1, 150), st.integers(1, 5), st.sampled_from([8, 24, 32, 64, 80]))
def test_the_kernel_takes_any_shape(batch, tokens, heads, width):
    check_kernel(batch, tokens, heads, width, jnp.float32, 1e-5)


@pytest.mark.parametrize("heads, width", [(2, 64), (8, 80)])
def test_the_kernel_in_bfloat16(heads, width):
    check_kernel(1, 150, heads, width, jnp.bfloat16, 4 * float(jnp.finfo(jnp.bfloat16).eps))


def test_on_a_mesh_each_device_takes_its_rows_and_heads():
    rows, bias, d_out = normal(4, 64, 3 * 4 * 16), normal(3 * 4 * 16, seed=1), normal(4, 64, 24, seed=2)
    kernel = normal(4 * 16, 24, seed=3)
    expected = differentiated(rows, bias, kernel, d_out, 4)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    arguments = rows.reshape(4, 64, 3, -1), bias.reshape(3, -1), kernel, d_out
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        placed = [jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P())) for x in arguments]
        for found, wanted in zip(differentiated(*placed, 4), expected, strict=True):
            assert_close(found.reshape(wanted.shape), wanted, 1e-6)
        jaxpr = str(jax.make_jaxpr(differentiated, static_argnums=4)(*arguments, 4))
    # XLA cannot split a kernel on TPUs: each device gets one clip, and the q, k and v of two of the four heads.
    assert jaxpr.count("shard_map[") == 2 and "f32[1,64,3,32]" in jaxpr


def test_every_option_works_with_the_kernel():
    """Output and gradients are those of einsums."""
    options = dict(gate_layer=0, freeze_below=1, layer_scale=0.1, add_attention=1, qkv_bias=False, dropout=0.3)
    options["remat"] = "names"
    sizes = dict(width=128, depth=2, num_heads=2, mlp_dim=32, tubes="small", frames=16, size=64)
    tokens = normal(2, FEWEST_TOKENS + 1, 128)  # one more, as with a class token

    def run(attention):
        config = ModelConfig(name="tiny", attention=attention, **sizes, **options)
        graph, state = nnx.split(Encoder(config, jnp.float32, rngs=nnx.Rngs(0)))
        loss = lambda state, x: (nnx.merge(graph, state)(x, jax.random.key(0)) * tokens).sum()  # noqa: E731
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(state, tokens)
        return jax.tree.leaves(traced.lower().compile()(state, tokens)), str(traced.jaxpr)

    (found, jaxpr), (expected, _) = run("kernel"), run("einsum")
    assert "name=attention_forward" in jaxpr
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-5)


def mesh_of(kind, platform):
    """A mesh of one device that need not be here."""
    device = AbstractDevice(kind, num_cores=1, platform=platform)
    return AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)


def gradient_of_an_encoder(tokens, **fields):
    """The jaxpr as text, for two samples of 128 channels."""
    sizes = dict(width=128, depth=3, num_heads=2, mlp_dim=32, tubes="small", frames=16, size=64)
    config = ModelConfig(name="tiny", **sizes, **fields)
    graph, state = nnx.split(nnx.eval_shape(lambda: Encoder(config, jnp.float32, rngs=nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((2, tokens, 128), jnp.float32)
    return str(jax.make_jaxpr(jax.grad(lambda state, x: nnx.merge(graph, state)(x).sum()))(state, tokens))


def test_with_names_each_layer_runs_the_forward_kernel_once():
    jaxpr = gradient_of_an_encoder(FEWEST_TOKENS, attention="kernel", remat="names")
    # In the loop over layers, interpreted and compiled.
    assert jaxpr.count("name=attention_forward") == jaxpr.count("name=attention_backward") == 2


@pytest.mark.parametrize("kind, platform, flat", [("cpu", "cpu", True), ("TPU v5 lite", "tpu", False)])
def test_rows_of_the_mlp_are_flat_on_cpu(kind, platform, flat):
    """Two samples of 72 tokens, in the MLP of 32 units."""
    with jax.sharding.use_abstract_mesh(mesh_of(kind, platform)):
        jaxpr = gradient_of_an_encoder(72)
    assert ("[144,32]" in jaxpr) == flat and ("[2,72,32]" in jaxpr) == (not flat)


@pytest.mark.parametrize(
    "name, kernel",
    [
        ("tubevit_b16", True),
        ("tubevit_h16", True),
        ("vit_b32", False),  # 50 tokens
        ("timesformer_b16", True),  # in each frame; einsums over time
        ("vivit_fe_b16x2", True),
        ("videomae_b16", True),
        ("vjepa2_l16", True),  # rotary positions
    ],
)
def test_the_step_of_a_model_on_tpus(name, kernel):
    """Traced as on v5e, in bfloat16, whatever the pattern of attention."""
    config = model_config(name, num_classes=3, precision="bfloat16", remat="names")
    pixels = jax.ShapeDtypeStruct((1, *config.shape, 3), jnp.uint8)
    graph, params = graph_of(config), abstract_parameters(config)
    with jax.sharding.use_abstract_mesh(mesh_of("TPU v5 lite", "tpu")):
        loss = lambda params, pixels: nnx.merge(graph, params)(pixels).astype(jnp.float32).sum()  # noqa: E731
        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params, pixels))
    assert ("name=attention_forward" in jaxpr or "splash" in jaxpr) == kernel


@pytest.mark.parametrize(
    "name, tokens, heads, expected",
    [
        ("auto", 1_176, 12, "einsum"),  # on this CPU
        ("kernel", 1_176, 12, "kernel"),
        ("kernel", 2_499, 12, "kernel"),
        ("kernel", 20_000, 12, "splash"),
        ("kernel", FEWEST_TOKENS - 1, 12, "einsum"),
        ("kernel", 1_176, 3, "einsum"),  # 192 channels are no multiple of 128
        ("xla", 1_176, 12, "xla"),
    ],
)
def test_the_shape_decides(name, tokens, heads, expected):
    assert implementation_for(name, tokens, heads, 64) == expected


@pytest.mark.parametrize(
    "device, name, dtype, width, expected",
    [
        ("tpu", "auto", jnp.bfloat16, 64, "kernel"),
        ("gpu", "auto", jnp.bfloat16, 64, "cudnn"),
        ("gpu", "auto", jnp.float32, 64, "xla"),  # cuDNN's fused attention is for bfloat16
        ("gpu", "auto", jnp.bfloat16, 12, "xla"),
        ("gpu", "xla", jnp.bfloat16, 64, "xla"),
        ("other", "auto", jnp.bfloat16, 64, "xla"),
    ],
)
def test_the_device_decides(device, name, dtype, width, expected):
    assert implementation_for(name, 1_176, 12, width, dtype, device, lambda: True) == expected
    if expected == "cudnn":
        assert implementation_for(name, 1_176, 12, width, dtype, device, lambda: False) == "xla"


@pytest.mark.parametrize(
    "kind, tokens, heads, width, expected",
    [
        ("TPU v5 lite", 2_499, 16, 80, "kernel"),
        ("TPU v5 lite", 4_000, 16, 80, "splash"),
        ("TPU v5", 2_499, 16, 80, "splash"),
        ("TPU v4", 1_176, 12, 64, "kernel"),
        ("TPU v4", 1_176, 16, 80, "splash"),
    ],
)
def test_the_memory_of_the_chip_decides(kind, tokens, heads, width, expected):
    with jax.sharding.use_abstract_mesh(mesh_of(kind, "tpu")):
        assert implementation_for("auto", tokens, heads, width) == expected


def test_gpus_have_no_such_kernel():
    with pytest.raises(UserError, match="'kernel' is for TPUs.*'cudnn'"):
        implementation_for("kernel", 196, 12, 64, device="gpu")


@pytest.mark.parametrize(
    "device, dtype, width, available, found",
    [
        ("cpu", jnp.bfloat16, 64, True, "found bfloat16, 64 channels and cpu"),
        ("gpu", jnp.float32, 64, True, "found float32, 64 channels and gpu"),
        ("gpu", jnp.bfloat16, 136, True, "found bfloat16, 136 channels"),
        ("gpu", jnp.bfloat16, 12, True, "found bfloat16, 12 channels"),
        ("gpu", jnp.bfloat16, 64, False, "found bfloat16, 64 channels and gpu"),
        ("tpu", jnp.bfloat16, 64, True, "found bfloat16, 64 channels and tpu"),
    ],
)
def test_cudnn_where_it_is_not_available(device, dtype, width, available, found):
    with pytest.raises(UserError, match=f"'cudnn' needs an NVIDIA GPU .*{found}.*: use 'auto' or 'xla'"):
        implementation_for("cudnn", 196, 12, width, dtype, device, lambda: available)
    assert implementation_for("cudnn", 196, 12, 64, jnp.bfloat16, "gpu", lambda: True) == "cudnn"


def test_a_model_with_cudnn_is_refused_on_this_cpu(tiny):
    for precision in ("bfloat16", "float32"):
        with pytest.raises(UserError, match=f"'cudnn' needs .*found {precision}"):
            jax.eval_shape(tiny(attention="cudnn", precision=precision), np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("heads, width, lanes", [(12, 64, 128), (16, 80, 640), (3, 64, 192), (2, 128, 128), (1, 8, 8)])
def test_blocks_hold_whole_heads(heads, width, lanes):
    assert attention_kernel.block_lanes(heads, width) == lanes
