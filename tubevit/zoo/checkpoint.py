"""Checkpoints: parameters as nested dicts in Orbax's format, the model's configuration in its metadata."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from orbax.checkpoint import v1 as ocp

import tubevit
from tubevit import storage
from tubevit.data.labels import label_hash
from tubevit.errors import UserError, unknown
from tubevit.models.config import PRECISIONS, Head, ModelConfig
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import ARCHITECTURES, as_heads, model_config
from tubevit.tubes import TubeSet
from tubevit.zoo.inflate import resize_positions
from tubevit.zoo.manifest import verify, write_manifest
from tubevit.zoo.registry import find_release, is_cached, is_release, list_models

# Without it a checkpoint is not whole: on disk Orbax renames the folder last, in a bucket it marks it with a file.
_METADATA_FILE, MARK = "_CHECKPOINT_METADATA", "commit_success.txt"
RUN_FOLDER = "checkpoints"
_CONVERT = "tubevit convert SRC DST makes one of another library's weights"


def model_metadata(config: ModelConfig) -> dict:
    """A model's configuration as JSON values; heads whose labels are known have their `label_hash`."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    heads = {name: dataclasses.asdict(head) | _label_hash(head.labels) for name, head in config.heads}
    return values | {"tubes": str(config.tubes), "heads": heads}


def _label_hash(labels) -> dict[str, str]:
    return {"label_hash": label_hash(labels)} if labels else {}


def config_from_metadata(values: Mapping) -> ModelConfig:
    """The inverse of `model_metadata`.

    Raises:
        UserError: the labels of a head are not those that it was trained with, by their hash.
    """
    heads = []
    for name, stored in values["heads"].items():
        fields = {key: value for key, value in stored.items() if key != "label_hash"}
        expected, found = stored.get("label_hash"), _label_hash(fields["labels"]).get("label_hash")
        if expected not in (None, found):
            raise UserError(
                f"the labels of head {name!r} were changed: expected those of label_hash {expected}, found {found}"
            )
        heads.append((name, Head(**fields)))
    tubes = TubeSet.from_text(values["tubes"], values["padding"])
    return ModelConfig(**{**values, "tubes": tubes, "heads": tuple(heads)})


def versions() -> dict[str, str]:
    """Versions of the packages that a checkpoint is written with."""
    packages = ("jax", "flax", "orbax-checkpoint", "numpy")
    return {"tubevit": tubevit.__version__} | {name: importlib.metadata.version(name) for name in packages}


def parameters(model: nnx.Module) -> dict:
    """The parameters as nested dicts of arrays, with the names that they have on disk."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _is_whole(path: str | os.PathLike) -> bool:
    return storage.exists(storage.join(path, MARK if storage.is_remote(path) else _METADATA_FILE))


def steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the whole checkpoints of a run, rising.

    Raises:
        StorageError: the bucket is out of reach or refuses.
    """
    found = [name for name in storage.names(folder) if name.isdecimal() and _is_whole(storage.join(folder, name))]
    return sorted(map(int, found))


def workdir_of(checkpoint: pathlib.PurePath) -> pathlib.PurePath | None:
    """The workdir of the run that a checkpoint's folder lies in; None of saved and of released models."""
    of_run = checkpoint.parent.name == RUN_FOLDER and checkpoint.name.isdecimal()  # the zoo's folder is called so too
    return checkpoint.parent.parent if of_run else None


