"""Train and evaluate a joint model from scratch, and print the time of each part: this is `make quickstart`.

    python3 launch/quickstart.py [--seed 0] [--steps N] [--workdir runs/quickstart] [--venv .venv]

Runs in any Python 3.11 or newer: it first creates the environment with the Makefile, then calls the command line in it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for modules that need no installed packages

from tubevit.ranges import COUNT, WHOLE  # noqa: E402


def run(*command: str) -> float:
    """Run a command and return its seconds; if it fails, exit with its code."""
    print("$ " + " ".join(command), flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=WHOLE, default=0)
    parser.add_argument("--steps", type=COUNT, help="number of steps (default: as in the experiment)")
    parser.add_argument("--workdir", default="runs/quickstart")
    parser.add_argument("--venv", default=".venv", help="the folder of the environment (default: .venv)")
    args = parser.parse_args()

    scripts = ROOT / args.venv / "bin"
    tubevit = str(scripts / "tubevit")
    config = f"quickstart:seed={args.seed}" + (f",steps={args.steps}" if args.steps else "")
    seconds = {"installation": run("make", "--no-print-directory", "setup", f"VENV={args.venv}")}
    seconds["data"] = run(tubevit, "make-moving-digits")
    seconds["training"] = run(tubevit, "train", "--config", config, "--workdir", args.workdir)
    seconds["evaluation"] = run(tubevit, "evaluate", "--workdir", args.workdir, "--split", "test")
    seconds["time controls"] = run(str(scripts / "python"), "launch/time_controls.py", args.workdir)

    workdir = ROOT / args.workdir
    records = json.loads((workdir / "eval.json").read_text())
    control = json.loads((workdir / "time_controls.json").read_text())
    print("\nsummary")
    for part, value in seconds.items():
        print(f"  {part:42s} {value:7.1f} s")
    print(f"  {'total':42s} {sum(seconds.values()):7.1f} s")
    for record in records:
        text = f"held-out {record['head'].replace('_', ' x ')}, top-1, {record['clips_used']} files"
        print(f"  {text:42s} {record['top1']:7.1%}")
    print(f"  {'frames shuffled in each clip, top-1':42s} {control['shuffled_top1']:7.1%}")
    print(f"  {'reversed clips: opposite motion predicted':42s} {control['reversed_to_opposite']:7.1%}")
    print(f"  checkpoint: {records[0]['checkpoint']}")
    print(f"  predict:    {tubevit} predict --checkpoint {args.workdir} {control['example']}")


if __name__ == "__main__":
    main()
