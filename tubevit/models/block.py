"""The block of a ViT (paper section 3.1, equations 1 and 2), with the options that foreign ViTs need."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from tubevit.models.config import ModelConfig
from tubevit.models.patterns import UNKNOWN, TokenLayout

Heads = Float[Array, "B N H d"]


def dropout(
    x: Float[Array, "*shape"], rate: float | Float[Array, ""], key: PRNGKeyArray | None, per_sample: bool = False
) -> Float[Array, "*shape"]:
    """Zero random elements and scale up the rest.

    Args:
        x: activations.
        rate: probability of zeroing an element, from 0 to below 1.
        key: random key; None disables dropout.
        per_sample: zero whole samples of the first axis instead of elements (stochastic depth).
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if per_sample else x.shape
    keep = 1 - jnp.asarray(rate, jnp.float32)  # bfloat16 is too coarse for the rate and for the random numbers
    scaled = (x.astype(jnp.float32) / keep).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(key, keep, shape), scaled, jnp.zeros((), x.dtype))


def attention(query: Heads, key: Heads, value: Heads, implementation: str, softcap: float | None = None) -> Heads:
    """Compute softmax(q k / sqrt(d)) v for each of the H heads; a `softcap` is computed by einsums only.

    On CPU, `auto` uses einsums: they take about half the time of `jax.nn.dot_product_attention`, which transposes the
    score matrix there. On other devices `auto` lets that function choose.
    """
    if softcap or (implementation == "auto" and jax.default_backend() == "cpu"):
        implementation = "einsum"
    if implementation != "einsum":
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
        self.implementation, self.softcap = config.attention, config.softcap
        self.rotary, self.split = config.position == "rope", config.pattern == "factorised_dot"

    def __call__(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> Float[Array, "B N D"]:
        """Attend; a `layout` is needed for rotary positions and for `factorised_dot`."""
        qkv = self._qkv(x, layout)
        if self.split:
            half = qkv.shape[3] // 2
            over_time = layout.over_time(self._attend, qkv[:, :, :, :half])
            out = jnp.concatenate([over_time, layout.over_space(self._attend, qkv[:, :, :, half:])], axis=2)
        else:
            out = self._attend(qkv)
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)

    def _qkv(self, x: Array, layout: TokenLayout) -> Array:
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        if not self.rotary:
            return qkv
        return jnp.concatenate([layout.rotate(qkv[:, :, :2]), qkv[:, :, 2:]], axis=2)

    def _attend(self, qkv: Float[Array, "B N 3 H d"]) -> Heads:
        return attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.implementation, self.softcap)

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


def gelu(x: Float[Array, "*shape"], kind: str = "exact") -> Float[Array, "*shape"]:
    """Apply GELU, x Phi(x). With `tanh`, Phi is approximated as usual.

    The exact form uses erf: `jax.nn.gelu` uses erfc, which takes twice the time on CPU.
    """
    if kind == "tanh":
        return jax.nn.gelu(x, approximate=True)
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Two linear layers with GELU. Parameters: `up` (D, M) and `down` (M, D), with biases."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        settings: dict = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(config.width, config.mlp_dim, **settings)
        self.down = nnx.Linear(config.mlp_dim, config.width, **settings)
        self.gelu = config.gelu

    def __call__(
        self, x: Float[Array, "*rows D"], rate: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*rows D"]:
        """Transform each row; `rate` is the dropout rate of the hidden layer."""
        hidden = gelu(self.up(x.reshape(-1, x.shape[-1])), self.gelu)  # flat rows: see Attention
        return self.down(dropout(hidden, rate, key)).reshape(x.shape)


class Block(nnx.Module):
    """y = MSA(LN(x)) + x, then MLP(LN(y)) + y (equations 1 and 2).

    With the pattern `divided`, the tube tokens first attend over time, as x + MSA(LN(x)), and then in each frame.

    Parameters: `norm1`, `attention`, `norm2`, `mlp`; with LayerScale also `scale1` and `scale2` (D,), which multiply
    the two branches; with the pattern `divided` also `time_norm` and `time_attention`.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype, rngs=rngs)
        self.divided = config.pattern == "divided"
        if self.divided:
            self.time_norm = layer_norm(config, dtype, rngs=rngs)
            self.time_attention = Attention(config, dtype, rngs=rngs)
        self.rate, self.scaled = config.dropout, config.layer_scale is not None
        if config.layer_scale is not None:
            self.scale1 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))
            self.scale2 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_path: float | Float[Array, ""],
        key: PRNGKeyArray | None = None,
        layout: TokenLayout = UNKNOWN,
    ) -> Float[Array, "B N D"]:
        """Apply the block; `drop_path` is the probability of leaving out each of its branches."""
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        if self.divided:
            x = self._over_time(x, drop_path, key, layout)
            y = layout.over_space(lambda frames: self.attention(self.norm1(frames)), x)
        else:
            y = self.attention(self.norm1(x), layout)
        y = dropout(y, self.rate, keys[0])
        y = y * self.scale1[...].astype(y.dtype) if self.scaled else y
        x = x + dropout(y, drop_path, keys[1], per_sample=True)
        y = dropout(self.mlp(self.norm2(x), self.rate, keys[2]), self.rate, keys[3])
        y = y * self.scale2[...].astype(y.dtype) if self.scaled else y
        return x + dropout(y, drop_path, keys[4], per_sample=True)

    def _over_time(self, x: Array, drop_path, key: PRNGKeyArray | None, layout: TokenLayout) -> Array:
        keys = (None,) * 2 if key is None else jax.random.split(jax.random.fold_in(key, 5))
        y = layout.over_time(lambda places: self.time_attention(self.time_norm(places)), x[:, layout.first :])
        y = dropout(y, self.rate, keys[0])
        y = dropout(y, drop_path, keys[1], per_sample=True)
        return jnp.concatenate([x[:, : layout.first], x[:, layout.first :] + y], axis=1)

    def weights(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> list[Float[Array, "_ _ _"]]:
        """Compute the attention weights of each attention layer in order; see `Attention.weights`.

        With `divided` these are the weights over time, (B S, T, T), and those in each frame, (B T, M, M).
        """
        if not self.divided:
            return self.attention.weights(self.norm1(x), layout)
        over_time = self.time_attention.weights(self.time_norm(layout.by_place(x[:, layout.first :])))
        frames = self.norm1(layout.by_frame(self._over_time(x, 0.0, None, layout)))
        return over_time + self.attention.weights(frames)


class AddedAttention(nnx.Module):
    """x + MSA(LN(x)): the layer that Table 8 adds to a pretrained ViT. Parameters: `norm` and `attention`."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> Float[Array, "B N D"]:
        return x + self.attention(self.norm(x), layout)


def layer_norm(config: ModelConfig, dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Make a layer normalisation that computes its statistics in float32."""
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def stacked(kind: Callable, count: int, config: ModelConfig, dtype, rngs: nnx.Rngs):
    """Make `count` modules as one, whose parameters have a leading axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return kind(config, dtype, rngs=rngs)

    return make(rngs)