def find_checkpoint(name: str | os.PathLike, step: int | None = None) -> pathlib.PurePath:
    """The folder of a checkpoint.

    Args:
        name: a workdir, a checkpoint's folder, or one that `save_model` wrote, on disk or `gs://`; or a released one,
            `arch@tag`, see `find_release`. What is there under that name comes first.
        step: of the checkpoint in a workdir; None takes the last one.

    Raises:
        UserError: there is none; close names are given.
        RunError: a released one cannot be downloaded; StorageError: the bucket is out of reach or refuses.
    """
    path = storage.as_path(name)
    if step is None and _is_whole(path):
        return path
    if storage.is_folder(path):
        run = path / RUN_FOLDER if storage.is_folder(path / RUN_FOLDER) else path
        available = steps(run)
        if step is not None and step not in available:
            raise UserError(f"{name} has no checkpoint of step {step}; it has {available or 'none'}")
        if available:
            return run / str(available[-1] if step is None else step)
        raise UserError(f"{name} holds no checkpoint; expected a workdir, or what save_model wrote; {_CONVERT}")
    if not storage.is_remote(path) and path.is_file():
        raise UserError(f"{name} is a file, not a checkpoint; {_CONVERT}")
    if is_release(name):
        if step is not None:
            raise UserError(f"{name} is a released checkpoint: it has no steps; found step {step}")
        return find_release(os.fspath(name))
    if name in ARCHITECTURES:
        released = list_models(f"{name}@*", pretrained=True)
        raise UserError(
            f"{name} is an architecture without parameters; name a checkpoint of it, such as "
            + " or ".join(["a workdir", *released])
        )
    folder = os.path.dirname(os.fspath(name).rstrip("/"))
    beside = [storage.join(folder, other) for other in storage.names(folder or ".")]
    candidates = [other for other in beside if _is_whole(other) or steps(storage.join(other, RUN_FOLDER))]
    raise unknown("checkpoint", str(name), [*candidates, *list_models(pretrained=True)])


def read_metadata(checkpoint: pathlib.PurePath) -> dict:
    """What was stored beside the parameters: `model`, and of a run `step` and `config`.

    Raises:
        UserError: the folder is a checkpoint of something else.
    """
    metadata = storage.call(checkpoint, ocp.checkpointables_metadata, checkpoint).custom_metadata
    if not isinstance(metadata, dict) or "model" not in metadata:
        raise UserError(f"{checkpoint} is an Orbax checkpoint, but not of a TubeViT: its metadata names no model")
    return metadata


def named_config(name: str | os.PathLike, **fields) -> ModelConfig:
    """The configuration of an architecture or of a checkpoint, by what `create_model` or `load_model` take.

    Args:
        name: of either.
        **fields: as of `create_model`; those of a checkpoint's replace its own.

    Raises:
        UserError: there is neither; the closest architectures are named.
    """
    if name in ARCHITECTURES:
        return model_config(str(name), **fields)
    if "/" not in os.fspath(name) and not is_release(name) and not storage.exists(name):
        raise unknown("model", str(name), [*ARCHITECTURES, *list_models(pretrained=True)])
    return config_from_metadata(read_metadata(find_checkpoint(name))["model"]).replace(**fields)


