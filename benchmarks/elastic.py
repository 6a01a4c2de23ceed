"""Train one model for all budgets of tokens, and one for each budget alone, on the embedded data; compare them.

    python benchmarks/elastic.py --workdir runs/elastic [--seeds 0]
    python benchmarks/elastic.py --speed
    python benchmarks/elastic_page.py       # writes the table and the figure (extra `plot`)

All are trained as experiments/quickstart.py says, with 4,000 steps. `alone_N` has N % of the tokens in every step,
drawn at random below 100 %. Every step of `elastic` trains the model on the labels with all tokens, and on its own
predictions with one of the smaller budgets. Each model has a row of benchmarks/elastic.csv for each budget and rule of
evaluation. Rows that are there are not repeated, and interrupted runs resume.

Accuracies are top-1 of 80 classes (digit x motion) on 900 clips of `val` and of `test`, and of 10 digits on 450 images,
for which `motion` and `tube` are `even`. With --speed, the parts of a prediction are timed instead, which gives
benchmarks/elastic_speed.csv: clips of 16x64x64 or images of 64x64 in memory to windows on the host (`input`, one
thread) and windows to features (`forward`, batches of 32).
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import append, name_known, read, read_metrics, steps_and_seconds, write  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
SPEED = CSV.with_stem("elastic_speed")
SPLITS = ("val", "test")
SHARES = (25, 50, 75, 100)
RULES = ("even", "tube", "motion", "random")
ALL = ",".join(f"{share}%" for share in SHARES)
VARIANTS = {"elastic": ALL} | {f"alone_{share}": f"{share}%" for share in SHARES}
KEY = ("variant", "seed", "budget")
FIELDS = [
    *KEY, "step", *(f"{kind}_{split}" for kind in ("clips", "images") for split in SPLITS), "tokens", "clip_gflop",
    "clip_bytes", "seconds",
]  # fmt: skip
STEPS = 4000
TIMES, BATCH = 15, 32


def budgets_of(variant: str) -> list[str]:
    """Return the budgets that a variant is evaluated with: all rules, but one for all tokens."""
    shares = SHARES if variant == "elastic" else (int(variant.rpartition("_")[2]),)
    return [f"{share}%:{rule}" for share in shares for rule in (RULES if share < 100 else RULES[:1])]


def train(variant: str, seed: int, folder: pathlib.Path, overrides: list[str]) -> pathlib.Path:
    """Train a run, or resume it."""
    from tubevit.cli import main

    run = folder / f"{variant}_{seed}"
    settings = [f"--config.compilation_cache={folder.absolute()}/compiled", *overrides]
    settings += [] if variant.endswith("_100") else [f"--config.train.elastic={VARIANTS[variant]}"]
    if main(["train", "--config", f"quickstart:seed={seed},steps={STEPS}", "--workdir", str(run), *settings]):
        raise SystemExit(f"{run} failed")
    return run


def measure(run: pathlib.Path, budget: str) -> dict:
    """Evaluate a run with a budget on clips and images of `val` and `test`, and count what a clip costs."""
    from tubevit.evaluation import EvalOptions, evaluate_checkpoint

    tokens, gflop, size = costs(run, budget)
    found = {"tokens": tokens, "clip_gflop": gflop, "clip_bytes": size}
    for kind, source, head in (("clips", "moving_digits", "digit_motion"), ("images", "still_digits", "digit")):
        for split in SPLITS:
            options = EvalOptions(data=source, head=head, split=split, batch_size=50, budget=budget)
            (evaluation,) = evaluate_checkpoint(run, options)
            found[f"{kind}_{split}"] = round(evaluation.record["top1"], 4)
    return found


def costs(name: str | pathlib.Path, budget: str, kind: str = "clip") -> tuple[int, float, int]:
    """Count tokens, GFLOP of the forward pass and bytes sent to the device, of a `clip` or an `image`."""
    from tubevit.models.flops import count_flops, num_tokens
    from tubevit.zoo.describe import sent_bytes
    from tubevit.zoo.names import named_config

    model = named_config(name, budget=budget)
    shape = model.shape if kind == "clip" else (1, *model.shape[1:])
    gflop = count_flops(model, shape).total / 1e9
    return num_tokens(model, shape), round(gflop, 4), sent_bytes(model.tubes, model.shape)[kind]["tubes"]


def speed() -> list[dict]:
    """Time input and forward pass of all budgets in turns; return medians as clips or images per second."""
    import jax
    import numpy as np
    from flax import nnx

    import tubevit

    base = tubevit.create_model("tubevit_nano8", num_classes=0)
    pixels = {"clip": np.random.default_rng(0).integers(0, 256, (BATCH, *base.config.shape, 3), np.uint8)}
    pixels["image"] = pixels["clip"][:, 0]
    graph, params, rest = nnx.split(base, nnx.Param, ...)
    cases = [("clip", budget) for budget in budgets_of("elastic")]
    cases += [("image", budget) for _, budget in cases if budget.rpartition(":")[2] in ("even", "random")]
    functions = {}
    for kind, budget in cases:
        model = tubevit.create_model("tubevit_nano8", num_classes=0, budget=budget)
        own = nnx.graphdef(model)
        forward = jax.jit(lambda params, windows, own=own: nnx.merge(own, params, rest)(windows))
        take = functools.partial(tubevit.take_windows, pixels[kind], model.config.tubes)
        functions[kind, budget, "input"] = take
        functions[kind, budget, "forward"] = functools.partial(forward, params, take())
    seconds = {key: [] for key in functions}
    for _ in range(1 + TIMES):  # the first compiles
        for key, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[key].append(time.perf_counter() - start)
    per_second = {key: round(BATCH / statistics.median(times[1:])) for key, times in seconds.items()}
    return [
        {"kind": kind, "budget": budget}
        | dict(zip(("tokens", "gflop", "bytes"), costs("tubevit_nano8", budget, kind)))
        | {f"{part}_per_s": per_second[kind, budget, part] for part in ("input", "forward")}
        for kind, budget in cases
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/elastic"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    parser.add_argument("--speed", action="store_true", help="time all budgets, without training")
    args, overrides = parser.parse_known_args(arguments)
    if wrong := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unknown flags {' '.join(wrong)}; --config.KEY=VALUE changes all runs")
    if args.speed:
        rows = speed()
        return write(SPEED if args.out == CSV else args.out, list(rows[0]), rows)
    known = 0
    for seed in args.seeds:
        for variant in args.only:
            done = [tuple(row[key] for key in KEY) for row in read(args.out)]
            budgets = [each for each in budgets_of(variant) if (variant, str(seed), each) not in done]
            known += len(budgets_of(variant)) - len(budgets)
            if budgets:
                run = train(variant, seed, args.workdir, overrides)
                steps, seconds = steps_and_seconds(read_metrics(run))
            for budget in budgets:
                row = {"variant": variant, "seed": seed, "budget": budget, "step": steps, "seconds": seconds}
                row |= measure(run, budget)
                print(row, flush=True)
                append(args.out, FIELDS, row)
    name_known(args.out, known)


if __name__ == "__main__":
    main()
