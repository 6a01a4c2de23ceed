"""Weights of other libraries, in and out: `convert` and what it returns."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from tubevit import storage
from tubevit.checkpoint.checkpoint import Checkpoint, save_model
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.convert import augreg, big_vision, dinov2, hugging_face, siglip, timm
from tubevit.convert.architecture import check_plain, fold_layer_scale
from tubevit.convert.files import kind_of, read_arrays, read_folder, read_json, sha256, write_whole
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.hugging_face_folder import CONFIG
from tubevit.errors import UserError, unknown
from tubevit.models.abstract import model_of, parameters
from tubevit.models.config import ModelConfig

DEFAULT_OPTIONS = Options()
FORMATS = ("hugging-face", "timm")  # that a checkpoint of ours can become
_FOLDERS = {  # model_type of config.json
    "vit": ("hugging-face", hugging_face.read),
    "dinov2": ("dinov2", dinov2.read),
    "siglip": ("siglip", siglip.read),
    "siglip_vision_model": ("siglip", siglip.read),
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: where it lies.
        format: that it was read from or written in.
        config: of our model.
        notes: what was assumed or left out, a line each.
    """

    path: str
    format: str
    config: ModelConfig
    notes: tuple[str, ...]


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    format: str | None = None,
    options: Options = DEFAULT_OPTIONS,
    open_checkpoint: Callable[[str | os.PathLike], Checkpoint] = Checkpoint,
) -> Conversion:
    """Weights of another library to a checkpoint of ours, or a checkpoint of ours to another library's files.

    Nothing of `src` is run, and `dst` is there only when all was checked. The checkpoint's metadata has a `source`:
    format, name, sha256 of each file, preprocessing.

    Args:
        src: a file or folder in one of the formats of this package, which follows from its content; or a checkpoint of
            ours.
        dst: a new folder; for timm's format a new file.
        format: of `dst`, one of `FORMATS`, where `src` is a checkpoint of ours.
        options: what the files do not say themselves.
        open_checkpoint: opens a checkpoint of ours by its name.

    Raises:
        UserError: `src` is damaged, holds code, is of no known format or architecture, or does not fit: all that is
            missing, unexpected or of another shape; or `dst` exists.
        StorageError: a bucket is out of reach or refuses.
    """
    if storage.exists(dst):
        raise UserError(f"{dst} exists already; name a new one")
    path = pathlib.Path(src)
    if not storage.is_remote(src) and path.is_file():
        kind, found = _read_file(path, options)
    elif values := _foreign_config(src):
        kind, found = _read_folder(path, values, options)
    else:
        return _write(_own(src, open_checkpoint), dst, format, options)
    if format is not None:
        raise UserError(f"{src} is of another library: it becomes a checkpoint of ours, without --format {format}")
    given = {"prefix": kind == "big-vision", "heads": kind == "timm"}
    for name, used in given.items():
        if getattr(options, name) is not None and not used:
            raise UserError(f"{src} is of format {kind}, which says it: pass no --{name}")
    params = found.layout.to_ours(found.weights, found.config, f"{src} is no {found.config.name} of format {kind}")
    config, params = fold_layer_scale(found.config, params)
    params = unflatten({name: jnp.asarray(leaf) for name, leaf in params.items()})
    save_model(model_of(config, params), dst, metadata={"source": _source(kind, path, found)})
    return Conversion(str(dst), kind, config, found.notes)


def _source(kind: str, path: pathlib.Path, found: Foreign) -> dict:
    config = found.config
    preprocessing = {
        "mean": config.mean, "std": config.std, "range": [0, 1], "interpolation": found.interpolation,
        "size": config.size,
    }  # fmt: skip
    hashes = {file.name: sha256(file) for file in found.files}
    return {"format": kind, "name": path.absolute().name, "sha256": hashes, "preprocessing": preprocessing}


def _read_file(path: pathlib.Path, options: Options) -> tuple[str, Foreign]:
    kind, weights = kind_of(path), read_arrays(path)
    if kind == "npz":
        if any(augreg.MLP in name for name in weights) and options.prefix is None:
            return "augreg", augreg.read(path, weights, options)
        return "big-vision", big_vision.read(path, weights, options)
    if timm.MARK not in weights and any("embeddings." in name for name in weights):
        raise UserError(f"{path} is of Hugging Face: name its folder, which has config.json as well")
    return "timm", timm.read(path, weights, options)


def _foreign_config(src: str | os.PathLike) -> dict | None:
    """The content of config.json if it is another library's: training writes one as well."""
    path = pathlib.Path(src) / CONFIG
    if storage.is_remote(src) or not path.is_file():
        return None
    values = read_json(path)
    return values if "model_type" in values or "architecture" in values else None


def _read_folder(folder: pathlib.Path, values: dict, options: Options) -> tuple[str, Foreign]:
    if "architecture" in values:
        weights, files = read_folder(folder)
        return "timm", timm.read(files[0], weights, options, values)
    kind = str(values.get("model_type"))
    if kind == "dinov2_with_registers":
        raise UserError(f"{folder} is a {kind}: registers are not supported; DINOv2 without them is (dinov2)")
    if kind not in _FOLDERS:
        raise unknown(f"model_type in {folder / CONFIG}", kind, _FOLDERS)
    name, read = _FOLDERS[kind]
    return name, read(folder, values, options)


def _own(src: str | os.PathLike, open_checkpoint: Callable[[str | os.PathLike], Checkpoint]) -> Checkpoint:
    try:
        return open_checkpoint(src)
    except UserError as error:
        if storage.exists(src):
            raise UserError(
                f"{src} is neither a checkpoint nor a folder of another library, whose {CONFIG} has a model_type"
            ) from error
        expected = "a file or folder of weights, or a checkpoint"
        raise UserError(f"{src} does not exist; expected {expected} ({error})") from error


def _write(checkpoint: Checkpoint, dst: str | os.PathLike, format: str | None, options: Options) -> Conversion:
    """Write a checkpoint of ours in another library's format."""
    src = checkpoint.name
    if format is None:
        raise UserError(f"{src} is a checkpoint of ours: pass --format, one of {', '.join(FORMATS)}")
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if storage.is_remote(dst):
        raise UserError(f"--format {format} writes on this machine's disk; found {dst}")
    unused = [name for name in ("prefix", "heads", "mean", "std") if getattr(options, name) is not None]
    if unused:
        raise UserError(f"{src} is a checkpoint of ours, which says it: pass no --{', --'.join(unused)}")
    source = checkpoint.metadata.get("source", {})
    model = checkpoint.load_model(**({"num_classes": 0} if options.headless else {}))
    where = f"--format {format}"
    check_plain(model.config, where)
    config, params = fold_layer_scale(model.config, flatten(parameters(model)))
    (head, _), *_ = (*config.heads, (None, None))
    if head is not None:  # whatever its name
        params = {name.replace(f"heads/{head}/", "heads/default/", 1): leaf for name, leaf in params.items()}
        config = dataclasses.replace(config, heads=(("default", dict(config.heads)[head]),))
    params, path = {name: np.asarray(leaf) for name, leaf in params.items()}, pathlib.Path(dst)
    notes = ["the head was not converted"] if options.headless else []
    if format == "timm":
        notes += timm.check(path, config)
        write_whole(path, lambda temporary: timm.write(temporary, config, params))
    else:
        interpolation = source.get("preprocessing", {}).get("interpolation")
        write_whole(path, lambda folder: hugging_face.write(folder, config, params, interpolation))
    return Conversion(str(dst), format, config, tuple(notes))
