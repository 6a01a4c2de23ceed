"""Test on the embedded data whether bootstrapping (section 3.6) learns more in few video steps than from scratch.

    python benchmarks/digits_bootstrap.py --workdir runs/digits [--seeds 0 1 2]     # about an hour on 2 cores
    python benchmarks/digits_bootstrap.py --plot          # draws docs/figures/digits_bootstrap.svg (extra `plot`)

Runs the quickstart (`small`) and the stages of experiments/digits_bootstrap.py for each seed. Existing runs are not
repeated. Each evaluation writes a row to benchmarks/digits_bootstrap.csv: top-1 on 900 held-out clips with 80 classes
(digit x motion), or 8 classes (motion) for `small`. The last evaluation also has the accuracy for motion and digit
alone, and top-1 on 450 still digits.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import statistics

STAGES = ("small", "vit", "scratch", "gate", "last", "last_fc", "full")
LABELS = {
    "scratch": "from scratch", "full": "bootstrapped, all trained", "gate": "last 2 blocks and gate",
    "last": "last 2 blocks", "last_fc": "pooling and head only",
}  # fmt: skip
FIELDS = ["seed", "stage", "step", "video_top1", "motion_top1", "digit_top1", "still_digits_top1", "loss"]
CSV = pathlib.Path(__file__).with_suffix(".csv")
FIGURE = pathlib.Path(__file__).parent.parent / "docs/figures/digits_bootstrap.svg"


def run_stage(folder: pathlib.Path, stage: str, seed: int, overrides: list[str]) -> list[dict]:
    """Train one stage unless its run exists, and return one row per evaluation."""
    from tubevit.cli import main

    workdir = folder / f"{stage}_{seed}"
    spec = f"digits_bootstrap:stage={stage},seed={seed},small={folder}/small_{seed},large={folder}/vit_{seed}"
    spec = f"quickstart:seed={seed}" if stage == "small" else spec
    if main(["train", "--config", spec, "--workdir", str(workdir), *overrides]):
        raise SystemExit(f"{stage} of seed {seed} failed")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [
        {
            "seed": seed,
            "stage": stage,
            "step": line["step"],
            "video_top1": line.get("eval/moving_digits/top1"),
            "still_digits_top1": line.get("eval/still_digits/top1"),
            "loss": line.get("eval/moving_digits/loss"),
        }
        for line in lines
        if any(key.startswith("eval/") for key in line)
    ]
    if stage not in ("small", "vit"):
        rows[-1] |= parts(workdir)
    return rows


def parts(workdir: pathlib.Path) -> dict[str, float]:
    """Return how often the most probable of the 80 classes has the correct motion, and the correct digit."""
    from tubevit.evaluation import evaluate_checkpoint
    from tubevit.evaluation.metrics import confusion_matrix

    found = next(each for each in evaluate_checkpoint(workdir) if each.record["dataset"] == "moving_digits")
    names, probabilities = found.load.source.classes, found.predictions.probabilities[found.predictions.used]
    matrix = confusion_matrix(probabilities, found.load.source.labels[found.predictions.used])
    clips = {(label, name): int(matrix[i, j]) for i, label in enumerate(names) for j, name in enumerate(names)}
    shares = {}
    for key, part in (("digit_top1", 0), ("motion_top1", 1)):
        right = sum(n for pair, n in clips.items() if len({name.split("_", 1)[part] for name in pair}) == 1)
        shares[key] = round(right / sum(clips.values()), 4)
    return shares


def plot(rows: list[dict]) -> None:
    """Plot held-out top-1 over video steps: for each stage, the mean over the seeds and their range."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tubevit"  # the file depends only on the rows
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for stage, label in LABELS.items():
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["stage"] == stage:
                points.setdefault(int(row["step"]), []).append(100 * float(row["video_top1"]))
        if not points:
            continue
        steps = sorted(points)
        (line,) = axes.plot(steps, [statistics.mean(points[step]) for step in steps], marker="o", label=label)
        low, high = ([choose(points[step]) for step in steps] for choose in (min, max))
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="video steps (32 clips)", ylabel="held-out top-1 of 80 classes, %")
    axes.axhline(100 / 80, color="grey", linestyle="--", label="chance")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--out", default=str(CSV))
    parser.add_argument("--plot", action="store_true", help="draw the figure from the csv without running anything")
    args, overrides = parser.parse_known_args(arguments)
    if args.plot:
        return plot(list(csv.DictReader(pathlib.Path(args.out).open())))
    out = pathlib.Path(args.out)
    rows = list(csv.DictReader(out.open())) if out.exists() else []
    for seed in args.seeds:
        for stage in args.stages:
            found = run_stage(pathlib.Path(args.workdir), stage, seed, overrides)
            rows = [row for row in rows if (int(row["seed"]), row["stage"]) != (seed, stage)] + found
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
