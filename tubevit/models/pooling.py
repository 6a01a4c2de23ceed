"""Poolings from tokens to one vector, in float32 (paper figure 2, paper.md section 8, row 16)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from tubevit.models.block import Block, Mlp, layer_norm, stacked
from tubevit.models.config import ModelConfig


class LinearPooling(nnx.Module):
    """The mean of the tokens, weighted by softmax(token . score). A bias would not change the weights.

    Parameter: `score/kernel` (D, 1).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.score = nnx.Linear(config.width, 1, use_bias=False, dtype=jnp.float32, rngs=rngs)

    def weights(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        """Compute the weight of each token; each row sums to 1."""
        return jax.nn.softmax(self.score(tokens.astype(jnp.float32))[..., 0], axis=-1)

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        return jnp.einsum("bn,bnd->bd", self.weights(tokens), tokens.astype(jnp.float32))


class QueryPooling(nnx.Module):
    """Multi-head attention of one learned query to all tokens.

    Parameters: `probe` (D,), `query` (D, H, d), `key_value` (D, 2, H, d) and `out` (H, d, D), with biases.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, heads = config.width, (config.num_heads, config.width // config.num_heads)
        settings: dict = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=jnp.float32, rngs=rngs)
        self.probe = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (width,), jnp.float32))
        self.query = nnx.LinearGeneral(width, heads, **settings)
        self.key_value = nnx.LinearGeneral(width, (2, *heads), **settings)
        self.out = nnx.LinearGeneral(heads, width, axis=(-2, -1), **settings)

    def _attend(self, tokens: Float[Array, "B N D"]) -> tuple[Float[Array, "B H N"], Float[Array, "B N H d"]]:
        key_value = self.key_value(tokens.astype(jnp.float32))
        query = self.query(self.probe[...])
        scores = jnp.einsum("hd,bnhd->bhn", query, key_value[:, :, 0]) * query.shape[-1] ** -0.5
        return jax.nn.softmax(scores, axis=-1), key_value[:, :, 1]

    def weights(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        """Compute the mean weight over the heads; each row sums to 1."""
        return self._attend(tokens)[0].mean(axis=1)

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        return self.out(jnp.einsum("bhn,bnhd->bhd", *self._attend(tokens)))


class MapPooling(QueryPooling):
    """`QueryPooling`, then MLP(LN(x)) + x, as in SigLIP and in the `map` head of big_vision.

    Parameters: `norm`, `mlp` and the parameters of `QueryPooling`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.norm = layer_norm(config, jnp.float32, rngs=rngs)
        self.mlp = Mlp(config, jnp.float32, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        x = super().__call__(tokens)
        return x + self.mlp(self.norm(x))


class AttentivePooling(MapPooling):
    """Three blocks over the tokens, a layer normalisation, and `MapPooling` (the attentive probe of V-JEPA 2).

    Parameters: `blocks` (stacked), `token_norm` and the parameters of `MapPooling`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        attention = "auto" if config.attention == "cudnn" else config.attention  # cuDNN's has no float32
        plain = config.replace(
            pattern="joint", temporal_depth=0, position="none", mlp_dim=4 * config.width, layer_scale=None,
            attention=attention,
        )  # fmt: skip
        super().__init__(plain, rngs=rngs)
        self.blocks = stacked(Block, 3, plain, jnp.float32, rngs)
        self.token_norm = layer_norm(config, jnp.float32, rngs=rngs)

    def _attend(self, tokens: Float[Array, "B N D"]) -> tuple[Float[Array, "B H N"], Float[Array, "B N H d"]]:
        graph, params = nnx.split(self.blocks)
        block = lambda x, layer: (nnx.merge(graph, layer)(x, 0.0), None)  # noqa: E731
        return super()._attend(self.token_norm(jax.lax.scan(block, tokens.astype(jnp.float32), params)[0]))


class MeanPooling(nnx.Module):
    """The mean of the tube tokens, without the class token. No parameters."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.first = int(config.class_token)

    def weights(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        """Return the same weight for each tube token."""
        batch, count, _ = tokens.shape
        weight = jnp.where(jnp.arange(count) < self.first, 0.0, 1.0 / (count - self.first))
        return jnp.broadcast_to(weight.astype(jnp.float32), (batch, count))

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        return tokens[:, self.first :].astype(jnp.float32).mean(axis=1)


class ClassPooling(nnx.Module):
    """The class token, which comes first. No parameters."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        pass

    def weights(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        """Return 1 for the class token, and 0 for all others."""
        return jnp.zeros(tokens.shape[:2], jnp.float32).at[:, 0].set(1)

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        return tokens[:, 0].astype(jnp.float32)


POOLING = {
    "linear": LinearPooling, "query": QueryPooling, "map": MapPooling, "attentive": AttentivePooling,
    "mean": MeanPooling, "cls": ClassPooling,
}  # fmt: skip
