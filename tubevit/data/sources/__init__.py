"""Sources of labelled files: one string names any of them."""

from tubevit.data.sources.open import default_head, open_source
from tubevit.data.sources.source import Source

__all__ = ["Source", "default_head", "open_source"]
