"""Checkpoints: parameters as nested dicts in Orbax's format, the model's configuration in its metadata."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from tubevit.errors import UserError, unknown
from tubevit.models.tubevit import Head, ModelConfig, TubeViT
from tubevit.models.variants import as_heads
from tubevit.tubes import TubeSet

_METADATA_FILE = "_CHECKPOINT_METADATA"  # Orbax writes it last: without it a checkpoint is not whole
RUN_FOLDER = "checkpoints"


def model_metadata(config: ModelConfig) -> dict:
    """A model's configuration as JSON values."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    heads = {name: dataclasses.asdict(head) for name, head in config.heads}
    return values | {"tubes": str(config.tubes), "heads": heads}


def config_from_metadata(values: Mapping) -> ModelConfig:
    """The inverse of `model_metadata`."""
    heads = tuple((name, Head(**head)) for name, head in values["heads"].items())
    return ModelConfig(**{**values, "tubes": TubeSet.from_text(values["tubes"], values["padding"]), "heads": heads})


def parameters(model: nnx.Module) -> dict:
    """The parameters as nested dicts of arrays, with the names that they have on disk."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the whole checkpoints of a run, rising."""
    folder = pathlib.Path(folder)
    found = [path.name for path in folder.iterdir() if (path / _METADATA_FILE).exists()] if folder.is_dir() else []
    return sorted(int(name) for name in found if name.isdecimal())


def find_checkpoint(name: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """The folder of a checkpoint.

    Args:
        name: a workdir, a checkpoint's folder, or one that `save_model` wrote.
        step: of the checkpoint in a workdir; None takes the last one.

    Raises:
        UserError: there is none; close names are given.
    """
    path = pathlib.Path(name)
    if (path / _METADATA_FILE).exists() and step is None:
        return path.absolute()
    if path.is_dir():
        run = path / RUN_FOLDER if (path / RUN_FOLDER).is_dir() else path
        available = steps(run)
        if step is not None and step not in available:
            raise UserError(f"{path} has no checkpoint of step {step}; it has {available or 'none'}")
        if available:
            return (run / str(available[-1] if step is None else step)).absolute()
        raise UserError(f"{path} holds no checkpoint; expected a workdir, or a folder that save_model wrote")
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    candidates = [
        str(parent / n) for n in beside if steps(parent / n / RUN_FOLDER) or (parent / n / _METADATA_FILE).exists()
    ]
    raise unknown("checkpoint", str(name), candidates)


def read_metadata(checkpoint: pathlib.Path) -> dict:
    """What was stored beside the parameters: `model`, and of a run `step` and `config`.

    Raises:
        UserError: the folder is a checkpoint of something else.
    """
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata
    if not isinstance(metadata, dict) or "model" not in metadata:
        raise UserError(f"{checkpoint} is an Orbax checkpoint, but not of a TubeViT: its metadata names no model")
    return metadata


def load_tree(checkpoint: pathlib.Path, name: str, expected):
    """One tree of arrays of a checkpoint, after comparing names, shapes and dtypes from both sides.

    Orbax alone would cast dtypes, pad shapes and skip names silently.

    Args:
        checkpoint: its folder.
        name: `params` or `optimizer`.
        expected: the tree of arrays or ShapeDtypeStructs that is wanted.

    Raises:
        UserError: what is missing, unexpected or of another shape or dtype, all of it.
    """
    stored = ocp.checkpointables_metadata(checkpoint).metadata
    if name not in stored:
        raise UserError(f"{checkpoint} holds no {name!r}; it holds {', '.join(map(repr, stored))}")

    def leaves(tree):
        pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(p, simple=True, separator="/"): (tuple(x.shape), str(x.dtype)) for p, x in pairs}

    have, want = leaves(stored[name]), leaves(expected)
    problems = [f"missing {key}" for key in want if key not in have]
    problems += [f"unexpected {key}" for key in have if key not in want]
    problems += [
        f"{key}: expected {want[key]}, found {have[key]}" for key in want if key in have and want[key] != have[key]
    ]
    if problems:
        raise UserError(f"{checkpoint} does not fit the model in {name}: {'; '.join(problems)}")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        return ocp.load_checkpointables(checkpoint, {name: abstract})[name]


def load_model(
    name: str | os.PathLike,
    *,
    step: int | None = None,
    num_classes: int | None = None,
    heads: Mapping | None = None,
    **fields,
) -> TubeViT:
    """Loads a model in evaluation mode.

    Args:
        name: a workdir, a checkpoint's folder, or one that `save_model` wrote.
        step: of the checkpoint in a workdir; None takes the last one.
        num_classes, heads: a new, randomly initialised head or heads; the rest is kept. See `create_model`.
        **fields: replaced in the model's configuration, e.g. precision="bfloat16".

    Raises:
        UserError: no such checkpoint, or it does not fit.
    """
    checkpoint = find_checkpoint(name, step)
    stored = config_from_metadata(read_metadata(checkpoint)["model"])
    config = stored
    if num_classes is not None or heads is not None:
        config = dataclasses.replace(config, heads=as_heads(num_classes, heads, config.tubes))
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for field in fields:
        if field not in known:
            raise unknown("keyword", field, known)
    config = dataclasses.replace(config, **fields)
    wanted = dataclasses.replace(config, heads=stored.heads)
    expected = parameters(nnx.eval_shape(lambda: TubeViT(wanted, rngs=nnx.Rngs(0))))
    loaded = load_tree(checkpoint, "params", expected)
    if config.heads != stored.heads:
        # Compiled, so that nothing but the heads is made.
        loaded["heads"] = jax.jit(lambda: parameters(TubeViT(config, rngs=nnx.Rngs(0))).get("heads", {}))()
    model = nnx.eval_shape(lambda: TubeViT(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(model), loaded)


def save_model(model: TubeViT, path: str | os.PathLike) -> None:
    """Saves a model: parameters by Orbax, its configuration and labels in the metadata.

    Raises:
        UserError: the path exists already.
    """
    path = pathlib.Path(path).absolute()
    if path.exists():
        raise UserError(f"{path} exists already; name a new folder")
    ocp.save_checkpointables(
        path, {"params": parameters(model)}, custom_metadata={"model": model_metadata(model.config)}
    )
