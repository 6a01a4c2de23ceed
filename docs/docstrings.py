"""An extension of griffe: `height, width: of a frame` in a docstring becomes an entry for each name."""

from __future__ import annotations

import re

import griffe

_SECTION = re.compile(r"^(?:Args|Attributes):\n(?: {4}.*\n?)+", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w[\w.]*(?:, \w[\w.]*)+)(: .*(?:\n {8}.*)*)", re.MULTILINE)


def ungrouped(docstring: str) -> str:
    """A docstring, without its indentation, whose sections Args and Attributes have one name an entry."""

    def entries(found: re.Match) -> str:
        return "\n".join(f"    {name}{found[2]}" for name in found[1].split(", "))

    return _SECTION.sub(lambda section: _ENTRY.sub(entries, section[0]), docstring)


class Ungrouped(griffe.Extension):
    """Applies `ungrouped` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = ungrouped(obj.docstring.value)