def load_tree(checkpoint: pathlib.PurePath, name: str, expected):
    """One tree of arrays of a checkpoint, after comparing names, shapes and dtypes from both sides.

    Orbax alone would cast dtypes, pad shapes and skip names silently. Only bfloat16 becomes float32, which is exact.

    Args:
        checkpoint: its folder.
        name: `params` or `optimizer`.
        expected: the tree of arrays or ShapeDtypeStructs that is wanted. A ShapeDtypeStruct with a sharding is
            restored to that, whatever mesh and number of processes wrote it; others go to this process's first device.

    Raises:
        UserError: what is missing, unexpected or of another shape or dtype, all of it.
    """
    stored = storage.call(checkpoint, ocp.checkpointables_metadata, checkpoint).metadata
    if name not in stored:
        raise UserError(f"{checkpoint} holds no {name!r}; it holds {', '.join(map(repr, stored))}")

    def leaves(tree):
        pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(p, simple=True, separator="/"): (tuple(x.shape), str(x.dtype)) for p, x in pairs}

    have, want = leaves(stored[name]), leaves(expected)
    problems = [f"missing {key}" for key in want if key not in have]
    problems += [f"unexpected {key}" for key in have if key not in want]
    problems += [
        f"{key}: expected {want[key]}, found {have[key]}"
        for key in want
        if key in have and want[key] not in (have[key], _widened(*have[key]))
    ]
    if problems:
        raise UserError(f"{checkpoint} does not fit the model in {name}: {'; '.join(problems)}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf):
        wanted = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted or here)

    abstract = jax.tree.map(placed, expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        return storage.call(checkpoint, ocp.load_checkpointables, checkpoint, {name: abstract})[name]


def _widened(shape: tuple, dtype: str) -> tuple[tuple, str]:
    return shape, "float32" if dtype == "bfloat16" else dtype


def require_good(checkpoint: pathlib.PurePath) -> None:
    """Compares a checkpoint with its manifest, where it has one: Orbax does not notice a flipped byte.

    Raises:
        UserError: files are damaged; they are named.
        StorageError: the bucket is out of reach or refuses.
    """
    problems = verify(checkpoint)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        mend = "delete it, to have it downloaded anew" if is_cached(checkpoint) else "use a good copy or another step"
        raise UserError(f"{checkpoint} is damaged: {'; '.join(problems[:5])}{more}; {mend}")


def load_model(
    name: str | os.PathLike,
    *,
    step: int | None = None,
    num_classes: int | None = None,
    heads: Mapping | None = None,
    dtype: str = "float32",
    **fields,
) -> TubeViT:
    """Loads a model in evaluation mode.

    Args:
        name: a workdir, a checkpoint's folder, or one that `save_model` wrote, on disk or `gs://`; or a released one,
            `arch@tag`, one of `list_models(pretrained=True)`.
        step: of the checkpoint in a workdir; None takes the last one.
        num_classes, heads: a new, randomly initialised head or heads; the rest is kept. See `create_model`.
        dtype: of the parameters, `float32` or `bfloat16`, whichever they were saved with; half the memory and, to save
            it again, half the disk. What is computed in is `precision`.
        **fields: replaced in the model's configuration, e.g. precision="bfloat16"; with another size, learned positions
            are resized.

    Raises:
        UserError: no such checkpoint, its files are damaged, it does not fit, or the labels of a head were changed.
        RunError: a released one cannot be downloaded; StorageError: the bucket is out of reach or refuses.
    """
    if dtype not in PRECISIONS:
        raise unknown("dtype", str(dtype), PRECISIONS)
    checkpoint = find_checkpoint(name, step)
    require_good(checkpoint)
    stored = config_from_metadata(read_metadata(checkpoint)["model"])
    config = stored
    if num_classes is not None or heads is not None:
        config = dataclasses.replace(config, heads=as_heads(num_classes, heads, config.tubes))
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for field in fields:
        if field not in known:
            raise unknown("keyword", field, known)
    config = config.replace(**fields)
    wanted = dataclasses.replace(config, heads=stored.heads, frames=stored.frames, size=stored.size)
    expected = parameters(nnx.eval_shape(lambda: TubeViT(wanted, rngs=nnx.Rngs(0))))
    loaded = load_tree(checkpoint, "params", expected)
    for i, table in loaded.get("position", {}).items():
        grid = config.tubes.tubes[int(i)].grid(config.shape, config.padding)
        loaded["position"][i] = jnp.asarray(resize_positions(table, grid))
    if config.heads != stored.heads:
        # Compiled, so that nothing but the heads is made.
        loaded["heads"] = jax.jit(lambda: parameters(TubeViT(config, rngs=nnx.Rngs(0))).get("heads", {}))()
    loaded = jax.tree.map(lambda leaf: leaf.astype(PRECISIONS[dtype]), loaded)
    model = nnx.eval_shape(lambda: TubeViT(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(model), loaded)


def save_model(model: TubeViT, path: str | os.PathLike, metadata: Mapping | None = None) -> None:
    """Saves a model: parameters by Orbax, its configuration and labels in the metadata, hashes in manifest.json.

    Args:
        model: any.
        path: a new folder, on disk or `gs://`.
        metadata: JSON values that stand beside the configuration, as `source` of converted weights.

    Raises:
        UserError: the path exists already.
        StorageError: the bucket is out of reach or refuses.
    """
    path = storage.as_path(path)
    if storage.exists(path):
        raise UserError(f"{path} exists already; name a new folder")
    metadata = {**(metadata or {}), "model": model_metadata(model.config), "versions": versions()}
    storage.call(path, ocp.save_checkpointables, path, {"params": parameters(model)}, custom_metadata=metadata)
    if jax.process_index() == 0:
        write_manifest(path)
