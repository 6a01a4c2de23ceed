"""Labels as arrays, and the names of classes."""

import hashlib
from collections.abc import Sequence

import numpy as np


def label_hash(classes: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that identify the ordered class names."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]


def label_array(indices: Sequence[Sequence[int]], num_classes: int, multi_label: bool) -> np.ndarray:
    """Return class indices as (n,) int32 or, for several labels per file, as (n, num_classes) float32 of 0 and 1."""
    if not multi_label:
        return np.array([of_file[0] for of_file in indices], np.int32)
    labels = np.zeros((len(indices), num_classes), np.float32)
    for row, of_file in zip(labels, indices):
        row[list(of_file)] = 1
    return labels
