"""Kernels of other sizes and pixel statistics: how tubes start from the kernel of an image ViT or of a dense tube."""

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
    """Make the kernel of a 3D tube that brings its window to the size of another tube and applies the other's kernel.

    It is the kernel contracted with a matrix for each axis. Rows and columns are resized linearly (antialiased). A
    longer window is the mean of as many parts of k_t frames as cover it, so its token is the mean of theirs: the kernel
    is tiled, not stretched, and sees motion at the speeds that it was trained on. In a shorter window frames are
    repeated. The sums of the kernel stay the same, so a constant, static clip has the same token. From a 2D kernel this
    averages the window over time.

    With space-to-depth all f sub-windows share one kernel of D / f channels; the mean over the f parts of the kernel's
    channels is the closest one.

    Args:
        kernel: (k_t, k_y, k_x, 3, D) of a tube without space-to-depth.
        size: (t, y, x) of the new tube's window.
        sub_windows: the number f of sub-windows per token of the new tube.

    Returns:
        (*size, 3, D / f) float32.
    """
    frames = _fold(size[0], kernel.shape[0])
    rows, columns = (_resize(new, old) for old, new in zip(kernel.shape[1:3], size[1:]))
    resized = np.einsum(
        "ta,yb,xc,tyxid->abcid", frames, rows, columns, np.asarray(kernel, np.float64), optimize=True
    )  # fmt: skip
    return resized.reshape(*resized.shape[:-1], sub_windows, -1).mean(axis=-2).astype(np.float32)


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


def _fold(old: int, new: int) -> np.ndarray:
    """Return the (new, old) matrix that brings `old` frames to `new` ones; rows sum to 1.

    More frames become the mean of ceil(old / new) runs of `new` frames, evenly spread over them; fewer are repeated.
    """
    if old < new:
        return np.eye(old)[np.arange(new) * old // new]
    parts = -(-old // new)
    starts = np.round(np.linspace(0, old - new, parts)).astype(int)
    return np.mean([np.eye(new, old, start) for start in starts], axis=0)
