"""Resized kernels and positions against what defines them; images are resized here by loops of our own."""

import numpy as np
import pytest

from tubevit.errors import UserError
from tubevit.models.position import resize_positions
from tubevit.transfer.inflate import inflate_kernel, resize_patch, restandardise


def triangle(old, new):
    """(new, old): linear resizing with half-pixel centres, the triangle as wide as a new pixel where it shrinks."""
    scale = old / new
    matrix = np.zeros((new, old))
    for i in range(new):
        for j in range(old):
            matrix[i, j] = max(0.0, 1 - abs((i + 0.5) * scale - (j + 0.5)) / max(scale, 1.0))
    return matrix / matrix.sum(axis=1, keepdims=True)


def resized(image, size):
    """(y, x, 3) -> (*size, 3)."""
    return np.einsum("ay,bx,yxc->abc", triangle(image.shape[0], size[0]), triangle(image.shape[1], size[1]), image)


def kernel(*size, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(1, *size, 3, width))


def image(*size, seed=1):
    return np.random.default_rng(seed).normal(size=(*size, 3))


def token(patch, kernel):
    return np.einsum("yxc,yxcd->d", patch, kernel)


@pytest.mark.parametrize("old, new", [((16, 16), (32, 32)), ((14, 14), (16, 16)), ((7, 5), (9, 8))])
def test_a_larger_patch_gives_resized_images_the_same_token(old, new):
    weights, patch = kernel(*old), image(*old)
    larger = resize_patch(weights, new)
    assert larger.shape == (1, *new, 3, 6) and larger.dtype == np.float32
    np.testing.assert_allclose(token(resized(patch, new), larger[0]), token(patch, weights[0]), atol=2e-5)


def test_a_smaller_patch_is_the_nearest():
    """Least squares over white noise: no change of the kernel brings its tokens nearer to those of the images."""
    weights, size = kernel(8, 6), (5, 4)
    smaller = resize_patch(weights, size)[0].astype(np.float64)
    matrix = np.kron(triangle(8, 5), triangle(6, 4))  # (5 * 4, 8 * 6), on pixels in row-major order
    flat = weights[0].reshape(48, 18)
    expected = np.linalg.lstsq(matrix.T, flat, rcond=None)[0]
    np.testing.assert_allclose(smaller.reshape(20, 18), expected, atol=1e-5)


def test_the_same_size_changes_nothing():
    np.testing.assert_allclose(resize_patch(kernel(7, 5), (7, 5)), kernel(7, 5), atol=1e-6)
    np.testing.assert_allclose(inflate_kernel(kernel(7, 5), (3, 7, 5)), np.repeat(kernel(7, 5) / 3, 3, 0), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 4, 4), (4, 12, 12), (4, 32, 32), (3, 5, 9)])
def test_a_tube_sees_its_window_resized_to_the_patch(size):
    weights = kernel(16, 12)
    tube = inflate_kernel(weights, size).astype(np.float64)
    assert tube.shape == (*size, 3, 6)
    window = np.random.default_rng(2).normal(size=(*size, 3))
    expected = np.mean([token(resized(frame, (16, 12)), weights[0]) for frame in window], axis=0)
    np.testing.assert_allclose(np.einsum("tyxc,tyxcd->d", window, tube), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 4, 4), (4, 12, 12), (4, 32, 32), (3, 5, 9)])
def test_a_constant_static_clip_keeps_its_token(size):
    weights, colour = kernel(16, 12), np.array([0.3, -1, 0.7])
    expected = np.einsum("c,yxcd->d", colour, weights[0])
    np.testing.assert_allclose(np.einsum("c,tyxcd->d", colour, inflate_kernel(weights, size)), expected, atol=1e-5)


def test_sub_windows_have_the_mean_of_the_parts():
    tube = inflate_kernel(kernel(8, 8), (4, 4, 4), sub_windows=2)
    whole = inflate_kernel(kernel(8, 8), (4, 4, 4))
    np.testing.assert_allclose(tube, (whole[..., :3] + whole[..., 3:]) / 2, atol=1e-7)


def cubic(old, new):
    """(new, old): Keys' cubic, a = -1/2, as wide as a new pixel where it shrinks."""
    scale = max(old / new, 1.0)

    def weight(x):
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    matrix = np.array([[weight(((i + 0.5) * old / new - j - 0.5) / scale) for j in range(old)] for i in range(new)])
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("grid", [(1, 9, 5), (2, 4, 3), (3, 7, 5)])
def test_positions_are_resized_bicubically(grid):
    table = np.random.default_rng(0).normal(size=(1, 7, 5, 4))
    found = resize_positions(table, grid)
    expected = np.einsum("ay,bx,yxd->abd", cubic(7, grid[1]), cubic(5, grid[2]), table[0])
    assert found.shape == (*grid, 4)
    for frame in found:
        np.testing.assert_allclose(frame, expected, atol=2e-6)


def test_positions_of_other_frames_are_refused():
    table = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(resize_positions(table, (2, 3, 2)), table)
    with pytest.raises(UserError, match="over time fit 2 times, and these frames give 3: keep the frames"):
        resize_positions(table, (3, 3, 2))


def test_other_statistics_keep_the_token():
    rng = np.random.default_rng(0)
    weights, bias, pixels = kernel(4, 3), rng.normal(size=6), rng.uniform(size=(4, 3, 3))
    old, new = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    changed, shifted = restandardise(weights, bias, old, new)
    before = token((pixels - old[0]) / old[1], weights[0]) + bias
    np.testing.assert_allclose(token((pixels - new[0]) / new[1], changed[0]) + shifted, before, atol=1e-5)
    assert restandardise(weights, bias, old, old) == (weights, bias)
