"""Test the claim behind TubeViT on the embedded data: sparse tubes and joint training against dense video ViTs.

    python benchmarks/seed_claim.py --workdir runs/seed_claim     # about an hour of CPU time
    python benchmarks/seed_claim.py --page        # writes the page and its figure only, from the csv (extra `plot`)

Trains the variants of experiments/seed_claim.py, each from scratch and from the same image ViT, for three seeds. The
dense variants run twice: with as many clips in a step as give TubeViT's FLOPs, and with as many clips as TubeViT.
Finished rows of benchmarks/seed_claim.csv are not repeated, and an interrupted run resumes.

A sixteenth of the training digits is held out for validation. Learning rate, steps and batch size were chosen on it,
with TubeViT from scratch alone. The test split is read once, by the finished runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import statistics
import sys
import textwrap
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import read, replace, svg_pyplot, write  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
PAGE = CSV.parent.parent / "docs/seed_claim.md"
FIGURE = PAGE.parent / "figures/seed_claim.svg"
BEGIN = "<!-- results: written by benchmarks/seed_claim.py -->\n"
KEY = ("seed", "variant", "init", "equal")
FIELDS = [
    *KEY, "step", "clips", "images", "step_gflop", "parameters", "val_top1", "test_top1", "seconds",
]  # fmt: skip
DENSE = {"joint": "joint attention", "divided": "divided attention", "factorised": "the factorised encoder"}
LABELS = {"tubevit": "TubeViT with images"} | DENSE
INITS = {"scratch": "from scratch", "image": "from the image ViT"}
EQUAL = {"flops": "equal FLOPs of a step", "clips": "equal clips in a step"}
STEPS, CLIPS, IMAGES, VIT_STEPS, VIT_IMAGES = 400, 12, 12, 300, 32
FRAMES, SIZE, CLASSES = 16, 64, 8


def cases() -> list[tuple[str, str, str]]:
    """List (variant, init, equal) of all runs of a seed; TubeViT belongs to both comparisons."""
    runs = [("vit", "scratch", "both"), *(("tubevit", init, "both") for init in INITS)]
    return runs + [(variant, init, equal) for equal in EQUAL for init in INITS for variant in DENSE]


def step_gflop(variant: str, clips: int, images: int) -> float:
    """Count the GFLOP of a training step."""
    from tubevit.config import load_config
    from tubevit.models.flops import training_flops
    from tubevit.models.variants import model_config

    model = model_config(load_config(f"seed_claim:variant={variant}").model.name, num_classes=CLASSES)
    if variant == "vit":
        clips = 0
    elif variant != "tubevit":
        images = 0
    total = clips and clips * training_flops(model, (FRAMES, SIZE, SIZE), "default")
    return (total + (images and images * training_flops(model, (1, SIZE, SIZE), "default"))) / 1e9


def batch(variant: str, equal: str) -> tuple[int, int]:
    """Choose the numbers of clips and images of a step."""
    if variant == "vit":
        return 0, VIT_IMAGES
    if variant == "tubevit":
        return CLIPS, IMAGES
    if equal == "clips":
        return CLIPS, 0
    return round(step_gflop("tubevit", CLIPS, IMAGES) / step_gflop(variant, 1, 0)), 0


def held_out(folder: pathlib.Path) -> dict[str, str]:
    """Write the csv files of the embedded data with a split `val`, all clips and images of some training digits."""
    from tubevit.data.moving_digits import CSV_FILES
    from tubevit.data.sources import open_source
    from tubevit.data.sources.embedded import embedded_folder

    files, folder = {}, folder.absolute()
    for source, head in (("moving_digits", "motion"), ("still_digits", "digit")):
        files[source] = str(folder / CSV_FILES[head])
        if pathlib.Path(files[source]).exists():
            continue
        open_source(source)  # makes the data, if it is not in the cache
        rows = list(csv.DictReader((embedded_folder() / CSV_FILES[head]).open()))
        for row in rows:
            digit = int(row.get("instance") or pathlib.Path(row["path"]).stem)
            if row["split"] == "train" and zlib.crc32(str(digit).encode()) % 16 == 0:
                row["split"] = "val"
            row["path"] = str(embedded_folder() / row["path"])
        folder.mkdir(parents=True, exist_ok=True)
        with open(files[source], "w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label", "split"], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return files


def run(folder: pathlib.Path, seed: int, case: tuple[str, str, str], overrides: list[str]) -> dict:
    """Train one case, or resume it, and return its row."""
    from tubevit.cli import main
    from tubevit.models.flops import count_parameters
    from tubevit.zoo.names import open_checkpoint

    variant, init, equal = case
    data, (clips, images) = held_out(folder), batch(variant, equal)
    workdir = folder / f"{'_'.join(case)}_{seed}"
    steps = VIT_STEPS if variant == "vit" else STEPS
    spec = f"seed_claim:variant={variant},seed={seed},steps={steps},clip_batch={clips},image_batch={images},"
    spec += f"splits=val+test,video_data={data['moving_digits']},image_data={data['still_digits']}"
    spec += f",init={folder}/vit_scratch_both_{seed}" if init == "image" else ""
    cache = f"--config.compilation_cache={folder}/compiled"
    if main(["train", "--config", spec, "--workdir", str(workdir), cache, *overrides]):
        raise SystemExit(f"{workdir} failed")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "eval/test/top1" in line)
    spent, before = 0.0, 0
    for line in lines:
        if "time/step" in line:
            spent += (line["step"] - before) * (line["time/data"] + line["time/step"])
            before = line["step"]
    values = {"step": last["step"], "clips": clips, "images": images}
    values |= {"step_gflop": round(step_gflop(variant, clips, images), 3)}
    values |= {"parameters": count_parameters(open_checkpoint(str(workdir)).model), "seconds": round(spent)}
    values |= {f"{split}_top1": round(last[f"eval/{split}/top1"], 4) for split in ("val", "test")}
    return {**dict(zip(KEY, (seed, *case))), **values}


def scores(rows: list[dict], variant: str, init: str, equal: str, split: str = "test") -> list[float]:
    """Return the top-1 of all seeds in percent."""
    found = (row for row in rows if (row["variant"], row["init"]) == (variant, init))
    return [100 * float(row[f"{split}_top1"]) for row in found if row["equal"] in (equal, "both")]


def _mean_and_range(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else "1 seed"
    return f"{statistics.mean(values):.1f} % ({spread})"


def table(rows: list[dict], equal: str) -> list[str]:
    """Return the table of one comparison."""
    lines = ["| model | parameters | clips + images in a step | GFLOP of a step | " + " | ".join(INITS.values()) + " |"]
    lines += ["|---|---|---|---|---|---|"]
    for variant, label in LABELS.items():
        row = next((r for r in rows if r["variant"] == variant and r["equal"] in (equal, "both")), None)
        if row is None:
            continue
        cells = [f"{int(row['parameters']):,}", f"{row['clips']} + {row['images']}", row["step_gflop"]]
        cells += [_mean_and_range(scores(rows, variant, init, equal)) for init in INITS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def verdict(rows: list[dict], equal: str) -> list[str]:
    """Return what the rows of a comparison say, one sentence for each initialisation and each gain."""
    sentences = []
    for init, label in INITS.items():
        ours, groups = scores(rows, "tubevit", init, equal), {}
        for variant in DENSE:
            other = scores(rows, variant, init, equal)
            if ours and other:
                groups.setdefault(_compare(ours, other), []).append(DENSE[variant])
        parts = [f"{text} {_listed(names)}" for text, names in groups.items()]
        sentences += [f"- Trained {label}, TubeViT {'; it '.join(parts)}."] if parts else []
    gains = {}
    for variant in LABELS:
        before, after = (scores(rows, variant, init, equal) for init in INITS)
        if before and after:
            gains[variant] = statistics.mean(after) - statistics.mean(before)
    if gains.keys() - {"tubevit"}:
        texts = [f"{round(gain, 1) + 0.0:+.1f} points for {LABELS[variant]}" for variant, gain in gains.items()]
        sentences.append(f"- Starting from the image ViT changes the mean by {_listed(texts)}.")
    return [textwrap.fill(sentence, 120, subsequent_indent="  ") for sentence in sentences]


def _compare(ours: list[float], other: list[float]) -> str:
    if min(ours) > max(other):
        return "is better in every seed than"
    if max(ours) < min(other):
        return "is worse in every seed than"
    better = "higher" if statistics.mean(ours) > statistics.mean(other) else "lower"
    return f"has a {better} mean, but with overlapping ranges, than"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def page(text: str, rows: list[dict]) -> str:
    """Replace the results in the documentation."""
    steps = _listed(list(dict.fromkeys(row["step"] for row in rows if row["variant"] != "vit")) or ["0"])
    lines = [f"Top-1 on the test clips after {steps} steps: the mean of the seeds, and their range.", ""]
    for equal, label in EQUAL.items():
        lines += [f"### With {label}", "", *table(rows, equal), "", *verdict(rows, equal), ""]
    for_vit = [100 * float(row["test_top1"]) for row in rows if row["variant"] == "vit"]
    lines += [f"The image ViTs have {_mean_and_range(for_vit)} on the digits of the test images."]
    return replace(text, BEGIN, lines)


def plot(rows: list[dict]) -> None:
    """Plot the test top-1 of each seed and the means, a panel for each comparison."""
    pyplot = svg_pyplot()
    figure, panels = pyplot.subplots(1, len(EQUAL), figsize=(9, 3.8), sharey=True)
    for axes, (equal, title) in zip(panels, EQUAL.items()):
        for shift, (init, label) in zip((-0.15, 0.15), INITS.items()):
            points = [(i + shift, scores(rows, variant, init, equal)) for i, variant in enumerate(LABELS)]
            places = [x for x, values in points for _ in values]
            marks = axes.plot(places, [each for _, values in points for each in values], "o", alpha=0.6, label=label)
            for x, values in points:
                if values:
                    axes.hlines(statistics.mean(values), x - 0.12, x + 0.12, color=marks[0].get_color(), linewidth=2)
        axes.axhline(100 / CLASSES, color="grey", linestyle="--", label="chance")
        names = [label.removeprefix("the ").replace(" ", "\n", 1) for label in LABELS.values()]
        axes.set_xticks(range(len(LABELS)), names, fontsize=8)
        axes.set(title=title, ylim=(0, 104))
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("test top-1 of 8 motions, %")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/seed_claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run only the cases that contain this text, e.g. tubevit_scratch")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    parser.add_argument("--page", action="store_true", help="only write the page and its figure, from the csv")
    args, overrides = parser.parse_known_args(arguments)
    if args.page:
        rows = read(args.out)
        PAGE.write_text(page(PAGE.read_text(), rows))
        return plot(rows)
    for case in cases():
        for seed in args.seeds:
            done = {tuple(row[key] for key in KEY) for row in read(args.out)}
            if (str(seed), *case) in done or args.only not in "_".join(case):
                continue
            row = run(args.workdir, seed, case, overrides)
            print(row, flush=True)
            rows = [*read(args.out), row]  # another process may run other seeds
            write(args.out, FIELDS, rows)


if __name__ == "__main__":
    main()
