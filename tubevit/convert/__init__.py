"""Convert weights of other libraries to checkpoints of this package, and back."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tubevit import publish, storage, writable
from tubevit.checkpoint.checkpoint import Checkpoint, is_whole, save_model
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.convert import (
    big_vision,
    dinov2,
    exported,
    flax_vit,
    hugging_face,
    hugging_face_video,
    original_video,
    scenic,
    siglip,
    timm,
    twin,
    videoprism,
)
from tubevit.convert.architecture import check_plain, fold_layer_scale
from tubevit.convert.files import kind_of, read_arrays, read_folder, read_json, sha256
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.hugging_face_folder import CONFIG
from tubevit.convert.video_families import FAMILIES
from tubevit.errors import UserError, unknown
from tubevit.models.abstract import abstract_parameters, model_of, parameters
from tubevit.models.config import ModelConfig

DEFAULT_OPTIONS = Options()
FORMATS = ("hugging-face", "timm")  # formats that `convert` can write
_FOLDERS = {  # by the model_type in config.json
    "vit": ("hugging-face", hugging_face.read),
    "dinov2": ("dinov2", dinov2.read),
    "siglip": ("siglip", siglip.read),
    "siglip_vision_model": ("siglip", siglip.read),
    **{name: ("hugging-face", hugging_face_video.read) for name in FAMILIES},
}
_USED_BY = {  # options that only some formats use
    "prefix": ("big-vision",),
    "heads": ("timm", "timesformer", "videomae"),
    "frames": ("videomae", "scenic"),
    "size": ("timesformer", "videomae", "scenic", "videoprism"),
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        path: the path that was written.
        format: the foreign format that was read or written.
        config: the configuration of our model.
        notes: what was assumed or left out, one line each.
    """

    path: str
    format: str
    config: ModelConfig
    notes: tuple[str, ...]


def _open_folder(path: str | os.PathLike) -> Checkpoint:
    if not is_whole(path):
        raise UserError(f"{path} holds no complete checkpoint")
    return Checkpoint(path)


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    format: str | None = None,
    options: Options = DEFAULT_OPTIONS,
    open_checkpoint: Callable[[str | os.PathLike], Checkpoint] = _open_folder,
    origin: Mapping[str, str] | None = None,
) -> Conversion:
    """Convert weights of another library to a tubevit checkpoint, or a tubevit checkpoint to another library's files.

    No code in `src` is run, and `dst` appears only after everything was checked. The metadata of the checkpoint gets a
    `source` with format, name, sha256 of each file, preprocessing and, if the files say it, licence.

    Args:
        src: a file or folder of another library, whose format is recognised by its content; a folder that
            `export_safetensors` or `export_torch` wrote, or a state dict of the model in torch; or a tubevit
            checkpoint.
        dst: a new folder, or a new file for timm's format.
        format: one of `FORMATS`, if `src` is a tubevit checkpoint.
        options: what the files do not say themselves.
        open_checkpoint: function that opens a tubevit checkpoint by name; the default takes its folder.
        origin: where `src` was downloaded from, which is added to `source`.

    Raises:
        UserError: `dst` exists, or `src` is damaged, holds code, has an unknown format or architecture, or does not
            fit; the message lists everything that is missing, unexpected or of another shape.
        StorageError: a bucket is unreachable or refuses the request.
    """
    if storage.exists(dst):
        raise UserError(f"{dst} exists already; name a new one")
    writable.check_file(os.fspath(dst).rstrip("/"))
    path = pathlib.Path(src)
    if not storage.is_remote(src) and path.is_file():
        kind, foreign = _read_file(path, options)
    elif values := _foreign_config(src):
        kind, foreign = _read_folder(path, values, options)
    else:
        return _write(_open_own(src, open_checkpoint), dst, format, options)
    if format is not None:
        raise UserError(f"{src} is of another library and becomes a tubevit checkpoint; call without --format {format}")
    for name, formats in _USED_BY.items():
        if getattr(options, name) is not None and kind not in formats:
            raise UserError(
                f"--{name} is for files of format {' or '.join(formats)}; {src} is {kind}: pass no --{name}"
            )
    _check_claim(foreign, src)
    clip = "x".join(map(str, foreign.config.shape))
    error = f"{src} does not fit {foreign.config.name} in format {kind}"
    error += "" if foreign.config.is_plain_vit else f" with clips of {clip} (T x H x W)"
    config, params = foreign.config, foreign.layout.to_ours(foreign.weights, foreign.config, error)
    if not foreign.is_own:
        config, params = fold_layer_scale(config, params)
    params = unflatten({name: jnp.asarray(leaf) for name, leaf in params.items()})
    save_model(model_of(config, params), dst, metadata={"source": _source(kind, path, foreign) | dict(origin or {})})
    return Conversion(str(dst), kind, config, foreign.notes)


def _check_claim(foreign: Foreign, src: str | os.PathLike) -> None:
    """Raise UserError if the configuration claims far more than the files hold, which would only fill the memory."""
    claimed = sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(foreign.config)))
    # Several names may share a part of a file.
    held = min(sum(array.size for array in foreign.weights.values()), sum(f.stat().st_size for f in foreign.files))
    if claimed > max(8 * held, 10**9):  # below that, the error lists what is missing
        raise UserError(
            f"{src} is refused: its configuration claims {claimed:,} parameters, its files hold {held:,} at most"
        )


def _source(kind: str, path: pathlib.Path, foreign: Foreign) -> dict:
    config = foreign.config
    preprocessing = {
        "mean": config.mean, "std": config.std, "range": [0, 1], "interpolation": foreign.interpolation,
        "size": config.size,
    }  # fmt: skip
    hashes = {file.name: sha256(file) for file in foreign.files}
    source = {"format": kind, "name": path.absolute().name, "sha256": hashes, "preprocessing": preprocessing}
    return source | ({"licence": foreign.licence} if foreign.licence else {})


