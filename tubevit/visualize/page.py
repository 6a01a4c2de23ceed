"""Write pictures to files (PNG, SVG, GIF) and to one self-contained page."""

import base64
import dataclasses
import html
import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tubevit import storage
from tubevit.visualize.lettering import Lettering
from tubevit.visualize.style import DARK, LIGHT, Theme, themed

logger = logging.getLogger(__name__)
_FRAME_SECONDS = 0.15
_RULES = """
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1000px; margin: 0 auto; padding: 24px 16px 48px }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 16px; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 40px 0 12px; padding-top: 16px; border-top: 1px solid var(--line) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0 }
dt { color: var(--muted) }
dd { margin: 0; overflow-wrap: anywhere }
figcaption { color: var(--muted); font-size: .85rem; margin-top: 4px }
p, ul { color: var(--muted); max-width: 44rem; margin: 12px 0 0 }
ul { padding-left: 20px }
b { color: var(--ink); font-weight: 600 }
.pictures { display: grid; gap: 20px 24px; align-items: start;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)) }
figure { margin: 0; min-width: 0 }
figure.wide { grid-column: 1 / -1; overflow-x: auto }
img { display: block; width: 100%; height: auto }
@media (max-width: 640px) {
  figure.wide img { width: 640px; max-width: none }
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin-bottom: 8px }
}
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A matplotlib figure, saved as PNG and SVG.

    Attributes:
        name: the name of its files without the extension.
        describes: the alternative text.
        draw: function that draws the figure in the current colours of matplotlib.
        photo: whether it consists mostly of frames, so that the page embeds pixels instead of vectors.
        wide: whether it spans the page and scrolls on a phone, instead of shrinking.
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
        """The file type that the page embeds."""
        return "webp" if self.photo else "svg"

    def rendered(self, theme: Theme, kinds: Iterable[str], lettering: Lettering | None = None) -> dict[str, bytes]:
        """Render the figure to files of these types, in the colours of a theme; `lettering` draws its names."""
        lettering = lettering or Lettering()
        with themed(theme), lettering.used():
            figure = self.draw()
            lettering.apply(figure)
            return {kind: _saved(figure, kind) for kind in kinds}


@dataclasses.dataclass(frozen=True, eq=False)
class Animation:
    """Frames (n, H, W, 3) uint8, saved as an animated GIF; the other attributes are those of `Picture`."""

    name: str
    describes: str
    frames: Callable[[], np.ndarray]
    wide: bool = False
    kinds = ("gif",)
    shown_as = "gif"

    @property
    def caption(self) -> str:
        """The text below it, because a GIF contains none."""
        return self.describes

    def rendered(self, theme: Theme, kinds: Iterable[str], lettering: Lettering | None = None) -> dict[str, bytes]:
        """Render the GIF in the colours of a theme; it contains no names."""
        with themed(theme):
            return dict.fromkeys(kinds, gif(self.frames()))


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page: a title, and a caption below its pictures, or the reason why there are none."""

    title: str
    caption: str
    pictures: Sequence[Picture | Animation] = ()

    @property
    def left_out(self) -> bool:
        """Whether there are no pictures; then the caption gives the reason."""
        return not self.pictures


def gif(frames: np.ndarray) -> bytes:
    """Encode frames (n, H, W, 3) uint8 as an animated GIF that repeats for ever."""
    from PIL import Image  # a dependency of matplotlib

    first, *rest = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=int(1000 * _FRAME_SECONDS), loop=0)
    return file.getvalue()


def _saved(figure, kind: str) -> bytes:
    file = io.BytesIO()
    settings = {"pil_kwargs": {"quality": 88}} if kind == "webp" else {}
    if kind == "svg":
        settings = {"metadata": {"Date": None, "Creator": None}}  # equal pictures give equal files
    figure.savefig(file, format=kind, **settings)
    return file.getvalue()


def write_page(
    out: str | os.PathLike,
    title: str,
    facts: dict[str, str],
    sections: Sequence[Section],
    fonts: Sequence[str] | None = None,
) -> str:
    """Write each picture to its own files, and index.html with all pictures embedded; returns its path.

    A name whose letters no font has is a number in the picture and a text below it.

    Args:
        out: a folder on disk or `gs://`; it is created if necessary.
        title: the title of the page.
        facts: the table above the pictures, {term: text}.
        sections: the sections in order.
        fonts: files of fonts that pictures may use besides matplotlib's own; None takes those of this machine.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the folder cannot be written; on a local disk it is then as before.
    """
    embedded, files, numbered = {}, {}, {}
    for picture in (picture for section in sections for picture in section.pictures):
        shown = picture.shown_as
        lettering = Lettering(fonts)
        light = picture.rendered(LIGHT, dict.fromkeys([*picture.kinds, shown]), lettering)
        files |= {f"{picture.name}.{kind}": light[kind] for kind in picture.kinds}
        dark = picture.rendered(DARK, [shown], lettering)
        uris = [_data_uri(shown, rendered[shown]) for rendered in (light, dark)]
        embedded[picture] = *uris, ",  ".join(f"[{number}] {name}" for name, number in lettering.numbered.items())
        numbered |= lettering.numbered
    if numbered:
        more = f" and {len(numbered) - 1} more" if len(numbered) > 1 else ""
        logger.info(
            f"no font of this machine has all letters of {next(iter(numbered))!r}{more}: pictures show "
            "numbers instead, and the page lists the names below them"
        )
    files["index.html"] = storage.printable(_html(title, facts, sections, embedded)).encode()
    storage.write_files(out, files)
    return storage.join(out, "index.html")


def _html(title: str, facts: dict[str, str], sections: Sequence[Section], embedded: dict) -> str:
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    shown = "".join(_section(section, embedded) for section in sections if not section.left_out)
    missing = "".join(
        f"<li><b>{html.escape(section.title)}</b>: {html.escape(section.caption)}</li>"
        for section in sections
        if section.left_out
    )
    style = f"{_colours(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {_colours(DARK)} }}{_RULES}"
    missing = f"<section><h2>Left out</h2><ul>{missing}</ul></section>" if missing else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1><dl>{rows}</dl>{shown}{missing}</main></body></html>\n"
    )


def _section(section: Section, embedded: dict) -> str:
    pictures = "".join(_figure(picture, *embedded[picture]) for picture in section.pictures)
    return (
        f'<section><h2>{html.escape(section.title)}</h2><div class="pictures">{pictures}</div>'
        f"<p>{html.escape(section.caption)}</p></section>"
    )


def _figure(picture: Picture | Animation, light: str, dark: str, names: str) -> str:
    kind = ' class="wide" tabindex="0"' if picture.wide else ""
    caption = picture.caption or names
    caption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure{kind}><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(picture.describes)}"></picture>{caption}</figure>'
    )


def _data_uri(kind: str, content: bytes) -> str:
    kind = "svg+xml" if kind == "svg" else kind
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _colours(theme: Theme) -> str:
    names = ("ground", "ink", "muted", "line")
    return ":root { " + "; ".join(f"--{name}: {getattr(theme, name)}" for name in names) + " }"
