"""Losses and mixup."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tubevit.models.tokenizer import normalise


def targets(labels: jax.Array, classes: int, label_smoothing: float, multi_label: bool) -> jax.Array:
    """Target probabilities (B, classes) float32.

    Args:
        labels: (B,) integers, or (B, classes) of 0 and 1 for several labels a sample.
        label_smoothing: share of the probability that is spread over all classes; not for several labels.
    """
    if multi_label:
        return labels.astype(jnp.float32)
    one_hot = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, label_smoothing) if label_smoothing else one_hot


def classification_loss(logits: jax.Array, target: jax.Array, multi_label: bool) -> jax.Array:
    """Cross-entropy of each sample, (B, classes) -> (B,): softmax, or the mean of sigmoids for several labels."""
    if multi_label:
        return optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=-1)
    return optax.softmax_cross_entropy(logits, target)


def mixup(pixels: jax.Array, target: jax.Array, alpha: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blends each sample with another of the batch, its share drawn from Beta(alpha, alpha).

    Args:
        pixels: (B, ...), uint8 0..255 or float -1..1.
        target: (B, classes).

    Returns:
        Pixels as float32 -1..1, and target.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, (len(pixels),), jnp.float32)
    order = jax.random.permutation(order_key, len(pixels))
    pixels = normalise(pixels, jnp.float32)

    def blend(x):
        weight = share.reshape((-1,) + (1,) * (x.ndim - 1))
        return weight * x + (1 - weight) * x[order]

    return blend(pixels), blend(target)
