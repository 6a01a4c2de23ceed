"""What a configuration comes to: the keys that follow from data and checkpoints, the heads, the model."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Self

from ml_collections import ConfigDict

from tubevit.config.config import locked, model_fields
from tubevit.config.derive import apply_recipe
from tubevit.config.keys import InputPath
from tubevit.data import sources
from tubevit.data.sources import Source, default_head
from tubevit.data.views import Views
from tubevit.errors import StorageError, UserError, unknown
from tubevit.models.config import Head, ModelConfig
from tubevit.models.elastic import elastic_models
from tubevit.models.variants import model_config
from tubevit.sharding.hosts import run_on_main

_ASSUMED_CLASSES = 600


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A configuration in which everything that follows from data and checkpoints is filled in.

    Attributes:
        config: the configuration; every data set names its head.
        model: the model, with a head for each label set.
        notes: lines for the user: what was derived and what was assumed.
        decoding: median time to decode a clip, in seconds, where files were looked at.
        open_source: opens a source; those that were opened to resolve the configuration are not listed again.
    """

    config: ConfigDict
    model: ModelConfig
    notes: tuple[str, ...] = ()
    decoding: float | None = None
    open_source: Callable[..., Source] = dataclasses.field(default=sources.open_source, repr=False, compare=False)

    def to_json(self) -> str:
        """Return all but the opened sources as a text for `from_json`."""
        heads = [(name, dataclasses.asdict(head)) for name, head in self.model.heads]
        fields = {"config": self.config.to_dict(), "heads": heads, "notes": self.notes, "decoding": self.decoding}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, for example in another process."""
        tuples = lambda values: {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}  # noqa: E731
        fields = json.loads(text, object_hook=tuples)
        config = locked(ConfigDict(fields["config"]))
        model = model_config(**model_fields(config), heads=dict(fields["heads"]))
        return cls(config, model, fields["notes"], fields["decoding"])


def resolve(config: ConfigDict, *, assume_missing: bool = False) -> Resolved:
    """Fill in what follows from data and checkpoints. A resolved configuration stays as it is.

    Args:
        config: a configuration, see `load_config`.
        assume_missing: whether to assume the classes of data that cannot be opened, instead of refusing it.

    Raises:
        UserError: a source, a checkpoint or the model is not valid, or data sets that share a head have different
            labels.
    """
    open_source = functools.cache(sources.open_source)
    config, notes, decoding = apply_recipe(config, open_source)
    heads: dict[str, Head] = {}
    assumed: set[str] = set()
    for name, dataset in config.data.train.items():
        dataset.head = dataset.head or default_head(dataset.source, name)
        try:
            source = open_source(dataset.source, dataset.split, dataset.head, dataset.allow_overlap)
            head = Head(len(source.classes), source.modality, source.classes, source.multi_label)
        except (UserError, StorageError) as error:
            if not assume_missing:
                raise
            head = _assumed_head(dataset.source)
            assumption = f"assuming {head.classes} classes of {head.modality}s, as the data cannot be opened"
            notes.append(f"data.train.{name}: {assumption}: {error}")
            assumed.add(dataset.head)
        first = heads.setdefault(dataset.head, head)
        if first != head and dataset.head not in assumed:
            differs = "its labels differ from those of another data set"
            if first.modality != head.modality:
                differs = f"it holds {head.modality}s, unlike another data set"
            raise UserError(f"data.train.{name}: {differs} of head {dataset.head!r}")
    for name, dataset in config.data.eval.items():
        trained = config.data.train.get(name)
        dataset.head = dataset.head or (trained.head if trained else default_head(dataset.source, name))
    model = model_config(**model_fields(config), heads=heads)
    if config.data.eval:
        Views.from_keys(config.eval).crop_share(model.size)  # an error before the first evaluation
    notes += _check_schedule(config, heads)
    most = elastic_models(model, config.train.elastic)[-1].budget
    if most is not None and config.data.eval:
        notes.append(f"train.elastic: evaluation takes all tokens, a training step at most {100 * most.share:g} %")
    config.input.path = str(input_path(model, config.input.path))
    return Resolved(config, model, tuple(notes), decoding, open_source)


def _check_schedule(config: ConfigDict, heads: Mapping[str, Head]) -> list[str]:
    """Check what would show at the end of a run only; returns notes.

    Raises UserError if `checkpoint.keep_best` is no score of an evaluation.
    """
    if not config.data.train:
        return []
    notes, every, best = [], (config.eval.every, config.checkpoint.every), config.checkpoint.keep_best
    if config.optimizer.warmup_steps >= config.train.steps:
        notes.append(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} of {config.train.steps} steps: the learning rate "
            "only rises"
        )
    if best is None:
        return notes
    scores = []
    for name, dataset in config.data.eval.items():
        head = heads.get(dataset.head)
        of_head = ("top1", "top5", "map") if head is None else ("map",) if head.multi_label else ("top1", "top5")
        scores += [f"eval/{name}/{score}" for score in (*of_head, "loss")]
    if best not in scores:
        raise unknown("metric of checkpoint.keep_best", best, scores)
    if max(every) % min(every):
        notes.append(
            f"checkpoint.keep_best: scores count where eval.every={every[0]} and checkpoint.every={every[1]} meet, "
            f"every {math.lcm(*every)} steps, and at the end"
        )
    return notes


def input_path(model: ModelConfig, path: str | None) -> InputPath:
    """Return how clips are sent to a model: as `path` says, by default as windows of tubes if these are smaller.

    Raises UserError if `path` is `tubes` and the windows are no smaller than the clip, as for a dense tube.
    """
    share = model.tubes.values_read(model.shape) / (3 * math.prod(model.shape))
    if path is None:
        return InputPath.TUBES if share < 1 else InputPath.DENSE
    if InputPath(path) is InputPath.TUBES and share >= 1:
        raise UserError(f"input.path=tubes sends {share:.2f} times the clip for {model.tubes}; use input.path=dense")
    return InputPath(path)


def resolve_on_main(config: ConfigDict) -> Resolved:
    """Resolve a configuration in process 0 and send the result to all; every process must call it."""
    own: list[Resolved] = []

    def resolved() -> str:
        own.append(resolve(config))
        return own[0].to_json()

    text = run_on_main(resolved)
    return own[0] if own else Resolved.from_json(text)


def _assumed_head(source: str) -> Head:
    kind = source.partition(":")[0]
    classes = sources.CLASSES.get(kind, _ASSUMED_CLASSES)
    return Head(classes, "image" if "imagenet" in source else "video", multi_label=kind == "charades")
