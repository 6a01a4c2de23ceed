import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tubevit.models.config import Head, ModelConfig
from tubevit.models.flops import count_flops, num_tokens
from tubevit.models.variants import create_model, model_config


def lowered_model(config_name, shape, **fields):
    model = nnx.eval_shape(lambda: create_model(config_name, **fields))
    graph, state = nnx.split(model)
    video = jax.ShapeDtypeStruct((1, *shape, 3), jnp.uint8)
    return model.config, (lambda state, video: nnx.merge(graph, state)(video)), (state, video)


def matmul_flops(jaxpr):
    """2 for each multiply-add of all matrix products in a jaxpr, those of a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(matmul_flops(inner) for inner in jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize(
    "name, shape, fields",
    [
        ("tubevit_b16", (32, 224, 224), dict(num_classes=600)),
        ("tubevit_l16", (64, 224, 224), dict(num_classes=600, tubes="paper_no_s2d")),
        ("tubevit_b16", (224, 224), dict(heads={"default": (1000, "image")})),
        ("tubevit_nano8", (16, 64, 64), dict(num_classes=0, scan=False)),
        ("tubevit_ti16", (21, 100, 131), dict(num_classes=3, tubes="paper", padding="same")),
        ("vit_ti16", (224, 224), dict(num_classes=10)),
        ("tubevit_nano8", (16, 64, 64), dict(num_classes=7, class_token=True, pooling="query")),
        ("tubevit_nano8", (16, 64, 64), dict(pooling="map", add_attention=2, gate_layer=1, freeze_below=1)),
        ("tubevit_nano8", (17, 66, 80), dict(pooling="cls", class_token=True, layer_scale=0.1, qkv_bias=False)),
        ("tubevit_nano8", (16, 64, 64), dict(tube_width=48, tube_linear=True)),
        ("tubevit_nano8", (64, 64), dict(tube_width=128, add_attention=3, scan=False)),
        ("timesformer_nano8", (17, 64, 80), dict(num_classes=3, position="none")),
        ("timesformer_b16", (8, 224, 224), dict(num_classes=400)),
        ("vivit_fe_nano8", (16, 64, 64), dict(scan=False)),
        ("vivit_fe_b16x2", (32, 224, 224), dict(num_classes=400, pooling="mean", frame_pooling="mean")),
        ("tubevit_nano8", (17, 64, 80), dict(tubes="4x8x8/4x8x8", pattern="factorised_dot", num_heads=4)),
        ("vivit_fe_nano8", (16, 64, 64), dict(frame_pooling="none", class_token=False, pooling="mean", softcap=50.0)),
        ("vjepa2_nano8", (17, 64, 80), dict(num_classes=5)),
        ("videomae_b16", (16, 224, 224), dict(num_classes=400)),
    ],
)
def test_equals_all_matrix_products_of_the_jaxpr(name, shape, fields):
    config, forward, arguments = lowered_model(name, shape, attention="einsum", **fields)
    head = "default" if config.heads else None
    counted = count_flops(config, (1,) * (3 - len(shape)) + shape, head)
    assert counted.total == matmul_flops(jax.make_jaxpr(forward)(*arguments).jaxpr)
    assert counted.macs * 2 == counted.total


def test_new_parts_by_hand():
    """A multiply-add counts 2. Width 12, MLP 20, 2 blocks; a clip of 4x8x8 has 1 token of 3D tubes and 4 of 2D ones."""

    def parts(shape=(4, 8, 8), **fields):
        sizes = dict(width=12, depth=2, num_heads=2, mlp_dim=20, tubes="4x8x8/4x8x8%2x1x1_1x4x4/4x4x4")
        config = ModelConfig(name="x", heads=(("a", Head(7)),), **sizes, **fields)
        return num_tokens(config, shape), dataclasses.astuple(count_flops(config, shape, "a"))

    def encoder(tokens, added=0):
        attention = 4 * 12 * 12 * tokens + 2 * tokens * tokens * 12
        return 2 * ((2 + added) * attention + 2 * 2 * 12 * 20 * tokens)

    video, image = 2 * 3 * 256 * 12, 2 * 4 * 3 * 16 * 12  # a sub-window makes half of the channels, there are two
    linear, logits = 2 * 2 * 5 * 12, 2 * 12 * 7
    assert parts() == (5, (video + image, encoder(5), linear, logits))
    assert parts((1, 8, 8)) == (4, (image, encoder(4), 2 * 2 * 4 * 12, logits))
    assert parts(class_token=True) == (6, (video + image, encoder(6), 2 * 2 * 6 * 12, logits))
    assert parts((1, 8, 8), class_token=True, pooling="cls") == (5, (image, encoder(5), 0, logits))
    assert parts(pooling="mean") == (5, (video + image, encoder(5), 0, logits))
    query = 2 * (12 * 12 + 5 * 2 * 12 * 12 + 2 * 5 * 12 + 12 * 12)  # query, keys and values, scores and sum, out
    assert parts(pooling="query") == (5, (video + image, encoder(5), query, logits))
    assert parts(pooling="map") == (5, (video + image, encoder(5), query + 2 * 2 * 12 * 20, logits))
    assert parts(add_attention=1) == (5, (video + image, encoder(5, added=1), linear, logits))
    assert parts(tube_width=8) == (5, (2 * 3 * 256 * 8 + image, encoder(5), linear, logits))
    widened = 2 * 3 * 256 * 8 + 2 * 8 * 12
    assert parts(tube_width=8, tube_linear=True) == (5, (widened + image, encoder(5), linear, logits))
    for fields in (dict(freeze_below=1, gate_layer=1), dict(layer_scale=0.1, qkv_bias=False, gelu="tanh")):
        assert parts(**fields) == parts()  # elementwise
    assert parts(position="none") == parts(mean=(0, 0, 0)) == parts()


@pytest.mark.parametrize(
    "name, shape",
    [("tubevit_b16", (32, 224, 224)), ("timesformer_b16", (4, 224, 224)), ("vivit_fe_b16x2", (8, 224, 224))],
)
def test_agrees_with_the_cost_analysis_of_xla(name, shape):
    """XLA adds the elementwise work that is left out: never negative, and under 2 % at the width of B."""
    fields = dict(frames=shape[0], depth=2, num_classes=600, scan=False)
    config, forward, arguments = lowered_model(name, shape, **fields)
    found = jax.jit(forward).lower(*arguments).compile().cost_analysis()["flops"]
    assert 1 <= found / count_flops(config, shape, "default").total <= 1.02


def test_size_of_the_paper():
    """paper.md 1.4, rounded: 125 GMACs in the encoder of B at 1176 tokens, 423 of L."""
    for name, expected in (("tubevit_b16", 125), ("tubevit_l16", 423)):
        assert round(count_flops(model_config(name), (64, 224, 224)).encoder / 2e9) == expected
