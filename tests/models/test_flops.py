import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tubevit.models.flops import count_flops
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
    ],
)
def test_equals_all_matrix_products_of_the_jaxpr(name, shape, fields):
    config, forward, arguments = lowered_model(name, shape, attention="einsum", **fields)
    head = "default" if config.heads else None
    counted = count_flops(config, (1,) * (3 - len(shape)) + shape, head)
    assert counted.total == matmul_flops(jax.make_jaxpr(forward)(*arguments).jaxpr)
    assert counted.macs * 2 == counted.total


def test_agrees_with_the_cost_analysis_of_xla():
    """XLA adds the elementwise work that is left out: never negative, and under 2 % at the width of B."""
    shape = (32, 224, 224)
    config, forward, arguments = lowered_model("tubevit_b16", shape, depth=2, num_classes=600, scan=False)
    found = jax.jit(forward).lower(*arguments).compile().cost_analysis()["flops"]
    assert 1 <= found / count_flops(config, shape, "default").total <= 1.02


def test_size_of_the_paper():
    """paper.md 1.4, rounded: 125 GMACs in the encoder of B at 1176 tokens, 423 of L."""
    for name, expected in (("tubevit_b16", 125), ("tubevit_l16", 423)):
        assert round(count_flops(model_config(name), (64, 224, 224)).encoder / 2e9) == expected
