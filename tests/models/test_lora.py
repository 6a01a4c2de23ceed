"""Adapters: the float64 reference with merged kernels, its finite differences, and the base at B = 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from tests.models.reference import assert_close
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.errors import UserError
from tubevit.models.abstract import graph_of, parameters
from tubevit.models.config import Lora
from tubevit.models.lora import adapter_shapes, add_adapter, merge_adapter, training_graph
from tubevit.models.variants import model_config

LORA = Lora(rank=3, alpha=7.5)
GRID = dict(tubes="8x16x16/8x16x16", frames=16, size=32)
KINDS = {
    "joint": dict(GRID),
    "unrolled, recomputed": dict(scan=False, remat="full", qkv_bias=False, gate_layer=0, add_attention=1, **GRID),
    "divided": dict(pattern="divided", **GRID),
    "over time": dict(pattern="factorised_encoder", temporal_depth=1, class_token=True, **GRID),
}
VIDEO = np.random.default_rng(3).integers(0, 256, (2, 16, 32, 32, 3), np.uint8)


def random_adapter(config, seed=1):
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for path, leaf in adapter_shapes(config).items()
    }


def with_adapter(model, adapter):
    return unflatten(flatten(parameters(model)) | adapter)


def adapted(tiny, **fields):
    """A random model, its configuration with an adapter, and its parameters with a random one."""
    model = tiny(**fields)
    config = dataclasses.replace(model.config, lora=LORA)
    return model, config, with_adapter(model, random_adapter(config))


def logits(graph, params):
    run = jax.jit(lambda params: nnx.merge(graph, params)(VIDEO))
    return np.asarray(run.lower(params).compile({"xla_backend_optimization_level": 0})(params))


def merged_by_hand(params):
    """Float64 parameters by path, in which W + alpha / rank A B replaces W."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    plain = {path: leaf for path, leaf in flat.items() if "lora_" not in path}
    for path in (path for path in flat if path.endswith("lora_a")):
        layer = path.removesuffix("lora_a")
        product = [np.tensordot(a, b, 1) for a, b in zip(flat[path], flat[f"{layer}lora_b"])]
        plain[f"{layer}kernel"] = plain[f"{layer}kernel"] + LORA.alpha / LORA.rank * np.stack(product)
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference_with_merged_kernels(tiny, kind):
    model, config, params = adapted(tiny, **KINDS[kind])
    by_hand = merged_by_hand(params)
    expected = reference.stages(by_hand, model.config, VIDEO)[-1]
    assert_close(logits(training_graph(config), params), expected, 1e-5)
    merged = merge_adapter(params, LORA)
    for path, leaf in flatten(merged).items():
        np.testing.assert_allclose(leaf, by_hand[path], atol=2e-6, err_msg=path)
    assert_close(logits(graph_of(config), merged), expected, 1e-5)


def test_begins_from_the_base_bit_for_bit(tiny):
    model = tiny(**KINDS["joint"])
    config = dataclasses.replace(model.config, lora=LORA)
    params = add_adapter(parameters(model), config, 0)
    np.testing.assert_array_equal(logits(training_graph(config), params), logits(graph_of(config), parameters(model)))
    for path, leaf in flatten(params).items():
        if path.endswith("lora_b"):
            assert not leaf.any()
        elif path.endswith("lora_a"):
            most = np.prod(leaf.shape[1:-1]) ** -0.5
            assert 0.8 * most < np.abs(leaf).max() <= most and (leaf[0] != leaf[1]).all(), path
    other = flatten(add_adapter(parameters(model), config, 1))
    names = [f"encoder/blocks/{layer}/lora_a" for layer in ("attention/qkv", "mlp/up")]
    first, second = (flatten(params)[name] for name in names)
    assert (first != second).any() and (first != other[names[0]]).any()


def test_gradients_are_those_of_finite_differences(tiny):
    """Along a random direction, in float64 by the reference."""
    model, config, params = adapted(tiny, **KINDS["unrolled, recomputed"])
    adapter = random_adapter(config)
    weights = np.random.default_rng(4).normal(size=(2, 5))
    graph = training_graph(config)

    def loss(adapter):
        return (nnx.merge(graph, with_adapter(model, adapter))(VIDEO) * jnp.asarray(weights, jnp.float32)).sum()

    gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(adapter)

    def exact(direction, step):
        moved = {path: np.asarray(adapter[path], np.float64) + step * direction[path] for path in adapter}
        flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(parameters(model)).items()}
        return (reference.stages(merged_by_hand(unflatten(flat | moved)), model.config, VIDEO)[-1] * weights).sum()

    for name in ("lora_a", "lora_b"):
        rng = np.random.default_rng(5)
        direction = {path: rng.normal(size=leaf.shape) * path.endswith(name) for path, leaf in adapter.items()}
        found = sum((np.asarray(gradient[path], np.float64) * direction[path]).sum() for path in adapter)
        expected = (exact(direction, 1e-5) - exact(direction, -1e-5)) / 2e-5
        assert abs(found - expected) < 1e-4 * abs(expected), name


def test_names_and_shapes():
    """They follow the kernels, and neither scan nor remat."""
    config = model_config("tubevit_b16", num_classes=5, lora=Lora(4))
    shapes = {path.removeprefix("encoder/blocks/"): leaf.shape for path, leaf in adapter_shapes(config).items()}
    assert shapes == {
        "attention/qkv/lora_a": (12, 768, 4), "attention/qkv/lora_b": (12, 4, 3, 12, 64),
        "attention/out/lora_a": (12, 12, 64, 4), "attention/out/lora_b": (12, 4, 768),
        "mlp/up/lora_a": (12, 768, 4), "mlp/up/lora_b": (12, 4, 3072),
        "mlp/down/lora_a": (12, 3072, 4), "mlp/down/lora_b": (12, 4, 768),
    }  # fmt: skip
    assert adapter_shapes(config.replace(scan=False, remat="full")) == adapter_shapes(config)
    some = adapter_shapes(config.replace(lora=Lora(4, targets=("qkv",))))
    assert set(some) == {f"encoder/blocks/attention/qkv/lora_{name}" for name in "ab"}
    assert adapter_shapes(config.replace(lora=None)) == {}


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(rank=0), ["rank", "at least 1", "0"]),
        (dict(alpha=-1.0), ["alpha", "above 0", "-1"]),
        (dict(targets=("qkw",)), ["qkw", "'qkv'"]),
        (dict(targets=()), ["qkv, out, mlp"]),
    ],
)
def test_values_out_of_range(fields, words):
    with pytest.raises(UserError) as error:
        Lora(**fields)
    assert not [word for word in words if word not in str(error.value)], error.value
