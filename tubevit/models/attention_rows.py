"""Attention by the Pallas kernel on the rows of a projection, on every device by itself."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Float

from tubevit.models import attention_kernel
from tubevit.models.placement import BATCH_AXES


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention_of_rows(
    rows: Float[Array, "B N 3Hd"], bias: Float[Array, " 3Hd"] | None, kernel: Float[Array, "Hd D"] | None, heads: int
) -> Float[Array, "B N D"]:
    """Compute attention by the Pallas kernel, and the product of its output and `kernel`.

    The backward pass of both is one, so that `jax.checkpoint` keeps the output of attention under the name `attention`
    and runs the Pallas kernel once: a product of its own would ask for an output without that name.

    Args:
        rows: q, k and v of all heads, each (H, d).
        bias: their biases; None if they are added already.
        kernel: None returns the output of attention, (B, N, H d).
        heads: H.
    """
    return _forward(rows, bias, kernel, heads)[0]


def _forward(rows, bias, kernel, heads: int):
    rows = rows if bias is None else rows + bias.astype(rows.dtype)
    out, log_sums = _attend_rows(rows, heads)
    kept = checkpoint_name(out, "attention")
    # What is kept is copied if it goes on as well.
    return kept if kernel is None else out @ kernel, (rows, kept, checkpoint_name(log_sums, "attention"), bias, kernel)


def _backward(heads: int, kept, gradient):
    rows, out, log_sums, bias, kernel = kept
    d_out = gradient if kernel is None else gradient @ kernel.T
    d_kernel = None if kernel is None else jnp.einsum("bnh,bnd->hd", out, gradient)
    d_rows, sums = _differentiate_rows(rows, out, log_sums, d_out, heads)
    return d_rows, None if bias is None else sums.sum((0, 1)).astype(bias.dtype), d_kernel


attention_of_rows.defvjp(_forward, _backward)


def _attend_rows(rows: Array, heads: int) -> tuple[Array, Array]:
    """Run the forward kernel; each device takes its own rows and heads."""
    tensor = head_shards(heads)

    def local(rows):
        return attention_kernel.attend(_flat(rows), heads // tensor)

    out_specs = _spec(tensor, None, "tensor"), _spec(tensor, "tensor")
    return on_each_device(local, (_spec(tensor, None, None, "tensor"),), out_specs)(_apart(rows, tensor))


def _differentiate_rows(rows: Array, out: Array, log_sums: Array, d_out: Array, heads: int) -> tuple[Array, Array]:
    """Run the backward kernel; each device takes its own rows and heads."""
    tensor = head_shards(heads)

    def local(rows, out, log_sums, d_out):
        found = attention_kernel.differentiate(_flat(rows), out, log_sums, d_out, heads // tensor)
        return [_apart(x, tensor) for x in found]

    of_rows, of_heads = _spec(tensor, None, None, "tensor"), _spec(tensor, None, "tensor")
    in_specs = of_rows, of_heads, _spec(tensor, "tensor"), of_heads
    found = on_each_device(local, in_specs, [of_rows] * 2)(_apart(rows, tensor), out, log_sums, d_out)
    return _flat(found[0]), _flat(found[1])


def _apart(rows: Array, tensor: int) -> Array:
    """Reshape q, k and v side by side to (B, N, 3, H d) where their heads are split over devices."""
    return rows if tensor == 1 else rows.reshape(*rows.shape[:2], 3, -1)


def _flat(rows: Array) -> Array:
    return rows.reshape(*rows.shape[:2], -1)


def _spec(tensor: int, *axes: str | None) -> PartitionSpec:
    """Split the first axis by clips, and the others as named where heads are split."""
    return PartitionSpec(BATCH_AXES, *(axes if tensor > 1 else ()))


def head_shards(heads: int) -> int:
    """Return over how many devices the heads are split."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return tensor if heads % tensor == 0 else 1


def on_each_device(function: Callable, specs: tuple[PartitionSpec, ...], out_specs) -> Callable:
    """Apply a function to the parts of each device, where a mesh is in use; XLA cannot split a kernel itself."""
    if not set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().auto_axes):
        return function
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)
