"""Compare a training step of bootstrapped models with frozen blocks (section 3.6) to full fine-tuning.

    python benchmarks/bootstrap_step.py [--count] [--time]     # both: about 10 minutes on 2 cores, 8 GB

`--count` compiles a step of ViT-H (32 blocks) with the tubes of TubeViT-B for CPU, on one clip of 32x224x224 in
float32, and reports XLA's count of floating-point operations and the memory. All blocks are unrolled so that each is
counted. Nothing is run. `--time` measures a reduced size on this machine and reports medians of alternating rounds.
Rows are appended to benchmarks/bootstrap_step.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp

from tubevit.config import dataset_config, default_config
from tubevit.models.config import Head, Lora, ModelConfig
from tubevit.models.flops import count, training_flops
from tubevit.models.lora import training_graph
from tubevit.models.variants import model_config
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state, make_step
from tubevit.transfer.small_to_large import bootstrapped_config

ROWS = {
    "full": (None, False, None),
    "lora_16": (None, False, Lora(16)),
    "last_8_gate": (8, True, None),
    "last_8": (8, False, None),
    "last_4": (4, False, None),
    "last_fc": (0, False, None),
}
FIELDS = [
    "date", "jax", "what", "row", "trainable_share", "gflop_xla", "gflop_formula", "share_of_full", "state_mib",
    "temporaries_mib", "step_s",
]  # fmt: skip


def step_of(base: ModelConfig, row: str, batch: int):
    """Build a training step; return the jitted step, a function that creates its state, the batch and the model."""
    trained, gate, lora = ROWS[row]
    frozen = 0 if trained is None else base.depth - trained
    heads, gated = (("k600", Head(600, "video")),), frozen if gate else None
    model = dataclasses.replace(base, heads=heads, freeze_below=frozen, gate_layer=gated, lora=lora)
    config = default_config()
    config.data.train.clips = dataset_config(source="clips", head="k600", batch_size=batch)
    optimizer = make_optimizer(config)
    graph = training_graph(model)
    clips = {"pixels": jnp.zeros((batch, *model.shape, 3), jnp.uint8), "label": jnp.zeros(batch, jnp.int32)}
    return make_step(graph, optimizer, config), lambda: initial_state(model, optimizer, 0), {"clips": clips}, model


def figures(base: ModelConfig, row: str, batch: int) -> dict:
    """Count operations and bytes for one row, from abstract values."""
    step, make, clips, model = step_of(dataclasses.replace(base, scan=False), row, batch)
    state = jax.eval_shape(make)
    # Optimising the machine code would take minutes and would not change the operations.
    compiled = step.lower(state, clips).compile({"xla_backend_optimization_level": 0})
    trained, frozen = count(state["params"]), count(state["frozen"])
    memory = compiled.memory_analysis()
    return {
        "row": row,
        "trainable_share": round(trained / (trained + frozen), 4),
        "gflop_xla": float(f"{compiled.cost_analysis()['flops'] / 1e9:.5g}"),
        "gflop_formula": float(f"{batch * training_flops(model, model.shape, 'k600') / 1e9:.5g}"),
        "state_mib": round(4 * (count(state["opt_state"]) + 2 * trained + frozen) / 2**20),
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20),
    }


def times(base: ModelConfig, rows, batch: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step for each row, measured in alternating rounds."""
    runs = {}
    for row in rows:
        step, make, clips, _ = step_of(base, row, batch)
        state, _ = step(jax.jit(make)(), clips)
        runs[row] = [step, state, clips, []]
    for _ in range(rounds):
        for run in runs.values():
            step, state, clips, spent = run
            start = time.perf_counter()
            run[1] = jax.block_until_ready(step(state, clips)[0])
            spent.append(time.perf_counter() - start)
    return {row: statistics.median(run[3]) for row, run in runs.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4, help="clips per timed step")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--width", type=int, default=256, help="width of the model in the timed steps")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", default=str(pathlib.Path(__file__).with_suffix(".csv")))
    args = parser.parse_args(arguments)
    rows = []
    if args.count or not args.time:
        large = bootstrapped_config(model_config("tubevit_b16"), model_config("vit_h16", depth=args.depth))
        rows += [{"what": "ViT-H, 1 clip, counted"} | figures(large, row, 1) for row in args.rows]
    if args.time or not args.count:
        sizes = dict(width=args.width, num_heads=4, mlp_dim=4 * args.width, depth=args.depth)
        small = model_config("tubevit_nano8", width=args.width // 2, num_heads=4)
        base = bootstrapped_config(small, model_config("vit_nano8", **sizes))
        what = f"{args.depth} blocks, {args.width} wide, {args.batch} clips of {'x'.join(map(str, base.shape))}, timed"
        spent = times(base, args.rows, args.batch, args.rounds)
        rows += [{"what": what, "step_s": round(spent[row], 4)} | figures(base, row, args.batch) for row in args.rows]
    for row in rows:
        whole = next(other for other in rows if other["what"] == row["what"] and other["row"] == args.rows[0])
        measure = "step_s" if "step_s" in row else "gflop_xla"
        row["share_of_full"] = round(row[measure] / whole[measure], 3)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    record(rows, pathlib.Path(args.out))


def record(rows: list[dict], path: pathlib.Path) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows({"date": datetime.date.today().isoformat(), "jax": jax.__version__, **row} for row in rows)


if __name__ == "__main__":
    main()
