"""Attention rollout: the share of each input token in what a model pools (Abnar and Zuidema, 2020)."""

import einops
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from tubevit.models.config import ModelConfig
from tubevit.models.patterns import TokenLayout


def rollout(
    pooling: Float[Array, "B M"], weights: list[Array], config: ModelConfig, layout: TokenLayout
) -> Float[Array, "B N"]:
    """Follow the weights of output tokens back through all layers to the input tokens.

    Each layer counts as (attention + identity) / 2, so that attention and residual count half each. The gate of section
    3.6 and the MLPs are ignored. What the second encoder of a factorised encoder takes of its own class token counts
    for the class token of the input.

    Args:
        pooling: the weight of each output token of the encoder; each row sums to 1.
        weights: of all layers, see `Encoder.attention_weights`.
        config: configuration of the model.
        layout: where the tokens of its single tube lie, see `TubeViT.layout`.

    Returns:
        The weights of the input tokens, whose rows sum to 1 as well.
    """
    if config.pattern == "factorised_encoder":
        return _through_frames(pooling, weights, config, layout)
    row, layers = pooling, list(weights)
    while layers:
        if config.pattern == "joint":
            row = _through(row, layers.pop())
            continue
        in_frames, over_time = layers.pop(), layers.pop()
        if config.pattern == "divided":
            row = (row + _in_frames(row, in_frames, layout)) / 2
            row = (row + _over_time(row, over_time, layout)) / 2
        else:
            both = _in_frames(row, in_frames, layout) + _over_time(row, over_time, layout)
            row = (row + both / 2) / 2
    return row


def _through(row: Float[Array, "b n"], weights: Float[Array, "b n n"]) -> Float[Array, "b n"]:
    return (row + jnp.einsum("bn,bnm->bm", row, weights)) / 2


def _over_time(row: Array, weights: Array, layout: TokenLayout) -> Array:
    """Return the weights before attention over time, of which the class token is no part."""
    first = layout.first
    return jnp.concatenate([row[:, :first], layout.over_time(lambda x: _take(x, weights), row[:, first:])], axis=1)


def _in_frames(row: Array, weights: Array, layout: TokenLayout) -> Array:
    """Return the weights before attention in frames; the class token is the mean of its copies."""
    frames = layout.by_frame(row)
    frames = frames.at[:, : layout.first].divide(layout.grid[0])
    return _merged(_take(frames, weights), layout)


def _take(row: Array, weights: Array) -> Array:
    return jnp.einsum("bn,bnm->bm", row, weights)


def _merged(frames: Float[Array, "BT M"], layout: TokenLayout) -> Float[Array, "B N"]:
    """Join the weights of all frames; those of the copies of the class token are added."""
    frames = einops.rearrange(frames, "(b t) n -> b t n", t=layout.grid[0])
    patches = einops.rearrange(frames[:, :, layout.first :], "b t s -> b (t s)")
    return jnp.concatenate([frames[:, :, : layout.first].sum(axis=1), patches], axis=1)


def _through_frames(row: Array, weights: list[Array], config: ModelConfig, layout: TokenLayout) -> Array:
    first, alone = layout.first, config.frame_pooling == "none"
    over_time, in_frames = weights[-config.temporal_depth :], weights[: -config.temporal_depth]
    row = layout.by_place(row) if alone else row
    for layer in reversed(over_time):
        row = _through(row, layer)
    if alone:
        frames = einops.rearrange(row, "(b s) t -> (b t) s", s=layout.grid[1] * layout.grid[2])
    else:
        frames = row[:, first:].reshape(-1, 1) * _frame_shares(config, layout)
    for layer in reversed(in_frames):
        frames = _through(frames, layer)
    merged = _merged(frames, layout)
    return merged if alone or not first else merged.at[:, :1].add(row[:, :1])


def _frame_shares(config: ModelConfig, layout: TokenLayout) -> Float[Array, "1 M"]:
    """Return the share of each token of a frame in what the second encoder takes of it."""
    places, first = layout.grid[1] * layout.grid[2], layout.first
    if config.frame_pooling == "cls":
        return jnp.zeros((1, first + places)).at[:, 0].set(1)
    return jnp.concatenate([jnp.zeros((1, first)), jnp.full((1, places), 1 / places)], axis=1)
