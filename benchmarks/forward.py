"""Time TubeViT-B on CPU: the whole model, its encoder alone, and the share of the matmul rate that it reaches.

    python benchmarks/forward.py [--peer DIR]      # about 2 minutes on 2 cores

`--peer DIR` also times the public PyTorch TubeViT (a checkout of daniel-code/TubeViT; requires torch) in the same
rounds. The input is one clip of 32x224x224 in float32. Medians of alternating rounds are appended to
benchmarks/forward.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tubevit
from tubevit.models.flops import count_flops

SHAPE = (1, 32, 224, 224, 3)


def seconds(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def peer_forward(folder: str):
    """Return a call of the public PyTorch model for the same clip shape, without its training framework."""
    import sys
    import types

    import torch

    # Only the model classes are needed, not the packages of the trainer and the metrics.
    for name in ("lightning", "lightning.pytorch", "torchmetrics", "torchmetrics.functional"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["lightning.pytorch"].LightningModule = object
    sys.modules["lightning"].pytorch = sys.modules["lightning.pytorch"]
    sys.modules["torchmetrics.functional"].accuracy = sys.modules["torchmetrics.functional"].f1_score = None
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "tubevit"}
    sys.path.insert(0, folder)
    try:
        from tubevit.model import TubeViT
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "tubevit"]:
            del sys.modules[name]
        sys.modules.update(ours)
    model = TubeViT(600, (3, *SHAPE[1:4]), num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072).eval()
    clip = torch.zeros(1, 3, *SHAPE[1:4])

    def forward():
        with torch.inference_mode():
            model(clip)

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a checkout of daniel-code/TubeViT")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    model = tubevit.create_model("tubevit_b16", num_classes=600)
    graph, params = nnx.split(model)
    clip = jnp.asarray(np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8))
    tokens = model.tokenize(clip)[0]
    whole = jax.jit(lambda params, clip: nnx.merge(graph, params)(clip))
    encoder = jax.jit(lambda params, tokens: nnx.merge(graph, params).encoder(tokens))
    square = jnp.ones((2048, 2048))
    matmul = jax.jit(lambda a: a @ a)

    calls = {"clip_to_logits": lambda: whole(params, clip), "encoder": lambda: encoder(params, tokens)}
    if args.peer:
        calls["public_pytorch"] = peer_forward(args.peer)
    for call in (*calls.values(), lambda: matmul(square)):
        seconds(call)
    times = {name: [] for name in calls}
    matmul_times = []
    for i in range(args.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
        if i % max(args.rounds // 5, 1) == 0:
            matmul_times.append(seconds(lambda: matmul(square)))

    result = {f"{name}_ms": round(1e3 * statistics.median(t), 1) for name, t in times.items()}
    rate = 2 * 2048**3 / statistics.median(matmul_times)
    flops = count_flops(model.config, SHAPE[1:4], "default").total
    result["ratio_to_encoder"] = round(result["clip_to_logits_ms"] / result["encoder_ms"], 3)
    result["matmul_gflops"] = round(rate / 1e9, 1)
    result["model_gflop"] = round(flops / 1e9, 1)
    result["share_of_matmul_rate"] = round(flops / (result["clip_to_logits_ms"] / 1e3) / rate, 3)
    for name, value in result.items():
        print(f"{name:24s} {value}")
    record(result)


def record(result: dict) -> None:
    path = pathlib.Path(__file__).with_suffix(".csv")
    row = {"date": datetime.date.today().isoformat(), "jax": jax.__version__, **result}
    fields = ["date", "jax", "clip_to_logits_ms", "encoder_ms", "ratio_to_encoder", "model_gflop",
              "matmul_gflops", "share_of_matmul_rate", "public_pytorch_ms"]  # fmt: skip
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
