"""Sparse tube tokenizer: windows are taken by slice and reshape, then projected by one matmul per tube.

The two steps are separate functions, so that windows can also be taken outside the model (paper sections 3.2, 3.4).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.models.config import ModelConfig
from tubevit.models.placement import place
from tubevit.tubes import Tube, TubeSet
from tubevit.windows import TubeBatch


def _windows(x: jax.Array, axis: int, start: int, count: int, kernel: int, stride: int) -> jax.Array:
    """Replaces `axis` by (count, kernel): windows that begin at start + i * stride; 0 outside of x.

    Where windows overlap (kernel > stride) their parts are read stride by stride and joined.
    """
    parts = []
    for shift in range(0, kernel, stride):
        low = start + shift
        edges = [(0, 0, 0)] * x.ndim
        edges[axis] = (-low, low + count * stride - x.shape[axis], 0)  # negative: cut off
        part = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        part = part.reshape(*x.shape[:axis], count, stride, *x.shape[axis + 1 :])
        parts.append(jax.lax.slice_in_dim(part, 0, min(stride, kernel - shift), axis=axis + 1))
    return jnp.concatenate(parts, axis + 1) if len(parts) > 1 else parts[0]


def extract_windows(video: jax.Array, tube: Tube, padding: str = "valid") -> jax.Array:
    """The windows that a tube reads, in the dtype of the video; what lies beyond the clip, or before the offset, is 0.

    Args:
        video: (B, T, H, W, C), any dtype; uint8 moves the fewest bytes.
        tube: kernel (k_t, k_y, k_x) with f sub-windows per token (space-to-depth).
        padding: `valid` or `same`.

    Returns:
        (B, N, f, k_t * k_y * k_x * C), tokens in row-major order of the grid, sub-windows in order (t, y, x).
    """
    batch, *shape, channels = video.shape
    grid, origin = tube.grid(shape, padding), tube.origin(shape, padding)
    windows = video
    for axis in range(3):  # each step turns one axis into (n * f, k); the next axis then lies two further on
        factor, offset = tube.space_to_depth[axis], tube.offset[axis]
        # Sliced first: the left padding of `same` is padding even where the clip has pixels before the offset.
        windows = jax.lax.slice_in_dim(windows, offset, None, axis=1 + 2 * axis)
        start, count, stride = origin[axis] - offset, grid[axis] * factor, tube.stride[axis] // factor
        windows = _windows(windows, 1 + 2 * axis, start, count, tube.kernel[axis], stride)
    split = [size for n, f, k in zip(grid, tube.space_to_depth, tube.kernel) for size in (n, f, k)]
    windows = windows.reshape(batch, *split, channels).transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)
    return windows.reshape(batch, math.prod(grid), tube.sub_windows, tube.volume * channels)


def as_windows(video: jax.Array, tubes: TubeSet) -> TubeBatch:
    """The windows of all tubes of a set.

    Args:
        video: (B, T, H, W, C), any dtype.
        tubes: the model's set, or those of its tubes that serve images.
    """
    windows = tuple(extract_windows(video, tube, tubes.padding) for tube in tubes.tubes)
    return TubeBatch(windows, tubes, video.shape[1:4])


def _inside(tube: Tube, shape, padding: str) -> np.ndarray | None:
    """(N, f, k_t * k_y * k_x, 1) bool: which positions of the windows are read, not padding; None where all are."""
    indices = tube.indices(shape, padding)
    axes = [(index >= offset) & (index < size) for index, offset, size in zip(indices, tube.offset, shape)]
    if all(axis.all() for axis in axes):
        return None
    mask = np.einsum("afk,bgl,chm->abcfghklm", *axes)
    return mask.reshape(tube.num_tokens(shape, padding), tube.sub_windows, tube.volume, 1)


def normalise(pixels: jax.Array, dtype) -> jax.Array:
    """uint8 0..255 to -1..1; floats are taken to be -1..1 already and only cast."""
    if pixels.dtype == jnp.uint8:
        return (pixels.astype(jnp.float32) * np.float32(1 / 127.5) - np.float32(1)).astype(dtype)
    return pixels.astype(dtype)


def standardise(pixels: jax.Array, mean, std, dtype) -> jax.Array:
    """`normalise`, then (p - mean) / std of the values as 0..1.

    Args:
        pixels: (..., n * 3), uint8 0..255 or float -1..1, channels last.
        mean, std: 3 numbers each; 0.5 changes nothing.
        dtype: of the result.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if (mean == 0.5).all() and (std == 0.5).all():
        return normalise(pixels, dtype)
    repeat = pixels.shape[-1] // 3
    scale, shift = (np.tile(x, repeat).astype(np.float32) for x in (0.5 / std, (0.5 - mean) / std))
    return (normalise(pixels, jnp.float32) * scale + shift).astype(dtype)


