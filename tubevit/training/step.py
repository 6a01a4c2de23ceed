"""The training state and the compiled step that updates it."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit.models.abstract import initial_parameters
from tubevit.models.config import ModelConfig
from tubevit.models.freeze import join_frozen, split_frozen
from tubevit.models.lora import add_adapter, training_graph
from tubevit.models.placement import place
from tubevit.models.tokenizer import normalise
from tubevit.models.tubevit import TubeViT
from tubevit.sharding.mesh import batch_sharding, using
from tubevit.sharding.rules import shardings
from tubevit.training.losses import classification_loss, mix, predictions, targets

_MIX, _DROPOUT = 0, 1  # purposes of random keys
_ELASTIC = 2  # and of random numbers on the host


def initial_state(model: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> dict:
    """Create a training state with random parameters, and an adapter if the model has one, see `state_of`."""
    return state_of(add_adapter(initial_parameters(model, seed), model, seed), model, optimizer)


def state_of(params: dict, model: ModelConfig, optimizer: optax.GradientTransformation) -> dict:
    """Create the training state at step 0: {"step": int32 scalar, "params", "frozen", "opt_state"}.

    `params` are the trained parameters and `frozen` the rest, see `split_frozen`. The optimiser has no state for the
    frozen ones.
    """
    trained, frozen = split_frozen(params, model)
    return {"step": jnp.zeros((), jnp.int32), "params": trained, "frozen": frozen, "opt_state": optimizer.init(trained)}


def joint_loss(
    graph: nnx.GraphDef,
    params: dict,
    frozen: dict,
    batch: Mapping,
    config: ConfigDict,
    key: Array,
    teacher: Mapping[str, Array] | None = None,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Array]]]:
    """Compute the weighted sum of the losses of all data sets (paper appendix A), {name: loss} and {name: logits}.

    Args:
        graph: structure of the model, see `training_graph`.
        params, frozen: trained and frozen parameters, see `split_frozen`.
        batch: {name: {"pixels", "label"}}, see `joint_batches`, without `file`, `broken` and `dense`.
        config: configuration of the experiment.
        key: random key of the step, from which the keys of data sets, purposes and layers are derived.
        teacher: {name: logits} of another model for the same batch and key, which replace the labels.
    """
    model: TubeViT = nnx.merge(graph, join_frozen(params, frozen))
    heads = dict(model.config.heads)
    inputs, wanted = [], []
    for i, (name, sub_batch) in enumerate(sorted(batch.items())):
        head, dataset_key = config.data.train[name].head, jax.random.fold_in(key, i)
        target = targets(sub_batch["label"], heads[head].classes, config.train.label_smoothing, heads[head].multi_label)
        mix_key = jax.random.fold_in(dataset_key, _MIX)
        pixels, target = mix(sub_batch["pixels"], target, config.train.mixup, config.train.cutmix, mix_key)
        inputs.append((jax.tree.map(place, pixels), head, jax.random.fold_in(dataset_key, _DROPOUT)))
        wanted.append((name, target))
    total, losses, logits = jnp.zeros((), jnp.float32), {}, {}
    for (name, target), logits[name] in zip(wanted, model.classify_together(inputs)):
        dataset = config.data.train[name]
        multi_label = heads[dataset.head].multi_label
        target = target if teacher is None else predictions(teacher[name], multi_label)
        losses[name] = classification_loss(logits[name], target, multi_label).mean()
        total += dataset.loss_weight * losses[name]
    return total, (losses, logits)


def taught_loss(
    largest: nnx.GraphDef, graph: nnx.GraphDef, *arguments
) -> tuple[Array, tuple[dict[str, Array], dict[str, tuple[Array, Array]]]]:
    """Compute the mean of the losses of two budgets, {name: loss} of the larger one, and {name: logits of both}.

    The larger one learns from the labels, and the other one from what it predicts for the same pixels: the in-place
    distillation of Yu and Huang 2019, "Universally Slimmable Networks", for tokens instead of channels.

    Args:
        largest, graph: structure of the model with either budget, see `training_graph`.
        arguments: the other arguments of `joint_loss`.
    """
    loss, (losses, logits) = joint_loss(largest, *arguments)
    taught, (_, others) = joint_loss(graph, *arguments, teacher=logits)
    return (loss + taught) / 2, (losses, {name: (logits[name], others[name]) for name in logits})


def teaching(model: ModelConfig, models: Sequence[ModelConfig]) -> dict[str, Any]:
    """Return the keyword arguments of `make_step` for one of the `elastic_models`, which the last of them teaches."""
    if model == models[-1]:
        return {}
    return {"loss_function": functools.partial(taught_loss, training_graph(models[-1]))}


def metrics_class(names) -> type[clu.metrics.Collection]:
    """Build the clu metrics of a step: averages of `loss`, `gradient_norm`, and `<name>_loss` of each data set."""
    keys = ["loss", "gradient_norm", *(f"{name}_loss" for name in names)]
    return clu.metrics.Collection.create(**{key: clu.metrics.Average.from_output(key) for key in keys})


def average_metrics(finite: Sequence[clu.metrics.Collection], names: Iterable[str]) -> dict[str, float]:
    """Average the metrics of several steps, as `train/loss` and so on; NaN without any, where every one was skipped."""
    if not finite:
        return {"train/loss": float("nan")}
    averages = functools.reduce(lambda a, b: a.merge(b), finite).compute()
    named = {f"{name}_loss": f"train/{name}/loss" for name in names}
    return {named.get(key, f"train/{key}"): float(value) for key, value in averages.items()}


def chosen_by_step(
    make: Callable[[ModelConfig], Any], models: Sequence[ModelConfig], seed: int
) -> Callable[[int], Any]:
    """Return a function from the number of a step, from 1, to what is made, once, of its model.

    Args:
        make: makes what is needed of a model, such as its compiled step.
        models: with several, each is as likely as the others.
        seed: seed of the run. The choice follows from it and from the number of the step alone.
    """
    made = functools.cache(make)

    def of_step(number: int):
        return made(models[int(np.random.default_rng((_ELASTIC, seed, number)).integers(len(models)))])

    return of_step


def _updated_if(finite: Array, new: dict, old: dict) -> dict:
    """Return the new state if it is finite, else the old one; the learning rate follows its schedule either way."""

    def scheduled(node) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(lambda x, y: x if scheduled(x) else jnp.where(finite, x, y), new, old, is_leaf=scheduled)


def make_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh | None = None,
    loss_function: Callable = joint_loss,
    checked: bool = False,
) -> Callable:
    """Compile the step (state, batch) -> (state, clu metrics), which donates the memory of the old state.

    All randomness follows from `config.seed` and the step of the state, for any mesh. If
    `config.train.grad_accum_steps` is above 1, gradients are averaged over that many parts of the batch.

    Args:
        graph: structure of the model, see `training_graph`.
        optimizer: see `make_optimizer`.
        config: configuration of the experiment.
        mesh: mesh of the state, see `shardings`, and of the batch, see `global_batch`; None uses one device.
        loss_function: see `joint_loss`, and `taught_loss` for elastic training.
        checked: compile (state, batch) -> (state, clu metrics, rows) for `Replay`, which keeps the old state. The rows
            are {"logits", "gradients"}: of each row of the batch, all logits and the gradients of its pixels, which
            show what a device computed before anything was summed over the batch. There are no gradients where the
            backward pass does not reach the tokenizer, whose parameters are then frozen.
    """
    collection, parts = metrics_class(config.data.train), config.train.grad_accum_steps

    def placed(tree):
        return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))

    def gradients(state: dict, batch: Mapping, key: Array):
        """Return ((loss, (losses, rows)), gradients) of a batch or a part of one."""
        of_pixels = checked and jax.tree.leaves(state["params"].get("tokenizer"))
        batch = _with_float_pixels(batch) if of_pixels else batch
        function = jax.value_and_grad(loss_function, (1, 3) if of_pixels else (1,), has_aux=True, allow_int=True)
        (loss, (losses, logits)), (grads, *rest) = function(graph, state["params"], state["frozen"], batch, config, key)
        of_rows = [leaf for leaf in jax.tree.leaves(rest) if leaf.dtype != jax.dtypes.float0]
        rows = {"logits": logits} | ({"gradients": of_rows} if of_pixels else {})
        return (loss, (losses, rows)), placed(grads)

    def accumulated(state: dict, batch: Mapping, key: Array):
        # Part i has rows i, i + parts, ..., some from each device, so that no data is moved.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def add(total, part):
            index, part = part
            return jax.tree.map(jnp.add, total, gradients(state, part, jax.random.fold_in(key, index))), None

        shapes = jax.eval_shape(gradients, state, jax.tree.map(lambda x: x[0], split), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
        return jax.tree.map(lambda x: x / np.float32(parts), total)

    def step(state: dict, batch: Mapping):
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        with using(mesh):
            (loss, (losses, rows)), grads = (accumulated if parts > 1 else gradients)(state, batch, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        if config.train.skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            new = _updated_if(finite, new, {key: state[key] for key in new})
        metrics = collection.single_from_model_output(
            loss=loss, gradient_norm=norm, **{f"{name}_loss": losses[name] for name in losses}
        )
        state = placed(state | new | {"step": state["step"] + 1})
        if not checked:
            return state, metrics
        rows = rows if mesh is None else jax.lax.with_sharding_constraint(rows, batch_sharding(mesh))
        return state, metrics, rows

    return jax.jit(step, donate_argnums=() if checked else 0)


def _with_float_pixels(batch: Mapping) -> dict:
    """Return a batch whose pixels have gradients: float32, as the model and mixup make them of uint8."""

    def as_float(pixels):
        return jax.tree.map(lambda x: normalise(x, jnp.float32) if x.dtype == jnp.uint8 else x, pixels)

    return {
        name: {key: as_float(value) if key == "pixels" else value for key, value in part.items()}
        for name, part in batch.items()
    }
