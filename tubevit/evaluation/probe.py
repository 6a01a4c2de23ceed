"""Probes of frozen features, a linear classifier or nearest neighbours, and of pixels, scored on a held-out split."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from tubevit.config.experiment import load_for
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import default_head, open_source
from tubevit.data.sources.splits import training_split
from tubevit.errors import RunError, UserError
from tubevit.evaluation import pixels
from tubevit.evaluation.evaluate import EvalSettings, Predictions, not_finite, predict_source
from tubevit.models.config import ModelConfig

INVERSE_PENALTY, ITERATIONS = 1.0, 1000
NEIGHBOURS, TEMPERATURE = 20, 0.07
_SHOWN = 5  # labels in a message
PROBES = {
    "linear": "logistic regression on features with mean 0 and deviation 1 over the training split, "
    f"C = {INVERSE_PENALTY:g}, at most {ITERATIONS} iterations of L-BFGS",
    "knn": f"votes of the {NEIGHBOURS} nearest files of the training split, exp(cosine / {TEMPERATURE}) each",
    "pixels": pixels.DESCRIPTION,
}


def open_probe(
    kind: str, model: ModelConfig, name: str, dataset: ConfigDict, path: str
) -> tuple[SampleLoader, SampleLoader]:
    """Open the split that a probe is trained on, see `training_split`, and the held-out split of the data set.

    The source gives the classes: the model needs no head for them.

    Args:
        kind: a probe, see `PROBES`.
        model: configuration of the model; `pixels` takes its frames and frame rate only.
        name: name of the data set.
        dataset: its source, held-out split and, for embedded data, head.
        path: `input.path`.

    Raises:
        UserError: a split does not exist or is not held out, files have several labels, or a label does not occur in
            the training split.
    """
    dataset.head = dataset.head or default_head(dataset.source, name)
    training = training_split(dataset.split)
    if training is None:
        raise UserError(f"{name}: a probe is scored on a held-out split, val or test; found {dataset.split!r}")
    train, test = (
        open_source(dataset.source, split, dataset.head, dataset.allow_overlap) for split in (training, dataset.split)
    )
    if train.multi_label or test.multi_label:
        raise UserError(f"{name}: a probe needs one label per file; files of {dataset.source} have several")
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"{name}: a probe needs two classes or more in the training split of {dataset.source}")
    test = test.with_classes(train.classes)
    if unseen := np.setdiff1d(test.labels, train.labels).tolist():
        shown = ", ".join(repr(train.classes[i]) for i in unseen[:_SHOWN]) + (", ..." if len(unseen) > _SHOWN else "")
        raise UserError(
            f"{name}: a probe knows only labels of the training split of {dataset.source}; not there, but in its "
            f"{dataset.split} split: {shown}; add files with them to the training split, or leave theirs out"
        )
    if kind == "pixels":
        train, test = (pixels.load_small(part, model.frames, model.fps) for part in (pixels.some_files(train), test))
        return train, test
    return load_for(model, train, dataset.augment, path), load_for(model, test, dataset.augment, path)


def probe_probabilities(
    kind: str, features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, classes: int
) -> np.ndarray:
    """Train a probe and predict (m, classes) float64, whose rows sum to 1; see `PROBES`. It is deterministic.

    Args:
        kind: a probe, see `PROBES`.
        features, labels: (n, D) features and (n,) class indices of the training split.
        held_out: (m, D) features to predict for.
        classes: number of classes; a class that does not occur in training gets probability 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(held_out), classes))
    if kind == "pixels":
        found, shares = pixels.fit_ridge(features, labels, held_out)
        probabilities[:, found] = shares
        return probabilities
    if kind == "linear":
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS))
    else:
        count = min(NEIGHBOURS, len(features))
        votes = lambda distances: np.exp(-distances / TEMPERATURE)  # noqa: E731
        probe = KNeighborsClassifier(count, metric="cosine", weights=votes)
    probe.fit(features, labels)
    probabilities[:, probe.classes_] = probe.predict_proba(held_out)
    return probabilities


def probe_source(
    kind: str,
    forward: Callable,
    params: dict,
    loads: tuple[SampleLoader, ...],
    batch_size: int,
    settings: EvalSettings,
) -> tuple[Predictions, dict]:
    """Train a probe on the features of one split, averaged over views, and predict the files of another.

    Args:
        kind: a probe, see `PROBES`.
        forward: forward pass that returns features, see `make_forward` and `pixels.grey_values`.
        params: parameters of the model.
        loads: training split and held-out split, see `open_probe`.
        batch_size, settings: see `predict_source`.

    Returns:
        The predictions for the held-out split, and what the record says of the probe. Its `loss` is None where a label
        may have probability 0, which makes the cross-entropy infinite: with neighbours, and where none of the files
        with a label of the held-out split was used to train.

    Raises:
        UserError: fewer than two classes of the training split can be decoded.
        RunError: features are not finite.
    """

    if kind == "pixels":  # it sees whole squares of the frames, however large they are for the model
        settings = dataclasses.replace(settings, views=dataclasses.replace(settings.views, short_side=None))

    def features(load: SampleLoader, part: str) -> Predictions:
        progress = settings.progress and f"{settings.progress}, {part}"
        return predict_source(forward, params, load, batch_size, dataclasses.replace(settings, progress=progress))

    train, test = features(loads[0], "train"), features(loads[1], "held out")
    for load, found in zip(loads, (train, test), strict=True):
        if reason := not_finite(found.probabilities, "features"):
            raise RunError(f"{load.source.name}: {reason}")
    source, used = loads[0].source, train.used
    if len(np.unique(source.labels[used])) < 2:
        raise UserError(f"{source.name}: a probe needs two classes or more; {used.sum()} training files can be decoded")
    probabilities = probe_probabilities(
        kind, train.probabilities[used], source.labels[used], test.probabilities, len(loads[1].source.classes)
    )
    about = {"probe": kind, "probe_settings": PROBES[kind], "train_clips_used": int(used.sum())}
    if kind == "knn" or len(np.setdiff1d(loads[1].source.labels[test.used], source.labels[used])):
        about["loss"] = None
    return Predictions(probabilities, test.used, test.views), about
