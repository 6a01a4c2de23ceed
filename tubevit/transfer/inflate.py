"""Kernels and positions of other sizes: how 3D tubes begin from an image ViT's patch kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tubevit.tubes import Triple


def resize_patch(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The kernel of a 2D tube at another patch size, by the pseudo-inverse of resizing (FlexiViT, Beyer et al. 2023).

    Where patches grow, a resized image gives exactly the token that the image gave; where they shrink, the nearest.

    Args:
        kernel: (1, k_y, k_x, 3, D).
        size: new rows and columns of the patch.

    Returns:
        (1, *size, 3, D) float32.
    """
    rows, columns = (np.linalg.pinv(_resize(old, new).T) for old, new in zip(kernel.shape[1:3], size))
    resized = np.einsum("ay,bx,tyxcd->tabcd", rows, columns, np.asarray(kernel, np.float64), optimize=True)
    return resized.astype(np.float32)


def inflate_kernel(kernel: np.ndarray, size: Triple, sub_windows: int = 1) -> np.ndarray:
    """The kernel of a tube that looks at its window, resized to the patch and averaged over time, with a 2D kernel.

    It is the adjoint of that resizing (bilinear, antialiased), so that its sums are those of the 2D kernel: a constant,
    static clip has the same token. With space-to-depth all sub-windows share 1 / f of the channels, and the mean over
    the f parts of the 2D kernel's is the nearest to it.

    Args:
        kernel: (1, k_y, k_x, 3, D) of a 2D tube.
        size: (t, y, x) of the tube's window.
        sub_windows: f.

    Returns:
        (*size, 3, D / f) float32.
    """
    rows, columns = (_resize(new, old).T for old, new in zip(kernel.shape[1:3], size[1:]))
    flat = np.einsum("ay,bx,yxcd->abcd", rows, columns, np.asarray(kernel[0], np.float64), optimize=True)
    flat = flat.reshape(*flat.shape[:-1], sub_windows, -1).mean(axis=-2)
    return np.repeat(flat[None] / size[0], size[0], axis=0).astype(np.float32)


def restandardise(kernel: np.ndarray, bias: np.ndarray, old, new) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias for pixels standardised by another mean and std: the same tokens of the same pixels.

    (p - m) / s = (p - m') / s' * (s' / s) + (m' - m) / s, so the factor goes into the kernel, the rest into the bias.
    What lies beyond a clip reads the mean, hence another colour than before.

    Args:
        kernel: (k_t, k_y, k_x, 3, C).
        bias: (C,).
        old, new: (mean, std), 3 numbers each.
    """
    if old == new:
        return kernel, bias
    (mean, std), (new_mean, new_std) = (np.asarray(pair, np.float64) for pair in (old, new))
    kernel = np.asarray(kernel, np.float64)
    bias = bias + np.einsum("tyxcd,c->d", kernel, (new_mean - mean) / std)
    return (kernel * (new_std / std)[:, None]).astype(np.float32), bias.astype(np.float32)


def _resize(old: int, new: int) -> np.ndarray:
    """(new, old) float64: linear resizing of one axis with half-pixel centres, antialiased; each row sums to 1."""
    matrix = np.asarray(jax.image.resize(jnp.eye(old), (new, old), "linear", antialias=True), np.float64)
    return matrix / matrix.sum(axis=1, keepdims=True)
