"""Measure on the embedded data what other tubes are worth that start from a dense model's kernels and positions.

    python benchmarks/sparse_from_dense.py --workdir runs/sparse [--seeds 0 1 2]     # half an hour on one core
    python benchmarks/sparse_from_dense.py --page       # writes the table and the figure of the page (extra `plot`)

For each seed it trains the dense model of experiments/sparse_from_dense.py, evaluates half and a quarter of its tokens
without training, and fine-tunes the tubes of the preset `small` without space-to-depth from four beginnings, see
`STARTS`. All but the last have the dense model's blocks, head and positions. Rows that are in the csv are not measured
again, and runs resume. Each row is top-1 of 8 motions on the 900 clips of `test`, or with `--split val` on those by
which the settings were chosen.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import read, read_metrics, replace, svg_pyplot, write  # noqa: E402

SUBSETS = {"half": "4x8x8/8x8x8", "quarter": "4x8x8/4x16x16"}
STARTS = {
    "rule": "kernels by the rule", "averaged": "kernels averaged over time first", "random": "random kernels",
    "scratch": "all random",
}  # fmt: skip
COLOURS = {"rule": "#1f77b4", "averaged": "#ff7f0e", "random": "#2ca02c", "scratch": "#7f7f7f"}
FIELDS = ["seed", "start", "tubes", "step", "tokens", "gflops", "top1"]
DENSE_STEPS, STEPS = 300, 200
CSV = pathlib.Path(__file__).with_suffix(".csv")
DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE, FIGURE = DOCS / "sparse_from_dense.md", DOCS / "figures/sparse_from_dense.svg"
BEGIN = "<!-- results: written by benchmarks/sparse_from_dense.py -->\n"


class Seed:
    """The models of one seed: folders in the workdir, and rows of the csv."""

    def __init__(self, workdir: pathlib.Path, seed: int, split: str, overrides: list[str]):
        self.folder, self.seed, self.split, self.overrides = workdir, seed, split, overrides
        self.dense = workdir / f"dense_{seed}"

    def train(self, run: pathlib.Path, steps: int, arguments: str = "", *flags: str) -> list[tuple[int, float]]:
        """Train or resume a run; return step and top-1 of its evaluations."""
        from tubevit.cli import main

        spec = f"sparse_from_dense:seed={self.seed},steps={steps},split={self.split}{arguments}"
        if main(["train", "--config", spec, "--workdir", str(run), *flags, *self.overrides]):
            raise SystemExit(f"{run} failed")
        key = "eval/moving_digits/top1"
        return [(line["step"], line[key]) for line in read_metrics(run) if key in line]

    def top1(self, checkpoint: pathlib.Path) -> float:
        """Evaluate a checkpoint."""
        from tubevit.evaluation import EvalOptions, evaluate_checkpoint

        options = EvalOptions(data="moving_digits", split=self.split, head="motion", batch_size=50)
        return evaluate_checkpoint(checkpoint, options)[0].record["top1"]

    def begin(self, start: str, tubes: str) -> pathlib.Path:
        """Save a model of other tubes from the dense one, unless it exists."""
        from tubevit.checkpoint.checkpoint import Checkpoint, save_model
        from tubevit.models.abstract import initial_parameters, model_of, parameters
        from tubevit.transfer.sparsify import sparsify
        from tubevit.zoo.names import open_checkpoint

        path = self.folder / f"{start}_{self.seed}_start"
        if path.exists():
            return path
        dense = open_checkpoint(self.dense)
        if start == "averaged":
            flat = self.folder / f"averaged_{self.seed}_dense"
            params = dense.read_parameters()
            tube = params["tokenizer"]["tubes"]["0"]
            tube["kernel"] = tube["kernel"] * 0 + tube["kernel"].mean(axis=0)
            if not flat.exists():
                save_model(model_of(dense.model, params), flat)
            dense = Checkpoint(flat)
        model, _ = sparsify(dense, tubes)
        if start == "random":
            fresh = initial_parameters(model.config, self.seed)["tokenizer"]
            model = model_of(model.config, parameters(model) | {"tokenizer": fresh})
        save_model(model, path)
        return path

    def measure(self, start: str) -> list[dict]:
        """Return the rows of one beginning: `dense`, one of `SUBSETS` or of `STARTS`."""
        if start == "dense":
            self.train(self.dense, DENSE_STEPS, "", f"--config.eval.every={DENSE_STEPS}")
            return [self.row(start, "4x8x8/4x8x8", DENSE_STEPS, self.top1(self.dense))]
        tubes = SUBSETS.get(start) or plain_tubes()
        if start == "scratch":
            return [self.row(start, tubes, *at) for at in self.train(self.run(start), STEPS, f",tubes={tubes}")]
        checkpoint = self.begin(start, tubes)
        found = [(0, self.top1(checkpoint))]
        if start in STARTS:
            arguments = f",tubes={tubes},init={checkpoint}"
            found += self.train(self.run(start), STEPS, arguments, "--config.init.tubes=same")
        return [self.row(start, tubes, *at) for at in found]

    def run(self, start: str) -> pathlib.Path:
        return self.folder / f"{start}_{self.seed}"

    def row(self, start: str, tubes: str, step: int, top1: float) -> dict:
        from tubevit.models.flops import count_flops, num_tokens
        from tubevit.models.variants import model_config

        model = model_config("vivit_nano8", tubes=tubes, num_classes=8)
        gflops = count_flops(model, model.shape, "default").total / 1e9
        tokens = num_tokens(model, model.shape)
        values = (self.seed, start, tubes, step, tokens, f"{gflops:.3f}", f"{top1:.4f}")
        return dict(zip(FIELDS, map(str, values)))


def plain_tubes() -> str:
    """Return the tubes of the preset `small` without space-to-depth."""
    from tubevit.tubes import PRESETS

    return "_".join(str(tube.plain) for tube in PRESETS["small"].tubes)


def scores(rows: list[dict], start: str) -> dict[int, list[float]]:
    """Return top-1 in percent by step, one number per seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["start"] == start:
            found.setdefault(int(row["step"]), []).append(100 * float(row["top1"]))
    return found


