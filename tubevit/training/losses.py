"""Losses, mixup and CutMix."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Num, PRNGKeyArray, Shaped

from tubevit.models.tokenizer import normalise
from tubevit.tubes import Tube
from tubevit.windows import TubeBatch

Pixels = Shaped[Array, "..."] | TubeBatch
Target = Float[Array, "B classes"]
Alpha = float | Float[Array, ""]


def targets(
    labels: Num[Array, "B ..."], classes: int, label_smoothing: float, multi_label: bool
) -> Float[Array, "B {classes}"]:
    """Compute the target probabilities in float32.

    Args:
        labels: class indices (B,), or 0 and 1 (B, classes) if samples may have several labels.
        label_smoothing: share of each target that is spread evenly over all classes.
    """
    one_hot = jnp.asarray(labels, jnp.float32) if multi_label else jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, label_smoothing) if label_smoothing else one_hot


def classification_loss(logits: Target, target: Target, multi_label: bool) -> Float[Array, " B"]:
    """Compute the cross-entropy of each sample: of softmax, or the mean over sigmoids for several labels."""
    if multi_label:
        return optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=-1)
    return optax.softmax_cross_entropy(logits, target)


def predictions(logits: Target, multi_label: bool) -> Target:
    """Convert logits to probabilities, as targets of another budget; no gradient goes through them."""
    return jax.lax.stop_gradient(jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits))


def partners(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Return each sample's partner for mixup and CutMix by swapping neighbours.

    Batches are in random order already. Neighbours are on the same device, so that no data is moved, unlike with a
    permutation. In a batch of odd size the partner is the previous sample.
    """
    if len(x) % 2:
        return jnp.roll(x, 1, axis=0)
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mixup(pixels: Pixels, target: Target, alpha: Alpha, key: PRNGKeyArray) -> tuple[Pixels, Target]:
    """Blend each sample with its partner by a share from Beta(alpha, alpha); pixels become float32 -1..1.

    Args:
        pixels: pixels or windows of tubes, uint8 0..255 or float -1..1.
        target: target probabilities.
        alpha: parameter of the Beta distribution.
    """
    share = jax.random.beta(key, alpha, alpha, (len(target),), jnp.float32)

    def blend(x, other):
        weight = share.reshape((-1,) + (1,) * (x.ndim - 1))
        return weight * x + (1 - weight) * other

    def mixed(x):
        return blend(normalise(x, jnp.float32), normalise(partners(x), jnp.float32))

    return jax.tree.map(mixed, pixels), blend(target, partners(target))


def cutmix(pixels: Pixels, target: Target, alpha: Alpha, key: PRNGKeyArray) -> tuple[Pixels, Target]:
    """Replace a rectangle of each sample by its partner's, in all frames (Yun et al. 2019, section 3.1).

    The share that is kept comes from Beta(alpha, alpha). The rectangle has the aspect ratio of the frame, and its
    centre can be anywhere in the frame. It is cut at the edges; targets are weighted by the pixels that are kept.
    Windows of tubes change as those of the clips would.

    See `mixup` for the arguments; pixels are (B, ..., H, W, 3), or windows, and keep their dtype.
    """
    share_key, centre_key = jax.random.split(key)
    count = len(target)
    height, width = pixels.shape[-2:] if isinstance(pixels, TubeBatch) else pixels.shape[-3:-1]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (count,), jnp.float32))  # share of the frame's
    centre = jax.random.uniform(centre_key, (2, count), jnp.float32)
    inside_y, inside_x = _interval(centre[0], side, height), _interval(centre[1], side, width)
    cut = (inside_y.sum(axis=1) * inside_x.sum(axis=1)).astype(jnp.float32)[:, None] / jnp.float32(height * width)
    if isinstance(pixels, TubeBatch):
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


def _inside_windows(
    tube: Tube, batch: TubeBatch, inside_y: Bool[Array, "B H"], inside_x: Bool[Array, "B W"]
) -> Bool[Array, "B N f values"]:
    """Return which values of a tube's windows are in the rectangle of each sample, given by its rows and columns.

    Values outside the frame are not used; they follow the first or last row or column.
    """
    times, rows, columns = tube.indices(batch.clip_shape, batch.tubes.padding)
    y = inside_y[:, np.clip(rows, 0, inside_y.shape[1] - 1)]
    x = inside_x[:, np.clip(columns, 0, inside_x.shape[1] - 1)]
    both = einops.rearrange(y, "b y fy ky -> b y 1 fy 1 ky 1") & einops.rearrange(x, "b x fx kx -> b 1 x 1 fx 1 kx")
    n_t, f_t, k_t = times.shape
    pattern = "b y x fy fx ky kx -> b (t y x) (ft fy fx) (kt ky kx c)"
    return einops.repeat(both, pattern, t=n_t, ft=f_t, kt=k_t, c=3)


def _interval(centre: Float[Array, " B"], length: Float[Array, " B"], size: int) -> Bool[Array, "B {size}"]:
    """Return which of `size` pixels have their middle in an interval per sample, given as shares of `size`."""
    middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(middles - centre[:, None]) < length[:, None] / 2


def mix(
    pixels: Pixels, target: Target, mixup_alpha: float, cutmix_alpha: float, key: PRNGKeyArray
) -> tuple[Pixels, Target]:
    """Apply mixup or CutMix, whichever has an alpha above 0. If both do, choose one of them at random per batch.

    See `mixup` and `cutmix` for the arguments. Pixels are returned as float32 -1..1 by mixup, and if both are possible.
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
