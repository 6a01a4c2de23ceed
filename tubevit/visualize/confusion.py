"""The confusion matrix."""

from collections.abc import Sequence

import numpy as np

from tubevit.visualize.lettering import shown
from tubevit.visualize.style import ground, is_dark, new_axes, plotting, without_frame

NUMBERED, _NAMED = 12, 40  # up to so many classes, cells show numbers and axes show all names
_LONGEST = 24  # characters of a name; longer names would leave no room for the cells


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]):
    """Draw the share of each label's files that each class is predicted for; returns a matplotlib figure.

    `matrix` is (classes, classes) numbers of files by label (row) and prediction (column).
    """
    matplotlib = plotting()
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    full = "#62b0e3" if is_dark() else "#1d5f91"
    scale = matplotlib.colors.LinearSegmentedColormap.from_list("shares", [ground(), full])
    side = 4.6 if count <= NUMBERED else 6.4
    figure, axes = new_axes(side, side)
    axes.imshow(shares, cmap=scale, vmin=0, vmax=1, interpolation="nearest")
    for row in range(count) if count <= NUMBERED else ():
        for column in np.flatnonzero(matrix[row]).tolist():
            ink = ground() if shares[row, column] > 0.5 else matplotlib.rcParams["text.color"]
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=ink)
    ticks = range(count) if count <= _NAMED else range(0, count, -(-count // _NAMED))
    names = [_shortened(shown(classes[i])) for i in ticks]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ticks, names)
    if count > NUMBERED:
        axes.tick_params(labelsize=6)
    without_frame(axes)
    axes.set(xlabel="predicted", ylabel="label")
    correct = np.trace(matrix)
    axes.set_title(f"{correct} of {matrix.sum()} correct ({correct / max(matrix.sum(), 1):.1%})")
    return figure


def _shortened(name: str) -> str:
    """Remove the middle of a long name, because classes may share their start or their end."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half].rstrip()}…{name[1 - half :].lstrip()}"
