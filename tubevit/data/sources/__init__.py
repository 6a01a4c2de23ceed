"""Sources of labelled files: one string names any of them."""

from tubevit.data.sources.open import CLASSES, default_head, held_out_split, open_source
from tubevit.data.sources.source import Source

__all__ = ["CLASSES", "Source", "default_head", "held_out_split", "open_source"]
