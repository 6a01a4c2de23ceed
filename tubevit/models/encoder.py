"""Plain pre-LN ViT encoder over all tokens jointly (paper section 3.1, Table 11), with the gate of section 3.6.

Blocks are stacked: every parameter has a leading axis of L layers, and scans run them.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from tubevit.errors import UserError
from tubevit.models.attention import as_matrices, uses_kernel
from tubevit.models.block import AddedAttention, Block, dropout, layer_norm, stacked
from tubevit.models.config import REMAT, ModelConfig
from tubevit.models.int8 import use_int8
from tubevit.models.patterns import UNKNOWN, TokenLayout
from tubevit.models.placement import place


class Group(NamedTuple):
    """Tokens that attend to each other.

    Attributes:
        tokens: (B, N, D).
        key: random key, which enables dropout and stochastic depth.
        layout: where the tokens lie; patterns other than `joint` need it.
    """

    tokens: Array
    key: PRNGKeyArray | None = None
    layout: TokenLayout = UNKNOWN


class Encoder(nnx.Module):
    """L stacked blocks and a final layer normalisation.

    Parameters: `blocks` (stacked, see `Block`) and `norm`; the models of Table 8 have `added` (stacked, see
    `AddedAttention`); a gate has `gate`, the alpha of equation 8, () or (D,); a factorised encoder has `temporal`, see
    `TemporalEncoder`.

    Args:
        config: `dropout` is the rate on the tokens, after attention and twice in the MLP. `stochastic_depth` is the
            rate of the last block; it rises linearly from 0 at the first block (a single block has 0). `remat` names
            what the backward pass recomputes. `scan=False` unrolls the loop over blocks.
        dtype: dtype of the computation.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.blocks = stacked(Block, config.depth, config, dtype, rngs)
        if config.quantize == "int8":
            use_int8(self.blocks)
        if config.add_attention:
            self.added = stacked(AddedAttention, config.add_attention, config, dtype, rngs)
        if config.gate_layer is not None:
            self.gate = nnx.Param(jnp.zeros((config.width,) if config.gate_per_channel else (), jnp.float32))
        if config.final_norm == "tokens":
            self.norm = layer_norm(config, dtype, rngs=rngs)
        if config.pattern == "factorised_encoder":
            self.temporal = TemporalEncoder(config, dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B N D"], key: PRNGKeyArray | None = None, layout: TokenLayout = UNKNOWN
    ) -> Float[Array, "B M D"]:
        """Encode tokens; see `Group` for the arguments."""
        return self.encode_together([Group(tokens, key, layout)])[0]

    def encode_together(self, groups: Sequence[Group]) -> list[Float[Array, "B M D"]]:
        """Encode groups of tokens in one pass over the blocks."""
        return self._encode(groups)[0]

    def attention_weights(
        self, tokens: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN
    ) -> tuple[Float[Array, "B M D"], list[Float[Array, "_ _ _"]]]:
        """Encode tokens, and return the attention weights of each layer as well.

        The layers come in the order of the computation, added ones included; see `Block.weights`. Those of a factorised
        encoder are the weights in each frame, (B T, M, M), and then those of its second encoder.
        """
        (encoded,), weights = self._encode([Group(tokens, None, layout)], capture=True)
        return encoded, weights

    def _encode(self, groups: Sequence[Group], capture: bool = False) -> tuple[list[Array], list]:
        if self.config.pattern != "factorised_encoder":
            return self._run_blocks(groups, capture)
        frames = [group._replace(tokens=group.layout.by_frame(group.tokens), layout=UNKNOWN) for group in groups]
        encoded, weights = self._run_blocks(frames, capture)
        keys = [None if group.key is None else jax.random.fold_in(group.key, self.config.depth + 1) for group in groups]
        groups = [Group(x, key, group.layout) for x, key, group in zip(encoded, keys, groups)]
        encoded, over_time = self.temporal.encode_frames(groups, capture)
        return encoded, weights + over_time

    def _run_blocks(self, groups: Sequence[Group], capture: bool) -> tuple[list[Array], list]:
        config, weights = self.config, []
        graph, params = nnx.split(self.blocks)
        params = _cast(params, self.dtype)
        # Split once, here: a slice of the whole stack for each scan would have a gradient as deep as the stack.
        frozen = jax.lax.stop_gradient(_layers(params, 0, config.freeze_below))
        trained = _layers(params, config.freeze_below, config.depth)
        gated = None if config.gate_layer is None else config.gate_layer + 1
        bounds = {0, config.freeze_below, gated, config.depth - config.add_attention, config.depth} - {None}
        start, keys = [group.tokens for group in groups], [group.key for group in groups]
        keys = [None if key is None else jax.random.fold_in(key, config.depth) for key in keys]
        tokens = [dropout(x, config.dropout, key) for x, key in zip(start, keys)]
        for low, high in itertools.pairwise(sorted(bounds)):
            first, part = (0, frozen) if high <= config.freeze_below else (config.freeze_below, trained)
            part = _layers(part, low - first, high - first)
            groups = [group._replace(tokens=x) for group, x in zip(groups, tokens)]
            tokens, captured = self._run((graph, part), low, high, groups, capture)
            weights += [stack[i] for i in range(high - low) for stack in captured]
            if high == gated:  # equation 8
                gate = jnp.tanh(self.gate[...])
                tokens = [x + gate.astype(x.dtype) * first for x, first in zip(tokens, start)]
        return [self.norm(x) for x in tokens] if config.final_norm == "tokens" else tokens, weights

    def _run(self, blocks, low: int, high: int, groups: Sequence[Group], capture: bool):
        """Run blocks low to high - 1, of which all or none are frozen, and all or none have an added layer.

        Frozen blocks have a scan of their own, which has no backward pass. With `capture` the attention weights of the
        added layers and of the blocks are returned as well, both stacked; there is one group then.
        """
        (graph, params), config = blocks, self.config
        added = low >= config.depth - config.add_attention
        added_graph, added_params = nnx.split(self.added) if added else (None, {})
        first = config.depth - config.add_attention
        rates = jnp.linspace(0, config.stochastic_depth, config.depth, dtype=jnp.float32)

        def block(tokens, layer):
            params, added_params, index = layer
            module, weights, out = nnx.merge(graph, params), [], []
            for x, (_, key, layout) in zip(tokens, groups):
                if added_graph is not None:
                    before = nnx.merge(added_graph, added_params)
                    if capture:
                        weights += before.attention.weights(before.norm(x), layout)
                    x = before(x, layout)
                if capture:
                    weights += module.weights(x, layout)
                key = None if key is None else jax.random.fold_in(key, index)
                out.append(place(module(x, rates[index] if config.stochastic_depth else 0.0, key, layout)))
            return out, weights

        if config.remat != "none":
            # Under scan the loop already keeps XLA from merging the recomputation away.
            block = jax.checkpoint(block, policy=REMAT[config.remat], prevent_cse=not config.scan)
        layers = (params, _layers(added_params, low - first, high - first), jnp.arange(low, high))
        tokens = [group.tokens for group in groups]
        whole = config.pattern != "divided" and not capture  # each layer attends to whole sequences
        if whole and all(uses_kernel(config, x.shape[1], self.dtype) for x in tokens):
            layers = as_matrices(layers, config.num_heads)
        return jax.lax.scan(block, tokens, layers, unroll=1 if config.scan else high - low)


