"""Multi-head self-attention (paper section 3.1), by the implementation that suits the device."""

from collections.abc import Callable
from typing import Any

import einops
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
from tubevit.models.attention_rows import attention_of_rows, head_shards, on_each_device
from tubevit.models.config import ModelConfig
from tubevit.models.patterns import UNKNOWN, TokenLayout
from tubevit.models.placement import BATCH_AXES

Heads = Float[Array, "B N H d"]
_XAVIER = nnx.initializers.xavier_uniform()
_SPLASH_BLOCK = 512
_SPLASH_SIZES = (
    "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
    "block_kv_dq",
)  # fmt: skip
FEWEST_TOKENS = 64  # of a sequence for the kernel, which handles the sequences one by one


def platform() -> str:
    """Return the platform that is traced for, `cpu`, `tpu` or `gpu`: that of the mesh in use, else that of JAX."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device else jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def _has_fused() -> bool:
    """Whether the GPU is of NVIDIA's Ampere generation (8.0) or later."""
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0


def implementation_for(
    name: str,
    tokens: int,
    heads: int,
    width: int,
    dtype=jnp.bfloat16,
    device: str | None = None,
    has_fused: Callable[[], bool] = _has_fused,
) -> str:
    """Return the implementation for a number of tokens and for heads of `width` channels.

    `splash`, JAX's blocked attention, replaces `kernel` where the tokens do not fit the chip. `einsum` replaces it for
    fewer than `FEWEST_TOKENS` tokens, and where the heads of a device do not fill whole lanes. `auto` is `xla` on GPUs
    that lack cuDNN's fused attention, and for shapes or a dtype that it does not take. `device` is `platform()` by
    default, and `has_fused` tells whether a GPU has fused attention.

    Raises:
        UserError: the kernel is asked for on a GPU, or cuDNN's attention where it is not available.
    """
    device = device or platform()
    fits_cudnn = device == "gpu" and dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128
    if name == "cudnn" and not (fits_cudnn and has_fused()):
        raise UserError(
            "attention 'cudnn' needs an NVIDIA GPU of compute capability 8.0 or later, bfloat16, and heads of at most "
            f"128 channels, a multiple of 8; found {jnp.dtype(dtype).name}, {width} channels and {device}: "
            "use 'auto' or 'xla'"
        )
    if name == "auto":
        if device == "gpu":
            return "cudnn" if fits_cudnn and has_fused() else "xla"
        # On CPU, `jax.nn.dot_product_attention` transposes the scores, and takes about twice the time of einsums.
        name = {"cpu": "einsum", "tpu": "kernel"}.get(device, "xla")
    if name != "kernel":
        return name
    if device == "gpu":
        raise UserError("attention 'kernel' is for TPUs; this is a GPU, which takes 'cudnn' or 'xla'")
    if tokens < FEWEST_TOKENS or heads // head_shards(heads) * width % LANES:
        return "einsum"
    return "kernel" if attention_kernel.fits(tokens, heads, width, dtype) else "splash"


def attention(query: Heads, key: Heads, value: Heads, implementation: str, softcap: float | None = None) -> Heads:
    """Compute softmax(q k / sqrt(d)) v for each of the H heads; a `softcap` is computed by einsums only.

    Args:
        query, key, value: heads of tokens.
        implementation: `einsum`, `splash`, or what `jax.nn.dot_product_attention` takes.
        softcap: see `ModelConfig`.
    """
    if implementation == "splash" and softcap is None:
        return _splash(query, key, value)
    if implementation != "einsum" and softcap is None:
        chosen: Any = implementation
        return jax.nn.dot_product_attention(query, key, value, implementation=chosen)
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


def uses_kernel(config: ModelConfig, tokens: int, dtype) -> bool:
    """Return whether the kernel reads the projections of so many tokens as they are, and computes them itself."""
    plain = config.position != "rope" and config.pattern != "factorised_dot" and config.softcap is None
    plain = plain and config.lora is None and config.quantize == "none"  # their layers are more than a kernel
    heads = config.num_heads
    return plain and implementation_for(config.attention, tokens, heads, config.width // heads, dtype) == "kernel"


def as_matrices(layers, heads: int):
    """Reshape stacked kernels of attention to matrices, (L, D, 3 H d) and (L, H d, D), as the Pallas kernel needs them.

    A loop over layers otherwise changes the layout of each slice, and of each slice of the gradient. Heads that are
    split over devices stay apart.
    """
    if head_shards(heads) > 1:
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
            kernel = splash.make_splash_mha_single_device(
                mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name="attention"
            )
            segment = (jnp.arange(padded) >= tokens).astype(jnp.int32)  # no token attends to the padding
            ids = splash.SegmentIds(segment, segment)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(query, key, value)

        return local

    def attend(*arrays):
        padded_arrays = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - tokens), (0, 0))) for x in arrays)
        out: Any = jax.lax.platform_dependent(*padded_arrays, cpu=run(True), default=run(False))
        return out[:, :, :tokens].swapaxes(1, 2)

    spec = PartitionSpec(BATCH_AXES, None, "tensor" if head_shards(heads) > 1 else None)
    return on_each_device(attend, (spec,) * 3, spec)(query * query.shape[-1] ** -0.5, key, value)


