"""Plain pre-LN ViT encoder over all tokens jointly (paper section 3.1, equations 1 and 2, Table 11).

Blocks are stacked: every parameter has a leading axis of L layers, and one scan runs them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.errors import UserError, unknown

# What the backward pass recomputes, from least memory to most.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}
ATTENTION = ("auto", "einsum", "xla", "cudnn")


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

    def __init__(self, width: int, num_heads: int, implementation: str, dtype, *, rngs: nnx.Rngs):
        initial = nnx.initializers.xavier_uniform()
        shape = (3, num_heads, width // num_heads)
        self.qkv = nnx.LinearGeneral(width, shape, kernel_init=initial, dtype=dtype, rngs=rngs)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), kernel_init=initial, dtype=dtype, rngs=rngs)
        self.implementation = implementation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        # On flat rows the gradients of the kernels are plain matmuls; with (B, N) apart, XLA transposes on CPU.
        qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], *self.qkv.out_features)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.implementation)
        return self.out(out.reshape(-1, *self.out.in_features)).reshape(x.shape)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x), any shape. By erf: `jax.nn.gelu` takes erfc, which costs twice the time on CPU."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Two linear layers with exact GELU. Parameters: `up` (D, M) and `down` (M, D), with biases."""

    def __init__(self, width: int, mlp_width: int, dtype, *, rngs: nnx.Rngs):
        initial = nnx.initializers.xavier_uniform()
        self.up = nnx.Linear(width, mlp_width, kernel_init=initial, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(mlp_width, width, kernel_init=initial, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        hidden = gelu(self.up(x.reshape(-1, x.shape[-1])))  # flat rows: see Attention
        return self.down(dropout(hidden, rate, key)).reshape(x.shape)


class Block(nnx.Module):
    """y = MSA(LN(x)) + x, then MLP(LN(y)) + y (equations 1 and 2)."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, rate: float, implementation: str, dtype, *, rngs):
        self.norm1 = layer_norm(width, dtype, rngs=rngs)
        self.attention = Attention(width, num_heads, implementation, dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, dtype, rngs=rngs)
        self.rate = rate

    def __call__(self, x: jax.Array, drop_path: float | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(B, N, D) -> (B, N, D); `drop_path` is the probability of leaving out each of the two branches."""
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        y = dropout(self.attention(self.norm1(x)), self.rate, keys[0])
        x = x + dropout(y, drop_path, keys[1], per_sample=True)
        y = dropout(self.mlp(self.norm2(x), self.rate, keys[2]), self.rate, keys[3])
        return x + dropout(y, drop_path, keys[4], per_sample=True)


def layer_norm(width: int, dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with statistics in float32 and epsilon 1e-6."""
    return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)


class Encoder(nnx.Module):
    """L stacked blocks and a final layer normalisation.

    Args:
        depth: L. The other sizes are those of `Block`.
        dropout: rate on the tokens, after attention and twice in the MLP.
        stochastic_depth: rate of the last block; it rises linearly from 0 at the first (a single block has 0).
        remat: a name in `REMAT_POLICIES`, or `none`.
        scan: False unrolls the loop over blocks; parameters keep their shapes.
        attention: `auto`, `einsum`, or an implementation of `jax.nn.dot_product_attention`.
    """

    def __init__(
        self, width: int, depth: int, num_heads: int, mlp_width: int, *, dropout: float, stochastic_depth: float,
        remat: str, scan: bool, attention: str, dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        if remat not in (*REMAT_POLICIES, "none"):
            raise unknown("remat policy", remat, (*REMAT_POLICIES, "none"))
        if attention not in ATTENTION:
            raise unknown("attention implementation", attention, ATTENTION)
        for name, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0 <= rate < 1:
                raise UserError(f"{name} must be at least 0 and below 1; found {rate}")

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs):
            return Block(width, num_heads, mlp_width, dropout, attention, dtype, rngs=rngs)

        self.blocks = stacked(rngs)
        self.norm = layer_norm(width, dtype, rngs=rngs)
        self.depth, self.rate, self.stochastic_depth = depth, dropout, stochastic_depth
        self.remat, self.scan = remat, scan

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(B, N, D) -> (B, N, D); a key switches dropout and stochastic depth on."""
        graph, params = nnx.split(self.blocks)
        rates = jnp.linspace(0, self.stochastic_depth, self.depth, dtype=jnp.float32)

        def block(x, layer):
            params, index = layer
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return nnx.merge(graph, params)(x, rates[index] if self.stochastic_depth else 0.0, layer_key), None

        if self.remat != "none":
            # Under scan the loop already keeps XLA from merging the recomputation away.
            block = jax.checkpoint(block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
        tokens = dropout(tokens, self.rate, None if key is None else jax.random.fold_in(key, self.depth))
        layers = (params, jnp.arange(self.depth))
        tokens, _ = jax.lax.scan(block, tokens, layers, unroll=1 if self.scan else self.depth)
        return self.norm(tokens)
