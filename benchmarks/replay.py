"""What a replayed step costs: seconds of the processor and memory, beside those of a normal step.

    python benchmarks/replay.py                # one device, and a few minutes
    python benchmarks/replay.py --devices 8    # eight fake devices, whose programs run on the same processor

The step is that of the experiment `quickstart` (tubevit_nano8) on random pixels. Seconds are those of the processor, so
that other work on the machine counts less; the median of several steps. Rows are put into benchmarks/replay.csv.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
CSV = ROOT / "benchmarks/replay.csv"
EVERY = 100


def measure(devices: int, steps: int) -> dict:
    """A row of the csv."""
    import jax
    import numpy as np

    from tubevit.config import load_config
    from tubevit.config.resolve import resolve
    from tubevit.models.lora import training_graph
    from tubevit.sharding.mesh import global_batch, make_mesh
    from tubevit.sharding.rules import shardings
    from tubevit.training.optimizer import make_optimizer
    from tubevit.training.run.replay import Replay
    from tubevit.training.step import initial_state, make_step

    resolved = resolve(load_config("quickstart", {"mesh.data": str(devices), "input.path": "dense"}))
    config, model = resolved.config, resolved.model
    mesh, optimizer, rng = make_mesh(config.mesh), make_optimizer(config), np.random.default_rng(0)
    inputs = {}
    for name, dataset in config.data.train.items():
        head = dict(model.heads)[dataset.head]
        frames = (model.frames,) if head.modality == "video" else ()
        shape = (dataset.batch_size, *frames, model.size, model.size, 3)
        labels = rng.integers(head.classes, size=dataset.batch_size, dtype=np.int32)
        inputs[name] = {"pixels": rng.integers(256, size=shape, dtype=np.uint8), "label": labels}
    make = functools.partial(initial_state, model, optimizer, 0)
    state = jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()
    making = functools.partial(make_step, training_graph(model), optimizer, config)
    normal, checked = making(mesh), functools.partial(making, checked=True)
    replay, batch = Replay(EVERY, mesh, checked, global_batch), global_batch(inputs, mesh)
    held = [memory(step.lower(state, batch).compile()) for step in (normal, checked(mesh))]
    seconds: dict[str, list[float]] = {"normal": [], "replayed": []}
    for number in range(2 * steps + 2):  # the first of each compiles
        kind = "replayed" if number % 2 else "normal"
        begin = time.process_time()
        state, metrics = replay(number, state, batch, inputs) if number % 2 else normal(state, batch)
        jax.block_until_ready((state, metrics))
        seconds[kind] += [time.process_time() - begin] if number > 1 else []
    one, two = (statistics.median(seconds[kind]) for kind in ("normal", "replayed"))
    return {"devices": devices, "step_s": round(one, 3), "replayed_s": round(two, 3), "ratio": round(two / one, 2),
            "percent_at_100": round(100 * (two - one) / one / EVERY, 2), "step_mb": round(held[0] / 1e6, 1),
            "replayed_mb": round(held[1] / 1e6, 1)}  # fmt: skip


def memory(compiled) -> int:
    """Bytes that a program needs on a device: arguments, results and what is in between."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of each kind")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={args.devices}"
    found = measure(args.devices, args.steps)
    print(found)
    rows = {found["devices"]: found}
    if CSV.exists():
        with CSV.open() as file:
            rows = {int(row["devices"]): row for row in csv.DictReader(file)} | rows
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


if __name__ == "__main__":
    main()
