"""The programs of an experiment with abstract arguments, which need no data: training step, evaluation, parts."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tubevit.config.keys import InputPath
from tubevit.config.resolve import Resolved
from tubevit.data.views import Views
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import abstract_parameters, graph_of
from tubevit.models.config import Head, ModelConfig
from tubevit.models.elastic import models_of_largest_step
from tubevit.models.flops import training_flops
from tubevit.models.lora import training_graph
from tubevit.sharding.mesh import batch_sharding, batch_shards, check_batch, using
from tubevit.sharding.rules import check_sharding, shardings
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state, make_step, teaching
from tubevit.windows import TubeBatch, sample_arrays


def without_cudnn(plan: Resolved) -> Resolved:
    """Replace the attentions `auto` and `cudnn` by XLA's, because cuDNN's cannot be compiled without a GPU."""
    model = plan.model
    if model.attention not in ("auto", "cudnn"):
        return plan
    return dataclasses.replace(plan, model=model.replace(attention="xla"))


def abstract_batch(plan: Resolved, mesh: Mesh) -> dict:
    """Return a batch as {data set: {"pixels": see `abstract_pixels`, "label": (B,) int32 or (B, classes) float32}}.

    Raises UserError if a batch cannot be split over the devices.
    """
    batch, heads, sharding = {}, dict(plan.model.heads), batch_sharding(mesh)
    for name, dataset in plan.config.data.train.items():
        head, count = heads[dataset.head], dataset.batch_size
        check_batch(name, count, plan.config.train.grad_accum_steps, mesh)
        label = ((count, head.classes), jnp.float32) if head.multi_label else ((count,), jnp.int32)
        batch[name] = {
            "pixels": abstract_pixels(plan, head, (count,), sharding),
            "label": jax.ShapeDtypeStruct(*label, sharding=sharding),
        }
    return batch


def abstract_pixels(plan: Resolved, head: Head, leading: tuple[int, ...], sharding):
    """Return clips (*leading, T, H, W, 3), images (*leading, H, W, 3) or the windows of their tubes, uint8."""
    image = head.modality == "image"
    shape = plan.model.shape[1:] if image else plan.model.shape
    tubes = plan.model.tubes.for_images() if image else plan.model.tubes
    tubes = tubes if InputPath(plan.config.input.path) is InputPath.TUBES else None
    arrays = [
        jax.ShapeDtypeStruct((*leading, *each), dtype, sharding=sharding) for each, dtype in sample_arrays(shape, tubes)
    ]
    return arrays[0] if tubes is None else TubeBatch.of(arrays, tubes, shape)


def _abstract(tree, placed) -> dict:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)


def train_program(plan: Resolved, mesh: Mesh) -> tuple[Callable, tuple]:
    """Return the training step and its abstract arguments (state, batch); raises UserError if they do not divide.

    With `train.elastic`, it is the step of the two largest budgets.
    """
    optimizer = make_optimizer(plan.config)
    state = jax.eval_shape(lambda: initial_state(plan.model, optimizer, plan.config.seed))
    check_sharding(abstract_parameters(plan.model), mesh)
    state = _abstract(state, shardings(state, mesh))
    models = models_of_largest_step(plan.model, plan.config.train.elastic)
    step = make_step(training_graph(models[0]), optimizer, plan.config, mesh, **teaching(models[0], models))
    return step, (state, abstract_batch(plan, mesh))


def eval_program(plan: Resolved, mesh: Mesh) -> tuple[Callable, tuple, int] | None:
    """Return the most expensive forward pass of the evaluation: function, arguments, number of views.

    Returns None if the configuration has no evaluation data.
    """
    views, heads, choices = Views.from_keys(plan.config.eval), dict(plan.model.heads), []
    parts = batch_shards(mesh)
    for dataset in plan.config.data.eval.values():
        if head := heads.get(dataset.head):
            count = -(-dataset.batch_size // parts) * parts
            frames = 1 if head.modality == "image" else plan.model.frames
            choices.append((count * views.spatial * frames, dataset.head, count))
    if not choices:
        return None
    _, head, count = max(choices)
    params = _sharded_parameters(plan.model, mesh)
    pixels = abstract_pixels(plan, heads[head], (count, views.spatial), batch_sharding(mesh))
    return make_forward(plan.model, head, mesh, views.average), (params, pixels), count * views.spatial


def part_programs(plan: Resolved, mesh: Mesh) -> Mapping[str, tuple[Callable, tuple]]:
    """Return tokenizer and encoder, forward, on the largest training batch: {part: (function, arguments)}."""
    heads = dict(plan.model.heads)
    clips = [d for d in plan.config.data.train.values() if heads[d.head].modality != "image"]
    dataset = max(clips or plan.config.data.train.values(), key=lambda d: d.batch_size)
    sharding = batch_sharding(mesh)
    pixels = abstract_pixels(plan, heads[dataset.head], (dataset.batch_size,), sharding)
    graph = graph_of(plan.model)
    params = _sharded_parameters(plan.model, mesh)

    image = heads[dataset.head].modality == "image"
    layout = plan.model.layout((1 if image else plan.model.frames, plan.model.size, plan.model.size))

    def tokenize(params, pixels):
        with using(mesh):
            return nnx.merge(graph, params).tokenize(pixels)[0]

    def encode(params, tokens):
        with using(mesh):
            return nnx.merge(graph, params).encoder(tokens, None, layout)

    tokens = jax.eval_shape(tokenize, params, pixels)
    tokens = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=sharding)
    return {"tokenizer": (jax.jit(tokenize), (params, pixels)), "encoder": (jax.jit(encode), (params, tokens))}


def _sharded_parameters(model: ModelConfig, mesh: Mesh) -> dict:
    params = abstract_parameters(model)
    return _abstract(params, shardings(params, mesh))


def step_flops(plan: Resolved) -> int:
    """Return the FLOPs of a training step, without recomputation, see `training_flops` and `train_program`."""
    heads, total = dict(plan.model.heads), 0
    for dataset in plan.config.data.train.values():
        image = heads[dataset.head].modality == "image"
        shape = (1, *plan.model.shape[1:]) if image else plan.model.shape
        for model in models_of_largest_step(plan.model, plan.config.train.elastic):
            total += dataset.batch_size * training_flops(model, shape, dataset.head)
    return total