class TemporalEncoder(Encoder):
    """The second encoder of a factorised encoder, over time (ViViT, section 3.3, model 2).

    Parameters: those of `Encoder`, `position` (n_t, D), and `class_token` (D,) if the model has one.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        own = dict(pattern="joint", depth=config.temporal_depth, temporal_depth=0, final_norm="tokens", freeze_below=0)
        super().__init__(config.replace(**own), dtype, rngs=rngs)
        self.frame_pooling, frames = config.frame_pooling, config.tubes.grid(config.shape)[0][0]
        initial = nnx.initializers.truncated_normal(0.02)
        self.position = nnx.Param(initial(rngs.params(), (frames, config.width), jnp.float32))
        if config.class_token:
            self.class_token = nnx.Param(jnp.zeros(config.width, jnp.float32))

    def encode_frames(self, groups: Sequence[Group], capture: bool) -> tuple[list[Float[Array, "B m D"]], list]:
        """Encode what is taken of each frame, see `ModelConfig.frame_pooling`.

        Args:
            groups: encoded tokens of frames, (B T, M, D), with the layouts of their clips.
            capture: whether to return the attention weights.

        Returns:
            The class token, if there is one, and a token for each frame, or with `none` the tokens of all frames; and
            the attention weights, see `Encoder.attention_weights`.

        Raises:
            UserError: the clip has another number of frames than the positions.
        """
        times = [Group(self._over_time(group), group.key) for group in groups]
        encoded, weights = self._run_blocks(times, capture)
        places = [group.tokens.shape[1] if self.frame_pooling == "none" else 1 for group in groups]
        return [einops.rearrange(x, "(b s) t d -> b (t s) d", s=s) for x, s in zip(encoded, places)], weights

    def _over_time(self, group: Group) -> Float[Array, "BS m D"]:
        """Arrange what is taken of each frame by its place, and add the positions and the class token."""
        frames, layout, position, is_2d = group.tokens, group.layout, self.position[...], self.config.tubes.is_2d
        position = position[:1] if layout.grid[0] == 1 and is_2d else position  # an image is the first frame
        if layout.grid[0] != len(position):
            expected = f"{len(position)} times at which the default clip has tokens"
            raise UserError(f"the learned positions over time fit the {expected}; found {layout.grid[0]}")
        taken = {"cls": frames[:, :1], "none": frames}.get(self.frame_pooling)
        if taken is None:
            taken = frames[:, layout.first :].mean(axis=1, keepdims=True)
        x = einops.rearrange(taken, "(b t) s d -> (b s) t d", t=layout.grid[0]) + position.astype(taken.dtype)
        if not layout.first:
            return x
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1)


def _layers(params, low: int, high: int):
    """Slice layers low to high - 1 out of stacked parameters."""
    return jax.tree.map(lambda x: x if (low, high) == (0, len(x)) else x[low:high], params)


def _cast(params, dtype):
    """Cast kernels to the dtype of the computation, before devices that share them gather them: half the bytes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) if "kernel" in jax.tree_util.keystr(path) else x, params
    )
