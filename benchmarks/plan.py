"""Plan the run of H on all slices of v5e and v6e up to 256 chips; write benchmarks/plan.csv and docs/preflight.md.

    TUBEVIT_CACHE=$(mktemp -d) python benchmarks/plan.py    # 11 to 14 minutes on 2 cores, nothing compiled before
    python benchmarks/plan.py --page                        # writes the page again from the csv

All times are estimates, see docs/preflight.md. Nothing runs on a TPU. Columns: `front` whether the row is on the front
of its generation, `mesh` to `attention` the settings, `ms` of a step, `hours` and `chip_hours` of the whole run; the
same in all rows of a generation: `candidates`, and how many of them were `compiled`, were left out by a bound
(`bounded`), need too much memory by arithmetic (`too_large`), made the compiler fail (`failed`), or were left when the
time was over (`open`); the same in all rows: `seconds` of the search.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys
from collections.abc import Mapping

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import read, replace, write  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
PAGE = CSV.parent.parent / "docs/preflight.md"
BEGIN = "<!-- plan: written by benchmarks/plan.py -->\n"
CONFIG, TOPOLOGY, CHIPS = "k600:model=tubevit_h16", "v5e,v6e", 256
COUNTS = ("candidates", "compiled", "bounded", "too_large", "failed", "open")
FIELDS = [
    "chip", "slice", "front", "mesh", "grad_accum_steps", "remat", "attention", "ms", "hours", "chip_hours", *COUNTS,
    "seconds", "compiler", "jax", "date",
]  # fmt: skip


def rows_of(plan: Mapping, jax: str, date: str) -> list[dict]:
    """Return a row for each compiled step of a plan, see `tubevit.preflight.plan.plan`, the front first."""
    rows = []
    for chip, found in plan["generations"].items():
        steps = [("yes", row) for row in found["front"]] + [("no", row) for row in found["compiled"]]
        compiled = len(steps) + len(found["misfits"])
        left_out = found["bounded"], found["too_large"], len(found["failed"]), found["uncompiled"]
        of_all = dict(zip(COUNTS, (found["candidates"], compiled, *left_out)))
        of_all |= {"seconds": round(plan["seconds"]), "compiler": plan["compiler"], "jax": jax, "date": date}
        for front, row in steps:
            settings = {key: row[key] for key in ("grad_accum_steps", "remat", "attention")}
            times = {key: round(row[key], 2) for key in ("hours", "chip_hours")}
            rows.append({"chip": chip, "slice": row["topology"], "front": front, "ms": round(1e3 * row["seconds"], 1)}
                        | {"mesh": "x".join(map(str, row["mesh"].values()))} | settings | times | of_all)  # fmt: skip
    return rows


def table(rows: list[dict]) -> list[str]:
    """Return what the search did, and the steps that it compiled."""
    if not rows:
        return ["Not measured yet."]
    one, generations = rows[0], {row["chip"]: row for row in rows}.values()
    count, compiled, *left = (sum(int(row[key]) for row in generations) for key in COUNTS)
    bounded, large, failed, opened = (f"{number:,}" for number in left)
    lines = [
        f"By `python benchmarks/plan.py` in {one['seconds']} s on 2 cores ({one['compiler']}, jax {one['jax']}, "
        f"{one['date']}): of {count:,} candidates, {compiled} were compiled, {bounded} were left out by a bound, "
        f"{large} were too large by arithmetic, {failed} failed, and {opened} were left open. "
        "Meshes are data x fsdp x tensor.",
        "",
        "| slice | on the front | mesh | accumulation | remat | attention | ms | hours | chip-hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row[key] for key in ("front", "mesh", "grad_accum_steps", "remat", "attention", "ms")]
        times = [f"{float(row['hours']):.1f}", f"{float(row['chip_hours']):,.0f}"]
        lines.append(f"| `{row['slice']}` | {' | '.join(cells + times)} |")
    return lines


def page(text: str, rows: list[dict]) -> str:
    """Replace the table of a page."""
    return replace(text, BEGIN, table(rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args(arguments)
    if not args.page:
        import jax

        from tubevit.preflight.candidates import slices_of
        from tubevit.preflight.plan import plan

        found = plan(CONFIG, {}, slices_of(TOPOLOGY, CHIPS), report=lambda line: print(line, flush=True))
        write(CSV, FIELDS, rows_of(found, jax.__version__, datetime.date.today().isoformat()))
    PAGE.write_text(page(PAGE.read_text(), read(CSV)))


if __name__ == "__main__":
    main()
