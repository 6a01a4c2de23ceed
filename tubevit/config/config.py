"""Experiment configurations: locked keys, loading, values from the command line, checks."""

import importlib.machinery
import inspect
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tubevit.checkpoint.renamed import RENAMED
from tubevit.config.key import Key, names
from tubevit.config.keys import find_key, keys_of
from tubevit.data.views import Views
from tubevit.errors import TubeViTError, UserError, closest, unknown
from tubevit.ranges import Range

# NAME=VALUE or NAME="VALUE", where "" stands for a quote, up to the next comma.
_ARGUMENT = re.compile(r'([^=,]*)(?:=(?:"((?:[^"]|"")*)"(?=,|$)|([^,]*)))?(?:,|$)')


def _config_dict(keys: Mapping[str, Key]) -> ConfigDict:
    nested: dict = {}
    for path, key in keys.items():
        *groups, name = path.split(".")
        group = nested
        for each in groups:
            group = group.setdefault(each, {})
        group[name] = placeholder(key.kind) if key.default is None else key.default
    return ConfigDict(nested)


def default_config() -> ConfigDict:
    """Return every key of a configuration with its default, locked; an experiment sets what differs.

    The keys are those of `tubevit.config.keys`. None means that the value follows from the architecture or is switched
    off. `data.train` and `data.eval` hold data sets by name, see `dataset_config`.
    """
    config = _config_dict(keys_of())
    config.data = ConfigDict({"train": {}, "eval": {}})
    return locked(config)


def locked(config: ConfigDict) -> ConfigDict:
    """Lock all keys of a configuration but the names of data sets."""
    config.lock()
    for group in (config.data.train, config.data.eval):
        group.unlock()
        for dataset in group.values():
            dataset.lock()
    return config


def dataset_config(**values) -> ConfigDict:
    """Return one data set of `data.train` or `data.eval`, locked.

    Args:
        **values: the keys that differ from their defaults, such as source="clips.csv" and augment={"flip": True}.

    Raises:
        UserError: a key is unknown, or a value has another type.
    """
    keys = keys_of("data")
    config = _config_dict(keys)
    config.lock()
    for path, value in flatten(values).items():
        if path not in keys:
            raise unknown("key", f"data.*.*.{path}", [f"data.*.*.{known}" for known in keys])
        set_value(config, path, value, "data.*.*.")
    return config


def request_recipe(config: ConfigDict, name: str, **values) -> None:
    """Add the group `recipe`, by which `resolve` derives the keys that are None from data and checkpoints.

    Args:
        config: the configuration to add it to.
        name: `finetune` or `bootstrap`.
        **values: keys of the recipe, see `tubevit.config.keys`.
    """
    config.unlock()
    config.recipe = _config_dict(keys_of("recipe"))
    locked(config).recipe.update(name=name, **values)


def allow_overlap(config: ConfigDict) -> ConfigDict:
    """Return a configuration whose data sets may list a file in two splits."""
    config = config.copy_and_resolve_references()
    for dataset in (*config.data.train.values(), *config.data.eval.values()):
        dataset.allow_overlap = True
    return config


def set_value(config: ConfigDict, path: str, value, prefix: str = "") -> None:
    """Set `a.b.c`, which must exist; `prefix` precedes it in the error."""
    *groups, name = path.split(".")
    for each in groups:
        config = config[each]
    try:
        config[name] = value
    except (TypeError, ValueError) as error:
        kind = find_key(prefix + path).kind.__name__
        raise UserError(f"{prefix}{path} must be of type {kind}; found {value!r}") from error


def set_key(config: ConfigDict, path: str, text: str) -> None:
    """Set `a.b.c` to a value read from text; `none` unsets it, unless that is one of its choices.

    Raises:
        UserError: the key is unknown, or the value has another type.
    """
    known = flatten(config)
    if path not in known:
        inside = sorted({key.removeprefix(f"{path}.").partition(".")[0] for key in known if key.startswith(f"{path}.")})
        if inside:
            raise UserError(f"{path} is a group of keys: {', '.join(inside)}; set one of them")
        if path in RENAMED:
            raise UserError(f"unknown key {path!r}; it was renamed to {RENAMED[path]!r}")
        raise unknown("key", path, known)
    key = find_key(path)
    value = text if text in key.choices else parse(text, key.kind, path, key.range)
    set_value(config, path, value)
    if value is None and "recipe" in config:
        config.recipe.unset += (path,)


def parse(text: str, kind: type, path: str, range: Range | None = None):
    """Read a value of a type from text; raises UserError, which names `path`, for other text."""
    if text.lower() == "none":
        return None
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise UserError(f"{path} must be true or false; found {text!r}")
    try:
        return tuple(float(part) for part in text.strip("()[]").split(",")) if kind is tuple else kind(text)
    except ValueError as error:
        expected = range.described() if range else f"of type {kind.__name__}"
        expected = "numbers joined by commas" if kind is tuple else expected
        raise UserError(f"{path} must be {expected}; found {text!r}") from error


