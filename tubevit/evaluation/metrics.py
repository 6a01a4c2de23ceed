"""What predicted probabilities are worth: top-1, top-5, mean average precision, accuracy by class, confusion matrix."""

from __future__ import annotations

import numpy as np


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """The figures of eval.json.

    Args:
        probabilities: (n, classes) float64, rows that sum to 1, or each 0..1 if a file may have several labels.
        labels: (n,) indices, or (n, classes) of 0 and 1.

    Returns:
        `loss` (mean cross-entropy), and shares 0..1: `top1` and `top5` for one label a file (`top5` is None for
        5 classes or fewer), `map` (mean average precision over classes that occur) for several; the others None.
    """
    tiny = np.finfo(np.float64).tiny
    if labels.ndim == 2:
        occurring = labels.any(axis=0)
        loss = -labels * np.log(np.maximum(probabilities, tiny))
        loss -= (1 - labels) * np.log(np.maximum(1 - probabilities, tiny))
        each = average_precisions(probabilities, labels)[occurring]
        average = float(each.mean()) if occurring.any() else None
        return {"top1": None, "top5": None, "map": average, "loss": float(loss.mean())}
    rank = _rank(probabilities, labels)
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()) if probabilities.shape[1] > 5 else None,
        "map": None,
        "loss": float(-np.log(np.maximum(of_label, tiny)).mean()),
    }


def _rank(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many other classes are at least as probable as the label, which makes constant predictions score 0."""
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return (probabilities >= of_label).sum(axis=1) - 1


def average_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(classes,) average precision of each class, of labels (n, classes); NaN where a class does not occur."""
    from sklearn.metrics import average_precision_score

    return np.array(
        [average_precision_score(y, p) if y.any() else np.nan for y, p in zip(labels.T, probabilities.T, strict=True)]
    )


def class_accuracies(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(classes,) top-1 among the files of each class, of labels (n,); NaN where a class does not occur."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    right = np.bincount(labels[_rank(probabilities, labels) < 1], minlength=probabilities.shape[1])
    return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(classes, classes) number of files by label (row) and most probable class (column)."""
    from sklearn.metrics import confusion_matrix as count

    return count(labels, probabilities.argmax(axis=1), labels=np.arange(probabilities.shape[1]))
