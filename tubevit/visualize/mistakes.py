"""The mistakes that a model is surest of, as film strips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tubevit.visualize.layout import enlarged
from tubevit.visualize.style import COLUMNS, GAP, LINE, WIDTH, evenly, ground, new_figure, show_image, tile, wrapped


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A file whose most probable class is not its label: its index, both classes, and the probability 0..1."""

    file: int
    label: int
    predicted: int
    probability: float


def most_confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, used: np.ndarray, count: int):
    """The wrong predictions of highest probability, the surest first.

    Args:
        probabilities: (n, classes) of all files.
        labels: (n,) indices.
        used: (n,) bool, False for files that could not be decoded.
        count: how many, at most.

    Returns:
        A list of `Mistake`.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(used & (predicted != labels))
    order = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:count]
    return [Mistake(int(i), int(labels[i]), int(predicted[i]), float(probabilities[i, predicted[i]])) for i in order]


def mistakes_figure(clips: Sequence[np.ndarray], mistakes: Sequence[Mistake], classes: Sequence[str]):
    """Mistakes with what was predicted, as a matplotlib figure: a film strip each, of images one beside the other.

    Args:
        clips: (T, H, W, 3) uint8 of each, (H, W, 3) of images.
        mistakes: at least one.
        classes: names of the classes.
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
    texts = [  # in lines that fit: longer ones would leave no room for the pictures
        wrapped(f"{classes[each.predicted]} ({each.probability:.0%}), it is {classes[each.label]}", columns)
        for each in mistakes
    ]
    lines = 1 + max(text.count("\n") for text in texts)
    figure = new_figure(WIDTH, rows * (high + 0.07 + lines * LINE))
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, strip, text in zip(grid.flat, strips, texts):
        show_image(axes, strip)
        axes.set_title(text)
        axes.set_anchor("N")  # below the text, whose room the layout measures from where the axes may begin
    return figure
