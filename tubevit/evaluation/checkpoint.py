"""Evaluation of a checkpoint on the data of its run, of an experiment, or on any source."""

import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit import storage
from tubevit.budget import as_budget
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.manifest import manifest_entries
from tubevit.config import allow_overlap, dataset_config, default_config, model_fields
from tubevit.config.derive import apply_recipe
from tubevit.config.experiment import open_eval
from tubevit.config.keys import find_key
from tubevit.config.resolve import input_path
from tubevit.data.sources import held_out_split
from tubevit.data.views import Views
from tubevit.errors import SplitError, UserError, cannot_write
from tubevit.evaluation.evaluate import (
    EvalSettings,
    Evaluation,
    broken_files,
    evaluation_record,
    failure,
    predict_source,
    write_tables,
)
from tubevit.evaluation.forward import make_forward
from tubevit.evaluation.pixels import grey_values
from tubevit.evaluation.probe import open_probe, probe_source
from tubevit.models.abstract import parameters
from tubevit.models.config import ModelConfig
from tubevit.models.variants import model_config
from tubevit.ranges import COUNT, SHARE
from tubevit.sharding.agreement import SourceEntries, agree, mapping_entries
from tubevit.sharding.hosts import is_main, run_on_all
from tubevit.sharding.mesh import make_mesh
from tubevit.sharding.rules import put
from tubevit.zoo.names import open_checkpoint

