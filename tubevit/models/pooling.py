"""Attention pooling: a softmax over tokens, scored by one vector (paper figure 2; paper.md section 8, row 16)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class AttentionPooling(nnx.Module):
    """Weights tokens by softmax(token . score). A bias would not change the weights, so there is none.

    Parameter: `score/kernel` (D, 1).
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.score = nnx.Linear(width, 1, use_bias=False, dtype=jnp.float32, rngs=rngs)

    def weights(self, tokens: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N) float32, positive, each row sums to 1."""
        return jax.nn.softmax(self.score(tokens.astype(jnp.float32))[..., 0], axis=-1)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, D) float32."""
        return jnp.einsum("bn,bnd->bd", self.weights(tokens), tokens.astype(jnp.float32))
