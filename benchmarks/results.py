"""What the benchmarks do alike with their results: rows of a csv file, a part of a page, a figure."""

from __future__ import annotations

import csv
import pathlib

END = "<!-- end of results -->\n"


def read(path: pathlib.Path) -> list[dict]:
    """Read the rows of a csv file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: pathlib.Path, fields: list[str], rows) -> None:
    """Write rows to a csv file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replace(page: str, begin: str, lines: list[str]) -> str:
    """Replace what stands between `begin` and `END` in a page."""
    before, _, rest = page.partition(begin)
    return before + begin + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def svg_pyplot():
    """Return pyplot for SVG files that depend only on what is plotted."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tubevit"
    from matplotlib import pyplot

    return pyplot
