"""Multi-head self-attention (paper section 3.1), by the implementation that suits the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Float

from tubevit.models import attention_kernel
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


def implementation_for(name: str, tokens: int, heads: int, width: int) -> str:
    """Return what computes attention over so many tokens and heads of `width` channels, where `name` leaves it open.

    `auto` is `einsum` on CPU, where it takes about half the time of `jax.nn.dot_product_attention`, which transposes
    the scores there; `kernel` on TPU; and elsewhere what that function chooses. Instead of `kernel`, `splash`, the
    blocked attention of JAX, takes more tokens than fit the memory of the chip, and `einsum` takes very few.
    """
    if name == "auto":
        name = {"cpu": "einsum", "tpu": "kernel"}.get(jax.default_backend(), name)
    if name != "kernel":
        return name
    if tokens < FEWEST_TOKENS:
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
    """Return whether the attention over so many tokens is that of `attention_kernel`."""
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
    padded = -(-tokens // _SPLASH_BLOCK) * _SPLASH_BLOCK
    segments = jnp.arange(padded) >= tokens  # no token attends to the padding
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * heads)
    sizes = splash.BlockSizes(**dict.fromkeys(_SPLASH_SIZES, _SPLASH_BLOCK))
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)
    ids = splash.SegmentIds(segments.astype(jnp.int32), segments.astype(jnp.int32))

    def pad(x):
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - tokens), (0, 0)))

    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(
        pad(query * query.shape[-1] ** -0.5), pad(key), pad(value)
    )
    return out[:, :, :tokens].swapaxes(1, 2)


def _over_devices(
    function: Callable, rows: Float[Array, "B N 3Hd"], bias: Float[Array, "3Hd"], heads: int
) -> Float[Array, "B N Hd"]:
    """Apply a kernel on the rows and heads of each device, where a mesh that splits them is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.auto_axes):
        return function(rows, bias, heads)
    tensor = mesh.shape.get("tensor", 1)
    if tensor == 1 or heads % tensor:
        specs, out_spec = (PartitionSpec(BATCH_AXES), PartitionSpec()), PartitionSpec(BATCH_AXES)

        def local(rows, bias):
            return function(rows, bias, heads)
    else:
        specs = (PartitionSpec(BATCH_AXES, None, None, "tensor"), PartitionSpec(None, "tensor"))
        out_spec = PartitionSpec(BATCH_AXES, None, "tensor")
        rows, bias = rows.reshape(*rows.shape[:2], 3, -1), bias.reshape(3, -1)

        def local(rows, bias):
            return function(rows.reshape(*rows.shape[:2], -1), bias.reshape(-1), heads // tensor)

    return jax.shard_map(local, in_specs=specs, out_specs=out_spec, check_vma=False)(rows, bias)


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
            return self._in_kernel(x)
        qkv = self._qkv(x, layout)
        if self.split:
            half = qkv.shape[3] // 2
            over_time = layout.over_time(self._attend, qkv[:, :, :, :half])
            out = jnp.concatenate([over_time, layout.over_space(self._attend, qkv[:, :, :, half:])], axis=2)
        else:
            out = self._attend(qkv)
        out = checkpoint_name(out, "attention")
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)

    def _implementation(self, tokens: int) -> str:
        return implementation_for(self.config.attention, tokens, *self.qkv.out_features[1:])

    def _in_kernel(self, x: Array) -> Array:
        """Attend with all heads side by side in rows, which the kernel reads as they are."""
        width, dtype = x.shape[-1], self.qkv.dtype
        kernels = [layer.kernel[...].astype(dtype) for layer in (self.qkv, self.out)]
        rows = x @ kernels[0].reshape(width, -1)
        bias = jnp.zeros(rows.shape[-1], jnp.float32) if self.qkv.bias is None else self.qkv.bias[...].reshape(-1)
        out = _over_devices(attention_kernel.attention, rows, bias, self.qkv.out_features[1])
        return out @ kernels[1].reshape(-1, width) + self.out.bias[...].astype(dtype)

    def _qkv(self, x: Array, layout: TokenLayout) -> Array:
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        if not self.rotary:
            return qkv
        return jnp.concatenate([layout.rotate(qkv[:, :, :2]), qkv[:, :, 2:]], axis=2)

    def _attend(self, qkv: Float[Array, "B N 3 H d"]) -> Heads:
        implementation = self._implementation(qkv.shape[1])
        implementation = "einsum" if implementation == "kernel" else implementation  # the kernel takes plain rows only
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
