"""Experiment configurations: locked keys, their checks, values from the command line."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tubevit.checkpoint.renamed import RENAMED
from tubevit.config.keys import Key, config_keys, dataset_keys, find_key, recipe_keys
from tubevit.data.views import Views
from tubevit.errors import UserError, unknown


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
    config = _config_dict(config_keys())
    config.data = ConfigDict({"train": {}, "eval": {}})
    return _locked(config)


def _locked(config: ConfigDict) -> ConfigDict:
    config.lock()
    config.data.train.unlock()
    config.data.eval.unlock()
    return config


def dataset_config(**values) -> ConfigDict:
    """Return one data set of `data.train` or `data.eval`, locked.

    Args:
        **values: keys of `tubevit.config.keys.Dataset` that differ from their defaults, and augment: fields of
            `Augment`.

    Raises:
        UserError: a key is unknown, or a value has another type.
    """
    config = _config_dict(dataset_keys())
    config.lock()
    _update(config, values, "data.*.*.")
    return config


def request_recipe(config: ConfigDict, name: str, **values) -> None:
    """Add the group `recipe`, by which `resolve` derives the keys that are None from data and checkpoints.

    Args:
        config: the configuration to add it to.
        name: `finetune` or `bootstrap`.
        **values: keys of `tubevit.config.keys.Recipe`.
    """
    config.unlock()
    config.recipe = _config_dict(recipe_keys())
    _locked(config).recipe.update(name=name, **values)


def config_from_dict(values: Mapping) -> ConfigDict:
    """Return the configuration that `ConfigDict.to_dict` made nested dicts of; JSON's lists become tuples."""
    config = default_config()
    for group in ("train", "eval"):
        for name, dataset in values["data"][group].items():
            config.data[group][name] = dataset_config(**dataset)
    if "recipe" in values:
        request_recipe(config, **values["recipe"])
    for path, value in flatten({key: value for key, value in values.items() if key not in ("data", "recipe")}).items():
        set_value(config, path, tuple(value) if isinstance(value, list) else value)
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
        raise UserError(f"{path} must be of type {find_key(path).kind.__name__}; found {value!r}") from error


def set_value(config: ConfigDict, path: str, value) -> None:
    """Set `a.b.c`, which must exist."""
    *groups, name = path.split(".")
    group = config
    for each in groups:
        group = group[each]
    _assign(group, name, value, path)


def set_key(config: ConfigDict, path: str, text: str) -> None:
    """Set `a.b.c` to a value written as text, which is read by the type of the key; `none` unsets it.

    Raises:
        UserError: the key is unknown, or the text is not of its type.
    """
    known = flatten(config)
    if path not in known:
        inside = sorted({key.removeprefix(f"{path}.").partition(".")[0] for key in known if key.startswith(f"{path}.")})
        if inside:
            raise UserError(f"{path} is a group of keys: {', '.join(inside)}; set one of them")
        if path in RENAMED:
            raise UserError(f"unknown key {path!r}; it was renamed to {RENAMED[path]!r}")
        raise unknown("key", path, known)
    value = parse(text, find_key(path).kind, path)
    set_value(config, path, value)
    if value is None and "recipe" in config:
        config.recipe.unset += (path,)


def parse(text: str, kind: type, path: str):
    """Read a value of a type from text; `path` names it in the error.

    Raises:
        UserError: the text is not of the type.
    """
    if text.lower() == "none":
        return None
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise UserError(f"{path} must be true or false; found {text!r}")
    try:
        return tuple(float(part) for part in text.strip("()[]").split(",")) if kind is tuple else kind(text)
    except ValueError as error:
        name = "numbers joined by commas" if kind is tuple else f"of type {kind.__name__}"
        raise UserError(f"{path} must be {name}; found {text!r}") from error


def check_config(config: ConfigDict) -> None:
    """Check what ConfigDict does not: data sets, types of unset keys, ranges and choices.

    A configuration with a recipe may leave any key unset.

    Raises:
        UserError: a key or value is wrong; it is named.
    """
    if not config.data.train:
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
    Views.from_text(config.eval.views)
    pairs(config.init.rename)
    if config.init.checkpoint is None:
        unused = [key for key in ("skip", "rename", "tubes") if config.init[key] != find_key(f"init.{key}").default]
        if unused:
            raise UserError(f"init.{unused[0]} goes with init.checkpoint, which is not set")
        if config.train.freeze_below:
            raise UserError(
                f"train.freeze_below={config.train.freeze_below} would freeze random parameters: set init.checkpoint"
            )


def names(text: str) -> list[str]:
    """`a, b` -> ["a", "b"]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def pairs(text: str) -> list[tuple[str, str]]:
    """`old=new,...` -> [("old", "new"), ...].

    Raises:
        UserError: a name has no `=`.
    """
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
