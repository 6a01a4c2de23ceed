"""Test the paper's claims on the embedded data.

    python benchmarks/claims.py --workdir runs/claims [--only 2] [--seeds 0] [--out runs/claims.csv]
    python benchmarks/claims_page.py        # writes the page, its figure and the table of README.md (extra `plot`)

Trains the variants of experiments/claims.py and the stages of experiments/digits_bootstrap.py, and writes a row of
benchmarks/claims.csv for each variant and seed. Rows that are there are not repeated, and interrupted runs resume.
Another `--out`, with a `--workdir` without runs, measures them again; `claims_page.py --csv` shows its table. The
variants have the schedule that was chosen on `val` with `joint`, the stages that of their experiment; none was tuned.
`--config.KEY=VALUE` changes all runs.

Accuracies are top-1 of 80 classes (digit x motion) on 900 clips of `val` and of `test`, and of 10 digits on 450 images.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import append, name_known, read, read_metrics, steps_and_seconds  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
SPLITS = ("val", "test")
KEY = ("variant", "seed")
FIELDS = [
    *KEY, "step", *(f"{kind}_{split}" for kind in ("clips", "images") for split in SPLITS), "step_gflop", "parameters",
    "seconds",
]  # fmt: skip
STAGES = ("vit", "last_fc", "last", "gate", "lora", "full", "scratch")
STAGE_STEPS = 600
# Stages that train more per step, with the steps that take as many FLOPs as the stage `gate`.
EQUAL = {"full_equal": "full", "scratch_equal": "scratch"}
# The small model alone, on as many clips as it and a stage have in turn.
TWICE = "joint_twice"
DENSE = ("dense", "vivit", "timesformer", "factorised")
# Evaluations of `no_s2d` with smaller strides, by their number of tokens: positions are fixed, so that it takes any.
# With space-to-depth, the parts of a token would move closer together as well.
DENSER = {
    "tokens_240": "4x4x4/8x16x16_8x2x2/3x16x16+2x4x4_2x6x6/8x16x16+0x8x8_1x8x8/8x8x8",
    "tokens_304": "4x4x4/4x16x16_8x2x2/3x16x16+2x4x4_2x6x6/4x16x16+0x8x8_1x8x8/8x8x8",
    "tokens_643": "4x4x4/8x8x8_8x2x2/3x8x8+2x4x4_2x6x6/8x8x8+0x8x8_1x8x8/16x4x4",
}
VIEWS = {"views_2x1": "2x1", "views_4x1": "4x1"}
CLAIMS = {
    1: ("joint", "two_stage", "video", "images"),
    2: ("joint", "learned", "no_position", "no_stride"),
    3: ("joint", "tubes_1", "tubes_2", "tubes_3"),
    4: ("joint", "no_s2d"),
    5: ("joint", "no_s2d", "interpolated"),
    6: ("no_s2d", *DENSER, "half_clip", *VIEWS),
    7: ("two_stage", "added_1", "added_2", "added_3"),
    8: ("joint", TWICE, *STAGES, *EQUAL),
    9: ("joint", "video", *DENSE),
}
BEFORE = (
    {"two_stage": ("images",)} | {f"added_{n}": ("images",) for n in (1, 2, 3)}
    | dict.fromkeys(DENSER, ("no_s2d",)) | dict.fromkeys(VIEWS, ("half_clip",))
    | dict.fromkeys(STAGES[1:], ("joint", "vit")) | dict.fromkeys(EQUAL, ("joint", "vit"))
    | dict.fromkeys(DENSE, ("joint",))
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a seed, and how they are trained.

    Attributes:
        folder: holds a run for each variant and seed.
        overrides: flags for all runs that are trained.
    """

    folder: pathlib.Path
    seed: int
    overrides: tuple[str, ...] = ()

    def path(self, variant: str) -> pathlib.Path:
        """Return the folder of a run."""
        return self.folder / f"{variant}_{self.seed}"

    def measure(self, variant: str) -> dict:
        """Train a variant, and what it begins from, unless that is done; return its row."""
        self.prepare(variant)
        run, row = self.path(variant), {"variant": variant, "seed": self.seed, "step": 0}
        if variant in VIEWS:
            return row | accuracies(self.path(BEFORE[variant][0]), views=VIEWS[variant])
        if variant in DENSER:
            return row | accuracies(run, like=self.path(BEFORE[variant][0]))
        steps, seconds = steps_and_seconds(read_metrics(run))
        return row | {"step": steps, "seconds": seconds, **step_costs(run), **accuracies(run)}

    def prepare(self, variant: str) -> None:
        """Make the run of a variant, and those that it begins from, unless they are there."""
        import tubevit

        for other in BEFORE.get(variant, ()):
            self.prepare(other)
        stage = EQUAL.get(variant, variant)
        if variant in DENSER and not self.path(variant).exists():
            trained = tubevit.load_model(self.path(BEFORE[variant][0]), tubes=DENSER[variant])
            tubevit.save_model(trained, self.path(variant))
        elif variant == "vit":
            self.train(variant, "digits_bootstrap:stage=vit")
        elif stage in STAGES:
            steps = STAGE_STEPS
            if variant in EQUAL:
                steps = round(steps * self.stage_gflop("gate") / self.stage_gflop(stage))
            self.train(variant, f"digits_bootstrap:stage={stage},steps={steps},{self.starts}")
        elif variant == TWICE:
            self.train(variant, f"claims:variant=joint,steps={2 * STAGE_STEPS}")
        elif variant in DENSE:
            clips = clips_of_equal_flops(variant, step_costs(self.path("joint"))["step_gflop"])
            self.train(variant, f"claims:variant={variant},clip_batch={clips}")
        elif variant not in (*DENSER, *VIEWS):
            self.train(variant, f"claims:variant={variant},runs={self.folder}")

    def train(self, variant: str, spec: str) -> None:
        """Train a run, or resume it."""
        from tubevit.cli import main

        run, cache = self.path(variant), f"--config.compilation_cache={self.folder.absolute()}/compiled"
        if main(["train", "--config", f"{spec},seed={self.seed}", "--workdir", str(run), cache, *self.overrides]):
            raise SystemExit(f"{run} failed")

    @property
    def starts(self) -> str:
        """The arguments of digits_bootstrap that name what the large model comes from."""
        return f"small={self.path('joint')},large={self.path('vit')}"

    def stage_gflop(self, stage: str) -> float:
        """Return the GFLOP of a step of a stage that need not have run."""
        return _planned_gflop(f"digits_bootstrap:stage={stage},{self.starts}")


