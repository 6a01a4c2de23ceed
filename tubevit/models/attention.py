"""Multi-head self-attention (paper section 3.1), by the implementation that suits the device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Float

from tubevit.errors import UserError
from tubevit.models import attention_kernel
from tubevit.models.attention_kernel import LANES
from tubevit.models.config import ModelConfig
from tubevit.models.patterns import UNKNOWN, TokenLayout
from tubevit.models.placement import BATCH_AXES

Heads = Float[Array, "B N H d"]
_SPLASH_BLOCK = 512
_SPLASH_SIZES = (
    "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
    "block_kv_dq",
)  # fmt: skip
FEWEST_TOKENS = 64  # of a sequence for the kernel, which handles the sequences one by one


def implementation_for(name: str, tokens: int, heads: int, width: int, backend: str | None = None) -> str:
    """Return what computes attention over so many tokens and heads of `width` channels, where `name` leaves it open.

    `auto` is `einsum` on CPU, where it takes about half the time of `jax.nn.dot_product_attention`, which transposes
    the scores there; `kernel` on TPU; and elsewhere what that function chooses. Instead of `kernel`, `splash`, the
    blocked attention of JAX, takes more tokens than fit the memory of the chip. `einsum` takes very few tokens, and
    heads that together do not fill whole lanes. `backend` is that of JAX by default.

    Raises:
        UserError: the kernel is asked for on a GPU.
    """
    backend = backend or jax.default_backend()
    if name == "auto":
        name = {"cpu": "einsum", "tpu": "kernel"}.get(backend, name)
    if name != "kernel":
        return name
    if backend == "gpu":
        raise UserError("attention 'kernel' is for TPUs; this is a GPU, which takes 'cudnn' or 'xla'")
    if tokens < FEWEST_TOKENS or heads // _tensor(heads) * width % LANES:
        return "einsum"
    return "kernel" if attention_kernel.fits(tokens, heads, width) else "splash"


def attention(query: Heads, key: Heads, value: Heads, implementation: str, softcap: float | None = None) -> Heads:
    """Compute softmax(q k / sqrt(d)) v for each of the H heads; a `softcap` is computed by einsums only.

    Args:
        query, key, value: heads of tokens.
        implementation: `einsum`, `splash`, or what `jax.nn.dot_product_attention` takes, None to let it choose.
        softcap: see `ModelConfig`.
    """
    if implementation == "splash" and softcap is None:
        return _splash(query, key, value)
    if implementation != "einsum" and softcap is None:
        chosen: dict = {} if implementation == "auto" else {"implementation": implementation}
        return jax.nn.dot_product_attention(query, key, value, **chosen)
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    # The scores of two heads at a time fit the cache.
    heads = [slice(i, i + 2) for i in range(0, query.shape[1], 2)]
    outs = [_attend(query[:, pair], key[:, pair], value[:, pair], softcap) for pair in heads]
    return jnp.concatenate(outs, axis=1).swapaxes(1, 2)


def _attend(query: Array, key: Array, value: Array, softcap: float | None) -> Array:
    """Compute softmax(q k) v for (B, H, N, d), with q already scaled."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
    scores = _capped(scores, softcap)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # Dividing the smaller product instead of the weights saves a pass over them.
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


