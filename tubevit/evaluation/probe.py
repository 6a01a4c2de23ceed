"""What frozen features are worth: a linear classifier or nearest neighbours on them, scored on a held-out split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from tubevit.config.experiment import load_for
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import default_head, open_source
from tubevit.errors import UserError
from tubevit.evaluation.evaluate import EvalSettings, Predictions, predict_source
from tubevit.models.config import ModelConfig

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
    kind: str, forward: Callable, params: dict, loads: tuple[SampleLoader, SampleLoader], batch_size: int,
    settings: EvalSettings = EvalSettings(),
) -> tuple[Predictions, dict]:  # fmt: skip
    """Train a probe on the features of one split, averaged over views, and predict the files of another.

    Args:
        kind: `linear` or `knn`.
        forward: forward pass that returns features, see `make_forward`.
        params: parameters of the model.
        loads: training split and held-out split, see `open_probe`.
        batch_size, settings: see `predict_source`.

    Returns:
        The predictions for the held-out split, and what the record says of the probe.

    Raises:
        UserError: fewer than two classes of the training split can be decoded.
    """
    train, test = (
        predict_source(forward, params, load, batch_size, dataclasses.replace(
            settings, progress=settings.progress and f"{settings.progress}, {part}"))
        for part, load in zip(("train", "held out"), loads, strict=True)
    )  # fmt: skip
    source, used = loads[0].source, train.used
    if len(np.unique(source.labels[used])) < 2:
        raise UserError(f"{source.name}: a probe needs two classes or more; {used.sum()} training files can be decoded")
    probabilities = probe_probabilities(
        kind, train.probabilities[used], source.labels[used], test.probabilities, len(loads[1].source.classes)
    )
    settings = {"probe": kind, "probe_settings": PROBES[kind], "train_clips_used": int(used.sum())}
    return Predictions(probabilities, test.used, test.views), settings