def table(rows: list[dict]) -> list[str]:
    """Return the tables of the page: mean over the seeds, least and most in brackets."""

    def cell(values: list[float]) -> str:
        return f"{statistics.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})" if values else "-"

    first = {row["start"]: row for row in reversed(rows)}
    lines = ["| without any training | tokens | GFLOPs | top-1 |", "|---|---|---|---|"]
    for start, name in {"dense": "the dense model", "half": "half of its tokens", "quarter": "a quarter"}.items():
        (values,) = scores(rows, start).values()
        row = first[start]
        lines.append(f"| {name}, `{row['tubes']}` | {row['tokens']} | {row['gflops']} | {cell(values)} |")
    tokens, gflops = first["rule"]["tokens"], first["rule"]["gflops"]
    steps = sorted(scores(rows, "rule"))
    lines += ["", f"The tubes of `small` without space-to-depth ({tokens} tokens, {gflops} GFLOPs):", ""]
    lines += [f"| start | {' | '.join(f'{step} steps' for step in steps)} |", "|---|" + "---|" * len(steps)]
    for start, name in STARTS.items():
        found = scores(rows, start)
        lines.append(f"| {name} | {' | '.join(cell(found.get(step, [])) for step in steps)} |")
    return lines


def page(text: str, rows: list[dict]) -> str:
    """Replace the tables in the documentation."""
    return replace(text, BEGIN, table(rows))


def plot(rows: list[dict]) -> None:
    """Plot top-1 over steps: for each beginning the mean over the seeds and their range; the dense model as a line."""
    pyplot = svg_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for start, label in STARTS.items():
        found = scores(rows, start)
        steps, colour = sorted(found), COLOURS[start]
        axes.plot(steps, [statistics.mean(found[s]) for s in steps], marker="o", label=label, color=colour)
        low, high = ([choose(found[step]) for step in steps] for choose in (min, max))
        axes.fill_between(steps, low, high, alpha=0.15, color=colour)
    for start, style in (("dense", "-"), ("half", "--"), ("quarter", "-.")):
        ((values),) = scores(rows, start).values()
        label = "dense model" if start == "dense" else f"{start} of its tokens"
        axes.axhline(statistics.mean(values), color="black", linewidth=0.8, linestyle=style, label=label)
    axes.axhline(100 / 8, color="grey", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xlabel="steps of fine-tuning (8 clips)", ylabel="held-out top-1 of 8 motions, %", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/sparse")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=["dense", *SUBSETS, *STARTS])
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    parser.add_argument(
        "--page", action="store_true", help="write page and figure from the csv without running anything"
    )
    args, overrides = parser.parse_known_args(arguments)
    if args.page:
        PAGE.write_text(page(PAGE.read_text(), read(CSV)))
        return plot(read(CSV))
    rows = read(args.out)
    for seed in args.seeds:
        models = Seed(args.workdir.absolute(), seed, args.split, overrides)
        for start in args.starts:
            if any((row["seed"], row["start"]) == (str(seed), start) for row in rows):
                continue
            rows += models.measure(start)
            write(args.out, FIELDS, rows)


if __name__ == "__main__":
    main()
