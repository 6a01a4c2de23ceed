"""Kernels of other sizes and pixel statistics: how 3D tubes start from the patch kernel of an image ViT."""

import jax
import jax.numpy as jnp
import numpy as np

from tubevit.tubes import Triple


def resize_patch(kernel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize the kernel of a 2D tube by the pseudo-inverse of resizing images (FlexiViT, Beyer et al. 2023).

    For larger patches, a resized image has exactly the token of the original image; for smaller ones, the nearest one.

    Args:
        kernel: (1, k_y, k_x, 3, D).
        size: rows and columns of the new patch.

    Returns:
        (1, *size, 3, D) float32.
    """
    rows, columns = (np.linalg.pinv(_resize(old, new).T) for old, new in zip(kernel.shape[1:3], size))
    resized = np.einsum("ay,bx,tyxcd->tabcd", rows, columns, np.asarray(kernel, np.float64), optimize=True)
    return resized.astype(np.float32)


def inflate_kernel(kernel: np.ndarray, size: Triple, sub_windows: int = 1) -> np.ndarray:
    """Make the kernel of a 3D tube that averages its window over time, resizes it to the patch and applies a 2D kernel.

    It is the adjoint of that resizing (bilinear, antialiased), so its sums equal those of the 2D kernel: a constant,
    static clip has the same token. With space-to-depth all f sub-windows share one kernel of D / f channels; the mean
    over the f parts of the 2D kernel's channels is the closest one.

    Args:
        kernel: (1, k_y, k_x, 3, D) of a 2D tube.
        size: (t, y, x) of the tube's window.
        sub_windows: the number f of sub-windows per token.

    Returns:
        (*size, 3, D / f) float32.
    """
    rows, columns = (_resize(new, old).T for old, new in zip(kernel.shape[1:3], size[1:]))
    flat = np.einsum("ay,bx,yxcd->abcd", rows, columns, np.asarray(kernel[0], np.float64), optimize=True)
    flat = flat.reshape(*flat.shape[:-1], sub_windows, -1).mean(axis=-2)
    return np.repeat(flat[None] / size[0], size[0], axis=0).astype(np.float32)


def restandardise(kernel: np.ndarray, bias: np.ndarray, old, new) -> tuple[np.ndarray, np.ndarray]:
    """Adjust kernel and bias to pixels standardised by another mean and std, so that the tokens stay the same.

    (p - m) / s = (p - m') / s' * (s' / s) + (m' - m) / s: the factor goes into the kernel, the rest into the bias.
    Pixels beyond the clip read as the mean, which is now another colour.

    Args:
        kernel: (k_t, k_y, k_x, 3, C).
        bias: (C,).
        old, new: pairs (mean, std) of 3 numbers each.
    """
    if old == new:
        return kernel, bias
    (mean, std), (new_mean, new_std) = (np.asarray(pair, np.float64) for pair in (old, new))
    kernel = np.asarray(kernel, np.float64)
    bias = bias + np.einsum("tyxcd,c->d", kernel, (new_mean - mean) / std)
    return (kernel * (new_std / std)[:, None]).astype(np.float32), bias.astype(np.float32)


def _resize(old: int, new: int) -> np.ndarray:
    """Return the (new, old) matrix of antialiased linear resizing of one axis, half-pixel centres; rows sum to 1."""
    matrix = np.asarray(jax.image.resize(jnp.eye(old), (new, old), "linear", antialias=True), np.float64)
    return matrix / matrix.sum(axis=1, keepdims=True)
