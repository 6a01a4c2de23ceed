"""Attention maps of a prediction: pooling weights and attention rollout, painted on frames."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.models.tokenizer import token_numbers
from tubevit.models.tubevit import TubeViT
from tubevit.tubes import TubeSet
from tubevit.visualize import lettering, style
from tubevit.visualize.layout import enlarged
from tubevit.visualize.rollout import rollout
from tubevit.windows import WindowPlan, take_windows


@nnx.jit
def token_weights(model: TubeViT, video) -> tuple[jax.Array, jax.Array]:
    """Compute the weight of each token in a prediction.

    Args:
        model: any model.
        video: input of the model.

    Returns:
        The weights (B, N) of the pooling, and those after `rollout`, for the input tokens of the encoder. Both sum to
        1; a class token comes first. A token for a whole frame counts for all tokens of the frame alike.
    """
    layout = model.layout(video)
    tokens, weights = model.encoder.attention_weights(model.tokenize(video)[0], layout)
    pooling = model.pooling.weights(tokens)
    rolled = rollout(pooling, weights, model.config, layout)
    if pooling.shape != rolled.shape:  # one token per frame
        first, each = int(model.config.class_token), layout.grid[1] * layout.grid[2]
        spread = jnp.repeat(pooling[:, first:] / each, each, axis=1)
        pooling = jnp.concatenate([pooling[:, :first], spread], axis=1)
    return pooling, rolled


def paint(weights: np.ndarray, tubes: TubeSet, shape: tuple[int, ...]) -> np.ndarray:
    """Spread the weight of each token evenly over the pixels that it reads: (T, H, W) float64 of the same sum.

    Args:
        weights: weights (N,) of the tube tokens, without the class token.
        tubes: tubes of the model, or its tubes for images.
        shape: shape (T, H, W) of the clip; T is 1 for an image.
    """
    WindowPlan(tubes, shape)  # a clip that is too small is an error
    heat, first = np.zeros(shape), 0
    for tube in tubes.tubes:
        grid = tube.grid(shape, tubes.padding)
        cover = []  # for each axis (n, size): the share of each position in what a token reads
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
    """Paint the pooling weights and the rollout of a clip or an image on its pixels; tokens that are not kept weigh 0.

    Args:
        model: any model.
        clip: (T, H, W, 3) or (H, W, 3), uint8.

    Returns:
        Two arrays (T, H, W) float64, with T = 1 for an image; see `token_weights` and `paint`. The weight of a class
        token is not included.
    """
    batch, first = take_windows(clip[None], model.config.tubes), int(model.config.class_token)
    tubes, shape, kept = batch.tubes.with_budget(None), batch.clip_shape, token_numbers(batch)

    def on_pixels(weights):
        every = np.zeros(tubes.num_tokens(shape))
        every[slice(None) if kept is None else np.ravel(kept)] = np.asarray(weights)[0, first:]
        return paint(every, tubes, shape)

    pooling, rolled = token_weights(model, batch)
    return on_pixels(pooling), on_pixels(rolled)


def painted(frames: np.ndarray, heat: np.ndarray, largest: float) -> np.ndarray:
    """Overlay grey frames (n, H, W, 3) 0..1 with a heat map (n, H, W), in full colour from `largest` on."""
    matplotlib = style.plotting()
    level = np.clip(heat / max(largest, np.finfo(float).tiny), 0, 1)
    colours = matplotlib.colormaps["inferno" if style.is_dark() else "YlOrRd"](0.4 + 0.6 * level)[..., :3]
    grey = style.ground() + 0.45 * (frames.mean(axis=-1, keepdims=True) - style.ground())
    alpha = 0.95 * np.sqrt(level)[..., None]
    return (1 - alpha) * grey + alpha * colours


def attention_figure(clip: np.ndarray, pooling: np.ndarray, rolled: np.ndarray, text: str):
    """Plot a clip, or several images, with heat maps of pooling and rollout below, as a matplotlib figure.

    Args:
        clip: (T, H, W, 3) uint8.
        pooling, rolled: heat maps (T, H, W), see `heat_maps`.
        text: title.
    """
    shown = style.evenly(style.COLUMNS, len(clip))
    frames = enlarged(clip[shown] / 255)[0]
    sheets = [frames]
    for heat in (pooling, rolled):
        largest = np.quantile(heat[heat > 0], 0.98) if (heat > 0).any() else 0
        sheets.append(painted(frames, enlarged(heat[shown])[0], largest))
    row = style.WIDTH * clip.shape[1] / clip.shape[2] / max(len(shown), 4)
    text = style.wrapped(lettering.shown(text))
    figure = style.new_figure(style.WIDTH, 3 * (row + 0.22) + 0.2 + text.count("\n") * style.LINE)
    figure.suptitle(text, x=0.006, ha="left", fontsize=10)
    for axes, sheet, name in zip(figure.subplots(3, 1), sheets, ("input", "attention pooling", "attention rollout")):
        style.show_image(axes, style.tile(sheet, len(shown), style.GAP, style.ground()))
        axes.set_title(name, fontsize=8)
    return figure