def experiments_folder() -> pathlib.Path:
    """Return the folder of the experiments: inside the package of a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def load_config(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Load an experiment as a locked configuration. This reads neither data nor checkpoints, see `resolve`.

    Args:
        spec: `FILE[:arg=value,...]`; a bare name is looked for in `experiments/`. The arguments are those of the
            file's `get_config`, read by the types of their defaults. A value with a comma is quoted: `arg="a,b"`.
        overrides: {key: text}, e.g. {"train.steps": "10"}.

    Raises:
        UserError: there is no such file, argument or key, or a value has another type.
    """
    name, _, arguments = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        folder = experiments_folder()
        path = folder / f"{name.removesuffix('.py')}.py"
        if not path.is_file():
            raise unknown("config", name, [file.stem for file in folder.glob("*.py")])
    loader = importlib.machinery.SourceFileLoader(f"tubevit_experiment_{path.stem}", str(path))
    module = types.ModuleType(loader.name)
    module.__file__ = str(path)
    try:
        loader.exec_module(module)
        config = module.get_config(**_arguments(module.get_config, arguments, str(path)))
    except TubeViTError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        text = " ".join(str(error).split()) + (f" (line {lines[-1]})" if lines else "")
        new = [f"; {old} was renamed to {new}" for old, new in RENAMED.items() if f'"{old.split(".")[1]}"' in text]
        raise UserError(f"{path} is not a configuration: {text}{''.join(new)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} is not a configuration: get_config returned {config!r}")
    config.lock()
    for key, text in (overrides or {}).items():
        set_key(config, key, text)
    check_config(config)
    return config


def _arguments(function, text: str, path: str) -> dict:
    parameters, hints, values = inspect.signature(function).parameters, typing.get_type_hints(function), {}
    for match in _ARGUMENT.finditer(text):
        item, (name, quoted, value) = match[0].rstrip(","), match.groups()
        if not item:
            continue
        if name not in parameters or (quoted is None and value is None):
            message = f"unknown argument {item!r} of {path}; {closest(name, parameters)}"
            if values and "did you mean" not in message:  # perhaps the rest of the value before it
                last = next(reversed(values))
                message += f"; a value with a comma is quoted: '{last}=\"...,{item}\"'"
            raise UserError(message)
        value = value if quoted is None else quoted.replace('""', '"')
        values[name] = parse(value, _type_of(parameters[name], hints.get(name, str)), name)
    return values


def _type_of(parameter: inspect.Parameter, hint) -> type:
    """Return the type to read an argument as: that of its default, else the annotated one (`int` of `int | None`)."""
    if parameter.default is not parameter.empty and parameter.default is not None:
        return type(parameter.default)
    return next(kind for kind in typing.get_args(hint) or [hint] if kind is not type(None))


def check_config(config: ConfigDict) -> None:
    """Check what ConfigDict does not: data sets, types of unset keys, ranges, choices, and whether the model is valid.

    A configuration with a recipe may leave any key unset; its model is checked once it is derived.

    Raises:
        UserError: a key or value is wrong; it is named.
    """
    if not config.data.train and not config.data.eval:
        raise UserError("data.train is empty: name at least one data set")
    for group in ("train", "eval"):
        for name, dataset in config.data[group].items():
            path = f"data.{group}.{name}"
            if not name.isidentifier():
                raise UserError(f"{path}: the name of a data set must be an identifier")
            for key in set(dataset_config()) ^ set(dataset):
                raise unknown("key", f"{path}.{key}", [f"{path}.{known}" for known in dataset_config()])
            if not dataset.source:
                raise UserError(f"{path}.source is not set")
    for path, value in flatten(config).items():
        if value is not None or "recipe" not in config:
            find_key(path).check(path, value)
    Views.from_keys(config.eval)
    pairs(config.init.rename)
    if config.init.checkpoint is None and not config.get("recipe", {}).get("closest"):  # which may choose one
        unused = [key for key in ("skip", "rename", "tubes") if config.init[key] != find_key(f"init.{key}").default]
        if unused:
            raise UserError(f"init.{unused[0]} goes with init.checkpoint, which is not set")
        if config.train.freeze_below:
            raise UserError(
                f"train.freeze_below={config.train.freeze_below} would freeze random parameters: set init.checkpoint"
            )
        if config.train.adapter == "lora":
            raise UserError("train.adapter=lora would freeze random parameters: set init.checkpoint")
    if config.train.adapter == "lora" and config.train.freeze_below:
        raise UserError(
            f"train.adapter=lora freezes all blocks: set train.freeze_below=0; found {config.train.freeze_below}"
        )
    changed = [key for key, value in config.train.lora.items() if value != find_key(f"train.lora.{key}").default]
    if changed and config.train.adapter == "none":
        raise UserError(f"train.lora.{changed[0]} goes with train.adapter=lora; found train.adapter=none")
    if "recipe" not in config:
        from tubevit.models.variants import model_config  # here, as it imports jax

        model_config(**model_fields(config))


def check_trains(config: ConfigDict) -> None:
    """Raise UserError if a configuration has no data to train on."""
    if not config.data.train:
        raise UserError("data.train is empty: this experiment only evaluates, see `tubevit evaluate --config`")


def pairs(text: str) -> list[tuple[str, ...]]:
    """Split `old=new,...` into [("old", "new"), ...]; raises UserError if a name has no `=`."""
    found = [tuple(part.strip() for part in item.split("=")) for item in names(text)]
    for pair in found:
        if len(pair) != 2 or not all(pair):
            raise UserError(f"init.rename must be old=new,...; found {'='.join(pair)!r}")
    return found


def model_fields(config: ConfigDict) -> dict:
    """Return keyword arguments for `create_model`: `model`, `input`, `precision`, freezing and gate, without None."""
    frozen = config.train.freeze_below
    fields = {**config.model, **config.input, "precision": config.precision, "freeze_below": frozen}
    del fields["path"]
    if config.train.gate and config.model.gate_layer is None:
        fields["gate_layer"] = frozen
    if config.train.adapter == "lora":
        from tubevit.models.config import Lora  # here, as it imports jax

        fields["lora"] = Lora(**{**config.train.lora, "targets": names(config.train.lora.targets)})
    return {key: value for key, value in fields.items() if value is not None}


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict:
    """Flatten nested keys to `a.b.c`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
