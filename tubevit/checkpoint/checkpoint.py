"""Checkpoints: parameters as nested dicts in the format of Orbax, with the configuration of the model as metadata."""

import dataclasses
import functools
import logging
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from tubevit import publish, storage
from tubevit.checkpoint.adapter import Base
from tubevit.checkpoint.manifest import verify, write_manifest
from tubevit.checkpoint.metadata import check_known, config_from_metadata, model_metadata, versions
from tubevit.checkpoint.paths import unflatten
from tubevit.checkpoint.renamed import with_current_keys
from tubevit.checkpoint.tracebacks import tracebacks_hidden
from tubevit.errors import UserError, unknown
from tubevit.models.abstract import abstract_parameters, initial_parameters, model_of, parameters
from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.models.freeze import join_frozen
from tubevit.models.lora import adapter_shapes, merge_adapter
from tubevit.models.position import resize_positions, table_grid
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import as_heads

logger = logging.getLogger(__name__)

# A checkpoint is complete once this exists: on disk Orbax renames the folder last, in a bucket it writes a marker.
METADATA_FILE, MARK = "_CHECKPOINT_METADATA", "commit_success.txt"
RUN_FOLDER = "checkpoints"
_WAIT = 10.0  # seconds that a thread of a failed save may take to end


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a folder is a complete checkpoint."""
    return storage.exists(storage.join(path, MARK if storage.is_remote(path) else METADATA_FILE))


def steps(folder: str | os.PathLike) -> list[int]:
    """List the steps of the complete checkpoints of a run in ascending order; raises StorageError."""
    found = [name for name in storage.names(folder) if name.isdecimal() and is_whole(storage.join(folder, name))]
    return sorted(map(int, found))


def only_by_name(name: str, step: int | None):
    """Refuse to open the base of an adapter that was not opened by its own name."""
    raise UserError("open the adapter with `open_checkpoint`, which finds its base by name")


class Checkpoint:
    """A checkpoint: verifies its files, describes it and reads it. Files are verified, and metadata is read, once.

    Args:
        folder: folder of a complete checkpoint, on disk or `gs://`; `zoo.names.open_checkpoint` finds it by name.
        name: name that the user gave, for messages; None takes the folder.
        remedy: what to do if files are damaged, for the error.
        open_base: opens the base of an adapter by name and step; `open_checkpoint` passes itself.

    Attributes:
        folder: path of the folder.
        name: name for messages.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str | os.PathLike | None = None,
        remedy: str = "use a good copy or another step",
        open_base: Callable[[str, int | None], "Checkpoint"] = only_by_name,
    ):
        self.folder, self._remedy, self._open_base = storage.as_path(folder), remedy, open_base
        self.name = str(self.folder if name is None else name)

    def __str__(self) -> str:
        return str(self.folder)

    @functools.cached_property
    def _stored(self):
        return storage.call(self.folder, ocp.checkpointables_metadata, self.folder)

    @functools.cached_property
    def metadata(self) -> dict:
        """The metadata: `model`, and for a checkpoint of a run `step` and `config`.

        Raises UserError if the folder is damaged, or a checkpoint of another program.
        """
        values = self._stored.custom_metadata
        if not isinstance(values, dict) or "model" not in values:
            self.verify()  # of a damaged file, Orbax returns no values
            raise UserError(f"{self.folder} is an Orbax checkpoint, but not of a TubeViT: its metadata names no model")
        return values | ({"config": with_current_keys(values["config"])} if "config" in values else {})

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The configuration of the model.

        Raises UserError if a later version wrote it, the labels of a head were changed, or the folder is damaged.
        """
        values = self.metadata["model"]
        try:
            return config_from_metadata(values, self._written)
        except Exception:
            self.verify()  # a damaged file explains any error
            raise

    @property
    def experiment(self) -> dict:
        """The configuration of the run, as nested dicts; {} for saved and converted models."""
        return self.metadata.get("config", {})

    @functools.cached_property
    def base(self) -> Base | None:
        """The checkpoint whose parameters this one leaves out, because it holds an adapter of it."""
        values = self.metadata.get("adapter")
        if values is None:
            return None
        check_known(Base, values, self._written)
        return Base(**{**values, "paths": tuple(values["paths"])})

    @property
    def _written(self) -> str:
        return f"{self.name}, which tubevit {self.metadata.get('versions', {}).get('tubevit')} wrote,"

    @property
    def step(self) -> int | None:
        """The step of the run; None for saved and converted models."""
        return self.metadata.get("step")

    @property
    def workdir(self) -> pathlib.PurePath | None:
        """The workdir of the run; None for saved and released models."""
        parent = self.folder.parent
        of_run = parent.name == RUN_FOLDER and self.folder.name.isdecimal()  # the folder of the zoo has the same name
        return parent.parent if of_run else None

    @property
    def home(self) -> pathlib.PurePath:
        """The workdir, or the folder itself if there is none: the place of files about the checkpoint."""
        return self.workdir or self.folder

    @functools.cached_property
    def _problems(self) -> list[str] | None:
        return verify(self.folder)

    def verify(self) -> None:
        """Compare the files with the manifest, if there is one: Orbax does not notice a flipped byte.

        Raises:
            UserError: files are damaged; the message names them.
            StorageError: the bucket is out of reach or refuses.
        """
        if self._problems:
            more = f"; and {len(self._problems) - 5} more" if len(self._problems) > 5 else ""
            raise UserError(f"{self.folder} is damaged: {'; '.join(self._problems[:5])}{more}; {self._remedy}")

    def read(self, name: str, expected):
        """Read a tree of arrays. Names, shapes and dtypes must match; only bfloat16 is cast to float32, which is exact.

        Orbax alone would cast dtypes, pad shapes and skip names silently.

        Args:
            name: `params` or `optimizer`.
            expected: tree of arrays or ShapeDtypeStructs. An array is restored to the sharding of its ShapeDtypeStruct,
                whatever mesh and number of processes wrote it, or else to the first device of this process.

        Raises:
            UserError: arrays are missing, unexpected or of another shape or dtype; the message lists them all.
        """
        stored = self._stored.metadata
        if name not in stored:
            raise UserError(f"{self.folder} holds no {name!r}; it holds {', '.join(map(repr, stored))}")
        problems = _differences(_leaves(stored[name]), _leaves(expected))
        if problems:
            raise UserError(f"{self.folder} does not fit the model in {name}: {'; '.join(problems)}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def placed(leaf):
            wanted = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted or here)

        abstract = jax.tree.map(placed, expected)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sharding info not provided")
            return storage.call(self.folder, ocp.load_checkpointables, self.folder, {name: abstract})[name]

    def read_parameters(self, above: tuple[pathlib.PurePath, ...] = ()) -> dict:
        """Verify the files and read the parameters as nested dicts of float32 arrays.

        `above` are the folders of the adapters whose base this is. Raises as `verify` and `read`.
        """
        self.verify()
        return self._read_merged(self.model, above)

    def own_shapes(self, model: ModelConfig) -> dict:
        """Return the shapes of the parameters that the files hold; those of an adapter's base are not among them."""
        whole = abstract_parameters(model)
        adapted = join_frozen(unflatten(adapter_shapes(self.model)), whole)
        return whole if self.base is None else self.base.without(adapted)

    def _read_merged(self, model: ModelConfig, above: tuple[pathlib.PurePath, ...] = ()) -> dict:
        """Read the parameters of a model; an adapter is merged with its base."""
        whole, base, params = abstract_parameters(model), self.base, self.read("params", self.own_shapes(model))
        if base is None:
            return params
        taken = unflatten(base.read(self._open_base, self.name, (*above, self.folder)))
        merged = merge_adapter(join_frozen(params, taken), self.model.lora)
        if problems := _differences(_leaves(merged), _leaves(whole)):
            raise UserError(f"{self.name}, an adapter of {base.name}, does not fit the model: {'; '.join(problems)}")
        return merged

    def load_model(
        self, *, num_classes: int | None = None, heads: Mapping | None = None, dtype: str = "float32", **fields
    ) -> TubeViT:
        """Load the model in evaluation mode; see `tubevit.load_model`."""
        if dtype not in PRECISIONS:
            raise unknown("dtype", str(dtype), PRECISIONS)
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        for field in fields:
            if field not in known:
                raise unknown("keyword", field, known)
        self.verify()
        stored = config = self.model
        if num_classes is not None or heads is not None:
            config = dataclasses.replace(config, heads=as_heads(num_classes, heads, config.tubes))
        # Not what suited the devices of the training; it changes no output.
        config = config.replace(**{"attention": "auto", **fields})
        wanted = dataclasses.replace(config, heads=stored.heads, frames=stored.frames, size=stored.size)
        params = self._read_merged(wanted)
        _check_times(params, config)
        if config.renumbers(stored):
            logger.warning(
                f"{self.name} was trained with size={stored.size}: with size={config.size}, its positions 'index' give "
                "the tokens other numbers, so fine-tune it at this size"
            )
        for i, table in params.get("position", {}).items():
            if i.isdecimal():  # the others are over time, which do not change
                grid = config.tubes.tubes[int(i)].grid(config.shape, config.tubes.padding)
                params["position"][i] = jnp.asarray(resize_positions(table, table_grid(config.position, grid)))
        if config.heads != stored.heads:
            # Compiled, so that only the heads are computed.
            params["heads"] = jax.jit(lambda: initial_parameters(config, 0).get("heads", {}))()
        return model_of(config, jax.tree.map(lambda leaf: leaf.astype(PRECISIONS[dtype]), params))


