"""Evaluation of one data set: predictions for every file, averaged over views, and their scores."""

import csv
import dataclasses
import io
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from tubevit import storage
from tubevit.data.labels import distinct_names
from tubevit.data.pipeline import BatchShards, SampleLoader, evaluation_rows, iterate
from tubevit.data.views import ONE_VIEW, Views
from tubevit.errors import NothingDecoded, RunError
from tubevit.evaluation.metrics import (
    average_precisions,
    class_accuracies,
    confusion_matrix,
    probabilities_of,
    score,
)
from tubevit.sharding.mesh import global_batch, local_part, local_rows

GATHERED = 2**26  # bytes of predictions that processes exchange at a time


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How the files of a data set are loaded and computed.

    Attributes:
        views: the views of a file. Where their logits are averaged, `forward` must return logits.
        threads, workers: threads and worker processes of the loader.
        seed: order of shuffled frames.
        mesh: mesh of the parameters; all processes compute each batch together.
        host: rows that this process computes on its own; None follows from the mesh, or from JAX.
        progress: label of a progress bar on stderr, shown only on a terminal; None shows none.
    """

    views: Views = ONE_VIEW
    threads: int = 1
    workers: int = 0
    seed: int = 0
    mesh: Mesh | None = None
    host: BatchShards | None = None
    progress: str | None = None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for the files of a source.

    Attributes:
        probabilities: (n, classes) float64, from the mean over all views; or (n, D) features.
        used: (n,) bool; False for files that cannot be decoded.
        views: the views that were averaged; images have one temporal view.
    """

    probabilities: np.ndarray
    used: np.ndarray
    views: Views


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result for one data set.

    Attributes:
        record: see `evaluation_record`; `evaluate_checkpoint` adds the rest of what eval.json holds.
        predictions: the predictions for its files.
        load: the loader of its files.
    """

    record: dict
    predictions: Predictions
    load: SampleLoader


def predict_source(
    forward: Callable, params: dict, load: SampleLoader, batch_size: int, settings: EvalSettings = EvalSettings()
) -> Predictions:
    """Predict every file of a source: the mean of its views (the paper does not say of what; section 4).

    Each host computes its rows of every batch and gets the results of all hosts; every file counts exactly once.

    Args:
        forward: see `make_forward`.
        params: parameters of the model.
        load: loader of the source.
        batch_size: temporal views in a batch, each with all its spatial views; rounded up to divide over the devices
            of the mesh, or over the hosts.
        settings: see `EvalSettings`.
    """
    views, mesh, host = settings.views, settings.mesh, settings.host
    if load.source.modality == "image":
        views = dataclasses.replace(views, temporal=1)
    gather = host is None and jax.process_count() > 1
    host = host or (local_rows(mesh) if mesh else BatchShards((jax.process_index(),), jax.process_count()))
    batch_size = -(-batch_size // host.count) * host.count
    rows = evaluation_rows(load, views, batch_size, settings.seed)
    count = len(load.source)
    total, seen = np.zeros((count, 0)), np.zeros(count, np.int64)
    batches = iterate(rows, batch_size, shards=host, threads=settings.threads, workers=settings.workers)
    hidden = True if settings.progress is None else None  # None: shown on a terminal
    for batch in tqdm(
        batches, settings.progress, len(rows) // batch_size, unit=" batches", file=sys.stderr, disable=hidden
    ):
        batch = load.batch(batch)
        real = batch["mask"] > 0
        if mesh is None:
            outputs = np.asarray(forward(params, batch["pixels"]))
        else:
            outputs = local_part(forward(params, global_batch(batch["pixels"], mesh)))
        outputs = outputs.astype(np.float64).sum(axis=1)
        total = total if total.size else np.zeros((count, outputs.shape[-1]))
        np.add.at(total, batch["file"][real], outputs[real])
        np.add.at(seen, batch["file"][real], 1)
    if gather:
        total, seen = sum_over_processes(total, seen)
    mean = total / (views.temporal * views.spatial)
    if views.average == "logits":
        mean = probabilities_of(mean, load.source.multi_label)
    return Predictions(mean, seen == views.temporal, views)


def sum_over_processes(
    total: np.ndarray,
    seen: np.ndarray,
    gather: Callable = multihost_utils.process_allgather,
    limit: int = GATHERED,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the predictions of all processes; every process calls it and gets the same result.

    A process sends only the rows of files that it has seen. All processes together send at most `limit` bytes at a
    time, because a device receives them beside the training state.

    Args:
        total: (n, classes) float64, a row per file.
        seen: (n,) int64, 0 for files that this process has not seen.
        gather: array of a process -> the arrays of all processes, stacked.
        limit: bytes.
    """
    files = np.flatnonzero(seen)
    rows = np.concatenate([files[:, None], seen[files, None], total[files]], axis=1)
    counts = np.asarray(gather(np.array(len(files), np.int32)))
    most = int(counts.max())
    size = min(most, max(1, limit // (len(counts) * rows.itemsize * rows.shape[1])))
    sums, times = np.zeros_like(total), np.zeros_like(seen)
    for begin in range(0, most, size or 1):
        part = rows[begin : begin + size]
        part = np.concatenate([part, np.zeros((size - len(part), rows.shape[1]))])  # a file seen 0 times adds nothing
        for found in np.asarray(gather(part.view(np.uint8))).view(np.float64):  # JAX would round float64 to float32
            index = found[:, 0].astype(int)
            np.add.at(sums, index, found[:, 2:])
            np.add.at(times, index, found[:, 1].astype(int))
    return sums, times


def evaluation_record(predictions: Predictions, load: SampleLoader, *, name: str, head: str, seconds: float) -> dict:
    """Score the predictions for a data set; returns the keys of eval.json that follow from them.

    Files that cannot be decoded do not count, see `broken_files`.

    Raises:
        NothingDecoded: no file can be decoded.
        RunError: predictions are not finite.
    """
    source, used, views = load.source, predictions.used, predictions.views
    if not used.any():
        reason = load.reason(0, views)
        raise NothingDecoded(f"none of the {len(source)} files of {source.name} can be decoded: {reason}")
    if reason := not_finite(predictions.probabilities[used]):
        raise RunError(f"{name}: {reason}")
    return {
        "dataset": name, "source": source.name, "head": head, "clips_listed": source.listed,
        "clips_found": len(source), "clips_used": int(used.sum()), "views": str(views),
        "decoder": "opencv" if source.modality == "image" else "pyav",
        "crop": _crop(views), "average": views.average, "clip_placement": views.placement,
        "label_hash": source.label_hash, **score(predictions.probabilities[used], source.labels[used]),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def not_finite(outputs: np.ndarray, what: str = "predictions") -> str | None:
    """Say how many of n outputs (n, ...) are not finite. None if all of them are."""
    finite = np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))
    if finite.all():
        return None
    return f"{int((~finite).sum())} of {len(outputs)} {what} are not finite: the parameters may be damaged"


def broken_files(predictions: Predictions, load: SampleLoader) -> list[dict[str, str]]:
    """List the files that cannot be decoded as {"path", "reason"}; it decodes each of them again."""
    broken = np.flatnonzero(~predictions.used).tolist()
    return [{"path": load.source.keys[i], "reason": load.reason(i, predictions.views)} for i in broken]


def _crop(views: Views) -> str:
    scaled = "" if views.short_side is None else f", short side {views.short_side}"
    return ("centre" if views.spatial == 1 else f"{views.spatial} along the longer side") + scaled


def failure(name: str, broken: int, files: int, max_broken: float) -> str | None:
    """Say why the score of a data set does not count: too many of its files cannot be decoded. None if it counts."""
    if broken <= max_broken * files:
        return None
    return f"{name}: {broken} of its {files} files are broken, more than loader.max_broken={max_broken:g} allows"


def evaluate_source(
    forward: Callable,
    params: dict,
    load: SampleLoader,
    batch_size: int,
    *,
    name: str,
    head: str,
    settings: EvalSettings = EvalSettings(),
) -> Evaluation:
    """Predict and score one data set.

    Args:
        forward, params, load, batch_size, settings: see `predict_source`.
        name: name of the data set.
        head: name of the head.
    """
    start = time.perf_counter()
    predictions = predict_source(forward, params, load, batch_size, settings)
    seconds = time.perf_counter() - start
    return Evaluation(evaluation_record(predictions, load, name=name, head=head, seconds=seconds), predictions, load)


def write_tables(evaluation: Evaluation, prefix: str) -> list[str]:
    """Write PREFIX_classes.csv: number of files and accuracy, or average precision, of each class. For single labels
    also write PREFIX_confusion.csv: one row per label, one column per predicted class.

    Returns:
        Paths of the files.
    """
    source, predictions = evaluation.load.source, evaluation.predictions
    names = distinct_names(source.classes)
    probabilities, labels = predictions.probabilities[predictions.used], source.labels[predictions.used]
    if source.multi_label:
        counts, name, values = labels.sum(axis=0), "average_precision", average_precisions(probabilities, labels)
    else:
        counts = np.bincount(labels, minlength=len(source.classes))
        name, values = "accuracy", class_accuracies(probabilities, labels)
    each = [
        [label, int(n), "" if np.isnan(value) else round(float(value), 6)]
        for label, n, value in zip(names, counts, values, strict=True)
    ]
    written = [_write_csv(f"{prefix}_classes.csv", [["class", "clips", name], *each])]
    if not source.multi_label:
        matrix = confusion_matrix(probabilities, labels).tolist()
        rows = [[label, *row] for label, row in zip(names, matrix, strict=True)]
        written.append(_write_csv(f"{prefix}_confusion.csv", [["label", *names], *rows]))
    return written


def _write_csv(path: str, rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    storage.write_text(path, text.getvalue())
    return path
