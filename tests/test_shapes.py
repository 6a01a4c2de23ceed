"""The shapes in signatures are checked in tests."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from tubevit.models.block import gelu
from tubevit.training.losses import classification_loss
from tubevit.windows import take_windows


def test_wrong_shapes_are_found():
    with pytest.raises(jaxtyping.TypeCheckError, match="'target'"):
        classification_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)), False)
    with pytest.raises(jaxtyping.TypeCheckError, match="'x'"):
        gelu(jnp.zeros(3, jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="'clips'"):
        take_windows(np.zeros((2, 4, 16, 16, 1), np.uint8), None)
