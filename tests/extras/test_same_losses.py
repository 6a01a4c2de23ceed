"""The same step over any mesh gives the losses of one device: joint batches, all that is random switched on."""

import functools
import types

import jax
import numpy as np
import pytest

from tubevit.config import dataset_config, default_config
from tubevit.models.abstract import graph_of
from tubevit.models.config import Head, ModelConfig
from tubevit.sharding.mesh import global_batch, make_mesh
from tubevit.sharding.rules import shardings, spec
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state, make_step
from tubevit.windows import take_windows

HEADS = {"motion": Head(8, "video"), "digit": Head(10, "image")}
STEPS = 20
# Of `einsum` below on one device at commit 76d898f, before the kernel, named activations and the one pass over groups.
BEFORE = [
    3.331362, 3.437083, 2.914880, 2.866331, 2.556644, 2.479860, 2.374192, 2.744449, 2.383142, 2.677021,
    2.688591, 2.524367, 2.493882, 2.550657, 2.518769, 2.501555, 2.472226, 2.447675, 2.590741, 2.568842,
]  # fmt: skip
# Wide enough that fsdp splits its arrays, heads for tensor.
WIDTH = dict(width=128, depth=2, num_heads=2, mlp_dim=256, frames=8, size=32)
TUBES = "4x8x8/8x16x16_1x8x8/8x16x16"
MODELS = {
    "joint": dict(tubes=TUBES, dropout=0.1, stochastic_depth=0.1),
    "tubes": dict(tubes=TUBES, dropout=0.1, stochastic_depth=0.1),
    "divided": dict(tubes="1x8x8/2x8x8", dropout=0.1, pattern="divided", position="learned_space_time"),
    "factorised_encoder": dict(
        tubes="1x8x8/2x8x8", dropout=0.1, pattern="factorised_encoder", temporal_depth=2, class_token=True
    ),
    "rotary": dict(tubes="1x8x8/2x8x8", dropout=0.1, position="rope", pooling="attentive", final_norm="pooled"),
    # 128 tokens of clips and 64 of images: the kernel takes both.
    "einsum": dict(tubes="1x4x4/4x4x4", width=256, dropout=0.1, stochastic_depth=0.1),
    "kernel": dict(
        tubes="1x4x4/4x4x4", width=256, dropout=0.1, stochastic_depth=0.1, attention="kernel", remat="names"
    ),
    "bootstrapped": dict(
        tubes=TUBES, freeze_below=1, gate_layer=1, tube_width=64, position="learned_2d", class_token=True
    ),
}


def batch(tubes=None):
    rng = np.random.default_rng(0)
    pixels = functools.partial(rng.integers, 0, 256, dtype=np.uint8)
    joint = {
        "clips": {"pixels": pixels((8, 8, 32, 32, 3)), "label": rng.integers(0, 8, 8, dtype=np.int32)},
        "photos": {"pixels": pixels((8, 32, 32, 3)), "label": rng.integers(0, 10, 8, dtype=np.int32)},
    }
    for part in joint.values() if tubes else ():
        part["pixels"] = take_windows(part["pixels"], tubes)
    return joint


@functools.cache
def losses(kind, accumulate=1, calm=False, **mesh):
    """(STEPS,) losses, the program, and the state after the last step."""
    config = default_config()
    config.data.train.clips = dataset_config(source="-", head="motion", batch_size=8)
    config.data.train.photos = dataset_config(source="-", head="digit", batch_size=8, loss_weight=0.5)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2, grad_clip_norm=1.0)
    config.train.update(mixup=0.0 if calm else 0.2, label_smoothing=0.1, grad_accum_steps=accumulate)
    config.mesh.update(mesh)
    fields = WIDTH | MODELS[kind] | ({"dropout": 0.0, "stochastic_depth": 0.0} if calm else {})
    model = ModelConfig(name="vit", heads=tuple(HEADS.items()), **fields)
    optimizer, mesh = make_optimizer(config), make_mesh(config.mesh)
    make = functools.partial(initial_state, model, optimizer, 0)
    state = jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()
    graph = graph_of(model)
    placed, found = global_batch(batch(model.tubes if kind == "tubes" else None), mesh), []
    step = make_step(graph, optimizer, config, mesh).lower(state, placed)
    step = step.compile({"xla_backend_optimization_level": 0})  # refuses states that come out other than they went in
    for _ in range(STEPS):
        state, metrics = step(state, placed)
        found.append(float(metrics.compute()["loss"]))
    return types.SimpleNamespace(losses=np.array(found), program=step.as_text(), state=state, mesh=mesh)


def test_windows_of_tubes():
    """They give the losses of whole clips, on one device and on several."""
    expected = losses("joint", data=1).losses
    for mesh in (dict(data=1), MESHES[-1]):
        np.testing.assert_allclose(losses("tubes", **mesh).losses, expected, rtol=1e-4)


MESHES = [dict(data=8), dict(data=1, fsdp=4), dict(data=2, fsdp=2, tensor=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_joint_training(mesh):
    one, many = losses("joint", data=1), losses("joint", **mesh)
    assert one.losses[-1] < one.losses[0]
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4)
    for path, leaf in jax.tree_util.tree_flatten_with_path(many.state)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert leaf.sharding.spec == spec(name, leaf.shape, many.mesh), name
    kernel = many.state["params"]["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    split = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size == kernel.size / split


@pytest.mark.parametrize("kind", ["divided", "factorised_encoder", "rotary"])
def test_other_patterns(kind):
    one, many = losses(kind, data=1), losses(kind, data=2, fsdp=2, tensor=2)
    assert one.losses[-1] < one.losses[0]
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4)
    layer = {"rotary": "pooling/blocks", "factorised_encoder": "encoder/temporal/blocks"}.get(kind, "encoder/blocks")
    kernel = functools.reduce(lambda tree, name: tree[name], f"{layer}/mlp/up/kernel".split("/"), many.state["params"])
    assert kernel.addressable_shards[0].data.size == kernel.size / 4  # over fsdp and tensor


@pytest.mark.parametrize(
    "kind, mesh",
    [("einsum", dict(data=1)), ("kernel", dict(data=1)), ("kernel", dict(data=2, fsdp=2, tensor=2))],
    ids=str,
)
def test_the_kernel_of_tpus(kind, mesh):
    """Interpreted, and with what its backward pass keeps by name: the losses are those of the step without it."""
    found = losses(kind, **mesh)
    np.testing.assert_allclose(found.losses, BEFORE, rtol=1e-4)
    assert ("attention_forward" in found.program) == (kind == "kernel")


def test_bootstrapped_model():
    one, many = losses("bootstrapped", data=1), losses("bootstrapped", data=2, fsdp=2, tensor=2)
    assert one.state["frozen"] and one.losses[-1] < one.losses[0]
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4)


def test_activations_stay_split_by_rows():
    """Otherwise XLA moves them between rows and features: all-to-alls, which a step with fsdp does not need."""
    assert "all-to-all(" not in losses("joint", data=1, fsdp=4).program


@pytest.mark.parametrize("mesh", [dict(data=1), dict(data=2, fsdp=2)], ids=str)
def test_accumulated_gradients_are_those_of_the_batch(mesh):
    one = losses("joint", calm=True, data=1)
    np.testing.assert_allclose(losses("joint", 2, calm=True, **mesh).losses, one.losses, rtol=1e-4)


def test_accumulated_parts_have_masks_of_their_own():
    assert np.abs(losses("joint", 2, data=1).losses - losses("joint", data=1).losses).max() > 1e-3
