"""How alike the position embeddings of tokens are (paper section 3.3, Table 7a)."""

from __future__ import annotations

import numpy as np

from tubevit.errors import UserError
from tubevit.models.tubevit import TubeViT
from tubevit.visualize.style import colour, evenly, ground, is_dark, new_figure, plotting, show_image, tile

_GRID = 8  # maps along each axis, at most


def position_similarity(model: TubeViT) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarity between the position embeddings of all tokens of a clip.

    Args:
        model: at the shape that it is made for.

    Returns:
        (N, N) float64, -1..1; (N, 3) centres of the tokens (t, y, x) in frames and pixels.

    Raises:
        UserError: the model has no position embedding.
    """
    config = model.config
    if config.position == "none":
        raise UserError("the model has no position embedding (position='none')")
    embedding = np.asarray(model.position(config.tubes, config.shape), np.float64)
    embedding /= np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), np.finfo(float).tiny)
    return embedding @ embedding.T, config.tubes.centres(config.shape)


def similarity_figure(model: TubeViT):
    """The similarity of all tokens with all, tube by tube, as a matplotlib figure."""
    similarity, _ = position_similarity(model)
    tubes, shape = model.config.tubes, model.config.shape
    counts = [tube.num_tokens(shape, tubes.padding) for tube in tubes.tubes]
    ends = np.cumsum(counts)
    figure = new_figure(4.6, 4.0)
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap=_map(), vmin=similarity.min(), vmax=1, interpolation="nearest")
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=ground(), linewidth=1.2)
        axes.axvline(end - 0.5, color=ground(), linewidth=1.2)
    names = ["×".join(map(str, tube.kernel)) for tube in tubes.tubes]
    middles = ends - np.array(counts) / 2 - 0.5
    axes.set_xticks(middles, names, rotation=0 if len(names) <= 5 else 90)
    axes.set_yticks(middles, names, rotation=90, va="center")
    axes.tick_params(length=0)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for i, label in enumerate(labels):
            label.set_color(colour(i))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"cosine similarity of {len(similarity)} tokens, tube by tube")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def neighbour_figure(model: TubeViT):
    """For each place of the tube with the most rows and columns a map of its similarity to the tube's other places.

    In one frame; larger grids are thinned out. A matplotlib figure.
    """
    similarity, _ = position_similarity(model)
    tubes, shape = model.config.tubes, model.config.shape
    grids = [tube.grid(shape, tubes.padding) for tube in tubes.tubes]
    index = max(range(len(grids)), key=lambda i: grids[i][1] * grids[i][2])
    first = sum(int(np.prod(grid)) for grid in grids[:index])
    _, rows, columns = grids[index]
    part = slice(first, first + rows * columns)  # its first frame
    maps = similarity[part, part].reshape(rows, columns, rows, columns)
    low = min(float(maps.min()), 0.95)
    picked = maps[np.ix_(evenly(_GRID, rows), evenly(_GRID, columns))]
    colours = _coloured((picked - low) / (1 - low))
    scale = -(-56 // max(rows, columns))
    images = colours.reshape(-1, rows, columns, 3).repeat(scale, axis=1).repeat(scale, axis=2)
    sheet = tile(images, picked.shape[1], 6, ground())
    figure = new_figure(4.6, 4.6 * sheet.shape[0] / sheet.shape[1] + 0.35)
    axes = figure.subplots()
    show_image(axes, sheet)
    kernel = "×".join(map(str, tubes.tubes[index].kernel))
    axes.set_title(f"{kernel}: similarity of each place to all others, {low:.2f} to 1")
    return figure


def _map() -> str:
    return "magma" if is_dark() else "magma_r"


def _coloured(values: np.ndarray) -> np.ndarray:
    return plotting().colormaps[_map()](values)[..., :3]
