"""Frozen parameters: no gradient, no state, no update, no backward pass; the others as in full training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tubevit.checkpoint.paths import flatten
from tubevit.config import dataset_config, default_config
from tubevit.models.abstract import parameters
from tubevit.models.config import Head, Lora
from tubevit.models.flops import training_flops
from tubevit.models.freeze import join_frozen, split_frozen
from tubevit.models.lora import adapter_shapes, training_graph, training_shapes
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import joint_loss, make_step, state_of

DEPTH = 4
FIELDS = dict(depth=DEPTH, position="learned_2d", class_token=True, tubes="4x4x4/8x16x16_1x8x8/16x16x16")


@pytest.fixture(scope="module")
def model(tiny):
    """`model(freeze_below, **fields)`: random parameters that do not depend on what is frozen."""
    return lambda s, **fields: tiny({"motion": Head(5)}, freeze_below=s, **FIELDS, **fields)


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.data.train.clips = dataset_config(source="clips", head="motion", batch_size=3)
    config.optimizer.update(warmup_steps=1, learning_rate=1e-2, weight_decay=0.1)
    config.train.steps = 100
    return config


BATCH = {
    "clips": {
        "pixels": np.random.default_rng(0).integers(0, 256, (3, 16, 64, 64, 3), np.uint8),
        "label": np.array([0, 3, 4], np.int32),
    }
}


@pytest.mark.parametrize("s", [0, 2])
def test_a_checked_step_has_gradients_of_pixels_where_the_backward_pass_reaches_them(model, config, s):
    m, optimizer = model(s), make_optimizer(config)
    state = state_of(parameters(m), m.config, optimizer)
    step = make_step(training_graph(m.config), optimizer, config, checked=True)
    _, _, rows = jax.eval_shape(step, state, BATCH)
    assert set(rows) == ({"logits", "gradients"} if s == 0 else {"logits"})


@pytest.mark.parametrize("s, gate", [(0, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 3), (DEPTH, 1), (DEPTH, DEPTH - 1)])
def test_split_and_join(model, s, gate):
    """The gate is frozen if a frozen block follows it: a trained one would need the gradients of that block."""
    gated = model(s, gate_layer=gate, add_attention=1)
    params = parameters(gated)
    trained, frozen = split_frozen(params, gated.config)
    joined = join_frozen(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    for one, two in zip(jax.tree.leaves(joined), jax.tree.leaves(params)):
        np.testing.assert_array_equal(one, two)
    trained, frozen = flatten(trained), flatten(frozen)
    always = {path for path in flatten(params) if path.startswith(("pooling", "heads", "encoder/added"))}
    assert ("encoder/gate" in frozen, "encoder/gate" in trained) == (gate + 1 < s, gate + 1 >= s)
    assert always <= trained.keys() and not always & frozen.keys()
    below = {path for path in flatten(params) if path.startswith(("tokenizer", "position", "class_token"))}
    assert below <= (frozen if s else trained).keys() and not below & (trained if s else frozen).keys()
    kernel = "encoder/blocks/mlp/up/kernel"
    counts = [len(tree[kernel]) if kernel in tree else 0 for tree in (trained, frozen)]
    assert counts == [DEPTH - s, s]
    assert ("encoder/norm/scale" in frozen) == (s == DEPTH)


@pytest.mark.parametrize("fields", [dict(s=2), dict(s=DEPTH), dict(s=0, lora=Lora(2))])
def test_the_normalisation_of_pooled_features_is_frozen_as_that_of_tokens(model, fields):
    config = model(final_norm="pooled", pooling="mean", **fields).config
    params = jax.tree.map(lambda shape: np.zeros(shape.shape), training_shapes(config))
    trained, frozen = map(flatten, split_frozen(params, config))
    norm, last = {"pooled_norm/scale", "pooled_norm/bias"}, fields["s"] != 2
    assert norm <= (frozen if last else trained).keys() and not norm & (trained if last else frozen).keys()


def test_layers_of_new_weights_are_trained(model):
    widened = model(2, tube_width=12, tube_linear=True)
    trained, frozen = map(flatten, split_frozen(parameters(widened), widened.config))
    assert "tokenizer/tubes/0/widen/kernel" in trained and "tokenizer/tubes/0/kernel" in frozen


def test_an_adapter_is_trained_and_its_base_frozen(model):
    config = model(0, gate_layer=1, add_attention=1, lora=Lora(2)).config
    params = training_shapes(config)
    trained, frozen = map(flatten, split_frozen(params, config))
    new = ("pooling", "heads", "encoder/gate", "encoder/added")
    assert trained.keys() == adapter_shapes(config).keys() | {p for p in flatten(params) if p.startswith(new)}
    assert frozen.keys() == flatten(params).keys() - trained.keys()


def gradients(model, params, config):
    """Of the loss with respect to what is trained, by path."""
    trained, frozen = split_frozen(params, model.config)
    batch = jax.tree.map(jnp.asarray, BATCH)
    graph = nnx.graphdef(model)
    loss = lambda trained: joint_loss(graph, trained, frozen, batch, config, jax.random.key(0))[0]  # noqa: E731
    # The lowest level halves the time to compile.
    return flatten(jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(trained))


@pytest.mark.parametrize("s", [1, 3, DEPTH])
def test_gradients_are_those_of_full_training(model, config, s):
    everything = model(0, gate_layer=min(s, DEPTH - 1))
    params = parameters(everything)
    whole = gradients(everything, params, config)
    part = gradients(model(s, gate_layer=min(s, DEPTH - 1)), params, config)
    for path, gradient in part.items():
        expected = whole[path][s:] if path.startswith("encoder/blocks/") else whole[path]
        np.testing.assert_allclose(gradient, expected, atol=2e-6 * np.abs(expected).max() + 1e-9, err_msg=path)
    assert {path for path in part if not path.startswith("encoder/blocks/")} < set(whole)


def test_only_what_is_trained_changes_and_has_state(model, config):
    frozen_model = model(2, gate_layer=2)
    optimizer, params = make_optimizer(config), parameters(frozen_model)
    state = state_of(jax.tree.map(jnp.array, params), frozen_model.config, optimizer)
    sizes = {leaf.shape for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim}
    assert (2, 24, 40) in sizes and (DEPTH, 24, 40) not in sizes
    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(optax.tree.get(state["opt_state"], "mu")))
    assert moments == count < 0.7 * sum(leaf.size for leaf in jax.tree.leaves(params))
    step = make_step(nnx.graphdef(frozen_model), optimizer, config)
    for _ in range(3):
        state, metrics = step(state, BATCH)
    assert step._cache_size() == 1 and float(metrics.compute()["gradient_norm"]) > 0
    before, after = flatten(params), flatten(join_frozen(state["params"], state["frozen"]))
    for path in before:
        changed = np.asarray(after[path]) != before[path]
        if path.startswith("encoder/blocks/"):
            assert not changed[:2].any() and changed[2:].any()
        elif path.startswith(("tokenizer", "position", "class_token")):
            assert not changed.any(), path
        else:
            assert changed.any(), path
    assert float(state["params"]["encoder"]["gate"]) != 0


def lowered_step(model, config, s, **fields):
    """The step of 8 blocks that are most of the work, traced from shapes."""
    settings = dataclasses.replace(model(0).config, depth=8, width=64, mlp_dim=256, freeze_below=s, **fields)
    graph = training_graph(settings)
    optimizer = make_optimizer(config)
    params = training_shapes(settings)
    state = jax.eval_shape(lambda p: state_of(p, settings, optimizer), params)
    return make_step(graph, optimizer, config).lower(state, jax.tree.map(jnp.asarray, BATCH))


def test_frozen_blocks_cost_no_backward_pass(model, config):
    """XLA's own count of a step, unrolled so that it counts each block: 6 of 8 frozen ones save more than half.

    A gate among the frozen blocks, of a checkpoint that has one, is frozen with them.
    """

    def flops(s, **fields):
        return lowered_step(model, config, s, scan=False, **fields).cost_analysis()["flops"]

    full = flops(0)
    assert flops(6) < 0.57 * full  # of 24 passes through a block (1 forward, 2 back) 12 are left
    assert flops(6, gate_layer=2) < 0.57 * full
    assert 0.85 * full < flops(1) < full


def test_an_adapter_saves_the_gradients_of_its_base(model, config):
    """A frozen block has one backward product for each forward one, a trained block two."""

    def flops(**fields):
        return lowered_step(model, config, 0, scan=False, **fields).cost_analysis()["flops"]

    full, settings = flops(), dataclasses.replace(model(0).config, depth=8, width=64, mlp_dim=256)
    for rank in (2, 8):
        share = flops(lora=Lora(rank)) / full
        adapted, plain = (
            training_flops(each, each.shape, "motion") for each in (settings.replace(lora=Lora(rank)), settings)
        )
        assert 0.6 < share < 0.85 and abs(share - adapted / plain) < 0.04


@pytest.mark.parametrize("gate", [None, 6])
def test_no_array_is_as_deep_as_the_model(model, config, gate):
    """Neither a gradient nor a copy of the whole stack; the gate splits the trained blocks once more."""
    lowered = lowered_step(model, config, 6, gate_layer=gate)
    text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    assert "f32[2,64,256]" in text and "f32[6,64,256]" in text and "f32[8,64,256]" not in text
