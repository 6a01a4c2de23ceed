"""The most confident mistakes of a model, as film strips."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tubevit.visualize import lettering
from tubevit.visualize.layout import enlarged
from tubevit.visualize.style import COLUMNS, GAP, LINE, WIDTH, evenly, ground, new_figure, show_image, tile, wrapped


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A file whose most probable class is not its label: index of the file, both classes, probability 0..1."""

    file: int
    label: int
    predicted: int
    probability: float


def most_confident_mistakes(
    probabilities: np.ndarray, labels: np.ndarray, used: np.ndarray, count: int
) -> list[Mistake]:
    """Return the wrong predictions with the highest probabilities, highest first.

    Args:
        probabilities: (n, classes) for all files.
        labels: (n,) class indices.
        used: (n,) bool, False for files that could not be decoded.
        count: the largest number of mistakes.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(used & (predicted != labels))
    order = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:count]
    return [Mistake(int(i), int(labels[i]), int(predicted[i]), float(probabilities[i, predicted[i]])) for i in order]


def mistakes_figure(clips: Sequence[np.ndarray], mistakes: Sequence[Mistake], classes: Sequence[str]):
    """Draw at least one mistake as a matplotlib figure: a film strip per video, images side by side.

    `clips` are the files, (T, H, W, 3) or (H, W, 3) uint8; `classes` are the names of the classes.
    """
    images = clips[0].ndim == 3
    columns = 6 if images else 1
    rows = -(-len(clips) // columns)
    shown = evenly(COLUMNS, 1 if images else len(clips[0]))
    strips = []
    for clip in clips:
        frames = enlarged((clip[None] if images else clip[shown]) / 255)[0]
        strips.append(tile(frames, len(frames), GAP, ground()))
    high = WIDTH / columns if images else WIDTH * clips[0].shape[1] / clips[0].shape[2] / max(len(shown), 4)
    names = [[lettering.shown(classes[index]) for index in (each.predicted, each.label)] for each in mistakes]
    texts = [  # wrapped, because long lines would leave no room for the pictures
        wrapped(f"{predicted} ({each.probability:.0%}), label: {label}", columns)
        for each, (predicted, label) in zip(mistakes, names)
    ]
    lines = 1 + max(text.count("\n") for text in texts)
    figure = new_figure(WIDTH, rows * (high + 0.07 + lines * LINE))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, strip, text in zip(grid.flat, strips, texts):
        show_image(axes, strip)
        axes.set_title(text)
        axes.set_anchor("N")  # directly below the title
    return figure
