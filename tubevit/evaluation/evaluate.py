"""Evaluation: probabilities of every file of a source, averaged over views, and what they are worth."""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from tubevit import storage
from tubevit.data.pipeline import BatchShards, SampleLoader, evaluation_rows, iterate
from tubevit.data.views import ONE_VIEW, Views
from tubevit.errors import UserError
from tubevit.evaluation.metrics import average_precisions, class_accuracies, confusion_matrix, score
from tubevit.models.abstract import graph_of
from tubevit.models.config import ModelConfig
from tubevit.sharding.mesh import batch_sharding, global_batch, local_part, local_rows, using
from tubevit.windows import TubeBatch


def make_forward(model: ModelConfig, head: str, mesh: Mesh | None = None) -> Callable:
    """A compiled function (params, pixels (B, views, ...)) -> probabilities (B, views, classes) of one head.

    Pixels are clips, images or windows of tubes; probabilities softmax's, or sigmoid's of a head for several labels.
    With a mesh, rows are split over its devices.
    """
    graph, probabilities = graph_of(model), dict(model.heads)[head].probabilities

    def forward(params: dict, pixels: jax.Array | TubeBatch) -> jax.Array:
        rows = jax.tree.leaves(pixels)[0].shape[:2]
        with using(mesh):
            pixels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pixels)
            logits = nnx.merge(graph, params)(pixels, head=head)
        return probabilities(logits).reshape(*rows, -1)

    return jax.jit(forward, out_shardings=None if mesh is None else batch_sharding(mesh))


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for the files of a source.

    Attributes:
        probabilities: (n, classes) float64, the mean over all views.
        used: (n,) bool; False for files that cannot be decoded.
        views: as they were taken: images have one temporal view.
    """

    probabilities: np.ndarray
    used: np.ndarray
    views: Views


def predict_source(
    forward: Callable,
    params: dict,
    load: SampleLoader,
    batch_size: int,
    *,
    views: Views = ONE_VIEW,
    threads: int = 1,
    workers: int = 0,
    seed: int = 0,
    host: BatchShards | None = None,
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Predictions:
    """Probabilities of every file of a source, the mean over its views (the paper does not say of what; section 4).

    Each host takes its rows of every batch, and all get the results of all: every file counts exactly once.

    Args:
        forward: see `make_forward`.
        params: of the model.
        load: of the source.
        batch_size: temporal views in a batch, each with all its spatial ones; rounded up so that it divides over the
            devices of the mesh, or the hosts.
        views: temporal and spatial ones.
        threads, workers: of the loader.
        seed: of the order of shuffled frames.
        host: this process among all, each of which computes its own rows; None asks the mesh, or JAX.
        mesh: of the parameters; all processes compute a batch together.
        progress: what a bar on stderr, if that is a terminal, is called; None shows none.
    """
    views = Views(1, views.spatial) if load.source.modality == "image" else views
    gather = host is None and jax.process_count() > 1
    host = host or (local_rows(mesh) if mesh else BatchShards((jax.process_index(),), jax.process_count()))
    batch_size = -(-batch_size // host.count) * host.count
    rows = evaluation_rows(load, views, batch_size, seed)
    count = len(load.source)
    total, seen = None, np.zeros(count, np.int64)
    batches = iterate(rows, batch_size, shards=host, threads=threads, workers=workers)
    shown = {"desc": progress, "unit": " batches", "file": sys.stderr, "disable": True if progress is None else None}
    for batch in tqdm(batches, total=len(rows) // batch_size, **shown):
        batch = load.batch(batch)
        real = batch["mask"] > 0
        if mesh is None:
            probabilities = np.asarray(forward(params, batch["pixels"]))
        else:
            probabilities = local_part(forward(params, global_batch(batch["pixels"], mesh)))
        probabilities = probabilities.astype(np.float64).sum(axis=1)
        total = np.zeros((count, probabilities.shape[-1])) if total is None else total
        np.add.at(total, batch["file"][real], probabilities[real])
        np.add.at(seen, batch["file"][real], 1)
    if gather:
        # As bytes: JAX would round float64 to float32.
        together = multihost_utils.process_allgather(np.concatenate([total, seen[:, None]], axis=1).view(np.uint8))
        together = np.asarray(together).view(np.float64).sum(axis=0)
        total, seen = together[:, :-1], together[:, -1]
    return Predictions(total / (views.temporal * views.spatial), seen == views.temporal, views)


def evaluation_record(predictions: Predictions, load: SampleLoader, *, name: str, head: str, seconds: float) -> dict:
    """What was measured on one data set; the keys are those of eval.json (less `checkpoint` and `step`).

    Files that cannot be decoded are left out and listed under `broken` with the reason.

    Raises:
        UserError: none can.
    """
    source, used, views = load.source, predictions.used, predictions.views
    if not used.any():
        raise UserError(f"none of the {len(source)} files of {source.name} can be decoded: {load.reason(0, views)}")
    return {
        "dataset": name,
        "source": source.name,
        "head": head,
        "clips_listed": source.listed,
        "clips_found": len(source),
        "clips_used": int(used.sum()),
        "views": str(views),
        "decoder": "opencv" if source.modality == "image" else "pyav",
        "crop": "centre" if views.spatial == 1 else f"{views.spatial} along the longer side",
        "label_hash": source.label_hash,
        **score(predictions.probabilities[used], source.labels[used]),
        "broken": [{"path": source.keys[i], "reason": load.reason(i, views)} for i in np.flatnonzero(~used)],
        "seconds": round(seconds, 2),
    }


def evaluate_source(
    forward: Callable, params: dict, load: SampleLoader, batch_size: int, *, name: str, head: str, **settings
):
    """Predicts and scores one data set.

    Args:
        forward, params, load, batch_size, settings: see `predict_source`.
        name: of the data set.
        head: of the model.

    Returns:
        Its record, see `evaluation_record`, and the predictions.
    """
    start = time.perf_counter()
    predictions = predict_source(forward, params, load, batch_size, **settings)
    seconds = time.perf_counter() - start
    return evaluation_record(predictions, load, name=name, head=head, seconds=seconds), predictions


def write_class_tables(predictions: Predictions, load: SampleLoader, prefix: str) -> list[str]:
    """Writes PREFIX_classes.csv (files and accuracy or average precision of each class) and, for one label a file,
    PREFIX_confusion.csv (rows: labels, columns: most probable class).

    Returns:
        The files written.
    """
    source, used = load.source, predictions.used
    probabilities, labels = predictions.probabilities[used], source.labels[used]
    if source.multi_label:
        counts, name, values = labels.sum(axis=0), "average_precision", average_precisions(probabilities, labels)
    else:
        counts = np.bincount(labels, minlength=len(source.classes))
        name, values = "accuracy", class_accuracies(probabilities, labels)
    each = [
        [label, int(n), "" if np.isnan(value) else round(float(value), 6)]
        for label, n, value in zip(source.classes, counts, values, strict=True)
    ]
    written = [_write_csv(f"{prefix}_classes.csv", [["class", "clips", name], *each])]
    if not source.multi_label:
        matrix = confusion_matrix(probabilities, labels).tolist()
        rows = [[label, *row] for label, row in zip(source.classes, matrix, strict=True)]
        written.append(_write_csv(f"{prefix}_confusion.csv", [["label", *source.classes], *rows]))
    return written


def _write_csv(path: str, rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    storage.write_text(path, text.getvalue())
    return path
