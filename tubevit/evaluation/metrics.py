"""Metrics of predicted probabilities: top-1, top-5, mean average precision, accuracy per class, confusion matrix."""

import numpy as np


def probabilities_of(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Convert logits (n, classes) to probabilities, float64: by softmax, or by sigmoid for multi-label data."""
    logits = np.asarray(logits, np.float64)
    if multi_label:
        return np.exp(-np.logaddexp(0, -logits))
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Compute the metrics of eval.json.

    Args:
        probabilities: (n, classes) float64; rows sum to 1, or each value is in 0..1 for multi-label data.
        labels: (n,) class indices, or (n, classes) of 0 and 1.

    Returns:
        `loss` (mean cross-entropy) and fractions 0..1: `top1` and `top5` for single labels (`top5` is None for 5
        classes or fewer), `map` (mean average precision over the classes that occur) for multi-label data. Metrics
        that do not apply are None.
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
    """Count the other classes that are not less probable than the label: constant and NaN predictions score 0."""
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return (~(probabilities < of_label)).sum(axis=1) - 1


def average_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the average precision of each class, (classes,), for labels (n, classes); NaN if it does not occur.

    Files without any label are left out, as Charades' own evaluation ranks them last.
    """
    from sklearn.metrics import average_precision_score

    labelled = labels.any(axis=1)
    probabilities, labels = probabilities[labelled], labels[labelled]
    return np.array(
        [average_precision_score(y, p) if y.any() else np.nan for y, p in zip(labels.T, probabilities.T, strict=True)]
    )


def class_accuracies(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the top-1 accuracy of each class, (classes,), for labels (n,); NaN if it does not occur."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    right = np.bincount(labels[_rank(probabilities, labels) < 1], minlength=probabilities.shape[1])
    return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count files by label (row) and predicted class (column): (classes, classes)."""
    from sklearn.metrics import confusion_matrix as count

    return count(labels, probabilities.argmax(axis=1), labels=np.arange(probabilities.shape[1]))
