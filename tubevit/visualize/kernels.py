"""Learned kernels: 2D patches in colour, 3D tubes as strips over time, and their principal components."""

import numpy as np

from tubevit.errors import RunError, UserError
from tubevit.models.tokenizer import is_interpolated, resize_trilinear
from tubevit.models.tubevit import TubeViT
from tubevit.visualize.style import ground, new_axes, show_image, size_text, tile

_WIDTH, _CELLS = 4.6, 16  # width in inches, largest number of frames side by side
_KERNEL_ROWS, _COMPONENT_ROWS = 8, 4
_FRAME = 32  # smallest drawn size of a frame's longer side, in pixels


def tube_kernels(model: TubeViT, index: int) -> np.ndarray:
    """Return the kernels of tube `index`, one per channel, largest norm first: (c, k_t, k_y, k_x, 3) float32.

    The shared kernel of interpolated tubes (section 3.4) is resized to the tube.

    Raises:
        UserError: there is no such tube.
        RunError: the kernels are not finite.
    """
    config = model.config
    if not 0 <= index < len(config.tubes.tubes):
        raise UserError(f"the model has tubes 0 to {len(config.tubes.tubes) - 1}; found {index}")
    tube = config.tubes.tubes[index]
    if is_interpolated(tube, config):
        kernel = resize_trilinear(model.tokenizer.kernel[...], tube.kernel, config.gain_norm, config.antialias)
    else:
        kernel = model.tokenizer.tubes[str(index)].kernel[...]
    kernels = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
    if not np.isfinite(kernels).all():
        raise RunError(f"the kernels of tube {index} are not finite: the parameters may be damaged")
    norms = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    return kernels[np.argsort(-norms, kind="stable")]


def principal_components(kernels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `count` principal components of kernels (c, k_t, k_y, k_x, 3).

    Returns:
        (n, k_t, k_y, k_x, 3) components of norm 1, whose largest value is positive; (n,) shares 0..1 of the variance.
    """
    flat = kernels.reshape(len(kernels), -1).astype(np.float64)
    _, sizes, rows = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    count = min(count, len(kernels) - 1, len(rows))
    rows = rows[:count]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    components = (rows * np.sign(largest)).reshape(-1, *kernels.shape[1:])
    return components, (sizes**2 / max((sizes**2).sum(), np.finfo(float).tiny))[:count]


def as_colours(kernels: np.ndarray) -> np.ndarray:
    """Scale kernels (c, k_t, k_y, k_x, 3) to colours 0..1: 0 is grey, the largest value of each full colour."""
    largest = np.abs(kernels).max(axis=(1, 2, 3, 4), keepdims=True)
    return 0.5 + 0.5 * kernels / np.maximum(largest, np.finfo(np.float32).tiny)


def kernel_sheet(kernels: np.ndarray, columns: int) -> np.ndarray:
    """Draw each kernel as a strip of frames, `columns` strips side by side: (H, W, 3) float 0..1."""
    scale = -(-_FRAME // max(kernels.shape[2:4]))
    large = as_colours(kernels).repeat(scale, axis=2).repeat(scale, axis=3)
    fill = ground()
    if large.shape[1] == 1:
        return tile(large[:, 0], columns, _FRAME // 8, fill)
    strips = np.stack([tile(kernel, len(kernel), _FRAME // 10, fill) for kernel in large])
    return tile(strips, columns, _FRAME // 3, fill)


def _fitting(kernels: np.ndarray, rows: int) -> tuple[int, int]:
    """Return the number of columns and of kernels in a figure; rows are full if there are enough kernels."""
    frames = kernels.shape[1]
    columns = 8 if frames == 1 else max(1, min(6, _CELLS // frames))
    count = min(len(kernels), columns * rows)
    return columns, count - count % columns if count > columns else count


def kernel_figure(model: TubeViT, index: int):
    """Draw the kernels of one tube with the largest norms, as a matplotlib figure; see `tube_kernels`."""
    kernels = tube_kernels(model, index)
    columns, count = _fitting(kernels, _KERNEL_ROWS)
    text = f"{size_text(kernels.shape[1:4])}: {count} of {len(kernels)} kernels"
    return _figure(kernel_sheet(kernels[:count], columns), text, kernels.shape[1])


def component_figure(model: TubeViT, index: int):
    """Draw the first principal components of one tube's kernels, as a matplotlib figure; see `principal_components`."""
    kernels = tube_kernels(model, index)
    columns, count = _fitting(kernels, _COMPONENT_ROWS)
    components, shares = principal_components(kernels, count)
    text = f"{size_text(kernels.shape[1:4])}: components 1 to {len(components)}, {shares.sum():.0%} of the variance"
    return _figure(kernel_sheet(components, columns), text, kernels.shape[1])


def kernel_animation(model: TubeViT, index: int) -> np.ndarray:
    """Draw the kernels of `kernel_figure` side by side, one picture per frame: (k_t, H, W, 3) uint8."""
    kernels = tube_kernels(model, index)
    columns, count = 8, min(len(kernels), 8 * 4)
    large = as_colours(kernels[:count])
    scale = -(-2 * _FRAME // max(kernels.shape[2:4]))
    large = large.repeat(scale, axis=2).repeat(scale, axis=3)
    frames = [tile(frame, columns, _FRAME // 4, ground()) for frame in large.swapaxes(0, 1)]
    return np.round(255 * np.stack(frames)).astype(np.uint8)


def _figure(sheet: np.ndarray, text: str, frames: int):
    figure, axes = new_axes(_WIDTH, _WIDTH * sheet.shape[0] / sheet.shape[1] + (0.3 if frames == 1 else 0.5))
    show_image(axes, sheet)
    axes.set_title(text)
    if frames > 1:
        axes.text(0, -0.01, "time →", transform=axes.transAxes, va="top", fontsize=8)
    return figure
