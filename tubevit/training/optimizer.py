"""Adam with coupled weight decay (the paper's, Table 10), AdamW or Muon; linear warm-up, then cosine to 0.

Beside it, an exponential moving average of the parameters.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from tubevit.models.lora import NAMES as LORA

# Axes of the matrices in encoder blocks, counted from the end: what they sum over, and what they return. The axes in
# front, layers and the three of q, k and v, hold matrices of their own.
_MATRICES = {
    "attention/qkv/kernel": MuonDimensionNumbers((-4,), (-2, -1)),  # (L, D, 3, H, d)
    "attention/out/kernel": MuonDimensionNumbers((-3, -2), (-1,)),  # (L, H, d, D)
    "mlp/up/kernel": MuonDimensionNumbers((-2,), (-1,)),  # (L, D, M)
    "mlp/down/kernel": MuonDimensionNumbers((-2,), (-1,)),  # (L, M, D)
}
_MUON_MOMENTUM, _MUON_RMS = 0.95, 0.2  # of Liu et al. (2025): the learning rate and decay that suit AdamW suit it


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Make the schedule: linear warm-up over `warmup_steps`, then cosine decay that reaches 0 at `train.steps`."""
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, max(config.train.steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), cosine], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Make the optimiser of `config.optimizer`, which with `ema_decay` also averages the parameters.

    `adam` adds the weight decay to the gradient (the paper calls it L2), `adamw` and `muon` to the update. Only kernels
    and adapters decay, not biases or the scales of normalisation layers. `muon` updates the matrices of encoder blocks
    by their momentum made orthogonal, as large as Adam's updates, and all other parameters as `adamw` does.
    """
    settings = config.optimizer

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", *LORA), params)

    decay = [optax.add_decayed_weights(settings.weight_decay, kernels)] if settings.weight_decay else []
    # None keeps the dtype of the parameters.
    mu_dtype = jnp.bfloat16 if settings.mu_dtype == "bfloat16" else None
    scale = optax.scale_by_adam(settings.b1, settings.b2, mu_dtype=mu_dtype)
    if settings.name == "muon":
        of_matrices = [
            scale_by_muon(beta=_MUON_MOMENTUM, mu_dtype=mu_dtype, weight_dimension_numbers=_matrix_axes),
            optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_as_large_as_of_adam, updates)),
        ]
        scale = optax.partition({True: optax.chain(*of_matrices), False: scale}, _are_matrices)
    clip = [optax.clip_by_global_norm(settings.grad_clip_norm)] if settings.grad_clip_norm is not None else []
    middle = [*decay, scale] if settings.name == "adam" else [scale, *decay]
    optimizer = optax.chain(*clip, *middle, optax.scale_by_learning_rate(learning_rate_schedule(config)))
    return averaging(optimizer, settings.ema_decay) if settings.ema_decay else optimizer


def _matrix_of(path) -> str | None:
    """Return the name of a matrix of encoder blocks, a key of `_MATRICES`; None for other parameters."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    ends = (end for end in _MATRICES if name.endswith(end) and "blocks/" in name)  # of time_attention, too
    return next(ends, None)


def _are_matrices(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: _matrix_of(path) is not None, params)


def _matrix_axes(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: _MATRICES[str(_matrix_of(path))], params)


def _as_large_as_of_adam(path, update: Array) -> Array:
    """Scale orthogonal matrices to the root mean square that Adam's updates usually have."""
    axes = _MATRICES[str(_matrix_of(path))]
    sides = (math.prod(update.shape[axis] for axis in of) for of in (axes.reduction_axis, axes.output_axis))
    return _MUON_RMS * max(sides) ** 0.5 * update


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
