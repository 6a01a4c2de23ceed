"""Sparse tube tokenizer: windows are taken by slice and reshape, then projected by one matmul per tube.

The two steps are separate functions, so that windows can also be taken outside the model (paper sections 3.2, 3.4).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.tubes import Tube, TubeSet


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


class TubeProjection(nnx.Module):
    """One tube's own kernel and bias.

    Parameters: `kernel` (k_t, k_y, k_x, 3, D / f) and `bias` (D / f), shared by the f sub-windows of a token.
    """

    def __init__(self, tube: Tube, width: int, dtype, *, rngs: nnx.Rngs):
        features = width // tube.sub_windows
        shape = (*tube.kernel, 3, features)
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
        self.kernel = nnx.Param(initial(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.dtype = dtype

    def __call__(self, windows: jax.Array) -> jax.Array:
        """(B, N, f, k_t * k_y * k_x * 3), normalised -> (B, N, D)."""
        batch, tokens, _, size = windows.shape
        kernel = self.kernel[...].reshape(size, -1).astype(self.dtype)
        out = windows.reshape(-1, size) @ kernel + self.bias[...].astype(self.dtype)
        return out.reshape(batch, tokens, -1)


class Tokenizer(nnx.Module):
    """All tubes of a set; their tokens follow one another. Parameters: `tubes/<i>` (see `TubeProjection`)."""

    def __init__(self, tubes: TubeSet, width: int, dtype, *, rngs: nnx.Rngs):
        self.order = tubes.tubes
        self.dtype = dtype
        self.tubes = nnx.Dict(
            {str(i): TubeProjection(tube, width, dtype, rngs=rngs) for i, tube in enumerate(tubes.tubes)}
        )

    def __call__(self, video: jax.Array, tubes: TubeSet) -> jax.Array:
        """Tokens without position.

        Args:
            video: (B, T, H, W, 3), uint8 0..255 or float -1..1.
            tubes: the model's set, or those of its tubes that serve images.

        Returns:
            (B, N, D).
        """
        shape = video.shape[1:4]
        tokens = []
        for i, tube in enumerate(self.order):
            if tube not in tubes.tubes:
                continue
            windows = normalise(extract_windows(video, tube, tubes.padding), self.dtype)
            inside = _inside(tube, shape, tubes.padding)
            if inside is not None:  # grey, not black, lies beyond the clip: 0 after normalisation
                mask = jnp.asarray(np.repeat(inside, 3, axis=-1).reshape(*inside.shape[:2], -1))
                windows = jnp.where(mask, windows, jnp.zeros((), self.dtype))
            tokens.append(self.tubes[str(i)](windows))
        return jnp.concatenate(tokens, axis=1)
