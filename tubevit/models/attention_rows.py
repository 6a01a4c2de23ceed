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
    rows: Float[Array, "B N *qkv"], bias: Float[Array, "*qkv"] | None, kernel: Float[Array, "Hd D"] | None, heads: int
) -> Float[Array, "B N D"]:
    """Compute attention by the Pallas kernel, and the product of its output and `kernel`.

    The two share one backward pass. It reads the output of attention under the name `attention`, so that
    `jax.checkpoint` keeps this output and does not run the Pallas kernel again.

    Args:
        rows: q, k and v of all heads, side by side in (B, N, 3 H d); where `head_shards` is not 1, (B, N, 3, H d).
        bias: their biases; None if they are added already.
        kernel: None returns the output of attention, (B, N, H d).
        heads: H.
    """
    return _forward(rows, bias, kernel, heads)[0]


def _forward(rows, bias, kernel, heads: int):
    rows = rows if bias is None else rows + bias.astype(rows.dtype)
    out, log_sums = _attend(rows, heads)
    kept = checkpoint_name(out, "attention")
    # XLA would copy the array that is kept if the product read it too.
    return kept if kernel is None else out @ kernel, (rows, kept, checkpoint_name(log_sums, "attention"), bias, kernel)


def _backward(heads: int, kept, gradient):
    rows, out, log_sums, bias, kernel = kept
    d_out = gradient if kernel is None else gradient @ kernel.T
    d_kernel = None if kernel is None else jnp.einsum("bnh,bnd->hd", out, gradient)
    d_rows, sums = _differentiate(rows, out, log_sums, d_out, heads)
    return d_rows, None if bias is None else sums.sum((0, 1)).astype(bias.dtype), d_kernel


attention_of_rows.defvjp(_forward, _backward)


def _attend(rows: Array, heads: int) -> tuple[Array, Array]:
    """Run the forward kernel; each device takes its own rows and heads."""
    shards = head_shards(heads)

    def local(rows):
        return attention_kernel.attend(rows.reshape(*rows.shape[:2], -1), heads // shards)

    out_specs = _spec(shards, None, "tensor"), _spec(shards, "tensor")
    return on_each_device(local, (_spec(shards, None, None, "tensor"),), out_specs)(rows)


def _differentiate(rows: Array, out: Array, log_sums: Array, d_out: Array, heads: int) -> tuple[Array, Array]:
    """Run the backward kernel; each device takes its own rows and heads."""
    shards = head_shards(heads)

    def local(rows, out, log_sums, d_out):
        flat = rows.reshape(*rows.shape[:2], -1)
        found = attention_kernel.differentiate(flat, out, log_sums, d_out, heads // shards)
        return [x.reshape(*x.shape[:2], *rows.shape[2:]) for x in found]

    of_rows, of_heads = _spec(shards, None, None, "tensor"), _spec(shards, None, "tensor")
    in_specs = of_rows, of_heads, _spec(shards, "tensor"), of_heads
    return tuple(on_each_device(local, in_specs, [of_rows] * 2)(rows, out, log_sums, d_out))


def _spec(shards: int, *axes: str | None) -> PartitionSpec:
    """Split the first axis by clips, and the others as named where heads are split."""
    return PartitionSpec(BATCH_AXES, *(axes if shards > 1 else ()))


def head_shards(heads: int) -> int:
    """Return the number of devices that the heads are split over."""
    shards = jax.sharding.get_abstract_mesh().shape["tensor"] if _is_split() else 1
    return shards if heads % shards == 0 else 1


def on_each_device(function: Callable, specs: tuple[PartitionSpec, ...], out_specs) -> Callable:
    """Apply a function to the parts of each device, where a mesh is in use; XLA cannot split a kernel itself."""
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False) if _is_split() else function


def _is_split() -> bool:
    """Whether the mesh in use is one of `tubevit.sharding.mesh`, along whose axes XLA splits arrays."""
    return {*BATCH_AXES, "tensor"} <= set(jax.sharding.get_abstract_mesh().auto_axes)
