"""Plain pre-LN ViT encoder over all tokens jointly (paper section 3.1, Table 11), with the gate of section 3.6.

Blocks are stacked: every parameter has a leading axis of L layers, and scans run them.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from tubevit.models.block import AddedAttention, Block, dropout, layer_norm
from tubevit.models.config import REMAT, ModelConfig
from tubevit.models.placement import place


class Encoder(nnx.Module):
    """L stacked blocks and a final layer normalisation.

    Parameters: `blocks` (stacked, see `Block`) and `norm`; the models of Table 8 have `added` (stacked, see
    `AddedAttention`); a gate has `gate`, the alpha of equation 8, () or (D,).

    Args:
        config: `dropout` is the rate on the tokens, after attention and twice in the MLP. `stochastic_depth` is the
            rate of the last block; it rises linearly from 0 at the first block (a single block has 0). `remat` names
            what the backward pass recomputes. `scan=False` unrolls the loop over blocks.
        dtype: dtype of the computation.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.config = config
        self.blocks = _stacked(Block, config.depth, config, dtype, rngs)
        if config.add_attention:
            self.added = _stacked(AddedAttention, config.add_attention, config, dtype, rngs)
        if config.gate_layer is not None:
            self.gate = nnx.Param(jnp.zeros((config.width,) if config.gate_per_channel else (), jnp.float32))
        self.norm = layer_norm(config, dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B N D"], key: PRNGKeyArray | None = None) -> Float[Array, "B N D"]:
        """Encode tokens; a key enables dropout and stochastic depth."""
        return self._encode(tokens, key)[0]

    def attention_weights(
        self, tokens: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B N D"], list[Float[Array, "B H N N"]]]:
        """Encode tokens, and return the attention weights of each layer as well.

        The layers come in the order of the computation, added ones included; see `Attention.weights`.
        """
        return self._encode(tokens, capture=True)

    def _encode(self, tokens: Array, key: PRNGKeyArray | None = None, capture: bool = False) -> tuple[Array, list]:
        config, start, weights = self.config, tokens, []
        graph, params = nnx.split(self.blocks)
        # Split once, here: a slice of the whole stack for each scan would have a gradient as deep as the stack.
        frozen = jax.lax.stop_gradient(_layers(params, 0, config.freeze_below))
        trained = _layers(params, config.freeze_below, config.depth)
        gated = None if config.gate_layer is None else config.gate_layer + 1
        bounds = {0, config.freeze_below, gated, config.depth - config.add_attention, config.depth} - {None}
        tokens = dropout(tokens, config.dropout, None if key is None else jax.random.fold_in(key, config.depth))
        for low, high in itertools.pairwise(sorted(bounds)):
            first, part = (0, frozen) if high <= config.freeze_below else (config.freeze_below, trained)
            part = _layers(part, low - first, high - first)
            tokens, captured = self._run(graph, part, low, high, tokens, key, capture)
            weights += [stack[i] for i in range(high - low) for stack in captured]
            if high == gated:  # equation 8
                tokens = tokens + jnp.tanh(self.gate[...]).astype(tokens.dtype) * start
        return self.norm(tokens), weights

    def _run(self, graph, params, low: int, high: int, tokens: Array, key: PRNGKeyArray | None, capture: bool):
        """Run blocks low to high - 1, of which all or none are frozen, and all or none have an added layer.

        Frozen blocks have a scan of their own, which has no backward pass. With `capture` the attention weights of the
        added layers and of the blocks are returned as well, both stacked.
        """
        config = self.config
        added = low >= config.depth - config.add_attention
        added_graph, added_params = nnx.split(self.added) if added else (None, {})
        first = config.depth - config.add_attention
        rates = jnp.linspace(0, config.stochastic_depth, config.depth, dtype=jnp.float32)

        def block(x, layer):
            params, added_params, index = layer
            layer_key, weights = None if key is None else jax.random.fold_in(key, index), []
            if added_graph is not None:
                before = nnx.merge(added_graph, added_params)
                if capture:
                    weights.append(before.attention.weights(before.norm(x)))
                x = before(x)
            module = nnx.merge(graph, params)
            if capture:
                weights.append(module.attention.weights(module.norm1(x)))
            return place(module(x, rates[index] if config.stochastic_depth else 0.0, layer_key)), weights

        if config.remat != "none":
            # Under scan the loop already keeps XLA from merging the recomputation away.
            block = jax.checkpoint(block, policy=REMAT[config.remat], prevent_cse=not config.scan)
        layers = (params, _layers(added_params, low - first, high - first), jnp.arange(low, high))
        return jax.lax.scan(block, tokens, layers, unroll=1 if config.scan else high - low)


def _stacked(kind: Callable, count: int, config: ModelConfig, dtype, rngs: nnx.Rngs):
    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return kind(config, dtype, rngs=rngs)

    return make(rngs)


def _layers(params, low: int, high: int):
    """Slice layers low to high - 1 out of stacked parameters."""
    return jax.tree.map(lambda x: x if (low, high) == (0, len(x)) else x[low:high], params)
