"""Every option of a model against the float64 reference, and that each matters."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from tests.models.reference import assert_close, difference, read_parameters
from tubevit.models.config import ModelConfig
from tubevit.tubes import TubeSet

TUBES = "3x5x6/4x6x8+1x2x0%2x3x1_1x9x10/8x8x8"  # windows overlap; space-to-depth; a 2D tube with two frames
SHAPE = (11, 29, 38)
# Kernels that shrink, grow and keep their size along each axis.
RESIZED = TubeSet.from_text("4x9x8/5x8x10+1x2x0_10x5x4/8x12x9_1x9x10/8x8x8", interpolated=True)
# One more frame and column than the clip that the model is made for has: the same grid.
LEARNED = dict(frames=10, size=31)
LEARNED_SHAPE = (11, 31, 32)
COLOURS = dict(mean=(0.2, 0.5, 0.7), std=(0.3, 0.5, 0.2))
SMALL_TUBES = dict(tubes="3x5x6/4x6x8+1x2x0%2x1x1_1x9x10/8x8x8")  # of 2 sub-windows
# As `bootstrap` builds it: a foreign ViT's options, a smaller model's tubes, the gate; here everything at once.
ALL = dict(
    position="learned_2d", class_token=True, pooling="map", gelu="tanh", norm_epsilon=1e-3, qkv_bias=False,
    layer_scale=0.1, add_attention=1, gate_layer=0, freeze_below=1, tube_width=16, depth=3, padding="same",
    remat="full", **SMALL_TUBES, **LEARNED, **COLOURS,
)  # fmt: skip
EACH_OF_ALL = dict(
    position="fixed", class_token=False, pooling="query", norm_epsilon=1e-6, layer_scale=None, add_attention=0,
    gate_layer=1, std=(0.5, 0.5, 0.5),
)  # fmt: skip


def pixels(*shape, dtype=np.uint8, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        return rng.integers(0, 256, (batch, *shape, 3), np.uint8)
    return rng.uniform(-1, 1, (batch, *shape, 3)).astype(dtype)


def run(model, video):
    """All stages of the model, compiled at the lowest level, which takes half the time."""
    graph, state = nnx.split(model)

    @jax.jit
    def stages(state, video):
        model = nnx.merge(graph, state)
        tokens, centres = model.tokenize(video)
        encoded = model.encoder(tokens, None, model.layout(video))
        pooled = getattr(model, "pooled_norm", lambda x: x)(model.pooling(encoded))
        return tokens, centres, encoded, model.pooling.weights(encoded), pooled, model.heads["default"](pooled)

    return stages.lower(state, video).compile({"xla_backend_optimization_level": 0})(state, video)


GRID = dict(tubes="3x7x9/3x7x9")  # 3 x 4 x 4 tokens of the shape
DENSE = GRID | dict(frames=11, size=29)
FACTORISED = dict(pattern="factorised_encoder", temporal_depth=2, **DENSE)
PATTERNS = {
    "divided": (dict(pattern="divided", depth=3, num_heads=4, **GRID), None, SHAPE),
    "divided, everything": (
        dict(
            pattern="divided", class_token=True, pooling="cls", layer_scale=0.1,
            position="learned_space_time", gelu="tanh", **DENSE,
        ), dict(position="learned_space", pooling="mean"), (11, 29, 31),
    ),
    "factorised_dot": (dict(pattern="factorised_dot", **GRID), dict(pattern="joint"), SHAPE),
    "factorised_encoder": (
        dict(class_token=True, pooling="cls", position="learned_space", softcap=2.0, **FACTORISED),
        dict(frame_pooling="mean", softcap=None), (11, 29, 31),
    ),
    "factorised_encoder, mean": (
        dict(frame_pooling="mean", final_norm="pooled", **FACTORISED), None, SHAPE,
    ),
    "factorised_encoder, none": (
        dict(frame_pooling="none", **FACTORISED), dict(frame_pooling="mean"), SHAPE,
    ),
    "rope": (dict(position="rope", class_token=True, width=32, **GRID), dict(position="none"), SHAPE),
    "index": (dict(position="index", **GRID), dict(position="none"), SHAPE),
    "learned_space": (dict(position="learned_space", **DENSE), dict(position="none"), (11, 29, 31)),
    "softcap": (dict(softcap=0.5), dict(softcap=None), SHAPE),
    "attentive": (dict(pooling="attentive", mlp_dim=96), dict(pooling="map"), SHAPE),
    "attentive, layer_scale": (dict(pooling="attentive", layer_scale=0.1, mlp_dim=96), dict(pooling="map"), SHAPE),
    "pooled": (
        dict(final_norm="pooled", pooled_norm_epsilon=0.1, pooling="mean"), dict(pooled_norm_epsilon=None), SHAPE,
    ),
}  # fmt: skip


# Fields of a model; fields of which each must give something else with the same parameters, or None where the option
# is seen by other parameters; the shape of the clip or image.
OPTIONS = {
    "interpolated": (dict(tubes=RESIZED), None, SHAPE),
    "interpolated, gain_norm": (dict(tubes=RESIZED, gain_norm=True), dict(gain_norm=False), SHAPE),
    "interpolated, antialias": (dict(tubes=RESIZED, antialias=True), dict(antialias=False), SHAPE),
    "interpolated, both": (
        dict(tubes=RESIZED, antialias=True, gain_norm=True, padding="same"), dict(antialias=False), SHAPE,
    ),
    "no position": (dict(position="none"), dict(position="fixed"), SHAPE),
    "fixed_no_stride": (dict(position="fixed_no_stride"), dict(position="fixed"), SHAPE),
    "fixed_literal": (dict(position="fixed_literal"), dict(position="fixed"), SHAPE),
    "learned": (dict(position="learned", **LEARNED), dict(position="learned_2d"), LEARNED_SHAPE),
    "learned, image": (dict(position="learned", **LEARNED), dict(position="fixed"), LEARNED_SHAPE[1:]),
    "learned_2d": (dict(position="learned_2d", **LEARNED), dict(position="fixed"), LEARNED_SHAPE),
    "learned_2d, image": (dict(position="learned_2d", **LEARNED), dict(position="fixed"), LEARNED_SHAPE[1:]),
    "class_token": (dict(class_token=True), dict(class_token=False), SHAPE),
    "class_token, image": (dict(class_token=True), dict(class_token=False), SHAPE[1:]),
    "query": (dict(pooling="query"), dict(pooling="mean"), SHAPE),
    "map": (dict(pooling="map"), dict(pooling="query"), SHAPE),
    "map, tanh and epsilon": (
        dict(pooling="map", gelu="tanh", norm_epsilon=0.1, class_token=True), dict(norm_epsilon=1e-6), SHAPE,
    ),
    "mean": (dict(pooling="mean", class_token=True), dict(class_token=False), SHAPE),
    "cls": (dict(pooling="cls", class_token=True), dict(pooling="mean"), SHAPE),
    "mean and std": (dict(**COLOURS), dict(std=(0.5, 0.5, 0.5)), SHAPE),
    "mean and std, same": (dict(padding="same", **COLOURS), dict(mean=(0.5, 0.5, 0.5)), SHAPE),
    "gelu": (dict(gelu="tanh", mlp_dim=160, pooling="map"), dict(gelu="exact"), SHAPE),
    "norm_epsilon": (dict(norm_epsilon=1e-2), dict(norm_epsilon=1e-6), SHAPE),
    "layer_scale": (dict(layer_scale=1e-5), dict(layer_scale=None), SHAPE),
    "add_attention": (dict(add_attention=2, depth=3), dict(add_attention=0), SHAPE),
    "gate": (dict(gate_layer=0), dict(gate_layer=1), SHAPE),
    "gate on the last block": (dict(gate_layer=1), dict(gate_layer=None), SHAPE),
    "gate_per_channel": (dict(gate_layer=0, gate_per_channel=True), dict(gate_layer=None), SHAPE),
    "wide tubes": (dict(tube_width=36), None, SHAPE),
    "narrow tubes": (dict(tube_width=12), None, SHAPE),
    "narrow tubes, interpolated": (dict(tubes=RESIZED, tube_width=16), None, SHAPE),
    "qkv_bias": (dict(qkv_bias=False), None, SHAPE),
    "qkv_bias, added": (dict(qkv_bias=False, add_attention=1), None, SHAPE),
    "tube_linear, narrow": (dict(tube_width=16, tube_linear=True, **SMALL_TUBES), dict(tube_linear=False), SHAPE),
    "tube_linear, wide": (dict(tube_width=36, tube_linear=True), dict(tube_linear=False), SHAPE),
    **PATTERNS,
    "all": (ALL, EACH_OF_ALL, LEARNED_SHAPE),
    "all, image": (ALL, EACH_OF_ALL, LEARNED_SHAPE[1:]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_reference_and_matters(tiny, name):
    fields, others, shape = OPTIONS[name]
    model = tiny(**{"tubes": TUBES, **fields})
    video = pixels(*shape, dtype=np.float32 if len(name) % 2 else np.uint8)
    params = read_parameters(model)
    expected = reference.stages(params, model.config, video)
    for found, wanted in zip(run(model, video), expected, strict=True):
        assert_close(found, wanted, 1e-5)
    if others is None:
        tubes = dataclasses.replace(model.config.tubes, interpolated=False)
        assert shapes(params) != shapes(read_parameters(tiny(tubes=tubes)))
    for field, value in (others or {}).items():
        other = reference.stages(params, dataclasses.replace(model.config, **{field: value}), video)
        assert difference(other[-1], expected[-1]) > 1e-4, field


def shapes(params):
    return {name: value.shape for name, value in params.items()}


def test_no_option_is_left_out():
    """A new field of the configuration needs a case here, or a reason not to have one."""
    elsewhere = {"name", "width", "num_heads", "heads", "fps", "dropout", "stochastic_depth", "precision"}
    computed = {"freeze_below", "remat", "scan", "attention"}  # these change no output: test_encoder.py
    elsewhere |= {"budget", "lora", "quantize"}  # test_budget.py, test_lora.py, test_int8.py of the extras
    sizes = {"interpolated"}  # part of the tubes here
    tried = set().union(*(fields for fields, _, _ in OPTIONS.values()))
    assert {field.name for field in dataclasses.fields(ModelConfig)} - elsewhere - computed - sizes <= tried
