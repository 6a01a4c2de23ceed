"""Extend griffe: `height, width: size of a frame` in a docstring becomes one entry per name."""

from __future__ import annotations

import re

import griffe

_SECTION = re.compile(r"^(?:Args|Attributes):\n(?: {4}.*\n?)+", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w[\w.]*(?:, \w[\w.]*)+)(: .*(?:\n {8}.*)*)", re.MULTILINE)


def ungrouped(docstring: str) -> str:
    """Return a docstring without its indentation, with one name per entry in the sections Args and Attributes."""

    def entries(found: re.Match) -> str:
        return "\n".join(f"    {name}{found[2]}" for name in found[1].split(", "))

    return _SECTION.sub(lambda section: _ENTRY.sub(entries, section[0]), docstring)


class Ungrouped(griffe.Extension):
    """Applies `ungrouped` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Apply `ungrouped` to the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = ungrouped(obj.docstring.value)
