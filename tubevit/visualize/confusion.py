"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tubevit.visualize.style import ground, is_dark, new_figure, plotting

NUMBERED, _NAMED = 12, 40  # classes up to which cells have numbers, and axes all names
_LONGEST = 24  # characters of a name: more would take the room of the cells


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]):
    """Shares of each label's files by predicted class, as a matplotlib figure.

    Args:
        matrix: (classes, classes) number of files by label (row) and prediction (column), as
            `tubevit.evaluation.metrics.confusion_matrix` gives it.
        classes: their names.
    """
    matplotlib = plotting()
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    full = "#62b0e3" if is_dark() else "#1d5f91"
    scale = matplotlib.colors.LinearSegmentedColormap.from_list("shares", [ground(), full])
    side = 4.6 if count <= NUMBERED else 6.4
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap=scale, vmin=0, vmax=1, interpolation="nearest")
    for row in range(count) if count <= NUMBERED else ():
        for column in np.flatnonzero(matrix[row]):
            ink = ground() if shares[row, column] > 0.5 else matplotlib.rcParams["text.color"]
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=ink)
    ticks = range(count) if count <= _NAMED else range(0, count, -(-count // _NAMED))
    names = [_shortened(classes[i]) for i in ticks]
    axes.set_xticks(ticks, names, rotation=90 if _long(classes) else 0)
    axes.set_yticks(ticks, names)
    if count > NUMBERED:
        axes.tick_params(labelsize=6)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="predicted", ylabel="label")
    right = np.trace(matrix)
    axes.set_title(f"{right} of {matrix.sum()} right ({right / max(matrix.sum(), 1):.1%})")
    return figure


def _long(classes: Sequence[str]) -> bool:
    return max(map(len, classes)) > 2


def _shortened(name: str) -> str:
    """Without its middle where it is long: names of classes may begin alike, or end."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half].rstrip()}…{name[1 - half :].lstrip()}"