def accuracies(run: pathlib.Path, like: pathlib.Path | None = None, **options) -> dict[str, float]:
    """Evaluate a checkpoint on `val` and `test` of the data that it was trained on, or of another run's."""
    from tubevit.evaluation import EvalOptions, evaluate_checkpoint
    from tubevit.zoo.names import open_checkpoint

    found = {}
    for name, data in open_checkpoint(like or run).experiment["data"]["eval"].items():
        chosen = {key: data[key] for key in ("head", "batch_size")} | {"data": data["source"]} | options
        for split in SPLITS:
            (evaluation,) = evaluate_checkpoint(run, EvalOptions(split=split, **chosen))
            found[f"{name}_{split}"] = round(evaluation.record["top1"], 4)
    return found


def clips_of_equal_flops(variant: str, gflop: float) -> int:
    """Return how many clips of a dense model take `gflop` in a training step."""
    return round(gflop / _planned_gflop(f"claims:variant={variant},clip_batch=1"))


def step_costs(run: pathlib.Path) -> dict:
    """Count the GFLOP of a training step of a run, and the parameters of its model."""
    from tubevit.models.flops import count_parameters
    from tubevit.zoo.names import open_checkpoint

    checkpoint = open_checkpoint(run)
    gflop = _gflop(checkpoint.model, checkpoint.experiment["data"]["train"])
    return {"step_gflop": round(gflop, 3), "parameters": count_parameters(checkpoint.model)}


def _planned_gflop(spec: str) -> float:
    from tubevit.config import load_config
    from tubevit.config.resolve import resolve

    plan = resolve(load_config(spec))
    return _gflop(plan.model, plan.config.data.train)


def _gflop(model, datasets) -> float:
    from tubevit.models.flops import training_flops

    total = 0
    for name, data in datasets.items():
        shape = model.shape if name == "clips" else (1, *model.shape[1:])
        total += data["batch_size"] * training_flops(model, shape, data["head"])
    return total / 1e9


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", type=int, nargs="+", choices=CLAIMS, default=list(CLAIMS), help="numbers of claims")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    args, overrides = parser.parse_known_args(arguments)
    if wrong := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unknown flags {' '.join(wrong)}; --config.KEY=VALUE changes all runs")
    variants = dict.fromkeys(variant for claim in args.only for variant in CLAIMS[claim])
    known = 0
    for seed in args.seeds:
        runs = Runs(args.workdir, seed, tuple(overrides))
        for variant in variants:
            if any((row["variant"], row["seed"]) == (variant, str(seed)) for row in read(args.out)):
                known += 1
                continue
            row = runs.measure(variant)
            print(row, flush=True)
            append(args.out, FIELDS, row)
    name_known(args.out, known)


if __name__ == "__main__":
    main()
