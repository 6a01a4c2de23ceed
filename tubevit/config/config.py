"""Experiment configurations: defaults, locking, command-line values, and the errors of all three."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tubevit.data.augment import Augment
from tubevit.data.views import Views
from tubevit.errors import UserError, closest, unknown

INPUT_PATHS = ("dense", "tubes")


def default_config() -> ConfigDict:
    """Every key of a configuration, locked; an experiment sets what differs.

    Optimisation defaults are those of the paper's base model on Kinetics (Table 10). Durations are steps. None means
    that the value follows from the architecture or is switched off. Keys of `model` and `input` that are not listed
    here are fields of `ModelConfig`.

    Attributes:
        seed: all that is random follows from it and from the step.
        model.name: the architecture; the other keys of `model` replace fields of its configuration.
        input.path: what travels from the decoder to the model: `tubes`, only the pixels that its tubes read, or
            `dense`, all.
        data.train, data.eval: data sets by name, see `dataset_config`.
        optimizer.name: `adam`, whose weight decay is added to the gradient, or `adamw`, which decays apart from it.
        optimizer.learning_rate: after the warm-up; from there it falls to 0 along a cosine.
        optimizer.warmup_steps: it rises in a line over so many steps.
        optimizer.weight_decay: its factor.
        optimizer.grad_clip_norm: longest gradient; longer ones are scaled down to it.
        optimizer.b1, optimizer.b2: decay of Adam's moments.
        train.steps: length of the run.
        train.label_smoothing: share of each label that is spread over all classes.
        train.mixup: each clip is blended with its neighbour; the share is drawn from Beta(a, a) with this a. 0: not.
        train.cutmix: the same with a rectangle of the neighbour; with both, one of them is drawn for each step.
        train.freeze_below: blocks before this one, and the tokenizer, are not trained.
        train.gate: that block has the gate of equation 8 on its output.
        train.grad_accum_steps: a batch is computed in so many parts, one after the other.
        train.skip_nonfinite: a step whose loss or gradient is not finite changes nothing, instead of ending the run.
        init.checkpoint: parameters to begin from: what `load_model` takes.
        init.skip: beginnings of paths, joined by commas, that are neither taken over nor missed.
        init.rename: old=new,...: beginnings of the checkpoint's paths, and what they are in the model.
        init.tubes: where 3D tubes come from that the checkpoint lacks: `same` (it has all, or those of a plain ViT are
            inflated), `inflate`, `zero`, `random`, or a checkpoint that has them.
        eval.every: steps between two evaluations.
        eval.views: temporal x spatial views of a clip, e.g. 4x3, whose probabilities are averaged.
        checkpoint.every: steps between two checkpoints.
        checkpoint.keep: so many stay.
        checkpoint.keep_best: a metric, e.g. eval/k600/top1, whose best checkpoint stays as well.
        loader.threads: that decode, in each process.
        loader.workers: processes that load; 0: the threads of the training process do.
        loader.max_broken: largest share of broken files of a data set; more end the run.
        mesh.data, mesh.fsdp, mesh.tensor: devices that split the batch; parameters as well; heads and MLP. -1: what is
            left.
        mesh.slices: slices of a TPU job of several.
        precision: `float32` or `bfloat16` for computation; parameters, softmax and logits stay float32.
        compilation_cache: folder or bucket that keeps compiled programs.
        log.every: steps between two lines of metrics.
    """
    config = ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "tubevit_b16", "tubes": placeholder(str), "padding": placeholder(str),
                "interpolated": placeholder(bool), "gain_norm": False, "antialias": False,
                "tube_width": placeholder(int), "tube_linear": False, "position": placeholder(str),
                "class_token": placeholder(bool), "pooling": placeholder(str), "mean": placeholder(tuple),
                "std": placeholder(tuple), "width": placeholder(int), "depth": placeholder(int),
                "num_heads": placeholder(int), "mlp_dim": placeholder(int), "dropout": 0.0, "stochastic_depth": 0.0,
                "gelu": "exact", "norm_epsilon": 1e-6, "qkv_bias": True, "layer_scale": placeholder(float),
                "add_attention": 0, "gate_layer": placeholder(int), "gate_per_channel": False,
                "remat": "none", "scan": True, "attention": "auto",
            },
            "input": {
                "frames": placeholder(int), "fps": placeholder(float), "size": placeholder(int), "path": "tubes",
            },
            "data": {"train": {}, "eval": {}},
            "optimizer": {
                "name": "adam", "learning_rate": 5e-5, "warmup_steps": 10_000, "weight_decay": 1e-3,
                "grad_clip_norm": placeholder(float), "b1": 0.9, "b2": 0.999,
            },
            "train": {
                "steps": 300_000, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "freeze_below": 0, "gate": False,
                "grad_accum_steps": 1, "skip_nonfinite": False,
            },
            "init": {"checkpoint": placeholder(str), "skip": "", "rename": "", "tubes": "same"},
            "eval": {"every": 5_000, "views": "1x1"},
            "checkpoint": {"every": 1_000, "keep": 3, "keep_best": placeholder(str)},
            "loader": {"threads": 4, "workers": 0, "max_broken": 0.01},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "slices": 1},
            "precision": "float32",
            "compilation_cache": placeholder(str),
            "log": {"every": 50},
        }
    )  # fmt: skip
    config.lock()
    config.data.train.unlock()
    config.data.eval.unlock()
    return config


def dataset_config(**values) -> ConfigDict:
    """One data set of `data.train` or `data.eval`, locked.

    Args:
        **values: of the keys below, and augment: fields of `Augment`.

    Attributes:
        source: what `open_source` takes, e.g. clips.csv or k600:LIST@CLIPS_DIR.
        split: `train`, `val` or `test`.
        head: its label set; None: that of the embedded data, else the name of the data set.
        batch_size: samples of a step, on all devices together.
        loss_weight: factor of its loss.

    Raises:
        UserError: an unknown key.
    """
    config = ConfigDict(
        {
            "source": "", "split": "train", "head": placeholder(str), "batch_size": 32, "loss_weight": 1.0,
            "augment": {field.name: field.default for field in dataclasses.fields(Augment)},
        }
    )  # fmt: skip
    config.lock()
    _update(config, values, "data.*.*.")
    return config


def _update(config: ConfigDict, values: Mapping, prefix: str) -> None:
    for key, value in values.items():
        if key not in config:
            raise unknown("key", prefix + key, [prefix + name for name in config])
        if isinstance(config.get(key), ConfigDict) and isinstance(value, Mapping):
            _update(config[key], value, f"{prefix}{key}.")
        else:
            _assign(config, key, value, prefix + key)


def _assign(config: ConfigDict, key: str, value, path: str) -> None:
    try:
        config[key] = value
    except (TypeError, ValueError) as error:
        kind = config.get_type(key).__name__
        raise UserError(f"{path} must be of type {kind}; found {value!r}") from error


def set_key(config: ConfigDict, path: str, text: str) -> None:
    """Sets `a.b.c` to a value written as text, read by the type of the value that is there; `none` unsets.

    Raises:
        UserError: an unknown key, or text that is not of the type.
    """
    known = flatten(config)
    *parents, last = path.split(".")
    for name in parents:
        config = config.get(name) if isinstance(config, ConfigDict) else None
    if not isinstance(config, ConfigDict) or last not in config:
        raise unknown("key", path, known)
    if isinstance(config.get(last), ConfigDict):
        raise UserError(f"{path} is a group of keys: {', '.join(config[last])}; set one of them")
    _assign(config, last, _parse(text, config.get_type(last), path), path)


def _parse(text: str, kind: type, path: str):
    if text.lower() == "none":
        return None
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise UserError(f"{path} must be true or false; found {text!r}")
    try:
        return _numbers(text) if kind is tuple else kind(text)
    except ValueError as error:
        name = "numbers joined by commas" if kind is tuple else f"of type {kind.__name__}"
        raise UserError(f"{path} must be {name}; found {text!r}") from error


def _numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` -> numbers."""
    return tuple(float(part) for part in text.strip("()[]").split(","))


