"""The training state and the one compiled step over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit.models.abstract import initial_parameters
from tubevit.models.config import ModelConfig
from tubevit.models.freeze import join_frozen, split_frozen
from tubevit.models.placement import place
from tubevit.models.tubevit import TubeViT
from tubevit.sharding.mesh import using
from tubevit.sharding.rules import shardings
from tubevit.training.losses import classification_loss, mix, targets

_MIX, _DROPOUT = 0, 1  # purposes that keys are folded for


def initial_state(model: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> dict:
    """A new training state of random parameters, see `state_of`."""
    return state_of(initial_parameters(model, seed), model, optimizer)


def state_of(params: dict, model: ModelConfig, optimizer: optax.GradientTransformation) -> dict:
    """The training state at step 0: {"step": int32 scalar, "params", "frozen", "opt_state"}.

    `params` are those that are trained, `frozen` the others, see `split_frozen`; the optimiser knows the former only.
    """
    trained, frozen = split_frozen(params, model)
    return {"step": jnp.zeros((), jnp.int32), "params": trained, "frozen": frozen, "opt_state": optimizer.init(trained)}


def joint_loss(
    graph: nnx.GraphDef,
    params: dict,
    frozen: dict,
    batch: Mapping,
    config: ConfigDict,
    key: jax.Array,
):
    """Weighted sum of the losses of all data sets, each through its own head (paper appendix A).

    Args:
        graph: of the model.
        params, frozen: nested dicts, see `split_frozen`; the gradient is taken of the first.
        batch: {name: {"pixels", "label"}}, see `joint_batches`, less `file`, `broken` and `dense`.
        config: the experiment's.
        key: of this step; a key for each data set, purpose and layer is folded from it.

    Returns:
        The loss, and {name: loss} of the data sets.
    """
    model: TubeViT = nnx.merge(graph, join_frozen(params, frozen))
    heads = dict(model.config.heads)
    total, losses = jnp.zeros((), jnp.float32), {}
    for i, (name, sub_batch) in enumerate(sorted(batch.items())):
        dataset = config.data.train[name]
        head = heads[dataset.head]
        dataset_key = jax.random.fold_in(key, i)
        pixels = sub_batch["pixels"]
        target = targets(sub_batch["label"], head.classes, config.train.label_smoothing, head.multi_label)
        mix_key = jax.random.fold_in(dataset_key, _MIX)
        pixels, target = mix(pixels, target, config.train.mixup, config.train.cutmix, mix_key)
        logits = model(jax.tree.map(place, pixels), head=dataset.head, key=jax.random.fold_in(dataset_key, _DROPOUT))
        losses[name] = classification_loss(logits, target, head.multi_label).mean()
        total += dataset.loss_weight * losses[name]
    return total, losses


def metrics_class(names) -> type[clu.metrics.Collection]:
    """clu metrics of a step: the average of `loss`, of `<name>_loss` of each data set, and of `gradient_norm`."""
    keys = ["loss", "gradient_norm", *(f"{name}_loss" for name in names)]
    return clu.metrics.Collection.create(**{key: clu.metrics.Average.from_output(key) for key in keys})


def make_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh | None = None
) -> Callable:
    """The compiled step (state, batch) -> (state, clu metrics); the old state's memory is reused.

    All randomness follows from `config.seed` and the state's step, whatever the mesh. With
    `config.train.grad_accum_steps` the batch is computed in parts, whose gradients are averaged.

    Args:
        graph: of the model.
        optimizer: see `make_optimizer`.
        config: the experiment's.
        mesh: of the state, see `shardings`, and of the batch, see `global_batch`; None is one device.
    """
    collection, parts = metrics_class(config.data.train), config.train.grad_accum_steps

    def placed(tree):
        return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))

    def gradients(state: dict, batch: Mapping, key: jax.Array):
        """((loss, losses), gradients) of a batch, or of a part of one."""
        function = jax.value_and_grad(joint_loss, argnums=1, has_aux=True)
        result, grads = function(graph, state["params"], state["frozen"], batch, config, key)
        return result, placed(grads)

    def accumulated(state: dict, batch: Mapping, key: jax.Array):
        # Part i has rows i, i + parts, ...: some of each device's own, so that nothing is moved.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def add(total, part):
            index, part = part
            return jax.tree.map(jnp.add, total, gradients(state, part, jax.random.fold_in(key, index))), None

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, state, _first(split), key)
        )
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
        return jax.tree.map(lambda x: x / np.float32(parts), total)

    def step(state: dict, batch: Mapping):
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        with using(mesh):
            (loss, losses), grads = (accumulated if parts > 1 else gradients)(state, batch, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
        if config.train.skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            new = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, {key: state[key] for key in new})
        metrics = collection.single_from_model_output(
            loss=loss, gradient_norm=norm, **{f"{name}_loss": losses[name] for name in losses}
        )
        return placed(state | new | {"step": state["step"] + 1}), metrics

    return jax.jit(step, donate_argnums=0)


def _first(tree):
    return jax.tree.map(lambda x: x[0], tree)
