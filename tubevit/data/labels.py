"""Labels as arrays, and the names of classes."""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np

from tubevit import storage
from tubevit.errors import UserError


def label_hash(classes: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that identify the ordered class names."""
    return hashlib.sha256(storage.encode("\n".join(classes))).hexdigest()[:16]


def distinct_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names as they are shown: equal ones with their index, such as `crane (134)`."""
    counts = collections.Counter(classes)
    return tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(classes))


def check_distinct(source: str, classes: Sequence[str]) -> None:
    """Raise UserError, with the indices, if classes that a source tells apart by name have equal names."""
    counts = collections.Counter(classes)
    if len(counts) < len(classes):
        name = next(name for name, count in counts.items() if count > 1)
        indices = " and ".join(str(i) for i, each in enumerate(classes) if each == name)
        raise UserError(f"{source}: expected distinct class names; found {name!r} for classes {indices}")


def label_array(indices: Sequence[Sequence[int]], num_classes: int, multi_label: bool) -> np.ndarray:
    """Return class indices as (n,) int32 or, for several labels per file, as (n, num_classes) float32 of 0 and 1."""
    if not multi_label:
        return np.array([of_file[0] for of_file in indices], np.int32)
    labels = np.zeros((len(indices), num_classes), np.float32)
    for row, of_file in zip(labels, indices):
        row[list(of_file)] = 1
    return labels
