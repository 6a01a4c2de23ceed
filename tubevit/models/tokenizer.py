"""Sparse tube tokenizer: extract windows by slice and reshape, then project them by one matmul per tube.

The two steps are separate, so that windows can also be extracted outside the model (paper sections 3.2 and 3.4).
"""

import dataclasses
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Shaped

from tubevit.budget import numbered
from tubevit.models.config import ModelConfig
from tubevit.models.placement import place
from tubevit.motion import most_moving, motion_lines
from tubevit.tubes import Triple, Tube, TubeSet
from tubevit.windows import TubeBatch

SHARED_KERNEL = (8, 8, 8)  # section 3.4
_INITIAL_KERNEL = nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)


def _windows(x: Array, axis: int, start: int, count: int, kernel: int, stride: int) -> Array:
    """Replace `axis` by (count, kernel): windows that begin at start + i * stride, and are 0 outside of x.

    Overlapping windows (kernel > stride) are read in parts of one stride each, and joined.
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


def extract_windows(
    video: Shaped[Array | np.ndarray, "B T H W C"], tube: Tube, padding: str = "valid"
) -> Shaped[Array, "B N {tube.sub_windows} {tube.volume}*C"]:
    """Extract the windows that a tube reads; positions outside the clip or before the offset are 0.

    Args:
        video: clips of any dtype; uint8 moves the fewest bytes.
        tube: a tube of f sub-windows per token (space-to-depth).
        padding: `valid` or `same`.

    Returns:
        The pixels of each token's f sub-windows, in the dtype of the video. Tokens are in row-major order of the grid,
        sub-windows in order (t, y, x).
    """
    shape = video.shape[1:4]
    grid, origin = tube.grid(shape, padding), tube.origin(shape, padding)
    windows = jnp.asarray(video)
    for axis in range(3):  # each step splits axis 1 + 2 * axis into (n * f, k)
        factor, offset = tube.space_to_depth[axis], tube.offset[axis]
        # Slice first: the left padding of `same` is 0 even where the clip has pixels before the offset.
        windows = jax.lax.slice_in_dim(windows, offset, None, axis=1 + 2 * axis)
        start, count, stride = origin[axis] - offset, grid[axis] * factor, tube.stride[axis] // factor
        windows = _windows(windows, 1 + 2 * axis, start, count, tube.kernel[axis], stride)
    f_t, f_y, f_x = tube.space_to_depth
    pattern = "b (t ft) kt (y fy) ky (x fx) kx c -> b (t y x) (ft fy fx) (kt ky kx c)"
    return einops.rearrange(windows, pattern, ft=f_t, fy=f_y, fx=f_x)


def as_windows(video: Shaped[Array | np.ndarray, "B T H W C"], tubes: TubeSet) -> TubeBatch:
    """Extract the windows of all tubes of a set from clips of any dtype, those of kept tokens if it has a budget."""
    shape = video.shape[1:4]
    windows = tuple(extract_windows(video, tube, tubes.padding) for tube in tubes.tubes)
    if not tubes.depends_on_clip(shape):
        return keep(TubeBatch(windows, tubes.with_budget(None), shape), tubes)
    rows, columns = motion_lines(tubes, shape)
    chosen = most_moving(tubes, video[:, :, rows][:, :, :, columns], shape, jnp)
    kept = (jnp.take_along_axis(each, at[..., None, None], 1) for each, at in zip(windows, chosen))
    return TubeBatch(tuple(kept), tubes, shape, chosen)


def keep(batch: TubeBatch, tubes: TubeSet) -> TubeBatch:
    """Keep the tokens of a batch with all tokens that the budget of `tubes` chooses in any clip."""
    chosen = tubes.chosen(batch.clip_shape)
    if chosen is None:
        return batch
    windows = tuple(window[:, at] for window, at in zip(batch.windows, chosen))
    return dataclasses.replace(batch, windows=windows, tubes=tubes)


def token_numbers(batch: TubeBatch) -> Array | np.ndarray | None:
    """Return the numbers of a batch's tokens among those of all its tubes, (n,) or (B, n); None if it has them all."""
    if batch.kept is None:
        return None
    numbers = numbered(batch.kept, batch.tubes.grid(batch.clip_shape))
    return (np if isinstance(numbers[0], np.ndarray) else jnp).concatenate(numbers, axis=-1)


def _inside(tube: Tube, shape: Triple, padding: str) -> Bool[np.ndarray, "N f volume 1"] | None:
    """Return which positions of the windows are inside the clip, or None where all are."""
    indices = tube.indices(shape, padding)
    axes = [(index >= offset) & (index < size) for index, offset, size in zip(indices, tube.offset, shape)]
    if all(axis.all() for axis in axes):
        return None
    mask = np.einsum("afk,bgl,chm->abcfghklm", *axes)
    return mask.reshape(tube.num_tokens(shape, padding), tube.sub_windows, tube.volume, 1)


def normalise(pixels: Shaped[Array | np.ndarray, "*shape"], dtype) -> Float[Array, "*shape"]:
    """Convert uint8 0..255 to -1..1. Floats are assumed to be in -1..1 and only cast."""
    pixels = jnp.asarray(pixels)
    if pixels.dtype == jnp.uint8:
        return (pixels.astype(jnp.float32) * np.float32(1 / 127.5) - np.float32(1)).astype(dtype)
    return pixels.astype(dtype)