def _check_times(params: Mapping, config: ModelConfig) -> None:
    """Raise UserError if learned positions over time, which are not resized, are not those of the clip."""
    tables = [table for i, table in params.get("position", {}).items() if not i.isdecimal()]
    if "temporal" in params["encoder"]:
        tables.append(params["encoder"]["temporal"]["position"])
    times = config.tubes.grid(config.shape)[0][0]
    for table in tables:
        if len(table) != times:
            raise UserError(
                f"the learned positions over time fit {len(table)} times, and frames={config.frames} gives {times}: "
                "keep the frames of the checkpoint"
            )


def _leaves(tree) -> dict[str, tuple[tuple[int, ...], str]]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): (tuple(x.shape), str(x.dtype)) for p, x in pairs}


def _differences(have: Mapping, want: Mapping) -> list[str]:
    problems = [f"missing {key}" for key in want if key not in have]
    problems += [f"unexpected {key}" for key in have if key not in want]
    return problems + [
        f"{key}: expected {want[key]}, found {have[key]}"
        for key in want
        if key in have and want[key] not in (have[key], _widened(*have[key]))
    ]


def _widened(shape: tuple, dtype: str) -> tuple[tuple, str]:
    return shape, "float32" if dtype == "bfloat16" else dtype


def save_model(model: TubeViT, path: str | os.PathLike, metadata: Mapping | None = None) -> None:
    """Save a model: parameters with Orbax, configuration and labels as metadata, file hashes in manifest.json.

    Args:
        model: any.
        path: a new folder, on disk or `gs://`.
        metadata: JSON values to add to the metadata, such as `source` for converted weights.

    Raises:
        UserError: the path exists already.
        MadeMeanwhile: another process made it meanwhile.
        OSError: the folder cannot be written.
        StorageError: the bucket is out of reach or refuses.
    """
    path = storage.as_path(path)
    if storage.exists(path):
        raise UserError(f"{path} exists already; name a new folder")
    metadata = {**(metadata or {}), "model": model_metadata(model.config), "versions": versions()}
    if storage.is_remote(path) or jax.process_count() > 1:  # Orbax renames the folder once all processes have written
        _save(model, path, metadata)
        return
    with publish.creating(path) as temporary, tracebacks_hidden:
        _save(model, temporary, metadata)


def _save(model: TubeViT, path: pathlib.PurePath, metadata: dict) -> None:
    before = threading.enumerate()
    try:
        storage.call(path, ocp.save_checkpointables, path, {"params": parameters(model)}, custom_metadata=metadata)
    except Exception:
        # It raises the first error, while other threads write on into a folder that is about to be removed.
        for thread in threading.enumerate():
            if thread not in before and "orbax" in type(thread).__module__:
                thread.join(_WAIT)
        raise
    if jax.process_index() == 0:
        write_manifest(path)
