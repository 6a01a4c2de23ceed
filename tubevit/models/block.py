"""The block of a ViT (paper section 3.1, equations 1 and 2), with the options that foreign ViTs need."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from tubevit.models.config import ModelConfig

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


def attention(query: Heads, key: Heads, value: Heads, implementation: str) -> Heads:
    """Compute softmax(q k / sqrt(d)) v for each of the H heads.

    On CPU, `auto` uses einsums: they take about half the time of `jax.nn.dot_product_attention`, which transposes the
    score matrix there. On other devices `auto` lets that function choose.
    """
    if implementation == "auto" and jax.default_backend() == "cpu":
        implementation = "einsum"
    if implementation != "einsum":
        chosen: dict = {} if implementation == "auto" else {"implementation": implementation}
        return jax.nn.dot_product_attention(query, key, value, **chosen)
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    # The scores of two heads at a time fit the cache.
    outs = [_attend(*(x[:, i : i + 2] for x in (query, key, value))) for i in range(0, query.shape[1], 2)]
    return jnp.concatenate(outs, axis=1).swapaxes(1, 2)


def _attend(query: Array, key: Array, value: Array) -> Array:
    """Compute softmax(q k) v for (B, H, N, d), with q already scaled."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # Dividing the smaller product instead of the weights saves a pass over them.
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention. Parameters: `qkv` (D, 3, H, d) and `out` (H, d, D), with biases."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        initial = nnx.initializers.xavier_uniform()
        width, shape = config.width, (3, config.num_heads, config.width // config.num_heads)
        settings: dict = dict(kernel_init=initial, dtype=dtype, rngs=rngs)
        self.qkv = nnx.LinearGeneral(width, shape, use_bias=config.qkv_bias, **settings)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), **settings)
        self.implementation = config.attention

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.implementation)
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)

    def weights(self, x: Float[Array, "B N D"]) -> Float[Array, "B H N N"]:
        """Compute softmax(q k / sqrt(d)) in float32. Row n holds what token n takes from each token and sums to 1."""
        qkv = self.qkv(x).astype(jnp.float32)
        query, key = qkv[:, :, 0], qkv[:, :, 1]
        return jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5, axis=-1)


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

    Parameters: `norm1`, `attention`, `norm2`, `mlp`; with LayerScale also `scale1` and `scale2` (D,), which multiply
    the two branches.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype, rngs=rngs)
        self.rate, self.scaled = config.dropout, config.layer_scale is not None
        if config.layer_scale is not None:
            self.scale1 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))
            self.scale2 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))

    def __call__(
        self, x: Float[Array, "B N D"], drop_path: float | Float[Array, ""], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B N D"]:
        """Apply the block; `drop_path` is the probability of leaving out each of the two branches."""
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        y = dropout(self.attention(self.norm1(x)), self.rate, keys[0])
        y = y * self.scale1[...].astype(y.dtype) if self.scaled else y
        x = x + dropout(y, drop_path, keys[1], per_sample=True)
        y = dropout(self.mlp(self.norm2(x), self.rate, keys[2]), self.rate, keys[3])
        y = y * self.scale2[...].astype(y.dtype) if self.scaled else y
        return x + dropout(y, drop_path, keys[4], per_sample=True)


class AddedAttention(nnx.Module):
    """x + MSA(LN(x)): the layer that Table 8 adds to a pretrained ViT. Parameters: `norm` and `attention`."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return x + self.attention(self.norm(x))


def layer_norm(config: ModelConfig, dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Make a layer normalisation that computes its statistics in float32."""
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)
