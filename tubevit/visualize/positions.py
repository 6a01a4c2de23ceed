"""The similarity of position embeddings (paper section 3.3, Table 7a)."""

import numpy as np

from tubevit.errors import UserError
from tubevit.models.tubevit import TubeViT
from tubevit.visualize import style

_GRID = 8  # largest number of maps along each axis


def position_similarity(model: TubeViT) -> tuple[np.ndarray, np.ndarray]:
    """Compute the cosine similarities of the position embeddings of all tokens of a clip, regardless of the budget.

    Returns:
        (N, N) float64, -1..1; (N, 3) centres of the tokens (t, y, x) in frames and pixels.

    Raises:
        UserError: the model has no position embedding.
    """
    config = model.config
    if config.position in ("none", "rope"):
        raise UserError(f"the model has no position embedding (position={config.position!r})")
    tubes = config.tubes.with_budget(None)
    embedding = np.asarray(model.position(tubes, config.shape), np.float64)
    embedding /= np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), np.finfo(float).tiny)
    return embedding @ embedding.T, tubes.centres(config.shape)


def similarity_figure(model: TubeViT):
    """Draw the similarity between all tokens, tube by tube, as a matplotlib figure."""
    similarity, _ = position_similarity(model)
    tubes, shape = model.config.tubes, model.config.shape
    counts = [tube.num_tokens(shape, tubes.padding) for tube in tubes.tubes]
    ends = np.cumsum(counts)
    figure, axes = style.new_axes(4.6, 4.0)
    image = axes.imshow(similarity, cmap=_colour_map(), vmin=similarity.min(), vmax=1, interpolation="nearest")
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=style.ground(), linewidth=1.2)
        axes.axvline(end - 0.5, color=style.ground(), linewidth=1.2)
    names = [style.size_text(tube.kernel) for tube in tubes.tubes]
    middles = ends - np.array(counts) / 2 - 0.5
    axes.set_xticks(middles, names, rotation=0 if len(names) <= 5 else 90)
    axes.set_yticks(middles, names, rotation=90, va="center")
    style.without_frame(axes)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for i, label in enumerate(labels):
            label.set_color(style.colour(i))
    axes.set_title(f"cosine similarity of {len(similarity)} tokens, tube by tube")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def neighbour_figure(model: TubeViT):
    """Draw a map for each position of the finest tube: its similarity to the tube's other positions in one frame.

    The finest tube has the most rows and columns; of large grids only some maps are drawn. Returns a matplotlib figure.
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
    picked = maps[np.ix_(style.evenly(_GRID, rows), style.evenly(_GRID, columns))]
    colours = style.plotting().colormaps[_colour_map()]((picked - low) / (1 - low))[..., :3]
    scale = -(-56 // max(rows, columns))
    images = colours.reshape(-1, rows, columns, 3).repeat(scale, axis=1).repeat(scale, axis=2)
    sheet = style.tile(images, picked.shape[1], 6, style.ground())
    figure, axes = style.new_axes(4.6, 4.6 * sheet.shape[0] / sheet.shape[1] + 0.35)
    style.show_image(axes, sheet)
    axes.set_title(
        f"{style.size_text(tubes.tubes[index].kernel)}: similarity of each position to all others, {low:.2f} to 1"
    )
    return figure


def _colour_map() -> str:
    return "magma" if style.is_dark() else "magma_r"
