"""Where a clip moves: the tokens whose windows change most from frame to frame.

Everything is computed in integers, and by NumPy and JAX alike: host and device choose the same tokens.
"""

import functools
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from tubevit.budget import spread
from tubevit.tubes import Triple, TubeSet


def motion_lines(tubes: TubeSet, shape: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of a clip (T, H, W) at which changes are looked at.

    They are as far apart as the shortest edge of a kernel, so that each window has at least one of each.
    """
    step = min(edge for tube in tubes.tubes for edge in tube.kernel[1:])
    rows, columns = (np.arange(step // 2, size, step) for size in shape[1:])
    return rows, columns


@functools.lru_cache(maxsize=64)
def _reads(tubes: TubeSet, shape: Triple) -> tuple[tuple[np.ndarray, ...], ...]:
    """Count how often each token of a tube reads each frame, row and column of `motion_lines`: int32 (n, size)."""
    lines = (np.arange(shape[0]), *motion_lines(tubes, shape))
    return tuple(
        tuple(
            ((index[..., None] == at).sum((1, 2)) * (at >= offset)).astype(np.int32)
            for index, at, offset in zip(tube.indices(shape, tubes.padding), lines, tube.offset)
        )
        for tube in tubes.tubes
    )


def changes(tubes: TubeSet, pixels: Any, shape: Triple, xp: ModuleType = np) -> list[Any]:
    """Sum how much the windows of each tube change: integers (B, N) of its N tokens.

    A pixel of a frame counts by its difference to the frame before and to the frame after, at the first and the last
    frame twice by the only one.

    Args:
        tubes: a tube set.
        pixels: the pixels of clips at `motion_lines`, (B, T, h, w, 3), 0..255.
        shape: shape (T, H, W) of the clips.
        xp: `numpy`, or `jax.numpy`.
    """
    red, green, blue = (abs(xp.diff(pixels[..., i].astype(np.int32), axis=1)) for i in range(3))
    steps = red + green + blue
    of_pixels = xp.concatenate([steps[:, :1], steps], 1) + xp.concatenate([steps, steps[:, -1:]], 1)
    found = []
    for times, rows, columns in _reads(tubes, tuple(shape)):
        summed = xp.einsum("bthw,it->bihw", of_pixels, times)
        summed = xp.einsum("bihw,jh->bijw", summed, rows)
        summed = xp.einsum("bijw,kw->bijk", summed, columns)
        found.append(summed.reshape(summed.shape[0], -1))
    return found


def most_moving(tubes: TubeSet, pixels: Shaped[Any, "B T h w 3"], shape: Triple, xp: ModuleType = np) -> tuple:
    """Choose the tokens of each tube that move most, as the set's budget says how many: indices (B, n), int32.

    Of tokens that move alike, those that come first in `spread` are taken. Indices are ascending.

    Args:
        tubes: a tube set with a budget.
        pixels: the pixels of clips at `motion_lines`, uint8 0..255 or float -1..1.
        shape: shape (T, H, W) of the clips.
        xp: `numpy`, or `jax.numpy`.
    """
    if pixels.dtype != np.uint8:
        pixels = xp.round((pixels.astype(np.float32) + np.float32(1)) * np.float32(127.5))
    chosen = []
    for grid, count, score in zip(tubes.grid(shape), tubes.kept(shape), changes(tubes, pixels, shape, xp)):
        order = spread(grid)
        best: Int[Any, "B n"] = xp.argsort(-score[:, order], axis=1, stable=True)[:, :count]
        chosen.append(xp.sort(xp.asarray(order)[best], axis=1).astype(np.int32))
    return tuple(chosen)
