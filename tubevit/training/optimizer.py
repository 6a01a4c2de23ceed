"""Adam with coupled weight decay (the paper's, Table 10) or AdamW; linear warm-up, then cosine to 0."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Make the schedule: linear warm-up over `warmup_steps`, then cosine decay that reaches 0 at `train.steps`."""
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, max(config.train.steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), cosine], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Make the optimiser of `config.optimizer`.

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
    return optax.chain(*clip, *middle, optax.scale_by_learning_rate(learning_rate_schedule(config)))
