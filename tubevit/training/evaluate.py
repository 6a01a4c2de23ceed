"""Evaluation: logits of every file of a source, and what they are worth."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from tubevit.data.pipeline import Load, evaluation_batches, iterate
from tubevit.models.tubevit import TubeViT


def make_forward(model: TubeViT, head: str) -> Callable:
    """A compiled function (params, pixels) -> logits (B, classes) of one head."""
    graph = nnx.graphdef(model)
    return jax.jit(lambda params, pixels: nnx.merge(graph, params)(pixels, head=head))


def predict_files(
    forward: Callable, params: dict, load: Load, batch_size: int, *, threads: int, workers: int = 0, seed: int = 0
):
    """Logits of every file of a source, in its order.

    Returns:
        (n, classes) float32.
    """
    logits = []
    for batch in iterate(evaluation_batches(load, batch_size, seed), threads, workers):
        logits.append(np.asarray(forward(params, batch["pixels"]))[batch["mask"] > 0])
    return np.concatenate(logits)


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """What logits are worth.

    Args:
        logits: (n, classes).
        labels: (n,) indices, or (n, classes) of 0 and 1.

    Returns:
        `loss` (mean cross-entropy), and shares 0..1: `top1` and `top5` for one label a file (`top5` is None for
        5 classes or fewer), `map` (mean average precision over classes that occur) for several; the others None.
    """
    logits = np.asarray(logits, np.float64)
    if labels.ndim == 2:
        from sklearn.metrics import average_precision_score

        occurring = labels.any(axis=0)
        loss = np.logaddexp(0, logits) - labels * logits
        precision = average_precision_score(labels[:, occurring], logits[:, occurring], average="macro")
        return {"top1": None, "top5": None, "map": float(precision), "loss": float(loss.mean())}
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    # Ties count against the model, so that constant logits score 0 and not 1.
    rank = (logits >= of_label).sum(axis=1) - 1
    log_total = np.logaddexp.reduce(logits, axis=1)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()) if logits.shape[1] > 5 else None,
        "map": None,
        "loss": float((log_total - of_label[:, 0]).mean()),
    }


def evaluation_record(
    forward: Callable,
    params: dict,
    load: Load,
    *,
    name: str,
    head: str,
    batch_size: int,
    threads: int,
    workers: int = 0,
) -> dict:
    """Evaluates one data set; the keys are those of eval.json (less `checkpoint` and `step`)."""
    start = time.perf_counter()
    logits = predict_files(forward, params, load, batch_size, threads=threads, workers=workers)
    source = load.source
    image = source.modality == "image"
    return {
        "dataset": name,
        "source": source.name,
        "head": head,
        "clips_listed": source.listed,
        "clips_found": len(source),
        "clips_used": len(logits),
        "views": "1x1",
        "decoder": "opencv" if image else "pyav",
        "crop": "centre",
        "label_hash": source.label_hash,
        **score(logits, source.labels),
        "seconds": round(time.perf_counter() - start, 2),
    }
