"""Adam with coupled weight decay (the paper's, Table 10) or AdamW; linear warm-up, then cosine to 0.

Beside it, an exponential moving average of the parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Make the schedule: linear warm-up over `warmup_steps`, then cosine decay that reaches 0 at `train.steps`."""
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, max(config.train.steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), cosine], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Make the optimiser of `config.optimizer`, which with `ema_decay` also averages the parameters.

    `adam` adds the weight decay to the gradient (the paper calls it L2), `adamw` to the update. Only kernels decay,
    not biases or the scales of normalisation layers.
    """
    settings = config.optimizer

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    decay = [optax.add_decayed_weights(settings.weight_decay, kernels)] if settings.weight_decay else []
    # None keeps the dtype of the parameters.
    mu_dtype = jnp.bfloat16 if settings.mu_dtype == "bfloat16" else None
    adam = [optax.scale_by_adam(settings.b1, settings.b2, mu_dtype=mu_dtype)]
    clip = [optax.clip_by_global_norm(settings.grad_clip_norm)] if settings.grad_clip_norm is not None else []
    middle = decay + adam if settings.name == "adam" else adam + decay
    optimizer = optax.chain(*clip, *middle, optax.scale_by_learning_rate(learning_rate_schedule(config)))
    return averaging(optimizer, settings.ema_decay) if settings.ema_decay else optimizer


class Averaging(NamedTuple):
    """State of `averaging`: the number of steps, the average of the parameters, and the optimiser's own state."""

    count: Array
    average: dict
    inner: optax.OptState


def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters in the optimiser's state.

    Step t keeps the share min(decay, (1 + t) / (10 + t)) of the average, so that it soon forgets the first parameters.
    """

    def init(params) -> Averaging:
        return Averaging(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params), optimizer.init(params))

    def update(grads, state: Averaging, params):
        updates, inner = optimizer.update(grads, state.inner, params)
        share = jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, 1.0 - share)
        return updates, Averaging(state.count + 1, average, inner)

    return optax.GradientTransformation(init, update)


def with_average(state: dict) -> dict:
    """Exchange the parameters of a training state with their average, if it has one.

    Checkpoints and evaluations have the average as their parameters. The second call undoes the first.
    """
    optimizer = state["opt_state"]
    if not isinstance(optimizer, Averaging):
        return state
    return state | {"params": optimizer.average, "opt_state": optimizer._replace(average=state["params"])}
