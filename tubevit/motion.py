"""Where a clip moves: the tokens whose windows change most from frame to frame.

Everything is computed in integers, and by NumPy and JAX alike: host and device choose the same tokens.
"""

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from tubevit.budget import spread
from tubevit.tubes import Triple, Tube, TubeSet

Lines = tuple[np.ndarray, np.ndarray]  # rows and columns


def motion_lines(tubes: TubeSet, shape: Triple) -> Lines:
    """Return the rows and columns of a clip (T, H, W) at which changes are looked at.

    They are as far apart as the shortest edge of a kernel, so that each window has at least one of each.
    """
    step = min(edge for tube in tubes.tubes for edge in tube.kernel[1:])
    rows, columns = (np.arange(step // 2, size, step) for size in shape[1:])
    return rows, columns


def change(tube: Tube, pixels: Any, lines: Lines, shape: Triple, padding: str, xp: ModuleType = np) -> Any:
    """Sum how much the windows of a tube change: (B, N) integers.

    A pixel of a frame counts by its difference to the frame before and to the frame after, at the first and the last
    frame twice by the only one.

    Args:
        tube: a tube of N tokens.
        pixels: the pixels of clips at `motion_lines`, (B, T, h, w, 3), 0..255.
        lines: the rows and columns.
        shape: shape (T, H, W) of the clips.
        padding: padding of the tube.
        xp: `numpy`, or `jax.numpy`.
    """
    steps = abs(xp.diff(pixels.astype(np.int32), axis=1)).sum(-1)
    changes = xp.concatenate([steps[:, :1], steps], 1) + xp.concatenate([steps, steps[:, -1:]], 1)
    indices = zip(tube.indices(shape, padding), (np.arange(shape[0]), *lines), tube.offset)
    counts = [(index[..., None] == at).sum((1, 2)) * (at >= offset) for index, at, offset in indices]
    summed = xp.einsum("bthw,it,jh,kw->bijk", changes, *(count.astype(np.int32) for count in counts), optimize=True)
    return summed.reshape(len(summed), -1)


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
    lines, chosen = motion_lines(tubes, shape), []
    for tube, grid, count in zip(tubes.tubes, tubes.grid(shape), tubes.kept(shape)):
        order = spread(grid)
        score = change(tube, pixels, lines, shape, tubes.padding, xp)[:, order]
        best: Int[Any, "B n"] = xp.argsort(-score, axis=1, stable=True)[:, :count]
        chosen.append(xp.sort(xp.asarray(order)[best], axis=1).astype(np.int32))
    return tuple(chosen)
