"""The folder that an export writes: new, complete or absent, with a description of its model in config.json."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tubevit import __version__, publish, storage, writable
from tubevit.checkpoint.metadata import model_metadata
from tubevit.errors import UserError, cannot_write, optional_import
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT

CONFIG, MODEL = "config.json", "model.safetensors"
NEEDS = ("export", "convert")  # purpose and extra of the packages


def with_head(model: TubeViT, head: str | None) -> ModelConfig:
    """Return the configuration with this head alone, or without heads if the model has none.

    Raises UserError if the head does not exist, or there are several and none is named.
    """
    if model.config.heads or head is not None:
        head = model.head_for(head)
    return dataclasses.replace(model.config, heads=tuple(pair for pair in model.config.heads if pair[0] == head))


def modalities(config: ModelConfig) -> tuple[str, ...]:
    """Return what a model with all of its heads takes, `video` and maybe `image`."""
    return ("video", "image") if any(tube.is_2d for tube in config.tubes.tubes) else ("video",)


def modality(config: ModelConfig) -> str:
    """Return what a model with at most one head takes, `video` or `image`."""
    found = config.heads[0][1].modality if config.heads else "any"
    if found == "any":
        return "image" if config.is_plain_vit else "video"
    return found


def pixel_shape(config: ModelConfig, modality: str) -> tuple[int, ...]:
    """Return the shape of the model's clips (T, H, W, 3) or images (H, W, 3)."""
    return (*(config.shape if modality == "video" else config.shape[1:]), 3)


def program_shape(config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of what a model with at most one head takes; raises UserError if no tube takes its images."""
    if modality(config) == "image":
        config.tubes.for_images()
    return pixel_shape(config, modality(config))


def program_output(config: ModelConfig) -> str:
    """Return what a program for at most one head computes: `softmax` or `sigmoid` of the logits, or `features`."""
    if not config.heads:
        return "features"
    return "sigmoid" if config.heads[0][1].multi_label else "softmax"


def write_config(folder: pathlib.Path, kind: str, config: ModelConfig, modalities: Sequence[str], **more) -> None:
    """Write config.json, which describes everything that a program needs to know; `more` may replace the `model`."""
    pixels = {modality: ["b", *pixel_shape(config, modality)] for modality in modalities}
    pixels |= {"dtype": "uint8", "range": [0, 255], "channels": "RGB", "fps": config.fps}
    labels = {name: head.labels for name, head in config.heads}
    values = {"format": kind, "tubevit": __version__, "input": pixels, "labels": labels}
    values |= {"model": model_metadata(config), **more}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def write_program_config(folder: pathlib.Path, kind: str, config: ModelConfig, **more) -> None:
    """Write config.json of a program for the only head, or for pooled features."""
    more |= {"head": config.heads[0][0] if config.heads else None, "output": program_output(config)}
    write_config(folder, kind, config, (modality(config),), **more)


def save_arrays(arrays: Mapping, path: pathlib.Path) -> None:
    """Write arrays as safetensors; raises UserError if the package is not installed."""
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in arrays.items()}
    path.touch()
    mode = path.stat().st_mode
    optional_import("safetensors.numpy", *NEEDS).save_file(arrays, path)
    path.chmod(mode)  # safetensors makes it readable by its owner only


def _is_kept(path: pathlib.Path) -> bool:
    """Whether a file is no rest of an export that was killed."""
    return not path.name.startswith(publish.TEMPORARY)


def check_new_folder(path: str | os.PathLike) -> None:
    """Raise UserError unless a folder for an export can be made at `path`: new, or empty, on a local disk."""
    if storage.is_remote(path):
        raise UserError(f"export writes to a local folder; found {os.fspath(path)}: copy it to the bucket afterwards")
    path = pathlib.Path(path).absolute()
    try:
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(map(_is_kept, path.iterdir()))):
            raise UserError(f"{path} exists already; name a new folder or an empty one")
    except OSError as error:
        raise cannot_write(path, error) from error
    writable.check_folder(path)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary folder that becomes `path` at the end, unless an error was raised.

    Nothing is written beside a folder that exists: it may be a mount, or stand where the user may not write.
    """
    check_new_folder(path)
    path = pathlib.Path(path).absolute()
    try:
        with publish.replacing_all(path) as folder:
            yield folder
    except OSError as error:
        raise cannot_write(path, error) from error
