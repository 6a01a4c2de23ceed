"""What frozen features are worth: a linear classifier or nearest neighbours on them, scored on a held-out split."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit.config.experiment import load_for
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import default_head, open_source
from tubevit.errors import UserError
from tubevit.evaluation.evaluate import Predictions, evaluation_record, predict_source
from tubevit.models.abstract import graph_of
from tubevit.models.config import ModelConfig
from tubevit.sharding.mesh import batch_sharding, using
from tubevit.windows import TubeBatch

INVERSE_PENALTY, ITERATIONS = 1.0, 1000
NEIGHBOURS, TEMPERATURE = 20, 0.07
PROBES = {
    "linear": "logistic regression on features with mean 0 and deviation 1 over the training split, "
    f"C = {INVERSE_PENALTY:g}, at most {ITERATIONS} iterations of L-BFGS",
    "knn": f"votes of the {NEIGHBOURS} nearest files of the training split, exp(cosine / {TEMPERATURE}) each",
}


def open_probe(model: ModelConfig, name: str, dataset: ConfigDict, path: str) -> tuple[SampleLoader, SampleLoader]:
    """Opens what a probe learns from, the split `train`, and what it is scored on, the data set's own.

    The classes are those of the source: the model needs no head for them.

    Args:
        model: whose input is loaded.
        name: of the data set.
        dataset: its source, held-out split and, of embedded data, head.
        path: `input.path`.

    Raises:
        UserError: there is no such split, it is not held out, files have several labels, or a label is not among those
            of the training split.
    """
    dataset.head = dataset.head or default_head(dataset.source, name)
    if dataset.split in ("train", "all"):
        raise UserError(f"{name}: a probe is scored on a held-out split, val or test; found {dataset.split!r}")
    train, test = (open_source(dataset.source, split, dataset.head) for split in ("train", dataset.split))
    if train.multi_label or test.multi_label:
        raise UserError(f"{name}: a probe takes one label a file; those of {dataset.source} have several")
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"{name}: a probe needs two classes or more in the training split of {dataset.source}")
    test = test.with_classes(train.classes)
    return load_for(model, train, dataset.augment, path), load_for(model, test, dataset.augment, path)


def make_features(model: ModelConfig, mesh: Mesh | None = None) -> Callable:
    """A compiled function (params, pixels (B, views, ...)) -> pooled features (B, views, D); see `make_forward`."""
    graph = graph_of(model)

    def features(params: dict, pixels: jax.Array | TubeBatch) -> jax.Array:
        rows = jax.tree.leaves(pixels)[0].shape[:2]
        with using(mesh):
            pixels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pixels)
            return nnx.merge(graph, params).features(pixels).reshape(*rows, -1)

    return jax.jit(features, out_shardings=None if mesh is None else batch_sharding(mesh))


def probe_probabilities(
    kind: str, features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, classes: int
) -> np.ndarray:
    """What a probe predicts; see `PROBES`.

    Args:
        kind: `linear` or `knn`.
        features, labels: (n, D) and (n,) of the training split, class indices.
        held_out: (m, D).
        classes: their number; those that do not occur in training get 0.

    Returns:
        (m, classes) float64, rows that sum to 1; the same for the same input.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "linear":
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS))
    else:
        count = min(NEIGHBOURS, len(features))
        votes = lambda distances: np.exp(-distances / TEMPERATURE)  # noqa: E731
        probe = KNeighborsClassifier(count, metric="cosine", weights=votes)
    probe.fit(features, labels)
    probabilities = np.zeros((len(held_out), classes))
    probabilities[:, probe.classes_] = probe.predict_proba(held_out)
    return probabilities


def probe_source(
    kind: str, features: Callable, params: dict, train: SampleLoader, test: SampleLoader, batch_size: int, *,
    name: str, head: str, progress: str | None = None, **settings,
):  # fmt: skip
    """Learns a probe from the features of one split, the mean over views, and scores it on those of another.

    Args:
        kind: `linear` or `knn`.
        features: see `make_features`.
        params: of the model.
        train, test: see `open_probe`.
        batch_size, settings: see `predict_source`.
        name, head: of the data set.
        progress: what the bar is called, see `predict_source`.

    Returns:
        As `evaluate_source`; the record has `probe`, `probe_settings` and `train_clips_used` too.

    Raises:
        UserError: no file of a split can be decoded.
    """
    start = time.perf_counter()
    labelled, held_out = (
        predict_source(
            features, params, load, batch_size, progress=progress and f"{progress}, {part}", **settings
        )  # fmt: skip
        for part, load in (("train", train), ("held out", test))
    )
    used = labelled.used
    if len(np.unique(train.source.labels[used])) < 2:
        raise UserError(f"{name}: a probe needs two classes or more; {used.sum()} training files can be decoded")
    probabilities = probe_probabilities(
        kind, labelled.probabilities[used], train.source.labels[used], held_out.probabilities, len(test.source.classes)
    )
    predictions = Predictions(probabilities, held_out.used, held_out.views)
    record = evaluation_record(predictions, test, name=name, head=head, seconds=time.perf_counter() - start)
    settings = {"probe": kind, "probe_settings": PROBES[kind], "train_clips_used": int(used.sum())}
    return record | settings, predictions
