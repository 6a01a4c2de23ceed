"""Measure how well the recipe of `finetune` learns from few clips, and what other settings would change.

    python benchmarks/finetuning.py --workdir runs/finetuning --sets digits ultrasound=DIR fights=DIR mine=clips.csv
    python benchmarks/finetuning.py --settings recipe scratch scratch+mixup --seeds 0    # a part, or combinations
    python benchmarks/finetuning.py --page                          # writes the tables of docs/finetuning.md

Writes a row of benchmarks/finetuning.csv for each set, setting and seed that was tried, whatever the result. Rows that
are there are not repeated, and interrupted runs resume. `--config.KEY=VALUE` changes all runs. The sets are:

- `digits`: 520 training clips of 26 of the 80 classes of the embedded data, which the seed chooses, and the clips of
  `val` of these classes. The released models were trained on these clips, so that only runs with `init=none` say
  something about learning here: `scratch` and its combinations, such as `scratch+mixup`.
- `ultrasound=DIR`: the clips of lung ultrasound in DIR/pocus_videos, where DIR is the folder data/ of
  https://github.com/nickdnickd/covid19_ultrasound at commit 3414d25e1f0493b521575997ba183e68a5f4a2a4. They have several
  licences, and are for non-commercial use, so that nothing of them is stored here. No medical claim is made. The label
  is the beginning of a file's name. The seed chooses which of four folds is held out; no patient is in two folds.
- `fights=DIR`: 300 clips of surveillance cameras, with and without a fight, where DIR is a copy of
  https://github.com/seymanurakti/fight-detection-surv-dataset at commit ff83b7c521e5ca4eb67a212cc42dbc54f39d6290 (MIT).
  The seed chooses which of four folds is held out; clips that were cut from one video are in one fold. The list names
  two videos for one clip, `nofi022`; it counts for the second.
- `NAME=LIST.csv`: a csv as `finetune` takes it, with its own splits.

Accuracies are top-1 on the held-out clips, of the last checkpoint and of the best one. The latter is chosen on the same
clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import re
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.claims_page import mean_and_range  # noqa: E402
from benchmarks.finetuning_sets import FOLDERS, make_list  # noqa: E402
from benchmarks.results import append, name_known, read, read_metrics, replace, steps_and_seconds  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
PAGE = CSV.parent.parent / "docs/finetuning.md"
BEGIN = "<!-- results: written by benchmarks/finetuning.py -->\n"
KEY = ("set", "setting", "seed")
FIELDS = [*KEY, "clips", "classes", "held_out", "pixels", "last", "best", "steps", "seconds"]
TOP1 = "eval/data/top1"


def _half(steps: int) -> int:
    return max(steps // 2, 1)


def _three_times(value: float) -> float:
    return float(f"{3 * value:.2g}")


AS_SCRATCH = object()  # the value that follows from the data for a run from scratch
# The arguments of the experiment, and keys with a value, `AS_SCRATCH`, or a function of what `resolve` derives.
SETTINGS = {
    "recipe": ("", {}),
    "scratch": ("init=none", {}),
    "short": ("", {"train.steps": _half}),
    "lr_x3": ("", {"optimizer.learning_rate": _three_times}),
    "mixup": ("", {"train.mixup": 0.8}),
    "cutmix": ("", {"train.cutmix": 1.0}),
    "dropout": ("", {"model.dropout": 0.1, "model.stochastic_depth": 0.1}),
    "erasing": ("", {"data.train.data.augment.erasing": 0.25}),
    "speed": ("", {"data.train.data.augment.speed": 1.5}),
    "decay_x3": ("", {"optimizer.weight_decay": _three_times}),
    "no_ema": ("", {"optimizer.ema_decay": 0.0}),
    "adamw": ("", {"optimizer.name": "adamw"}),
    "rate": ("", {"input.fps": AS_SCRATCH}),
}  # fmt: skip
VIEWS = {"views_4x3": "4x3"}  # evaluations of the recipe's checkpoints
LABELS = {
    "recipe": "the recipe", "scratch": "from scratch", "short": "half of the steps",
    "lr_x3": "3 times the learning rate", "mixup": "mixup 0.8", "cutmix": "CutMix 1.0",
    "dropout": "dropout and stochastic depth 0.1", "erasing": "random erasing 0.25", "speed": "speed 1/1.5 to 1.5",
    "decay_x3": "3 times the weight decay", "no_ema": "without averaging parameters", "adamw": "AdamW instead of Muon",
    "rate": "a frame rate for the median video",
    "views_4x3": "the recipe, 4x3 views",
}  # fmt: skip


def reference(setting: str) -> str:
    """Return the setting that another one is compared with: `scratch` for its combinations, else the recipe."""
    return "scratch" if setting.startswith("scratch+") else "recipe"


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a set and a seed.

    Attributes:
        folder: holds a run for each setting and seed.
        data: the csv of the set.
        overrides: keys that differ in all runs; those that a setting changes follow from them.
    """

    folder: pathlib.Path
    data: str
    seed: int
    overrides: dict[str, str]

    def plan(self, setting: str):
        """Return the experiment of a setting, the keys that it changes, and the resolved configuration."""
        from tubevit.config import flatten, load_config
        from tubevit.config.resolve import resolve

        parts = [SETTINGS[part] for part in setting.split("+")]
        quoted = self.data.replace('"', '""')
        spec = ",".join([f'finetune:data="{quoted}"', *(arguments for arguments, _ in parts if arguments)])
        flags = {"seed": str(self.seed), **self.overrides}
        plan = resolve(load_config(spec, flags))
        for _, keys in parts:
            if keys:
                derived = flatten(plan.config)
                for key, value in keys.items():
                    if value is AS_SCRATCH:
                        value = flatten(self.plan("scratch")[2].config)[key]
                    flags[key] = str(value(derived[key]) if callable(value) else value)
                plan = resolve(load_config(spec, flags))
        return spec, flags, plan

    def measure(self, setting: str) -> dict | None:
        """Train or resume a run and return its row; None if the setting changes nothing on this set."""
        from tubevit.cli import main

        run = self.folder / f"{setting}_{self.seed}"
        if setting in VIEWS:
            return self.measure("recipe") | self.evaluate(VIEWS[setting])
        spec, flags, plan = self.plan(setting)
        same_as = reference(setting)
        if setting != same_as and plan.config.to_dict() == self.plan(same_as)[2].config.to_dict():
            return None
        data = (plan.config.data.train.data, plan.config.data.eval.data)
        train, held_out = (plan.open_source(each.source, each.split, each.head, each.allow_overlap) for each in data)
        if train.multi_label:
            raise SystemExit(f"{self.data}: expected one label for each clip, since top-1 is compared; found several")
        flags = {"compilation_cache": str(self.folder.parent.absolute() / "compiled"), **flags}
        arguments = [f"--config.{key}={value}" for key, value in flags.items()]
        if main(["train", "--config", spec, "--workdir", str(run), *arguments]):
            raise SystemExit(f"{run} failed")
        lines, baseline = read_metrics(run), run / "baseline.json"
        steps, seconds = steps_and_seconds(lines)
        found = [line[TOP1] for line in lines if line.get(TOP1) is not None]
        pixels = round(json.loads(baseline.read_text())["top1"], 4) if baseline.exists() else ""
        values = (len(train), len(train.classes), len(held_out), pixels, found[-1], max(found), steps, seconds)
        return dict(zip(FIELDS[len(KEY) :], (round(v, 4) if isinstance(v, float) else v for v in values)))

    def evaluate(self, views: str) -> dict[str, float]:
        """Evaluate the last and the best checkpoint of the recipe with other views."""
        from tubevit.evaluation import EvalOptions, evaluate_checkpoint
        from tubevit.zoo.names import open_checkpoint

        run = self.folder / f"recipe_{self.seed}"
        steps = {"last": None, "best": json.loads((run / "best.json").read_text())["step"]}
        found = {}
        for name, step in steps.items():
            (evaluation,) = evaluate_checkpoint(open_checkpoint(run, step), EvalOptions(views=views))
            found[name] = round(evaluation.record["top1"], 4)
        return found


