"""The block of a ViT (paper section 3.1, equations 1 and 2) and what foreign ViTs add to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.models.config import ModelConfig


def dropout(x: jax.Array, rate: float | jax.Array, key: jax.Array | None, per_sample: bool = False) -> jax.Array:
    """Zeroes elements, or whole samples of the first axis, with probability `rate`, and scales up the others.

    Args:
        x: any shape.
        rate: probability, 0 to below 1.
        key: None switches it off.
        per_sample: one draw for each sample (stochastic depth).
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if per_sample else x.shape
    keep = 1 - jnp.asarray(rate, jnp.float32)  # in bfloat16 neither it nor the draw would be fine enough
    scaled = (x.astype(jnp.float32) / keep).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(key, keep, shape), scaled, jnp.zeros((), x.dtype))


def attention(query: jax.Array, key: jax.Array, value: jax.Array, implementation: str) -> jax.Array:
    """softmax(q k / sqrt(d)) v, each (B, N, heads, d) -> (B, N, heads, d).

    `auto` is plain einsums on CPU, where they take about half the time of `jax.nn.dot_product_attention` (which
    transposes the score matrix there), and that function's own choice elsewhere.
    """
    if implementation == "auto":
        implementation = "einsum" if jax.default_backend() == "cpu" else None
    if implementation != "einsum":
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    # Two heads at a time: their scores stay in the cache.
    outs = [_attend(*(x[:, i : i + 2] for x in (query, key, value))) for i in range(0, query.shape[1], 2)]
    return jnp.concatenate(outs, axis=1).swapaxes(1, 2)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k) v, each (B, heads, N, d), the query scaled."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # Dividing the smaller product, not the weights, saves a pass over them.
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention. Parameters: `qkv` (D, 3, heads, d) and `out` (heads, d, D), with biases."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        initial = nnx.initializers.xavier_uniform()
        width, shape = config.width, (3, config.num_heads, config.width // config.num_heads)
        settings = dict(kernel_init=initial, dtype=dtype, rngs=rngs)
        self.qkv = nnx.LinearGeneral(width, shape, use_bias=config.qkv_bias, **settings)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), **settings)
        self.implementation = config.attention

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.implementation)
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)


def gelu(x: jax.Array, kind: str = "exact") -> jax.Array:
    """GELU, any shape: x Phi(x), or with `tanh` the usual approximation of Phi.

    The exact one is computed by erf: `jax.nn.gelu` takes erfc, which costs twice the time on CPU.
    """
    if kind == "tanh":
        return jax.nn.gelu(x, approximate=True)
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Two linear layers with GELU. Parameters: `up` (D, M) and `down` (M, D), with biases."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        settings = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(config.width, config.mlp_dim, **settings)
        self.down = nnx.Linear(config.mlp_dim, config.width, **settings)
        self.gelu = config.gelu

    def __call__(self, x: jax.Array, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
        """(..., D) -> (..., D)."""
        hidden = gelu(self.up(x.reshape(-1, x.shape[-1])), self.gelu)  # flat rows: see Attention
        return self.down(dropout(hidden, rate, key)).reshape(x.shape)


class Block(nnx.Module):
    """y = MSA(LN(x)) + x, then MLP(LN(y)) + y (equations 1 and 2).

    Parameters: `norm1`, `attention`, `norm2`, `mlp`; with LayerScale `scale1` and `scale2` (D,), factors of the
    branches.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype, rngs=rngs)
        self.rate, self.scaled = config.dropout, config.layer_scale is not None
        if self.scaled:
            initial = nnx.initializers.constant(config.layer_scale)
            self.scale1, self.scale2 = (nnx.Param(initial(None, (config.width,), jnp.float32)) for _ in range(2))

    def __call__(self, x: jax.Array, drop_path: float | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(B, N, D) -> (B, N, D); `drop_path` is the probability of leaving out each of the two branches."""
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        y = dropout(self.attention(self.norm1(x)), self.rate, keys[0])
        y = y * self.scale1[...].astype(y.dtype) if self.scaled else y
        x = x + dropout(y, drop_path, keys[1], per_sample=True)
        y = dropout(self.mlp(self.norm2(x), self.rate, keys[2]), self.rate, keys[3])
        y = y * self.scale2[...].astype(y.dtype) if self.scaled else y
        return x + dropout(y, drop_path, keys[4], per_sample=True)


class AddedAttention(nnx.Module):
    """x + MSA(LN(x)): what Table 8 adds to a pretrained ViT. Parameters: `norm` and `attention`."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        return x + self.attention(self.norm(x))


def layer_norm(config: ModelConfig, dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with statistics in float32."""
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)