def resize_trilinear(kernel: jax.Array, size: tuple[int, int, int], gain_norm: bool, antialias: bool) -> jax.Array:
    """Resizes a kernel trilinearly with half-pixel centres; beyond its rim the last value holds (section 3.4).

    Args:
        kernel: (k_t, k_y, k_x, 3, D).
        size: the new (k_t, k_y, k_x).
        gain_norm: divide by the growth of the volume, so that a constant clip keeps about its token.
        antialias: low-pass filter along axes that shrink.

    Returns:
        (*size, 3, D).
    """
    resized = jax.image.resize(kernel, (*size, *kernel.shape[3:]), "trilinear", antialias=antialias)
    return resized * np.float32(math.prod(kernel.shape[:3]) / math.prod(size)) if gain_norm else resized


class TubeProjection(nnx.Module):
    """One tube's kernel and bias.

    Parameters: `kernel` (k_t, k_y, k_x, 3, c / f) and `bias` (c / f), shared by the f sub-windows of a token; c, the
    channels of a tube, is D but for tubes of a smaller model (section 3.6). An interpolated tube has only its bias.
    With `tube_linear` also `widen/kernel` (c, D).
    """

    def __init__(self, tube: Tube, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        channels = config.channels(tube)
        self.width, self.tube, self.dtype = config.width, tube, dtype
        features = channels // tube.sub_windows
        if not is_interpolated(tube, config):
            initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
            self.kernel = nnx.Param(initial(rngs.params(), (*tube.kernel, 3, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.linear = config.tube_linear and not tube.is_2d
        if self.linear:
            settings = dict(use_bias=False, kernel_init=nnx.initializers.orthogonal(), dtype=dtype, rngs=rngs)
            self.widen = nnx.Linear(channels, config.width, **settings)

    def __call__(self, windows: jax.Array, kernel: jax.Array) -> jax.Array:
        """(B, N, f, k_t * k_y * k_x * 3), standardised, and (k_t, k_y, k_x, 3, c / f) -> (B, N, D)."""
        batch, tokens, _, size = windows.shape
        out = windows.reshape(-1, size) @ kernel.reshape(size, -1).astype(self.dtype)
        out = (out + self.bias[...].astype(self.dtype)).reshape(batch, tokens, -1)
        if self.linear:
            return self.widen(out.reshape(batch * tokens, -1)).reshape(batch, tokens, -1)
        missing = self.width - out.shape[-1]
        return jnp.pad(out, ((0, 0), (0, 0), (0, missing))) if missing > 0 else out[..., : self.width]


class Tokenizer(nnx.Module):
    """All tubes of a set; their tokens follow one another.

    Parameters: `tubes/<i>` (see `TubeProjection`), and with interpolated kernels `kernel` (8, 8, 8, 3, c), which the
    3D tubes share; 2D tubes keep kernels of their own.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.tubes = nnx.Dict(
            {str(i): TubeProjection(tube, config, dtype, rngs=rngs) for i, tube in enumerate(config.tubes.tubes)}
        )
        shared = [tube for tube in config.tubes.tubes if is_interpolated(tube, config)]
        if shared:
            initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
            shape = (*SHARED_KERNEL, 3, config.channels(shared[0]))
            self.kernel = nnx.Param(initial(rngs.params(), shape, jnp.float32))

    def __call__(self, batch: TubeBatch) -> jax.Array:
        """Tokens without position, (B, N, D), of windows of the model's tubes, or of those that serve images."""
        config, padding, tokens = self.config, batch.tubes.padding, []
        for i, tube in enumerate(config.tubes.tubes):
            if tube not in batch.tubes.tubes:
                continue
            windows = batch.windows[batch.tubes.tubes.index(tube)]
            windows = standardise(windows, config.mean, config.std, self.dtype)
            inside = _inside(tube, batch.clip_shape, padding)
            if inside is not None:  # not black lies beyond the clip, but the mean: 0
                mask = jnp.asarray(np.repeat(inside, 3, axis=-1).reshape(*inside.shape[:2], -1))
                windows = jnp.where(mask, windows, jnp.zeros((), self.dtype))
            tokens.append(place(self.tubes[str(i)](windows, self._kernel(i, tube))))
        return jnp.concatenate(tokens, axis=1)

    def _kernel(self, i: int, tube: Tube) -> jax.Array:
        if not is_interpolated(tube, self.config):
            return self.tubes[str(i)].kernel[...]
        return resize_trilinear(self.kernel[...], tube.kernel, self.config.gain_norm, self.config.antialias)


SHARED_KERNEL = (8, 8, 8)  # section 3.4


def is_interpolated(tube: Tube, config: ModelConfig) -> bool:
    """Whether a tube's kernel is the shared one, resized: that of 2D tubes never is (paper.md section 8, row 4)."""
    return config.interpolated and not tube.is_2d
