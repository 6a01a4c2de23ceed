"""Pictures as files (PNG, SVG, GIF), and a page that holds them all and needs no network."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tubevit import storage
from tubevit.visualize.page_style import stylesheet
from tubevit.visualize.style import DARK, LIGHT, Theme, themed

_FRAME_SECONDS = 0.15


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A matplotlib figure, saved as PNG and SVG.

    Attributes:
        name: of its files.
        describes: what it shows, for those who cannot see it.
        draw: makes the figure, in the colours that matplotlib is set to.
        photo: whether it is mostly frames: the page then holds pixels instead of lines.
        wide: whether a phone shows a part of it, to be moved, instead of all of it small.
    """

    name: str
    describes: str
    draw: Callable[[], object]
    photo: bool = False
    wide: bool = False
    kinds = ("png", "svg")
    caption = ""

    @property
    def shown_as(self) -> str:
        """The kind of file that the page holds."""
        return "webp" if self.photo else "svg"

    def rendered(self, theme: Theme, kinds: Iterable[str]) -> dict[str, bytes]:
        """Files of these kinds in these colours."""
        with themed(theme):
            figure = self.draw()
            return {kind: _saved(figure, kind) for kind in kinds}


@dataclasses.dataclass(frozen=True, eq=False)
class Animation:
    """Frames (n, H, W, 3) uint8, saved as an animated GIF; the rest is as in `Picture`."""

    name: str
    describes: str
    frames: Callable[[], np.ndarray]
    wide: bool = False
    kinds = ("gif",)
    shown_as = "gif"

    @property
    def caption(self) -> str:
        """Text below it: unlike a figure it holds none."""
        return self.describes

    def rendered(self, theme: Theme, kinds: Iterable[str]) -> dict[str, bytes]:
        """The GIF in these colours."""
        with themed(theme):
            return dict.fromkeys(kinds, gif(self.frames()))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a title, a caption below its pictures, or why there are none."""

    title: str
    caption: str
    pictures: Sequence[Picture | Animation] = ()

    @property
    def left_out(self) -> bool:
        """Whether there are no pictures; the caption says why."""
        return not self.pictures


def gif(frames: np.ndarray) -> bytes:
    """An endless animated GIF of frames (n, H, W, 3) uint8."""
    from PIL import Image  # matplotlib needs it, too

    first, *rest = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=int(1000 * _FRAME_SECONDS), loop=0)
    return file.getvalue()


def _saved(figure, kind: str) -> bytes:
    file = io.BytesIO()
    settings = {"pil_kwargs": {"quality": 88}} if kind == "webp" else {}
    if kind == "svg":
        settings = {"metadata": {"Date": None, "Creator": None}}  # the same picture is the same file
    figure.savefig(file, format=kind, **settings)
    return file.getvalue()


def write_page(out: str | os.PathLike, title: str, facts: dict[str, str], sections: Sequence[Section]) -> str:
    """Writes every picture as files of its own, and index.html with all of them inside.

    Args:
        out: a folder, made if it is not there; on disk or `gs://`.
        title: of the page.
        facts: above the pictures: {what: text}.
        sections: in order.

    Returns:
        The path of the page.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    embedded = {}
    for picture in (picture for section in sections for picture in section.pictures):
        shown = picture.shown_as
        light = picture.rendered(LIGHT, dict.fromkeys([*picture.kinds, shown]))
        for kind in picture.kinds:
            storage.write_bytes(storage.join(out, f"{picture.name}.{kind}"), light[kind])
        embedded[picture] = [_data_uri(shown, files[shown]) for files in (light, picture.rendered(DARK, [shown]))]
    page = storage.join(out, "index.html")
    storage.write_text(page, _html(title, facts, sections, embedded))
    return page


def _html(title: str, facts: dict[str, str], sections: Sequence[Section], embedded: dict) -> str:
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    shown = "".join(_section(section, embedded) for section in sections if not section.left_out)
    missing = "".join(
        f"<li><b>{html.escape(section.title)}</b>: {html.escape(section.caption)}</li>"
        for section in sections
        if section.left_out
    )
    missing = f"<section><h2>Left out</h2><ul>{missing}</ul></section>" if missing else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{stylesheet()}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1><dl>{rows}</dl>{shown}{missing}</main></body></html>\n"
    )


def _section(section: Section, embedded: dict) -> str:
    pictures = "".join(_figure(picture, *embedded[picture]) for picture in section.pictures)
    return (
        f'<section><h2>{html.escape(section.title)}</h2><div class="pictures">{pictures}</div>'
        f"<p>{html.escape(section.caption)}</p></section>"
    )


def _figure(picture: Picture | Animation, light: str, dark: str) -> str:
    kind = ' class="wide" tabindex="0"' if picture.wide else ""
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure{kind}><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(picture.describes)}"></picture>{caption}</figure>'
    )


def _data_uri(kind: str, content: bytes) -> str:
    kind = "svg+xml" if kind == "svg" else kind
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