def standardise(pixels: Shaped[Array | np.ndarray, "*shape"], mean, std, dtype) -> Float[Array, "*shape"]:
    """Convert pixels to (p - mean) / std, where p is the value as 0..1.

    Args:
        pixels: uint8 0..255 or float -1..1, whose last axis holds one or more RGB pixels.
        mean, std: 3 numbers each; with 0.5 the result is that of `normalise`.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if (mean == 0.5).all() and (std == 0.5).all():
        return normalise(pixels, dtype)
    repeat = pixels.shape[-1] // 3
    scale, shift = (np.tile(x, repeat).astype(np.float32) for x in (0.5 / std, (0.5 - mean) / std))
    return (normalise(pixels, jnp.float32) * scale + shift).astype(dtype)


def resize_trilinear(
    kernel: Float[Array | np.ndarray, "k_t k_y k_x 3 D"], size: Triple, gain_norm: bool, antialias: bool
) -> Float[Array, "{size[0]} {size[1]} {size[2]} 3 D"]:
    """Resize a kernel trilinearly, with half-pixel centres and edge values repeated (section 3.4).

    Args:
        size: new (k_t, k_y, k_x).
        gain_norm: divide by the growth of the volume, so that the token of a constant clip stays about the same.
        antialias: apply a low-pass filter along axes that shrink.
    """
    resized = jax.image.resize(kernel, (*size, *kernel.shape[3:]), "trilinear", antialias=antialias)
    return resized * np.float32(math.prod(kernel.shape[:3]) / math.prod(size)) if gain_norm else resized


class TubeProjection(nnx.Module):
    """The kernel and the bias of a tube.

    Parameters: `kernel` (k_t, k_y, k_x, 3, c / f) and `bias` (c / f), shared by the f sub-windows of a token. The
    channels c of a tube are D, except for tubes of a smaller model (section 3.6). An interpolated tube has only a bias.
    `tube_linear` adds `widen/kernel` (c, D).
    """

    def __init__(self, tube: Tube, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        channels = config.channels(tube)
        self.width, self.tube, self.dtype = config.width, tube, dtype
        features = channels // tube.sub_windows
        if not is_interpolated(tube, config):
            self.kernel = nnx.Param(_INITIAL_KERNEL(rngs.params(), (*tube.kernel, 3, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.linear = config.tube_linear and not tube.is_2d
        if self.linear:
            settings: dict = dict(use_bias=False, kernel_init=nnx.initializers.orthogonal(), dtype=dtype, rngs=rngs)
            self.widen = nnx.Linear(channels, config.width, **settings)

    def __call__(
        self, windows: Float[Array, "B N f values"], kernel: Float[Array | np.ndarray, "k_t k_y k_x 3 c_f"]
    ) -> Float[Array, "B N D"]:
        """Project standardised windows to tokens."""
        batch, tokens, _, size = windows.shape
        out = windows.reshape(batch * tokens * windows.shape[2], size) @ kernel.reshape(size, -1).astype(self.dtype)
        out = (out + self.bias[...].astype(self.dtype)).reshape(batch, tokens, self.tube.sub_windows * out.shape[-1])
        if self.linear:
            return self.widen(out.reshape(batch * tokens, out.shape[-1])).reshape(batch, tokens, self.width)
        missing = self.width - out.shape[-1]
        return jnp.pad(out, ((0, 0), (0, 0), (0, missing))) if missing > 0 else out[..., : self.width]


class Tokenizer(nnx.Module):
    """The projections of all tubes; their tokens are concatenated in order.

    Parameters: `tubes/<i>` (see `TubeProjection`). With interpolation the 3D tubes share `kernel` (8, 8, 8, 3, c), and
    2D tubes keep kernels of their own.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        projections = [TubeProjection(tube, config, dtype, rngs=rngs) for tube in config.tubes.tubes]
        self.tubes = nnx.Dict({str(i): projection for i, projection in enumerate(projections)})
        shared = [tube for tube in config.tubes.tubes if is_interpolated(tube, config)]
        if shared:
            shape = (*SHARED_KERNEL, 3, config.channels(shared[0]))
            self.kernel = nnx.Param(_INITIAL_KERNEL(rngs.params(), shape, jnp.float32))

    def __call__(self, batch: TubeBatch) -> Float[Array, "B N D"]:
        """Project windows of the model's tubes, or of its tubes for images, to tokens without position."""
        config, padding, kept, tokens = self.config, batch.tubes.padding, batch.kept, []
        for i, tube in enumerate(config.tubes.tubes):
            if tube not in batch.tubes.tubes:
                continue
            number = batch.tubes.tubes.index(tube)
            windows = batch.windows[number]
            windows = standardise(windows, config.mean, config.std, self.dtype)
            inside = _inside(tube, batch.clip_shape, padding)
            if inside is not None:  # outside the clip is the mean colour, not black
                mask = jnp.asarray(np.repeat(inside, 3, axis=-1).reshape(*inside.shape[:2], -1))
                mask = mask if kept is None else mask[kept[number]]
                windows = jnp.where(mask, windows, jnp.zeros((), self.dtype))
            tokens.append(place(self.tubes[str(i)](jnp.asarray(windows), self._kernel(i, tube))))
        return jnp.concatenate(tokens, axis=1)

    def _kernel(self, i: int, tube: Tube) -> Array | np.ndarray:
        if not is_interpolated(tube, self.config):
            return self.tubes[str(i)].kernel[...]
        return resize_trilinear(self.kernel[...], tube.kernel, self.config.gain_norm, self.config.antialias)


def is_interpolated(tube: Tube, config: ModelConfig) -> bool:
    """Return whether a tube uses the shared kernel, resized. 2D tubes never do (paper.md section 8, row 4)."""
    return bool(config.interpolated) and not tube.is_2d
