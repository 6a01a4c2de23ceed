"""Fonts for the names in pictures: a name is drawn in fonts that have its letters, or as a number with a legend."""

import contextlib
import contextvars
import functools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tubevit.visualize.style import plotting

_COLOUR = 1 << 14  # FreeType's flag of fonts whose glyphs are coloured pictures, which matplotlib cannot draw
_BOXES = "lastresort"  # part of the name of fonts that have a box for every letter
_current: contextvars.ContextVar["Lettering | None"] = contextvars.ContextVar("lettering", default=None)


class Lettering:
    """Finds fonts for the names in pictures, and numbers those that no font can draw.

    Args:
        fonts: the files of the fonts that may be used besides matplotlib's own; None takes those of this machine.

    Attributes:
        numbered: {name: its number from 1} of the names that the pictures show as `[number]`.
    """

    def __init__(self, fonts: Sequence[str] | None = None):
        self.numbered: dict[str, int] = {}
        self._fonts, self._added = fonts, []

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Use these fonts and numbers for the pictures that are drawn inside the context."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def shown(self, name: str) -> str:
        """Return the name, which the fonts of `apply` can draw, or its number in brackets."""
        if name not in self.numbered and not self._can_draw(name):
            self.numbered[name] = len(self.numbered) + 1
        return f"[{self.numbered[name]}]" if name in self.numbered else name

    def _can_draw(self, name: str) -> bool:
        """Whether all letters can be drawn; adds the fonts that this takes."""
        missing = np.array(sorted({ord(letter) for letter in name} - {ord("\n")}), np.uint32)
        if not _has_layout() and any(_needs_layout(letter) for letter in name):
            return False
        for path in (_default_font(), *self._added):
            missing = _without(missing, path)
        new = []
        while len(missing):
            best = min(self._candidates(), key=lambda path: len(_without(missing, path)), default=None)
            left = missing if best is None else _without(missing, best)
            if len(left) == len(missing):
                return False
            new.append(best)
            missing = left
        self._added += new
        return True

    def _candidates(self) -> Sequence[str]:
        if self._fonts is None:
            from matplotlib import font_manager

            self._fonts = sorted(font_manager.findSystemFonts())
        return self._fonts

    def apply(self, figure) -> None:
        """Set the fonts of all texts of a matplotlib figure."""
        from matplotlib.text import Text

        families = [*plotting().rcParams["font.family"], *map(_family, self._added)]
        for text in figure.findobj(Text) if self._added else ():
            text.set_fontfamily(families)


def shown(name: str) -> str:
    """Return how a picture shows a name; see `Lettering.shown`. Without a lettering in use it is the name."""
    lettering = _current.get()
    return name if lettering is None else lettering.shown(name)


def _default_font() -> str:
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties(family=plotting().rcParams["font.family"][:1]))


def _family(path: str) -> str:
    """Make a font known to matplotlib; returns the name of its family."""
    from matplotlib import font_manager

    known = font_manager.fontManager
    if path not in {entry.fname for entry in known.ttflist}:
        known.addfont(path)
    return next(entry.name for entry in known.ttflist if entry.fname == path)


@functools.cache
def _letters(path: str) -> np.ndarray:
    """Return the code points of a font; none if it cannot be used."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        flags: Any = font.face_flags
        flags = getattr(flags, "value", flags)  # an enumeration from matplotlib 3.10 on
        usable = font.scalable and not flags & _COLOUR
        usable = usable and _BOXES not in font.family_name.lower().replace(" ", "")
        return np.fromiter(font.get_charmap() if usable else (), np.uint32)
    except (OSError, RuntimeError, ValueError):  # not a font, or one that FreeType does not know
        return np.empty(0, np.uint32)


def _without(missing: np.ndarray, path: str) -> np.ndarray:
    return np.setdiff1d(missing, _letters(path))


def _has_layout() -> bool:
    """Whether matplotlib joins and orders letters as their script asks for: from 3.11 on."""
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")


def _needs_layout(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL") or unicodedata.category(letter) == "Mc"
