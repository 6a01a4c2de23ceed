"""What happens to training runs that are killed, frozen, damaged or starved; whether they end as undisturbed ones do.

    python benchmarks/faults.py                          # all cases, about 25 minutes on 2 cores
    python benchmarks/faults.py --only kill --trials 10  # those whose name has the text

The real command line trains the small experiment of tests/tiny.py, alone or as two processes of one device each, in a
workdir of its own. A disturbed run is started again until it is done; all its parameters and optimiser state must then
be those of a run that nothing disturbed, bit for bit. Lost steps are those that were logged and computed again. Rows
are put into benchmarks/faults.csv, whose table is in docs/faults.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the other files of this folder

from benchmarks.faults_cases import CASES  # noqa: E402
from benchmarks.faults_job import Lab, small_data  # noqa: E402

CSV, PAGE = ROOT / "benchmarks/faults.csv", ROOT / "docs/faults.md"
BEGIN, END = "<!-- written by benchmarks/faults.py -->\n", "<!-- end -->\n"
FIELDS = ["fault", "trials", "as_it_should", "exit_codes", "seconds", "lost_steps", "wrong_resumes", "message", "date"]


def write_page(rows: list[dict]) -> None:
    """Puts the table into the documentation."""
    lines = [
        "| fault | trials | as it should | exit codes | seconds to the end of all | steps lost, at most |"
        " wrong resumes | what is printed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        message = r["message"].replace("|", "\\|").replace("<", "&lt;")
        values = [r[key] for key in FIELDS[:7]]
        lines.append("| " + " | ".join(str(value) for value in [*values, message]) + " |")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the cases whose name has this; several: a,b")
    parser.add_argument("--trials", type=int, default=50, help="random moments to kill at")
    parser.add_argument("--minutes", type=float, default=60, help="no further random moments after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="write the documentation's table only")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tubevit-faults-") as folder:
        lab = Lab(pathlib.Path(folder), args.trials, args.minutes, args.seed)
        os.environ.setdefault("TUBEVIT_CACHE", f"{folder}/cache")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.update(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        small_data()
        for case in CASES if not args.page else ():
            if not any(text in case.__name__ for text in args.only.split(",")):
                continue
            begin = time.monotonic()
            found = case(lab)
            print(*found.values(), f"({time.monotonic() - begin:.0f} s)", sep=" | ", flush=True)
            save(args.out, found)
    if args.out == CSV:
        with CSV.open() as file:
            write_page(list(csv.DictReader(file)))


def save(path: pathlib.Path, found: dict) -> None:
    """Puts a row in the place of the earlier one of this fault, else at the end."""
    rows = {}
    if path.exists():
        with path.open() as file:
            rows = {r["fault"]: r for r in csv.DictReader(file)}
    rows[found["fault"]] = found
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
