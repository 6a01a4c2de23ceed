"""Products of 8-bit integers in the linear layers of the encoder's blocks, for inference, by Qwix (extra `int8`)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tubevit.errors import optional_import


def use_int8(blocks: nnx.Module) -> None:
    """Let the linear layers of stacked blocks multiply 8-bit integers; their parameters stay as they are.

    Raises UserError if Qwix is not installed.
    """
    _qwix()
    for _, module in nnx.iter_modules(blocks):
        if isinstance(module, nnx.Linear | nnx.LinearGeneral):
            module.dot_general = int8_dot_general


def int8_dot_general(lhs: Array, rhs: Array, dimension_numbers, **_: Any) -> Array:
    """Compute `jax.lax.dot_general` with both operands rounded to 8-bit integers.

    Each row of the activations `lhs` and each output of the kernel `rhs` is scaled by its own largest magnitude, when
    it is multiplied. The integers are summed exactly, in 32 bits. The result has the dtype of `lhs`.
    """
    qwix, summed = _qwix(), dimension_numbers[0]
    quantized = (
        qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=sorted({*range(x.ndim)} - {*axes}))
        for x, axes in zip((lhs, rhs), summed)
    )
    return qwix.dot_general(*quantized, dimension_numbers).astype(lhs.dtype)


def _qwix() -> Any:
    return optional_import("qwix", "quantize='int8'", "int8")