def _capped(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def uses_kernel(config: ModelConfig, tokens: int) -> bool:
    """Return whether the kernel reads the projections of so many tokens as they are."""
    plain = config.position != "rope" and config.pattern != "factorised_dot" and config.softcap is None
    heads = config.num_heads
    return plain and implementation_for(config.attention, tokens, heads, config.width // heads) == "kernel"


def as_matrices(layers):
    """Reshape stacked kernels of attention to matrices, (L, D, 3 H d) and (L, H d, D), as the Pallas kernel needs them.

    A loop over layers otherwise changes the layout of each slice, and of each slice of the gradient. Heads that are
    split over devices stay apart.
    """
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return layers

    def flat(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "qkv/kernel" in name:
            return x.reshape(*x.shape[:2], -1)
        return x.reshape(x.shape[0], -1, x.shape[-1]) if "out/kernel" in name else x

    return jax.tree_util.tree_map_with_path(flat, layers)


def _splash(query: Heads, key: Heads, value: Heads) -> Heads:
    """Compute attention by the splash kernel of JAX, which pads the tokens to whole blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, heads = query.shape[1:3]
    block = min(_SPLASH_BLOCK, -(-tokens // LANES) * LANES)
    padded = -(-tokens // block) * block

    def run(interpret: bool):
        def local(query, key, value):
            mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * query.shape[1])
            sizes = splash.BlockSizes(**dict.fromkeys(_SPLASH_SIZES, block))
            kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
            segment = (jnp.arange(padded) >= tokens).astype(jnp.int32)  # no token attends to the padding
            ids = splash.SegmentIds(segment, segment)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(query, key, value)

        return local

    def attend(*arrays):
        padded_arrays = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - tokens), (0, 0))) for x in arrays)
        out: Any = jax.lax.platform_dependent(*padded_arrays, cpu=run(True), default=run(False))
        return out[:, :, :tokens].swapaxes(1, 2)

    spec = PartitionSpec(BATCH_AXES, None, "tensor" if _tensor(heads) > 1 else None)
    return _on_each_device(attend, (spec,) * 3, spec)(query * query.shape[-1] ** -0.5, key, value)


def attention_of_rows(
    rows: Float[Array, "B N 3Hd"], bias: Float[Array, " 3Hd"] | None, heads: int
) -> Float[Array, "B N Hd"]:
    """Compute attention by the kernel, see `attention_kernel.attention`.

    Where a mesh that splits them is in use, each device takes its own rows and heads.
    """
    tensor = _tensor(heads)
    if tensor == 1:
        specs, local = (by_clip := PartitionSpec(BATCH_AXES), PartitionSpec()), attention_kernel.attention
        return _on_each_device(functools.partial(local, heads=heads), specs, by_clip)(rows, bias)

    def of_heads(rows, bias):
        bias = None if bias is None else bias.reshape(-1)
        return attention_kernel.attention(rows.reshape(*rows.shape[:2], -1), bias, heads // tensor)

    specs = (PartitionSpec(BATCH_AXES, None, None, "tensor"), PartitionSpec(None, "tensor"))
    apart = rows.reshape(*rows.shape[:2], 3, -1), None if bias is None else bias.reshape(3, -1)
    return _on_each_device(of_heads, specs, PartitionSpec(BATCH_AXES, None, "tensor"))(*apart)


def _tensor(heads: int) -> int:
    """Return over how many devices the heads are split."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return tensor if heads % tensor == 0 else 1


def _on_each_device(function: Callable, specs: tuple[PartitionSpec, ...], out_spec: PartitionSpec) -> Callable:
    """Apply a function to the parts of each device, where a mesh is in use; XLA cannot split a kernel itself."""
    if not set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().auto_axes):
        return function
    return jax.shard_map(function, in_specs=specs, out_specs=out_spec, check_vma=False)


class Attention(nnx.Module):
    """Multi-head self-attention. Parameters: `qkv` (D, 3, H, d) and `out` (H, d, D), with biases.

    With the pattern `factorised_dot`, the first half of the heads attends over time and the others in each frame.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        initial = nnx.initializers.xavier_uniform()
        width, shape = config.width, (3, config.num_heads, config.width // config.num_heads)
        settings: dict = dict(kernel_init=initial, dtype=dtype, rngs=rngs)
        self.qkv = nnx.LinearGeneral(width, shape, use_bias=config.qkv_bias, **settings)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), **settings)
        self.config, self.softcap = config, config.softcap
        self.rotary, self.split = config.position == "rope", config.pattern == "factorised_dot"

    def __call__(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> Float[Array, "B N D"]:
        """Attend; a `layout` is needed for rotary positions and for `factorised_dot`."""
        if uses_kernel(self.config, x.shape[1]):
            return self._of_rows(x)
        qkv = self._qkv(x, layout)
        if self.split:
            half = qkv.shape[3] // 2
            over_time = layout.over_time(self._attend, qkv[:, :, :, :half])
            out = jnp.concatenate([over_time, layout.over_space(self._attend, qkv[:, :, :, half:])], axis=2)
        else:
            out = self._attend(qkv)
        out = checkpoint_name(out, "attention")
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)

    def _of_rows(self, x: Array) -> Array:
        """Attend with all heads side by side in rows, which the kernel reads as they are."""
        width, dtype = x.shape[-1], self.qkv.dtype
        kernel, of_out = (layer.kernel[...].astype(dtype) for layer in (self.qkv, self.out))
        bias = None if self.qkv.bias is None else self.qkv.bias[...].reshape(-1)
        out = attention_of_rows(x @ kernel.reshape(width, -1), bias, self.config.num_heads) @ of_out.reshape(-1, width)
        return out if self.out.bias is None else out + self.out.bias[...].astype(dtype)

    def _qkv(self, x: Array, layout: TokenLayout) -> Array:
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        if not self.rotary:
            return qkv
        return jnp.concatenate([layout.rotate(qkv[:, :, :2]), qkv[:, :, 2:]], axis=2)

    def _attend(self, qkv: Float[Array, "B N 3 H d"]) -> Heads:
        tokens, heads, width = qkv.shape[1], *qkv.shape[3:]
        implementation = implementation_for(self.config.attention, tokens, heads, width)
        if implementation == "kernel" and self.softcap is None:
            rows = attention_of_rows(qkv.reshape(*qkv.shape[:2], -1), None, heads)
            return rows.reshape(*qkv.shape[:2], heads, width)
        return attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation, self.softcap)

    def weights(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> list[Float[Array, "_ _ _"]]:
        """Compute softmax(q k / sqrt(d)) in float32, the mean over the heads.

        Row n holds what token n takes from each token and sums to 1. With `factorised_dot` these are two arrays: the
        weights over time at each place, (B S, T, T), and those in each frame, (B T, S, S).
        """
        qkv = self._qkv(x, layout).astype(jnp.float32)
        half = qkv.shape[3] // 2
        parts = [layout.by_place(qkv[:, :, :, :half]), layout.by_frame(qkv[:, :, :, half:])] if self.split else [qkv]
        scores = [jnp.einsum("bnhd,bmhd->bhnm", y[:, :, 0], y[:, :, 1]) * y.shape[-1] ** -0.5 for y in parts]
        return [jax.nn.softmax(_capped(each, self.softcap), axis=-1).mean(axis=1) for each in scores]
