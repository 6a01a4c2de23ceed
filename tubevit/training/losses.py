"""Losses, mixup and CutMix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tubevit.models.tokenizer import normalise


def targets(labels: jax.Array, classes: int, label_smoothing: float, multi_label: bool) -> jax.Array:
    """Target probabilities (B, classes) float32.

    Args:
        labels: (B,) integers, or (B, classes) of 0 and 1 for several labels a sample.
        label_smoothing: share of each target that is spread over all classes.
    """
    one_hot = labels.astype(jnp.float32) if multi_label else jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, label_smoothing) if label_smoothing else one_hot


def classification_loss(logits: jax.Array, target: jax.Array, multi_label: bool) -> jax.Array:
    """Cross-entropy of each sample, (B, classes) -> (B,): softmax, or the mean of sigmoids for several labels."""
    if multi_label:
        return optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=-1)
    return optax.softmax_cross_entropy(logits, target)


def partners(x: jax.Array) -> jax.Array:
    """Each sample's partner for mixup and CutMix, (B, ...): two neighbours are each other's.

    Batches are in random order already, and neighbours lie on one device: nothing travels, as a permutation's would.
    In a batch of an odd number each has the one before it.
    """
    if len(x) % 2:
        return jnp.roll(x, 1, axis=0)
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mixup(pixels: jax.Array, target: jax.Array, alpha: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blends each sample with its partner in the batch, its share drawn from Beta(alpha, alpha).

    Args:
        pixels: (B, ...), uint8 0..255 or float -1..1.
        target: (B, classes).

    Returns:
        Pixels as float32 -1..1, and target.
    """
    share = jax.random.beta(key, alpha, alpha, (len(pixels),), jnp.float32)

    def blend(x, other):
        weight = share.reshape((-1,) + (1,) * (x.ndim - 1))
        return weight * x + (1 - weight) * other

    mixed = blend(normalise(pixels, jnp.float32), normalise(partners(pixels), jnp.float32))
    return mixed, blend(target, partners(target))


def cutmix(pixels: jax.Array, target: jax.Array, alpha: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts a rectangle of its partner into each sample, the same in all frames (Yun et al. 2019, section 3.1).

    The share that is kept is drawn from Beta(alpha, alpha) for each sample. The rectangle has the shape of the frame
    and its centre anywhere in it; what lies outside is lost, and targets are weighted by the pixels that are kept.

    Args:
        pixels: (B, ..., H, W, 3) of any dtype.
        target: (B, classes) float32.

    Returns:
        Pixels of the same dtype, and target.
    """
    share_key, centre_key = jax.random.split(key)
    count, (height, width) = len(pixels), pixels.shape[-3:-1]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (count,), jnp.float32))  # of the frame's
    centre = jax.random.uniform(centre_key, (2, count), jnp.float32)
    inside_y, inside_x = _interval(centre[0], side, height), _interval(centre[1], side, width)
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    cut = (inside_y.sum(axis=1) * inside_x.sum(axis=1)).astype(jnp.float32)[:, None] / jnp.float32(height * width)
    inside = inside.reshape(count, *(1,) * (pixels.ndim - 4), height, width, 1)
    return jnp.where(inside, partners(pixels), pixels), (1 - cut) * target + cut * partners(target)


def _interval(centre: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B, size) bool: the pixels whose middles lie in an interval of each sample; shares of the size."""
    middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(middles - centre[:, None]) < length[:, None] / 2


def mix(
    pixels: jax.Array, target: jax.Array, mixup_alpha: float, cutmix_alpha: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixup or CutMix, whichever has an alpha above 0; with both, each batch takes one of them at random.

    Args:
        pixels: (B, ..., H, W, 3), uint8 0..255 or float -1..1.
        target: (B, classes) float32.

    Returns:
        Pixels, as they were or as float32 -1..1, and target.
    """
    if not cutmix_alpha:
        return mixup(pixels, target, mixup_alpha, key) if mixup_alpha else (pixels, target)
    if not mixup_alpha:
        return cutmix(pixels, target, cutmix_alpha, key)
    choice_key, key = jax.random.split(key)
    return jax.lax.cond(
        jax.random.bernoulli(choice_key),
        lambda: mixup(pixels, target, mixup_alpha, key),
        lambda: cutmix(normalise(pixels, jnp.float32), target, cutmix_alpha, key),
    )
