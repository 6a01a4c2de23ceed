"""What the benchmarks do alike with their results: metrics of a run, rows of a csv file, a part of a page, a figure."""

from __future__ import annotations

import csv
import json
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


def append(path: pathlib.Path, fields: list[str], row: dict) -> None:
    """Append a row to a csv file, which is made if there is none; other processes may append to it as well."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def name_known(path: pathlib.Path, rows: int) -> None:
    """Say how many rows were not measured, because they are there."""
    if rows:
        print(f"rows in {path} already: {rows}; to measure them again, pass another --out and --workdir")


def read_metrics(run: pathlib.Path) -> list[dict]:
    """Read the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_and_seconds(lines: list[dict]) -> tuple[int, int]:
    """Return how many steps a run had, and how many seconds they took, without evaluations and saves."""
    spent, before = 0.0, 0
    for line in lines:
        if "time/step" in line:
            spent += (line["step"] - before) * (line["time/data"] + line["time/step"])
            before = line["step"]
    return before, round(spent)


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
