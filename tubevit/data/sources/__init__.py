"""Sources of labelled files: one string names any of them."""

from tubevit.data.sources.source import Source, open_source

__all__ = ["Source", "open_source"]
