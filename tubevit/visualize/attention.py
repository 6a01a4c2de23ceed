"""Where a prediction looks: attention weights, their rollout, and the weights of the pooling, painted on frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.models.block import Attention
from tubevit.models.tubevit import TubeViT
from tubevit.tubes import TubeSet
from tubevit.visualize.layout import enlarged
from tubevit.visualize.style import (
    COLUMNS,
    GAP,
    LINE,
    WIDTH,
    evenly,
    ground,
    is_dark,
    new_figure,
    plotting,
    show_image,
    tile,
    wrapped,
)
from tubevit.windows import WindowPlan


def softmax_weights(attention: Attention, x: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(d)) of one attention layer.

    Args:
        attention: with its parameters.
        x: (B, N, D), its input (after the normalisation).

    Returns:
        (B, heads, N, N) float32: row n says how much token n takes of each token; rows sum to 1.
    """
    qkv = attention.qkv(x).astype(jnp.float32)
    query, key = qkv[:, :, 0], qkv[:, :, 1]
    return jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5, axis=-1)


def attention_weights(model: TubeViT, video) -> tuple[list[jax.Array], jax.Array]:
    """The attention of all blocks, in order, with the layers that Table 8 adds before some.

    Args:
        model: any.
        video: what `model` takes.

    Returns:
        (B, heads, N, N) of each layer, see `softmax_weights`; the tokens after the encoder, (B, N, D).
    """
    encoder, config = model.encoder, model.config
    start = tokens = model.tokenize(video)[0]
    weights = []
    for i in range(config.depth):
        added = i - (config.depth - config.add_attention)
        if added >= 0:
            layer = _layer(encoder.added, added)
            weights.append(softmax_weights(layer.attention, layer.norm(tokens)))
            tokens = layer(tokens)
        block = _layer(encoder.blocks, i)
        weights.append(softmax_weights(block.attention, block.norm1(tokens)))
        tokens = block(tokens, 0.0)
        if i == config.gate_layer:  # equation 8
            tokens = tokens + jnp.tanh(encoder.gate[...]).astype(tokens.dtype) * start
    return weights, encoder.norm(tokens)


def _layer(stacked: nnx.Module, index: int) -> nnx.Module:
    graph, params = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], params))


def rollout(weights: list[jax.Array]) -> jax.Array:
    """How much of each input token is in each output token, if attention and residual count half each.

    The product of (mean over heads + identity) / 2 over the layers (Abnar and Zuidema, 2020). The gate of section 3.6
    and the MLPs are left out.

    Args:
        weights: (B, heads, N, N) of each layer, the first first.

    Returns:
        (B, N, N) float32, rows sum to 1.
    """
    total = jnp.eye(weights[0].shape[-1], dtype=jnp.float32)[None]
    for layer in weights:
        total = (layer.mean(axis=1) + jnp.eye(layer.shape[-1], dtype=layer.dtype)) / 2 @ total
    return total


@nnx.jit
def token_weights(model: TubeViT, video) -> tuple[jax.Array, jax.Array]:
    """What each token weighs in a prediction.

    Args:
        model: any.
        video: what it takes.

    Returns:
        (B, N) of the pooling, over the tokens after the encoder; (B, N) of the rollout, over those before it: the
        pooling's weights times `rollout`. Both sum to 1; a class token is the first.
    """
    weights, tokens = attention_weights(model, video)
    pooling = model.pooling.weights(tokens)
    return pooling, jnp.einsum("bn,bnm->bm", pooling, rollout(weights))


def paint(weights: np.ndarray, tubes: TubeSet, shape: tuple[int, int, int]) -> np.ndarray:
    """The weights of tokens on the pixels that they read: each is spread evenly over its tube's.

    Args:
        weights: (N,) of the tubes' tokens, without that of a class token.
        tubes: of the model, or of its tubes those that serve images.
        shape: (T, H, W) of the clip, T 1 of an image.

    Returns:
        (T, H, W) float64, whose sum is that of the weights.
    """
    WindowPlan(tubes, shape)  # a clip that is too small is an error
    heat, first = np.zeros(shape), 0
    for tube in tubes.tubes:
        grid = tube.grid(shape, tubes.padding)
        cover = []  # along each axis (n, size): how often the windows of a token read each position
        for index, size, offset in zip(tube.indices(shape, tubes.padding), shape, tube.offset):
            inside = (index >= offset) & (index < size)
            counts = np.zeros((len(index), size))
            np.add.at(counts, (np.nonzero(inside)[0], index[inside]), 1)
            cover.append(counts / counts.sum(axis=1, keepdims=True))
        count = int(np.prod(grid))
        part = np.asarray(weights[first : first + count], np.float64).reshape(grid)
        heat += np.einsum("abc,at,by,cx->tyx", part, *cover, optimize=True)
        first += count
    return heat


def heat_maps(model: TubeViT, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a clip's or an image's tokens, of the pooling and of the rollout, painted on its pixels.

    Args:
        model: any.
        clip: (T, H, W, 3) or (H, W, 3), uint8.

    Returns:
        Two (T, H, W) float64, T 1 of an image; see `token_weights` and `paint`. A class token's own weight is missing.
    """
    shape = (1, *clip.shape)[-4:-1]
    tubes = model.config.tubes.for_images() if clip.ndim == 3 else model.config.tubes
    first = int(model.config.class_token)
    pooling, rolled = (np.asarray(x)[0, first:] for x in token_weights(model, clip[None]))
    return paint(pooling, tubes, shape), paint(rolled, tubes, shape)


def painted(frames: np.ndarray, heat: np.ndarray, largest: float) -> np.ndarray:
    """Frames (n, H, W, 3) 0..1 in grey under a heat map (n, H, W), full colour from `largest` on."""
    matplotlib = plotting()
    level = np.clip(heat / max(largest, np.finfo(float).tiny), 0, 1)
    colours = matplotlib.colormaps["inferno" if is_dark() else "YlOrRd"](0.4 + 0.6 * level)[..., :3]
    grey = ground() + 0.45 * (frames.mean(axis=-1, keepdims=True) - ground())
    alpha = 0.95 * np.sqrt(level)[..., None]
    return (1 - alpha) * grey + alpha * colours


def attention_figure(clip: np.ndarray, pooling: np.ndarray, rolled: np.ndarray, text: str):
    """A clip, or several images, over the weights of pooling and rollout on them, as a matplotlib figure.

    Args:
        clip: (T, H, W, 3) uint8.
        pooling, rolled: (T, H, W), see `heat_maps`.
        text: above it.
    """
    shown = evenly(COLUMNS, len(clip))
    frames = enlarged(clip[shown] / 255)[0]
    sheets = [frames]
    for heat in (pooling, rolled):
        largest = np.quantile(heat[heat > 0], 0.98) if (heat > 0).any() else 0
        sheets.append(painted(frames, enlarged(heat[shown])[0], largest))
    row = WIDTH * clip.shape[1] / clip.shape[2] / max(len(shown), 4)
    text = wrapped(text)
    figure = new_figure(WIDTH, 3 * (row + 0.22) + 0.2 + text.count("\n") * LINE)
    figure.suptitle(text, x=0.006, ha="left", fontsize=10)
    for axes, sheet, name in zip(figure.subplots(3, 1), sheets, ("input", "attention pooling", "attention rollout")):
        show_image(axes, tile(sheet, len(shown), GAP, ground()))
        axes.set_title(name, fontsize=8)
    return figure
