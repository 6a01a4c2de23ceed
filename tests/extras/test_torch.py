"""Layers against those of torch (the extra `peers`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.models.reference import assert_close
from tubevit.models.block import gelu
from tubevit.models.tokenizer import resize_trilinear


@pytest.mark.parametrize("size", [(4, 16, 16), (32, 4, 4), (4, 12, 12), (16, 4, 4), (8, 8, 8), (1, 5, 11), (3, 7, 2)])
def test_resized_kernels(size):
    """Half-pixel centres are torch's `align_corners=False`; like ours it does not filter unless asked to."""
    kernel = np.random.default_rng(0).normal(size=(8, 8, 8, 3, 5)).astype(np.float32)
    channels_first = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).double()
    expected = functional.interpolate(channels_first, size, mode="trilinear", align_corners=False)
    found = resize_trilinear(jnp.asarray(kernel), size, gain_norm=False, antialias=False)
    assert_close(found, expected.permute(2, 3, 4, 1, 0).numpy(), 1e-6)


@pytest.mark.parametrize("size", [(4, 16), (32, 4), (3, 7), (11, 2)])
def test_antialiased_kernels(size):
    """torch filters in two dimensions only: the third keeps its size here."""
    kernel = np.random.default_rng(0).normal(size=(8, 8, 8, 3, 5)).astype(np.float32)
    rows = torch.from_numpy(kernel).permute(0, 4, 3, 1, 2).reshape(8, 15, 8, 8).double()
    expected = functional.interpolate(rows, size, mode="bilinear", align_corners=False, antialias=True)
    expected = expected.reshape(8, 5, 3, *size).permute(0, 3, 4, 2, 1)
    found = resize_trilinear(jnp.asarray(kernel), (8, *size), gain_norm=False, antialias=True)
    assert_close(found, expected.numpy(), 1e-6)


@pytest.mark.parametrize("kind, theirs", [("exact", "none"), ("tanh", "tanh")])
def test_gelu(kind, theirs):
    x = np.linspace(-9, 9, 2001)
    expected = functional.gelu(torch.from_numpy(x), approximate=theirs).numpy()
    # Optimised as for users: conftest chooses the lowest level, at which the compiled tanh is less exact.
    run = jax.jit(gelu, static_argnums=1, compiler_options={"xla_backend_optimization_level": 3})
    assert_close(run(jnp.asarray(x, jnp.float32), kind), expected, 1e-7)