logger = logging.getLogger(__name__)
BATCH_SIZE, THREADS = 16, 2  # where no configuration gives them
# Fields in which a checkpoint must agree with the model of an experiment that only evaluates.
_OF_PROTOCOL = (
    "width", "depth", "num_heads", "mlp_dim", "tubes", "position", "pattern", "temporal_depth", "pooling", "frames",
    "size",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """What to evaluate a checkpoint on; None takes the value of its run.

    Attributes:
        config: an experiment; its `data.eval`, `eval`, `loader` and `input.path` are used. One without training data
            gives the protocol of an evaluation: the checkpoint must be of its architecture and input, and clips have
            its `input.fps`.
        data: a source to evaluate instead of `data.eval`.
        split: split of every data set; for `data` by default val, else test, else all files.
        head: head for `data`; may be omitted if the model has one head.
        batch_size: batch size of every data set.
        views: temporal x spatial views, such as `4x3`.
        average: what is averaged over views, `probabilities` or `logits`.
        probe: `linear` or `knn`: score frozen features in place of a head; `pixels`: a linear model of small grey
            clips in place of the checkpoint's; see `PROBES`.
        allow_overlap: accept a csv that lists a file in two splits.
        max_broken: largest share of files that cannot be decoded, see `failure`.
        int8: multiply 8-bit integers in the linear layers of the blocks, see `tubevit.models.int8`.
        budget: the tokens that are kept, such as `25%:motion`, see `tubevit.budget`.
        run: the configuration of another run, whose `eval`, `loader`, `mesh` and `input.path` are used in place of
            those of the checkpoint's run.

    Raises:
        UserError: options exclude each other, or a number is out of range.
    """

    config: ConfigDict | None = None
    data: str | None = None
    split: str | None = None
    head: str | None = None
    batch_size: int | None = None
    views: str | None = None
    average: str | None = None
    probe: str | None = None
    allow_overlap: bool = False
    max_broken: float | None = None
    int8: bool = False
    budget: str | None = None
    run: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.data and self.config is not None:
            raise UserError("pass --data or --config, not both")
        if not self.data and self.head:
            raise UserError("--head goes with --data")
        if self.batch_size is not None:
            COUNT.check("batch_size", self.batch_size)
        if self.max_broken is not None:
            SHARE.check("max_broken", self.max_broken)
        if self.views is not None:
            Views.from_text(self.views)
        as_budget(self.budget)
        for flag, value in (("--int8", self.int8), ("--budget", self.budget)):
            if value and self.probe == "pixels":
                raise UserError(f"--probe pixels fits a model of pixels, without tokens or blocks; leave out {flag}")
        if self.average is not None:
            find_key("eval.average").check("average", self.average)
            if self.probe:
                raise UserError("--average goes without --probe, which averages features")


def evaluate_checkpoint(
    checkpoint: Checkpoint | str | os.PathLike, options: EvalOptions = EvalOptions(), *, progress: bool = False
) -> list[Evaluation]:
    """Evaluate a checkpoint, one result for each data set; the arguments and errors are those of `evaluate_each`."""
    return list(evaluate_each(checkpoint, options, progress=progress))


def evaluate_each(
    checkpoint: Checkpoint | str | os.PathLike, options: EvalOptions = EvalOptions(), *, progress: bool = False
) -> Iterator[Evaluation]:
    """Evaluate a checkpoint and yield the result for each data set as soon as it is known.

    All processes of a job iterate together. Where too many files are broken, the record has the reason under
    `failed`, see `failure`.

    Args:
        checkpoint: a checkpoint, or a name that `load_model` takes.
        options: the data, the head, the views; by default as the checkpoint's run.
        progress: show progress bars on stderr if that is a terminal.

    Raises:
        UserError: the checkpoint is damaged, it or the experiment names no data, or the data does not fit the model.
        RunError: data cannot be reached, or predictions are not finite.
    """
    src = checkpoint
    checkpoint = src if isinstance(src, Checkpoint) else cast(Checkpoint, run_on_all(lambda: open_checkpoint(src)))
    agree(lambda: {str(checkpoint.name): manifest_entries(checkpoint.folder)})
    run_on_all(checkpoint.verify)
    loaded = checkpoint.load_model(**inference_fields(options.int8, options.budget))
    run = checkpoint.experiment if options.run is None else options.run
    config = None if options.config is None else run_on_all(lambda: _experiment(options))
    model = loaded.config
    if config is not None and not config.data.train:
        model = run_on_all(lambda: _follow_protocol(checkpoint.name, loaded.config, config))
    datasets = run_on_all(lambda: _datasets(checkpoint, options)) if config is None else config.data.eval
    views = _views(config.eval if config else run.get("eval", {}), options)
    path = config.input.path if config else run.get("input", {}).get("path")
    path = path or input_path(model, None)
    max_broken = max_broken_of(config or run) if options.max_broken is None else options.max_broken
    mesh = _mesh(run)
    params = put(parameters(loaded), mesh)
    loader = (config or run).get("loader", {})
    settings = EvalSettings(views, loader.get("threads", THREADS), loader.get("workers", 0), mesh=mesh)
    open_loads = (
        functools.partial(open_probe, options.probe) if options.probe else lambda *opened: (open_eval(*opened),)
    )
    opened = run_on_all(lambda: {name: open_loads(model, name, d, path) for name, d in datasets.items()})
    agree(lambda: _entries(options, datasets, opened))
    for name, dataset in datasets.items():
        settings = dataclasses.replace(settings, progress=name if progress and is_main() else None)
        batch_size = options.batch_size or dataset.batch_size
        loads = opened[name]
        for note in dict.fromkeys(note for load in loads for note in load.source.notes):
            logger.info(note)
        forward = make_forward(model, None if options.probe else dataset.head, mesh, views.average)
        forward = grey_values(mesh) if options.probe == "pixels" else forward
        start = time.perf_counter()
        if options.probe:
            predictions, probe = probe_source(options.probe, forward, params, loads, batch_size, settings)
        else:
            predictions, probe = predict_source(forward, params, loads[-1], batch_size, settings), {}
        seconds = time.perf_counter() - start
        record = evaluation_record(predictions, loads[-1], name=name, head=dataset.head, seconds=seconds)
        record["broken"] = broken_files(predictions, loads[-1])
        failed = failure(name, len(record["broken"]), len(loads[-1].source), max_broken)
        if options.probe and failed is None:
            train = len(loads[0].source)
            failed = failure(f"{name}, training split", train - probe["train_clips_used"], train, max_broken)
        origin = {"split": dataset.split, "checkpoint": str(checkpoint), "step": checkpoint.step, "failed": failed}
        origin |= {"published_top1": dataset.published_top1, "quantize": model.quantize}
        origin["budget"] = None if model.budget is None else str(model.budget)
        yield Evaluation(record | probe | origin, predictions, loads[-1])


def inference_fields(int8: bool, budget: str | None) -> dict[str, Any]:
    """Return the fields of a model that change how it predicts, of the flags `--int8` and `--budget`."""
    return ({"quantize": "int8"} if int8 else {}) | ({} if budget is None else {"budget": budget})


def _views(keys: Mapping | ConfigDict, options: EvalOptions) -> Views:
    """Return the views of the group `eval` with what the options replace; features are averaged as they are."""
    given = {"views": options.views, "average": "probabilities" if options.probe else options.average}
    return Views.from_keys({**keys, **{key: value for key, value in given.items() if value is not None}})


def _follow_protocol(name: str, model: ModelConfig, config: ConfigDict) -> ModelConfig:
    """Return the model of a checkpoint with the frame rate of a protocol, an experiment without training data.

    Raises:
        UserError: the checkpoint is of another architecture or input; the message lists all differences.
    """
    expected = model_config(**model_fields(config))
    differ = {key: (str(getattr(model, key)), str(getattr(expected, key))) for key in _OF_PROTOCOL}
    found = [f"{key} {ours} instead of {theirs}" for key, (ours, theirs) in differ.items() if ours != theirs]
    if found:
        raise UserError(f"{name} does not fit the protocol of {expected.name}: it has {', '.join(found)}")
    return model.replace(fps=expected.fps)


def max_broken_of(config: Mapping | ConfigDict) -> float:
    """Return `loader.max_broken` of a configuration, or its default where the configuration does not have it."""
    return config.get("loader", {}).get("max_broken", find_key("loader.max_broken").default)


def _entries(options: EvalOptions, datasets: Mapping, opened: Mapping) -> Mapping[str, Sequence[str]]:
    values = vars(options) | {"config": None, "data": {name: d.to_dict() for name, d in datasets.items()}}
    return {"the options": mapping_entries(values)} | {
        f"data.eval.{name} ({part})": SourceEntries(load.source)
        for name, loads in opened.items()
        for part, load in zip(("held-out split", "training split"), reversed(loads), strict=False)
    }


def write_evaluations(evaluations: Sequence[Evaluation], path: str | os.PathLike) -> list[str]:
    """Write the records as JSON, such as eval.json, and tables of classes beside it; return the paths of all files.

    Raises UserError if they cannot be written, RunError if the disk is full or broken.
    """
    path = os.fspath(path)
    try:
        records = [evaluation.record for evaluation in evaluations]
        storage.write_text(path, json.dumps(records, indent=2) + "\n")
        written = [path]
        for evaluation in evaluations if not storage.is_device(path) else ():
            written += write_tables(evaluation, f"{path.removesuffix('.json')}_{evaluation.record['dataset']}")
    except OSError as error:
        raise cannot_write(path, error, "name another file with --out") from error
    return written


def _mesh(run: Mapping) -> Mesh:
    """Make the mesh of the run, or of all devices if that does not fit them."""
    settings = default_config().mesh
    try:
        return make_mesh(type(settings)({**settings, **run.get("mesh", {})}))
    except UserError:
        return make_mesh(settings)


def _experiment(options: EvalOptions) -> ConfigDict:
    config = cast(ConfigDict, options.config)
    config = apply_recipe(allow_overlap(config) if options.allow_overlap else config)[0]
    if not config.data.eval:
        raise UserError("the experiment names no evaluation data: add data.eval, or pass --data SOURCE")
    for name, dataset in config.data.eval.items():
        if dataset.head is None and name in config.data.train:  # as in training
            dataset.head = config.data.train[name].head
        dataset.update(_other_split(dataset, options))
    return config


def _other_split(dataset: Mapping | ConfigDict, options: EvalOptions) -> dict:
    """Return the keys that `options.split` changes; a published accuracy belongs to the configured split only."""
    if options.split in (None, dataset.get("split")):
        return {}
    return {"split": options.split, "published_top1": None}


def _datasets(checkpoint: Checkpoint, options: EvalOptions) -> Mapping[str, ConfigDict]:
    if options.data:
        head = options.head if options.probe else _head(checkpoint, options)
        split = options.split or _held_out(options, head)
        overlap = {"allow_overlap": options.allow_overlap}
        return {"data": dataset_config(source=options.data, split=split, head=head, batch_size=BATCH_SIZE, **overlap)}
    stored = checkpoint.experiment.get("data", {}).get("eval", {})
    if not stored:
        raise UserError(f"{checkpoint} names no evaluation data: pass --data SOURCE or --config FILE")
    overlap = {"allow_overlap": True} if options.allow_overlap else {}
    return {name: dataset_config(**values | overlap | _other_split(values, options)) for name, values in stored.items()}


def _head(checkpoint: Checkpoint, options: EvalOptions) -> str:
    heads = dict(checkpoint.model.heads)
    if not heads:
        raise UserError(f"{checkpoint.name} has no head to evaluate; --probe needs none")
    if options.head is None and len(heads) > 1:
        raise UserError(f"the model has several heads: pass --head, one of {', '.join(heads)}")
    return options.head or next(iter(heads))


def _held_out(options: EvalOptions, head: str | None) -> str:
    try:
        return held_out_split(str(options.data), head, options.allow_overlap)
    except SplitError:
        return "all"