def percent(rows: list[dict], setting: str, column: str) -> dict[str, float]:
    """Return a column of a setting in percent by seed."""
    return {row["seed"]: 100 * float(row[column]) for row in rows if row["setting"] == setting and row[column]}


def difference(one: dict[str, float], other: dict[str, float]) -> str:
    """Return the mean and the range of the differences in points over the seeds that both have."""
    points = [one[seed] - other[seed] for seed in one if seed in other]
    if not points:
        return "-"
    spread = f" ({min(points):+.1f} to {max(points):+.1f})" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.1f}{spread}"


def describe(setting: str) -> str:
    """Return what a setting is called on the page."""
    return ", ".join(LABELS.get(part, part) for part in setting.split("+"))


def _span(rows: list[dict], column: str) -> str:
    values = sorted({int(row[column]) for row in rows})
    return f"{values[0]:,}" + (f" to {values[-1]:,}" if len(values) > 1 else "")


def table(rows: list[dict]) -> list[str]:
    """Return a table for each set; each row is a setting with the mean and the range over its seeds."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [row for row in rows if row["set"] == name]
        # The clips of settings that change the frame rate differ, and so do their linear models.
        pixels = percent(of_set, "recipe", "pixels") or percent(of_set, of_set[0]["setting"], "pixels")
        grey = f" A linear model of grey pixels: {mean_and_range(list(pixels.values()))} %." if pixels else ""
        clips, classes, held_out = (_span(of_set, column) for column in ("clips", "classes", "held_out"))
        lines += ["", f"**`{name}`**: {clips} training clips of {classes} classes, {held_out} held out.{grey}", ""]
        columns = ("setting", "last, %", "difference", "best, %", "difference", "steps", "minutes", "seeds")
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for setting in dict.fromkeys([*SETTINGS, *VIEWS, *(row["setting"] for row in of_set)]):
            own, cells = [row for row in of_set if row["setting"] == setting], [describe(setting)]
            if not own:
                continue
            for column in ("last", "best"):
                values = percent(of_set, setting, column)
                same = setting == reference(setting)
                compared = "" if same else difference(values, percent(of_set, reference(setting), column))
                cells += [mean_and_range(list(values.values())), compared]
            minutes = statistics.mean(float(row["seconds"]) for row in own) / 60
            cells += [_span(own, "steps"), f"{minutes:.1f}", str(len(own))]
            lines.append(f"| {' | '.join(cells)} |")
    return lines[1:] or ["Not measured yet."]


def page(text: str, rows: list[dict]) -> str:
    """Replace the tables in the documentation."""
    return replace(text, BEGIN, table(rows))


def _setting(text: str) -> str:
    if text not in VIEWS and not set(text.split("+")) <= SETTINGS.keys():
        choices = ", ".join([*SETTINGS, *VIEWS])
        raise argparse.ArgumentTypeError(f"expected one of {choices}, or several joined by +; found {text}")
    return text


def _set(text: str) -> str:
    name, _, where = text.partition("=")
    if not name.isidentifier() or (name == "digits") == bool(where):
        folders = ", ".join(f"{folder}=DIR" for folder in FOLDERS)
        raise argparse.ArgumentTypeError(f"expected digits, {folders} or NAME=LIST.csv; found {text}")
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/finetuning"))
    parser.add_argument("--sets", type=_set, nargs="+", default=["digits"])
    parser.add_argument("--settings", type=_setting, nargs="+", default=[*SETTINGS, *VIEWS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    parser.add_argument("--page", action="store_true", help="write the page from the csv without running anything")
    args, rest = parser.parse_known_args(arguments)
    if args.page:
        PAGE.write_text(page(PAGE.read_text(), read(args.out)))
        return
    for flag in rest:
        if not re.match(r"--config\.[^=]+=", flag):
            parser.error(f"expected --config.KEY=VALUE; found {flag}")
    overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in rest)
    known = 0
    for spec, seed in itertools.product(args.sets, args.seeds):
        name, data = spec.partition("=")[0], None
        for setting in args.settings:
            key = dict(zip(KEY, (name, setting, str(seed))))
            if any(key.items() <= row.items() for row in read(args.out)):
                known += 1
                continue
            data = data or make_list(spec, seed, args.workdir / name)
            measured = Runs(args.workdir / name, data, seed, overrides).measure(setting)
            print(key | (measured or {"same as": reference(setting)}), flush=True)
            if measured:
                append(args.out, FIELDS, key | measured)
    name_known(args.out, known)


if __name__ == "__main__":
    main()