def _read_file(path: pathlib.Path, options: Options) -> tuple[str, Foreign]:
    kind, weights = kind_of(path), read_arrays(path)
    if kind == "msgpack":
        return "scenic", scenic.read(path, weights, options)
    if kind == "npz" and any(name.endswith(videoprism.MARK) for name in weights):
        return "videoprism", videoprism.read(path, weights, options)
    if kind == "npz":
        if any(flax_vit.AUGREG_MLP in name for name in weights) and options.prefix is None:
            return "augreg", flax_vit.read(path, weights, flax_vit.AUGREG, options)
        return "big-vision", big_vision.read(path, weights, options)
    if (own := twin.unwrapped(weights)) is not None:
        return twin.FORMAT, twin.read([path], own, path.parent / CONFIG, options)
    if family := original_video.family_of(weights):
        return family.name, original_video.read(path, weights, options)
    if timm.MARK not in weights and any("embeddings." in name for name in weights):
        raise UserError(f"{path} is a file of Hugging Face: pass its folder, which holds config.json as well")
    return "timm", timm.read(path, weights, options)


def _foreign_config(src: str | os.PathLike) -> dict | None:
    """Return the content of config.json if another library or `export` wrote it; a workdir has one, too."""
    path = pathlib.Path(src) / CONFIG
    if storage.is_remote(src) or not path.is_file():
        return None
    values = read_json(path)
    foreign = "model_type" in values or "architecture" in values
    return values if foreign or exported.is_exported(values) else None


def _read_folder(folder: pathlib.Path, values: dict, options: Options) -> tuple[str, Foreign]:
    if exported.is_exported(values):
        return _read_export(folder, values, options)
    if "architecture" in values:
        weights, files = read_folder(folder)
        return "timm", timm.read(files[0], weights, options, values)
    kind = str(values.get("model_type"))
    if kind == "dinov2_with_registers":
        raise UserError(f"{folder} is a {kind}: registers are not supported; use a DINOv2 without them (dinov2)")
    if kind not in _FOLDERS:
        raise unknown(f"model_type in {folder / CONFIG}", kind, _FOLDERS)
    name, read = _FOLDERS[kind]
    return name, read(folder, values, options)


def _read_export(folder: pathlib.Path, values: dict, options: Options) -> tuple[str, Foreign]:
    kind = values["format"]
    if kind == exported.FORMAT:
        return kind, exported.read(folder, values, options)
    if kind == twin.FORMAT:
        weights, files = read_folder(folder)
        return kind, twin.read(files, twin.unwrapped(weights) or weights, folder / CONFIG, options)
    raise UserError(
        f"{folder} was exported with --format {kind}, as a program, which does not become a checkpoint again; export "
        f"with --format {exported.FORMAT} or {twin.FORMAT}"
    )


def _open_own(src: str | os.PathLike, open_checkpoint: Callable[[str | os.PathLike], Checkpoint]) -> Checkpoint:
    try:
        return open_checkpoint(src)
    except UserError as error:
        if storage.exists(src):
            expected = f"a folder of another library, which has a {CONFIG} with a model_type or an architecture"
            if storage.is_remote(src):
                expected = "weights of another library on a local disk: copy them there first"
            raise UserError(f"{src} is neither a checkpoint nor {expected}") from error
        raise UserError(
            f"{src} does not exist; expected a file or folder of weights, or a checkpoint ({error})"
        ) from error


def _write(checkpoint: Checkpoint, dst: str | os.PathLike, format: str | None, options: Options) -> Conversion:
    """Write a tubevit checkpoint in another library's format."""
    src = checkpoint.name
    if format is None:
        raise UserError(f"{src} is a tubevit checkpoint: pass --format, one of {', '.join(FORMATS)}")
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if storage.is_remote(dst):
        raise UserError(f"--format {format} writes to a local path; found {dst}: copy it to the bucket afterwards")
    unused = [name for name in (*_USED_BY, "mean", "std") if getattr(options, name) is not None]
    if unused:
        raise UserError(
            f"{src} is a tubevit checkpoint, which has these settings itself: pass no --{', --'.join(unused)}"
        )
    model = checkpoint.load_model(num_classes=0 if options.headless else None)
    family = None
    if format == "hugging-face" and model.config.frames > 1:
        family = hugging_face_video.family_of(model.config, format)
    else:
        check_plain(model.config, format)
    config, params = fold_layer_scale(model.config, flatten(parameters(model)))
    if config.heads:  # the table calls the only head `default`
        ((name, head),) = config.heads
        params = {path.replace(f"heads/{name}/", "heads/default/", 1): leaf for path, leaf in params.items()}
        config = dataclasses.replace(config, heads=(("default", head),))
    params, path = {name: np.asarray(leaf) for name, leaf in params.items()}, pathlib.Path(dst)
    notes = ["left out: the head"] if options.headless else []
    if format == "timm":
        notes += timm.check(path, config)
    elif family is not None:
        notes += hugging_face_video.lost(family, config, params)
    interpolation = checkpoint.metadata.get("source", {}).get("preprocessing", {}).get("interpolation")
    with publish.creating(path) as temporary:
        if format == "timm":
            timm.write(temporary, config, params)
        elif family is not None:
            hugging_face_video.write(temporary, family, config, params, interpolation)
        else:
            hugging_face.write(temporary, config, params, interpolation)
    return Conversion(str(dst), format, config, tuple(notes))
