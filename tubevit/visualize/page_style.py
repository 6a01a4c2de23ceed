"""The style sheet of the page, for light and dark colours, phones and wide screens."""

from __future__ import annotations

from tubevit.visualize.style import DARK, LIGHT, Theme

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


def stylesheet() -> str:
    """Return the CSS, with the colours of the pictures."""
    return f"{_colours(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {_colours(DARK)} }}{_RULES}"


def _colours(theme: Theme) -> str:
    names = ("ground", "ink", "muted", "line")
    return ":root { " + "; ".join(f"--{name}: {getattr(theme, name)}" for name in names) + " }"
