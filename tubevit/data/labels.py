"""Label maps: the ordered names of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def label_hash(classes: Sequence[str]) -> str:
    """16 hexadecimal digits of the ordered class names: equal label maps have equal hashes."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
