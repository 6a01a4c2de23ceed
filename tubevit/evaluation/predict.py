"""Prediction of files: labels or features of videos and images, of long videos window by window."""

import dataclasses
import errno
import fnmatch
import glob
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from tubevit import storage
from tubevit.data.decode import Decoded, decode_media
from tubevit.data.labels import distinct_names
from tubevit.data.stream import stream_clips
from tubevit.data.suffixes import is_hidden, named_kind
from tubevit.data.trained_range import out_of_range
from tubevit.errors import DecodeError, UserError
from tubevit.evaluation.evaluate import not_finite
from tubevit.evaluation.token_grid import TokenGrid, token_grid
from tubevit.models.config import Head
from tubevit.models.tubevit import TubeViT


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for an image, a video or a clip of it.

    Attributes:
        file: path as it was given.
        kind: `video` or `image`; "" if the file cannot be read.
        start, end: times of the clip in seconds; None if it stands for the whole file.
        features: (D,) float32, pooled; None if the file cannot be read.
        labels: for each head that takes the file, the most probable classes and their probabilities, in order.
        pixels: (T, size, size, 3) or (size, size, 3) uint8, if they were asked for.
        tokens: (N, D) float32, the output of the encoder, if it was asked for; `grid` says where they lie.
        warnings: ends of sentences about the file, why the prediction may be worse than usual; with its first clip.
        error: why there is no prediction for the file, or for the rest of it.
    """

    file: str | os.PathLike
    kind: str = ""
    start: float | None = None
    end: float | None = None
    features: np.ndarray | None = None
    labels: dict[str, list[tuple[str, float]]] = dataclasses.field(default_factory=dict)
    pixels: np.ndarray | None = None
    tokens: np.ndarray | None = None
    grid: TokenGrid | None = None
    warnings: tuple[str, ...] = ()
    error: UserError | None = None


def predict(
    model: TubeViT,
    files: Iterable[str | os.PathLike],
    *,
    every: float | None = None,
    head: str | None = None,
    top: int = 5,
    keep_pixels: bool = False,
    keep_tokens: bool = False,
) -> Iterator[Prediction]:
    """Predict the labels of videos and images, one file after the other; a file that fails does not end the iteration.

    Args:
        model: any; it is compiled once for all videos.
        files: paths; `find_files` lists those in folders.
        every: seconds from the start of one clip of a video to the next; None takes one clip from its middle.
        head: the head to use; None uses each head that takes the file.
        top: number of labels of each head; 0 computes features only.
        keep_pixels: return the pixels as well. They are otherwise not all computed.
        keep_tokens: return the tokens and their grid as well.

    Yields:
        A prediction for each image, video or clip. If a file cannot be used, or what the model computes for it is not
        finite, its last prediction holds the error.

    Raises:
        UserError: the model has no such head, or none at all.
    """
    if top and not model.config.heads:
        raise UserError("the model has no head to predict with; features need none")
    if head is not None:
        model.head_for(head)  # an unknown one is an error
    compute = nnx.jit(_with_tokens if keep_tokens else _features_only)
    return _predictions(model, files, every, head, top, keep_pixels, compute)


def _features_only(model: TubeViT, pixels) -> tuple[jax.Array, None]:
    return model.features(pixels), None


def _with_tokens(model: TubeViT, pixels) -> tuple[jax.Array, jax.Array]:
    encoded = model.encode(pixels)
    return model.pool(encoded), encoded


def _predictions(
    model: TubeViT,
    files: Iterable,
    every: float | None,
    head: str | None,
    top: int,
    keep_pixels: bool,
    compute: Callable,
) -> Iterator[Prediction]:
    for file in files:
        try:
            for number, clip in enumerate(_clips(model, file, every)):
                pixels = clip.pixels(model.config.size, None if keep_pixels else model.config.tubes)
                pooled, encoded = compute(model, pixels)
                _require_finite(file, pooled)
                if encoded is not None:
                    _require_finite(file, encoded)
                error = _refusal(model, file, clip.kind, head) if top else None
                yield Prediction(
                    file, clip.kind, clip.start, clip.end,
                    features=np.array(pooled[0], np.float32),  # a copy: a view would keep JAX's array alive
                    labels=_labels(model, pooled, file, clip.kind, head, top) if top and error is None else {},
                    pixels=pixels[0] if isinstance(pixels, np.ndarray) else None,
                    tokens=None if encoded is None else np.asarray(encoded[0], np.float32),
                    grid=None if encoded is None else token_grid(model.config, clip, encoded.shape[1]),
                    warnings=() if number else tuple(out_of_range(clip.frames, clip.seconds, **model.input)),
                    error=error,
                )  # fmt: skip
                if error is not None:
                    break
        except UserError as error:  # the file is damaged or not what the model takes, or the parameters are damaged
            yield Prediction(file, error=error)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # no file can be opened any more
                raise
            yield Prediction(file, error=DecodeError(f"cannot read {file}: {error.strerror or error}"))


def _clips(model: TubeViT, file: str | os.PathLike, every: float | None) -> Iterable[Decoded]:
    frames, fps = model.config.frames, model.config.fps
    return [decode_media(file, frames, fps)] if every is None else stream_clips(file, frames, fps, every)


def _takes(head: Head, kind: str) -> bool:
    return head.modality in (kind, "any")


def _refusal(model: TubeViT, file: str | os.PathLike, kind: str, wanted: str | None) -> UserError | None:
    """Return the error for a file that the wanted head, or every head, refuses."""
    heads, article = dict(model.config.heads), "an" if kind == "image" else "a"
    if wanted is not None and not _takes(heads[wanted], kind):
        return UserError(f"{file} is {article} {kind}; head {wanted!r} takes {heads[wanted].modality}s")
    if not any(_takes(head, kind) for head in heads.values()):
        return UserError(f"{file} is {article} {kind}; no head of the model takes one")
    return None


def _require_finite(file: str | os.PathLike, outputs: jax.Array) -> None:
    if reason := not_finite(np.asarray(outputs, np.float32)):
        raise UserError(f"{file}: {reason}")


def _labels(
    model: TubeViT, pooled: jax.Array, file: str | os.PathLike, kind: str, wanted: str | None, top: int
) -> dict[str, list[tuple[str, float]]]:
    labels = {}
    for name, head in model.config.heads:
        if _takes(head, kind) and wanted in (None, name):
            probabilities = head.probabilities(model.heads[name](pooled))
            _require_finite(file, probabilities)
            probabilities = np.asarray(probabilities[0])
            best = np.argsort(-probabilities, kind="stable")[:top]
            classes = distinct_names(head.labels) or range(head.classes)
            labels[name] = [(str(classes[i]), float(probabilities[i])) for i in best]
    return labels


def find_files(names: Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """List the files of names, folders and patterns like `clips/**/*.mp4`.

    Folders are walked as those of a source, see `storage.list_files`. A name that exists is never taken for a pattern.

    Raises:
        UserError: a name is empty, not local or missing, a pattern matches nothing, or a folder holds no video or
            image.
    """
    files = []
    for name in [os.fspath(name) for name in names]:
        if not name:
            raise UserError("the name of a file is empty")
        if storage.is_remote(name):
            raise UserError(f"expected local files; found {name}: copy it here first")
        path = pathlib.Path(name)
        if path.exists():
            files += _in_folder(path)
            continue
        above = next(folder for folder in path.parents if folder.exists() or folder == folder.parent)
        pattern = path.relative_to(above).parts
        if not glob.has_magic(os.path.join(*pattern)):
            raise UserError(f"{name} does not exist")
        matching = _matching(above, pattern)
        if not matching:
            raise UserError(f"no file matches {name}")
        files += matching
    return list(dict.fromkeys(files))


def _matching(folder: pathlib.Path, pattern: tuple[str, ...]) -> list[pathlib.Path]:
    if "**" not in pattern:
        found = sorted(glob.glob(os.path.join(*pattern), root_dir=folder))
        return [file for path in found for file in _in_folder(folder / path)]
    # `glob` would follow links that lead back as often as the system allows
    parts = [path.split("/") for path in storage.list_files(folder, True) if not is_hidden(path)]
    return [
        folder.joinpath(*p)
        for p in parts
        if _matches(p, pattern) or (named_kind(p[-1]) and any(_matches(p[:i], pattern) for i in range(1, len(p))))
    ]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _in_folder(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    inside = [path / name for name in storage.list_files(path) if named_kind(name) and not is_hidden(name)]
    if not inside:
        raise UserError(f"{path} holds no video or image")
    return inside