def experiments_folder() -> pathlib.Path:
    """Where the experiments lie: in the package of a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def load_config(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads an experiment.

    Args:
        spec: `FILE[:arg=value,...]`; a bare name is looked for in `experiments/`. The arguments are those of the
            file's `get_config`, read by the types of their defaults.
        overrides: {key: text}, e.g. {"train.steps": "10"}.

    Returns:
        The locked configuration.

    Raises:
        UserError: no such file, argument or key, or a value of another type.
    """
    name, _, arguments = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        folder = experiments_folder()
        path = folder / f"{name.removesuffix('.py')}.py"
        if not path.is_file():
            raise unknown("config", name, [file.stem for file in folder.glob("*.py")])
    module_spec = importlib.util.spec_from_file_location(f"tubevit_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        get_config = module.get_config
        config = get_config(**_arguments(get_config, arguments, str(path)))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as error:
        raise UserError(f"{path} is not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} is not a configuration: get_config returned {config!r}")
    config.lock()
    for key, text in (overrides or {}).items():
        set_key(config, key, text)
    check_config(config)
    return config


def _arguments(function, text: str, path: str) -> dict:
    parameters, hints, values = inspect.signature(function).parameters, typing.get_type_hints(function), {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in parameters:
            raise UserError(f"unknown argument {item!r} of {path}; {closest(name, parameters)}")
        values[name] = _parse(value, _type_of(parameters[name], hints.get(name, str)), name)
    return values


def _type_of(parameter: inspect.Parameter, hint) -> type:
    """As what an argument is read: its default's type, else the annotated one (`int` of `int | None`)."""
    if parameter.default is not parameter.empty and parameter.default is not None:
        return type(parameter.default)
    return next(kind for kind in typing.get_args(hint) or [hint] if kind is not type(None))


def check_config(config: ConfigDict) -> None:
    """Checks what types cannot: data sets, names and ranges.

    Raises:
        UserError: naming the key.
    """
    if not config.data.train:
        raise UserError("data.train is empty: name at least one data set")
    _check_set(config, default_config(), "")
    for group in ("train", "eval"):
        for name, dataset in config.data[group].items():
            path = f"data.{group}.{name}"
            if not name.isidentifier():
                raise UserError(f"{path}: the name of a data set must be an identifier")
            for key in set(dataset_config()) ^ set(dataset):
                raise unknown("key", f"{path}.{key}", [f"{path}.{known}" for known in dataset_config()])
            _check_set(dataset, dataset_config(), f"{path}.")
            if not dataset.source:
                raise UserError(f"{path}.source is not set")
            _at_least(dataset.batch_size, 1, f"{path}.batch_size")
    for key in (
        "train.steps",
        "eval.every",
        "checkpoint.every",
        "checkpoint.keep",
        "log.every",
        "loader.threads",
        "train.grad_accum_steps",
    ):
        group, name = key.split(".")
        _at_least(config[group][name], 1, key)
    for key in ("optimizer.warmup_steps", "optimizer.weight_decay", "train.mixup", "train.cutmix", "loader.workers"):
        group, name = key.split(".")
        _at_least(config[group][name], 0, key)
    if not 0 <= config.train.label_smoothing < 1:
        raise UserError(f"train.label_smoothing must be at least 0 and below 1; found {config.train.label_smoothing}")
    if not 0 <= config.loader.max_broken <= 1:
        raise UserError(f"loader.max_broken is a share, 0 to 1; found {config.loader.max_broken}")
    if config.input.path not in INPUT_PATHS:
        raise unknown("input.path", config.input.path, INPUT_PATHS)
    Views.from_text(config.eval.views)
    pairs(config.init.rename)
    if config.init.checkpoint is None:
        unused = [key for key in ("skip", "rename", "tubes") if config.init[key] != default_config().init[key]]
        if unused:
            raise UserError(f"init.{unused[0]} goes with init.checkpoint, which is not set")
        if config.train.freeze_below:
            raise UserError(
                f"train.freeze_below={config.train.freeze_below} would freeze random parameters: set init.checkpoint"
            )
    if config.optimizer.name not in ("adam", "adamw"):
        raise unknown("optimizer.name", config.optimizer.name, ("adam", "adamw"))


def _check_set(config: ConfigDict, defaults: ConfigDict, prefix: str) -> None:
    values = flatten(config)
    for key, default in flatten(defaults).items():
        if default is not None and values[key] is None:
            raise UserError(f"{prefix}{key} must be set; its default is {default!r}")


def _at_least(value, smallest, key: str) -> None:
    if value < smallest:
        raise UserError(f"{key} must be at least {smallest}; found {value}")


def set_model(config: ConfigDict, model) -> None:
    """Sets `model` and `input` to a `ModelConfig`, all but what only concerns how it is trained and computed."""
    for key in set(config.model) - {"dropout", "stochastic_depth", "remat", "scan", "attention"}:
        config.model[key] = str(model.tubes) if key == "tubes" else getattr(model, key)
    config.input.update(frames=model.frames, fps=model.fps, size=model.size)


def names(text: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def pairs(text: str) -> list[tuple[str, str]]:
    """`old=new,...` -> [("old", "new"), ...].

    Raises:
        UserError: a name without `=`.
    """
    found = [tuple(part.strip() for part in item.split("=")) for item in names(text)]
    for pair in found:
        if len(pair) != 2 or not all(pair):
            raise UserError(f"init.rename must be old=new,...; found {'='.join(pair)!r}")
    return found


def model_fields(config: ConfigDict) -> dict:
    """Keyword arguments for `create_model`: `model`, `input`, `precision`, freezing and gate; None is left out."""
    frozen = config.train.freeze_below
    fields = {**config.model, **config.input, "precision": config.precision, "freeze_below": frozen}
    del fields["path"]
    if config.train.gate and config.model.gate_layer is None:
        fields["gate_layer"] = frozen
    return {key: value for key, value in fields.items() if value is not None}


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict:
    """Nested keys as `a.b.c`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
