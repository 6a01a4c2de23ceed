"""Losses, mixup and CutMix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tubevit.models.tokenizer import normalise
from tubevit.tubes import Tube
from tubevit.windows import TubeBatch

Pixels = jax.Array | TubeBatch


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


def mixup(pixels: Pixels, target: jax.Array, alpha: float, key: jax.Array) -> tuple[Pixels, jax.Array]:
    """Blends each sample with its partner in the batch, its share drawn from Beta(alpha, alpha).

    Args:
        pixels: (B, ...), or windows of tubes, uint8 0..255 or float -1..1.
        target: (B, classes).

    Returns:
        Pixels as float32 -1..1, and target.
    """
    share = jax.random.beta(key, alpha, alpha, (len(target),), jnp.float32)

    def blend(x, other):
        weight = share.reshape((-1,) + (1,) * (x.ndim - 1))
        return weight * x + (1 - weight) * other

    def mixed(x):
        return blend(normalise(x, jnp.float32), normalise(partners(x), jnp.float32))

    return jax.tree.map(mixed, pixels), blend(target, partners(target))


def cutmix(pixels: Pixels, target: jax.Array, alpha: float, key: jax.Array) -> tuple[Pixels, jax.Array]:
    """Puts a rectangle of its partner into each sample, the same in all frames (Yun et al. 2019, section 3.1).

    The share that is kept is drawn from Beta(alpha, alpha) for each sample. The rectangle has the shape of the frame
    and its centre anywhere in it; what lies outside is lost, and targets are weighted by the pixels that are kept.
    Windows of tubes get what clips would have at their places.

    Args:
        pixels: (B, ..., H, W, 3) of any dtype, or windows of tubes.
        target: (B, classes) float32.

    Returns:
        Pixels of the same dtype, and target.
    """
    share_key, centre_key = jax.random.split(key)
    count, windows = len(target), isinstance(pixels, TubeBatch)
    height, width = pixels.shape[-2:] if windows else pixels.shape[-3:-1]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (count,), jnp.float32))  # of the frame's
    centre = jax.random.uniform(centre_key, (2, count), jnp.float32)
    inside_y, inside_x = _interval(centre[0], side, height), _interval(centre[1], side, width)
    cut = (inside_y.sum(axis=1) * inside_x.sum(axis=1)).astype(jnp.float32)[:, None] / jnp.float32(height * width)
    if windows:
        cut_out = [
            jnp.where(_inside_windows(tube, pixels, inside_y, inside_x), partners(x), x)
            for tube, x in zip(pixels.tubes.tubes, pixels.windows)
        ]
        pixels = dataclasses.replace(pixels, windows=tuple(cut_out))
    else:
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        inside = inside.reshape(count, *(1,) * (pixels.ndim - 4), height, width, 1)
        pixels = jnp.where(inside, partners(pixels), pixels)
    return pixels, (1 - cut) * target + cut * partners(target)


def _inside_windows(tube: Tube, batch: TubeBatch, inside_y: jax.Array, inside_x: jax.Array) -> jax.Array:
    """Which values of a tube's windows lie in each sample's rectangle: its rows (B, H) and columns (B, W) are given.

    What lies beyond the frame, and is not read, goes with its first or last row or column.
    """
    times, rows, columns = tube.indices(batch.clip_shape, batch.tubes.padding)
    n_t, f_t, k_t = times.shape
    y = inside_y[:, np.clip(rows, 0, inside_y.shape[1] - 1)]
    x = inside_x[:, np.clip(columns, 0, inside_x.shape[1] - 1)]
    both = y[:, :, None, :, None, :, None] & x[:, None, :, None, :, None, :]  # (B, n_y, n_x, f_y, f_x, k_y, k_x)
    count, n_y, n_x, f_y, f_x, k_y, k_x = both.shape
    both = both[:, None, :, :, None, :, :, None, :, :, None]
    both = jnp.broadcast_to(both, (count, n_t, n_y, n_x, f_t, f_y, f_x, k_t, k_y, k_x, 3))
    return both.reshape(count, n_t * n_y * n_x, f_t * f_y * f_x, k_t * k_y * k_x * 3)


def _interval(centre: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """(B, size) bool: the pixels whose middles lie in an interval of each sample; shares of the size."""
    middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(middles - centre[:, None]) < length[:, None] / 2


def mix(
    pixels: Pixels, target: jax.Array, mixup_alpha: float, cutmix_alpha: float, key: jax.Array
) -> tuple[Pixels, jax.Array]:
    """Mixup or CutMix, whichever has an alpha above 0; with both, each batch takes one of them at random.

    Args:
        pixels: (B, ..., H, W, 3), or windows of tubes, uint8 0..255 or float -1..1.
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
        lambda: cutmix(jax.tree.map(lambda x: normalise(x, jnp.float32), pixels), target, cutmix_alpha, key),
    )
