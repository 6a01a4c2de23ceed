"""What a configuration stands for: opened data sets, heads that follow from them, the model."""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from tubevit.config import model_fields
from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import default_head, open_source
from tubevit.errors import UserError, unknown
from tubevit.models.config import Head, ModelConfig
from tubevit.models.variants import model_config


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with its data sets opened.

    Attributes:
        config: resolved: every data set names its head.
        model: with a head for each label set.
        train, eval: how the files of each data set are loaded, by its name.
    """

    config: ConfigDict
    model: ModelConfig
    train: dict[str, SampleLoader]
    eval: dict[str, SampleLoader]

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the data was read."""
        loads = [*self.train.values(), *self.eval.values()]
        return list(dict.fromkeys(note for load in loads for note in load.source.notes))


def open_experiment(config: ConfigDict) -> Experiment:
    """Opens the data sets of a configuration and derives heads and model.

    Raises:
        UserError: a source or the model is not valid, or data sets that share a head have different labels.
    """
    config = config.copy_and_resolve_references()
    heads: dict[str, Head] = {}
    sources = {}
    for name, dataset in config.data.train.items():
        dataset.head = dataset.head or default_head(dataset.source, name)
        source = open_source(dataset.source, dataset.split, dataset.head)
        head = Head(len(source.classes), source.modality, source.classes, source.multi_label)
        if heads.setdefault(dataset.head, head) != head:
            raise UserError(
                f"data.train.{name}: its labels differ from those of another data set of head {dataset.head!r}"
            )
        sources[name] = source
    model = model_config(**model_fields(config), heads=heads)
    train = {
        name: load_for(model, source, config.data.train[name].augment, config.input.path)
        for name, source in sources.items()
    }
    evaluation = {}
    for name, dataset in config.data.eval.items():
        if name in config.data.train:
            dataset.head = dataset.head or config.data.train[name].head
        evaluation[name] = open_eval(model, name, dataset, config.input.path)
    return Experiment(config, model, train, evaluation)


def open_eval(model: ModelConfig, name: str, dataset: ConfigDict, path: str) -> SampleLoader:
    """Opens a data set of `data.eval` for a model: its labels become the indices of the head's classes.

    Raises:
        UserError: the model has no such head, or a label is not among its classes.
    """
    heads = dict(model.heads)
    dataset.head = dataset.head or default_head(dataset.source, name)
    if dataset.head not in heads:
        raise unknown(f"head of data.eval.{name}", str(dataset.head), heads)
    head = heads[dataset.head]
    # The embedded data has several label sets and is told which; other sources have one.
    source = open_source(dataset.source, dataset.split, dataset.head)
    classes = head.labels or tuple(map(str, range(head.classes)))
    source = source.with_classes(classes)
    if head.multi_label and not source.multi_label:
        one_hot = np.eye(head.classes, dtype=np.float32)[source.labels]
        source = dataclasses.replace(source, labels=one_hot)
    if source.multi_label and not head.multi_label:
        raise UserError(f"data.eval.{name}: files have several labels each; head {dataset.head!r} is for one")
    return load_for(model, source, dataset.augment, path)


def load_for(model: ModelConfig, source, augment: ConfigDict, path: str) -> SampleLoader:
    """How a model's input is loaded from a source; `path` is `input.path`.

    Raises:
        UserError: the input is too small for a tube, or the model takes no images.
    """
    image = source.modality == "image"
    tubes = model.tubes.for_images() if image else model.tubes
    tubes.grid((1 if image else model.frames, model.size, model.size))
    windows = tubes if path == "tubes" else None
    return SampleLoader(source, model.frames, model.fps, model.size, Augment(**augment), windows)
