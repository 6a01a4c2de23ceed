"""Loads an experiment: its file, the arguments of `get_config`, values from the command line."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict

from tubevit.checkpoint.renamed import RENAMED
from tubevit.config.config import check_config, parse, set_key
from tubevit.errors import UserError, closest, unknown


def experiments_folder() -> pathlib.Path:
    """Return the folder of the experiments: inside the package of a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def load_config(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Load an experiment. This reads neither data nor checkpoints, see `resolve`.

    Args:
        spec: `FILE[:arg=value,...]`; a bare name is looked for in `experiments/`. The arguments are those of the
            file's `get_config`, read by the types of their defaults.
        overrides: {key: text}, e.g. {"train.steps": "10"}.

    Returns:
        The locked configuration.

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
    module_spec = importlib.util.spec_from_file_location(f"tubevit_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        get_config = module.get_config
        config = get_config(**_arguments(get_config, arguments, str(path)))
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as error:
        text = " ".join(str(error).split())
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
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in parameters:
            raise UserError(f"unknown argument {item!r} of {path}; {closest(name, parameters)}")
        values[name] = parse(value, _type_of(parameters[name], hints.get(name, str)), name)
    return values


def _type_of(parameter: inspect.Parameter, hint) -> type:
    """The type to read an argument as: that of its default, else the annotated one (`int` of `int | None`)."""
    if parameter.default is not parameter.empty and parameter.default is not None:
        return type(parameter.default)
    return next(kind for kind in typing.get_args(hint) or [hint] if kind is not type(None))