class Attention(nnx.Module):
    """Multi-head self-attention. Parameters: `qkv` (D, 3, H, d) and `out` (H, d, D), with biases.

    With the pattern `factorised_dot`, the first half of the heads attends over time and the others in each frame.
    """

    def __init__(self, config: ModelConfig, dtype, *, out_init=_XAVIER, rngs: nnx.Rngs):
        width, shape = config.width, (3, config.num_heads, config.width // config.num_heads)
        settings: dict = dict(dtype=dtype, rngs=rngs)
        self.qkv = nnx.LinearGeneral(width, shape, use_bias=config.qkv_bias, kernel_init=_XAVIER, **settings)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), kernel_init=out_init, **settings)
        self.config, self.softcap = config, config.softcap
        self.rotary, self.split = config.position == "rope", config.pattern == "factorised_dot"

    def __call__(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> Float[Array, "B N D"]:
        """Attend; a `layout` is needed for rotary positions and for `factorised_dot`."""
        if uses_kernel(self.config, x.shape[1], self.qkv.dtype):
            return self._of_rows(x)
        qkv = self._qkv(x, layout)
        if self.split:
            half = qkv.shape[3] // 2
            over_time = layout.over_time(self._attend, qkv[:, :, :, :half])
            out = jnp.concatenate([over_time, layout.over_space(self._attend, qkv[:, :, :, half:])], axis=2)
        else:
            out = self._attend(qkv)
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)

    def _of_rows(self, x: Array) -> Array:
        """Attend with all heads side by side in rows, which the kernel reads as they are."""
        width, dtype, heads = x.shape[-1], self.qkv.dtype, self.config.num_heads
        kernel, of_out = (layer.kernel[...].astype(dtype) for layer in (self.qkv, self.out))
        shape = (3, -1) if head_shards(heads) > 1 else (-1,)  # no sharding splits the heads of q, k and v in one axis
        bias = None if self.qkv.bias is None else self.qkv.bias[...].reshape(shape)
        rows = jnp.tensordot(x, kernel.reshape(width, *shape), 1)
        out: Array = attention_of_rows(rows, bias, of_out.reshape(-1, width), heads)
        return out if self.out.bias is None else out + self.out.bias[...].astype(dtype)

    def _qkv(self, x: Array, layout: TokenLayout) -> Array:
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        if not self.rotary:
            return qkv
        return jnp.concatenate([layout.rotate(qkv[:, :, :2]), qkv[:, :, 2:]], axis=2)

    def _attend(self, qkv: Float[Array, "B N 3 H d"]) -> Heads:
        tokens, heads, width = qkv.shape[1], *qkv.shape[3:]
        implementation = implementation_for(self.config.attention, tokens, heads, width, qkv.dtype)
        if implementation == "kernel" and self.softcap is None:
            shape = (3, -1) if head_shards(heads) > 1 else (-1,)
            rows: Array = attention_of_rows(qkv.reshape(*qkv.shape[:2], *shape), None, None, heads)
            return rows.reshape(*qkv.shape[:2], heads, width)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation, self.softcap)
        return checkpoint_name(out, "attention")

    def weights(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> list[Float[Array, "_ _ _"]]:
        """Compute softmax(q k / sqrt(d)) in float32, the mean over the heads.

        Row n holds what token n takes from each token and sums to 1. With `factorised_dot` these are two arrays: the
        weights over time at each place, (B S, T, T), and those in each frame, (B T, S, S).
        """
        qkv = self._qkv(x, layout).astype(jnp.float32)
        half = qkv.shape[3] // 2
        parts = [layout.by_place(qkv[:, :, :, :half]), layout.by_frame(qkv[:, :, :, half:])] if self.split else [qkv]
        return [self._mean_weights(each) for each in parts]

    def _mean_weights(self, qkv: Float[Array, "B N 3 H d"]) -> Float[Array, "B N N"]:
        """Average over the heads one by one: the weights of all heads of a long clip take gigabytes."""
        batch, tokens, _, heads, width = qkv.shape

        def add(total, head):
            scores = jnp.einsum("bnd,bmd->bnm", *head) * width**-0.5
            return total + jax.nn.softmax(_capped(scores, self.softcap), axis=-1), None

        query, key = einops.rearrange(qkv[:, :, :2], "b n two h d -> two h b n d")
        return jax.lax.scan(add, jnp.zeros((batch, tokens, tokens)), (query, key))[0] / heads
