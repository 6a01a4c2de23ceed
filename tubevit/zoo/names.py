"""Names of checkpoints: a workdir, a folder, on disk or in a bucket, a released model, or one on the Hub."""

import difflib
import logging
import os
import pathlib
from collections.abc import Mapping

from tubevit import storage
from tubevit.checkpoint.checkpoint import RUN_FOLDER, Checkpoint, is_whole, steps
from tubevit.checkpoint.replays import Replays
from tubevit.errors import UserError, unknown
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import ARCHITECTURES, model_config
from tubevit.zoo.hub_name import is_hub_name
from tubevit.zoo.registry import cached_remedy, find_release, is_release, list_models

logger = logging.getLogger(__name__)

_TRIED = 6  # names beside an unknown one, the most similar ones: each takes several requests to a bucket
_CONVERT = "tubevit convert SRC DST makes a checkpoint from the weights of another library"


def open_checkpoint(name: str | os.PathLike, step: int | None = None) -> Checkpoint:
    """Open a checkpoint by its name.

    Args:
        name: a workdir, the folder of a checkpoint or one that `save_model` wrote, on disk or `gs://`; a released
            model, `arch@tag`, see `find_release`; or a model on the Hub, `hf://owner/repo[@revision][:subfolder]`, see
            `open_hub`. An existing path takes precedence over a released model.
        step: which checkpoint of a workdir; None takes the last good one, see `train.replay`.

    Raises:
        UserError: there is no such checkpoint; the message names similar ones.
        RunError: a model cannot be downloaded; StorageError: the bucket is out of reach or refuses.
    """
    if not is_hub_name(name):
        folder = _find(name, step)
        return Checkpoint(folder, name, open_base=open_checkpoint, **cached_remedy(folder))
    if step is not None:
        raise UserError(f"{name} is a model on the Hub, which has no steps; found step {step}")
    from tubevit.zoo.hub import open_hub

    return open_hub(name, open_checkpoint)


def _find(name: str | os.PathLike, step: int | None):
    path = storage.as_path(name)
    if step is None and is_whole(path):
        return path
    if storage.is_folder(path):
        run = path / RUN_FOLDER if storage.is_folder(path / RUN_FOLDER) else path
        available = steps(run)
        if step is not None and step not in available:
            raise UserError(f"{name} has no checkpoint of step {step}; it has {available or 'none'}")
        if available:
            return run / str(_newest(name, run, available) if step is None else step)
        raise UserError(
            f"{name} holds no checkpoint; expected a workdir, or a folder that save_model wrote; {_CONVERT}"
        )
    if not storage.is_remote(path) and path.is_file():
        raise UserError(f"{name} is a file, not a checkpoint; {_CONVERT}")
    if is_release(name):
        if step is not None:
            raise UserError(f"{name} is a released model, which has no steps; found step {step}")
        return find_release(os.fspath(name))
    if name in ARCHITECTURES:
        released = list_models(f"{name}@*", pretrained=True)
        raise UserError(
            f"{name} is an architecture without parameters; name a checkpoint of it, such as "
            + " or ".join(["a workdir", *released])
        )
    folder, base = os.path.split(os.fspath(name).rstrip("/"))
    nearest = difflib.get_close_matches(base, storage.names(folder or "."), n=_TRIED, cutoff=0)
    beside = [storage.join(folder, other) for other in nearest]
    candidates = [other for other in beside if is_whole(other) or steps(storage.join(other, RUN_FOLDER))]
    raise unknown("checkpoint", str(name), [*candidates, *list_models(pretrained=True)])


def _newest(name: str | os.PathLike, run: pathlib.PurePath, available: list[int]) -> int:
    """Return the last checkpoint of a run that is not suspect, see `train.replay`."""
    replays = Replays.read(run.parent)
    if replays.corrupt is None or available[-1] <= replays.clean:
        return available[-1]
    good, found = replays.last_good(available), f"the two results of step {replays.corrupt} differed"
    if good is None:
        example = run / str(available[-1])
        raise UserError(f"{name}: {found}, and no checkpoint is known to be good; name one of them, such as {example}")
    logger.warning(f"{name}: {found}; taking step {good}, the last one that is known to be good")
    return good


def named_config(name: str | os.PathLike, **fields) -> ModelConfig:
    """Return the configuration of an architecture or of a checkpoint.

    Args:
        name: a name that `create_model` or `load_model` takes.
        **fields: as for `create_model`; they replace the fields of a checkpoint.

    Raises:
        UserError: there is neither; the message names the closest ones.
    """
    if name in ARCHITECTURES:
        return model_config(str(name), **fields)
    if "/" not in os.fspath(name) and not is_release(name) and not storage.exists(name):
        raise unknown("model", str(name), [*ARCHITECTURES, *list_models(pretrained=True)])
    return open_checkpoint(name).model.replace(**fields)


def load_model(
    name: str | os.PathLike,
    *,
    step: int | None = None,
    num_classes: int | None = None,
    heads: Mapping | None = None,
    dtype: str = "float32",
    **fields,
) -> TubeViT:
    """Load a model in evaluation mode.

    Args:
        name: a workdir, the folder of a checkpoint or one that `save_model` wrote, on disk or `gs://`; a released
            model, `arch@tag`, one of `list_models(pretrained=True)`; or a model on the Hugging Face Hub,
            `hf://owner/repo[@revision][:subfolder]`, also one of another library that `convert` reads.
        step: which checkpoint of a workdir; None takes the last good one, see `train.replay`.
        num_classes, heads: replace the heads by new, randomly initialised ones; see `create_model`.
        dtype: dtype of the parameters, `float32` or `bfloat16`, in whichever they were saved. The field `precision`
            sets the dtype of the computation.
        **fields: replace fields of the configuration of the model, e.g. precision="bfloat16", quantize="int8" for
            faster products on accelerators, or budget="50%" for fewer tokens, see `tubevit.budget`; for another size,
            learned positions are resized.

    Raises:
        UserError: there is no such checkpoint, its files are damaged, it does not fit the model, or the labels of a
            head were changed.
        RunError: a model cannot be downloaded; StorageError: the bucket is out of reach or refuses.
    """
    return open_checkpoint(name, step).load_model(num_classes=num_classes, heads=heads, dtype=dtype, **fields)
