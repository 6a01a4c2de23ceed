"""Draw docs/figures/tubes.svg: the windows of each tube of a preset in an oblique view of the clip.

python docs/figures/tubes.py [PRESET]
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

from tubevit.tubes import PRESETS, Tube
from tubevit.visualize.style import size_text

SHAPE = (32, 224, 224)
SCALE = np.array([5.0, 0.58, 0.58])  # drawn length of a frame, a row, a column
DEPTH = np.array([0.62, -0.42])  # direction of time: to the right and up
COLOURS = ("#d9622b", "#2a7fb8", "#4c9a3f", "#8a5bb0")
PANEL, TOP = 246, 134


def project(t: float, y: float, x: float) -> tuple[float, float]:
    t, y, x = np.array([t, y, x]) * SCALE
    return x + DEPTH[0] * t, y + DEPTH[1] * t


def polygon(points, fill: str, opacity: float, stroke: str) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{text}" fill="{fill}" fill-opacity="{opacity}" stroke="{stroke}" stroke-width=".7"/>'


def cuboid(low, high, colour: str, opacity: float = 0.85) -> list[str]:
    """Draw the three visible faces: top, right, front."""
    (t0, y0, x0), (t1, y1, x1) = low, high
    faces = [
        ([(t0, y0, x0), (t0, y0, x1), (t1, y0, x1), (t1, y0, x0)], opacity * 0.6),
        ([(t0, y0, x1), (t0, y1, x1), (t1, y1, x1), (t1, y0, x1)], opacity * 0.75),
        ([(t0, y0, x0), (t0, y0, x1), (t0, y1, x1), (t0, y1, x0)], opacity),
    ]
    return [polygon([project(*corner) for corner in face], colour, shade, "#222") for face, shade in faces]


def windows(tube: Tube) -> np.ndarray:
    """Return the starts of all windows, (n, 3), latest first."""
    axes = [starts.ravel() for starts in tube.starts(SHAPE)]
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return starts[np.lexsort((starts[:, 2], -starts[:, 1], -starts[:, 0]))]


def panel(tube: Tube, left: float, colour: str) -> list[str]:
    corners = [(0, 0, 0), (0, 0, 224), (32, 0, 224), (32, 224, 224), (0, 224, 224), (0, 224, 0)]
    svg = [f'<g transform="translate({left:.0f} {TOP})">']
    svg.append(polygon([project(*corner) for corner in corners], "#8d99a6", 0.13, "#8d99a6"))
    svg.append(f'<defs><g id="tube{left:.0f}">{"".join(cuboid((0, 0, 0), tube.kernel, colour))}</g></defs>')
    for start in windows(tube):
        x, y = project(*start)
        svg.append(f'<use href="#tube{left:.0f}" x="{x:.1f}" y="{y:.1f}"/>')
    lines = [f"tube {size_text(tube.kernel)}", f"grid {size_text(tube.grid(SHAPE))} = {tube.num_tokens(SHAPE)} tokens"]
    if tube.sub_windows > 1:
        lines.append(f"{tube.sub_windows} windows per token")
    for row, text in enumerate(lines):
        weight = ' font-weight="600"' if row == 0 else ""
        svg.append(f'<text x="0" y="{152 + 17 * row}" font-size="12.5"{weight}>{text}</text>')
    return [*svg, "</g>"]


def main(name: str) -> None:
    tubes = PRESETS[name]
    width = PANEL * len(tubes.tubes) + 16
    title = (
        f"Preset “{name}”: {tubes.num_tokens(SHAPE)} tokens of a 32×224×224 clip, "
        f"reading {tubes.pixels_read(SHAPE):.1%} of its pixels"
    )
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + 200}" font-family="sans-serif">',
        f'<rect width="{width}" height="{TOP + 200}" fill="#ffffff"/>',
        f'<g fill="#222"><text x="16" y="24" font-size="14.5" font-weight="600">{title}</text>',
    ]
    svg.append('<text x="16" y="44" font-size="12">Time runs to the back right; windows may overlap.</text>')
    for i, tube in enumerate(tubes.tubes):
        svg += panel(tube, 16 + PANEL * i, COLOURS[i % len(COLOURS)])
    path = pathlib.Path(__file__).with_name("tubes.svg")
    path.write_text("\n".join([*svg, "</g></svg>"]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "paper")
