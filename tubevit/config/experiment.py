"""The data sets of a resolved configuration, opened for its model."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from tubevit.config.config import check_trains
from tubevit.config.keys import InputPath
from tubevit.config.resolve import Resolved
from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader
from tubevit.data.small_copy import small_copy
from tubevit.data.sources import Source, default_head, open_source
from tubevit.data.sources.imagenet import in_index_order
from tubevit.errors import UserError, unknown
from tubevit.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A resolved configuration with its data sets opened.

    Attributes:
        config: the resolved configuration.
        model: the model, with a head for each label set.
        train: {name of a data set: how its files are loaded for training}.
        eval: {name of a data set: how its files are loaded for evaluation}.
    """

    config: ConfigDict
    model: ModelConfig
    train: dict[str, SampleLoader]
    eval: dict[str, SampleLoader]

    @property
    def notes(self) -> list[str]:
        """What the user should know about how the data was read."""
        loads = [*self.train.values(), *self.eval.values()]
        return list(dict.fromkeys(note for load in loads for note in load.source.notes))


def open_experiment(resolved: Resolved) -> Experiment:
    """Open the data sets of a resolved configuration to train on it.

    Raises UserError if there is nothing to train on, or a data set is invalid or does not fit the model.
    """
    config, model, open_source = resolved.config, resolved.model, resolved.open_source
    check_trains(config)
    train = {}
    for name, d in config.data.train.items():
        source = open_source(d.source, d.split, d.head, d.allow_overlap)
        if d.copy_short_side is not None:
            source = small_copy(source, d.split, d.copy_short_side, config.loader.max_broken)
        train[name] = load_for(model, source, d.augment, config.input.path)
    evaluation = {
        name: open_eval(model, name, dataset, config.input.path, open_source)
        for name, dataset in config.data.eval.items()
    }
    return Experiment(config, model, train, evaluation)


def open_eval(
    model: ModelConfig, name: str, dataset: ConfigDict, path: str, open_source: Callable[..., Source] = open_source
) -> SampleLoader:
    """Open a data set of `data.eval` for a model: its labels become the indices of the head's classes.

    Args:
        model: the configuration of the model.
        name: the name of the data set.
        dataset: its keys.
        path: see `InputPath`.
        open_source: opens its source.

    Raises:
        UserError: the model has no such head, the head takes other files (images or videos), a label is not among its
            classes, or files are labelled by name and the head has no class names.
    """
    heads = dict(model.heads)
    dataset.head = dataset.head or default_head(dataset.source, name)
    if dataset.head not in heads:
        raise unknown(f"head of data.eval.{name}", str(dataset.head), heads)
    head = heads[dataset.head]
    source = open_source(dataset.source, dataset.split, dataset.head, dataset.allow_overlap)
    if head.modality not in ("any", source.modality):
        found = f"{source.name} holds {source.modality}s ({source.keys[0]})"
        raise UserError(f"{found}, head {dataset.head} takes {head.modality}s")
    source = in_index_order(source, head.labels or tuple(map(str, range(head.classes))))
    if not head.labels and not all(name.isdecimal() for name in source.classes):
        raise UserError(
            f"{source.name} labels files by name, and head {dataset.head!r} has no class names, so that their order "
            "is not known: label the files by index"
        )
    source = source.with_classes(head.labels or tuple(map(str, range(head.classes))))
    if head.multi_label and not source.multi_label:
        one_hot = np.eye(head.classes, dtype=np.float32)[source.labels]
        source = dataclasses.replace(source, labels=one_hot)
    if source.multi_label and not head.multi_label:
        raise UserError(f"data.eval.{name}: files have several labels each; head {dataset.head!r} is for one")
    return load_for(model, source, dataset.augment, path)


def load_for(model: ModelConfig, source: Source, augment: ConfigDict, path: str) -> SampleLoader:
    """Load the input of a model from a source; `path` is an `InputPath`.

    Raises UserError if the input is too small for a tube, the model takes no images, or there is no such path.
    """
    image = source.modality == "image"
    tubes = model.tubes.for_images() if image else model.tubes
    tubes.grid((1 if image else model.frames, model.size, model.size))
    windows = tubes if InputPath(path) is InputPath.TUBES else None
    return SampleLoader(source, model.frames, model.fps, model.size, Augment(**augment), windows)
