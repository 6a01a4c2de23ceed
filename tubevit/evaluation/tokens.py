"""Tokens of videos as files: an array (clips, N, D) that can be memory-mapped, and what its rows are beside it."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from tubevit import publish, storage
from tubevit.errors import DecodeError, UserError, cannot_write
from tubevit.evaluation.predict import Prediction
from tubevit.evaluation.token_grid import TokenGrid

File = str | os.PathLike
_LARGEST = float(np.finfo(np.float16).max)
_DECIMALS = 6  # of the centres


def token_paths(folder: str | os.PathLike, files: Iterable[File]) -> dict[File, pathlib.Path]:
    """Choose the place in `folder` for the tokens of each file, to which `.npy` and `.json` are added.

    The places are named as the files, and lie in the folders that distinguish these from one another.

    Raises:
        UserError: there is something that is not the tokens of this file.
    """
    absolute = {file: pathlib.Path(os.path.abspath(file)) for file in files}
    above = os.path.commonpath([path.parent for path in absolute.values()])
    paths = {file: pathlib.Path(folder, path.relative_to(above)) for file, path in absolute.items()}
    for file, path in paths.items():
        found = _file_of(path)
        if found is not None and found != os.fspath(absolute[file]):
            of = f"holds the tokens of {found}" if found else "is not written by predict --tokens"
            raise UserError(f"{_with(path, '.json')} {of}; name another folder for those of {file}")
    return paths


def _file_of(path: pathlib.Path) -> str | None:
    """Return the absolute path whose tokens are at a place, None if nothing is there, and "" for something else."""
    if not any(_with(path, suffix).exists() for suffix in (".npy", ".json")):
        return None
    try:
        return str(json.loads(_with(path, ".json").read_bytes())["file"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _with(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def write_tokens(
    predictions: Iterable[Prediction], paths: Mapping[File, pathlib.Path], made_with: Mapping[str, str]
) -> Iterator[Prediction]:
    """Pass predictions on and write their tokens clip by clip; those of a file appear once all are there.

    Nothing appears for a file that has an error. Values beyond the range of float16 become the largest ones.

    Args:
        predictions: with tokens, those of a file one after the other.
        paths: see `token_paths`.
        made_with: `model` and `fingerprint`, for the description.

    Yields:
        The predictions without tokens. An error is added where frames change their size between clips.

    Raises:
        UserError: the files cannot be written; RunError: the disk is full or broken.
    """
    for file, clips in itertools.groupby(predictions, key=lambda found: found.file):
        path, about = paths[file], {"file": os.path.abspath(file), **made_with}
        with contextlib.ExitStack() as stack:
            with _writing(path):
                output = _Output(path, about, stack)
            for found in clips:
                found = found if output.grid is None or found.error else _checked(found, output.grid)
                if found.error is None:
                    with _writing(path):
                        output.add(found)
                yield dataclasses.replace(found, tokens=None, grid=None)
                if found.error is not None:
                    break
            else:
                with _writing(path):
                    output.publish()


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(_with(path, ".npy"), error, "name another folder") from error


def _checked(found: Prediction, grid: TokenGrid) -> Prediction:
    """Replace a prediction by an error if its frames have another size than those of earlier clips."""
    if found.grid is None or found.grid.picture == grid.picture:
        return found
    sizes = " and ".join(f"{width}x{height}" for height, width in (grid.picture, found.grid.picture))
    return Prediction(found.file, error=DecodeError(f"{found.file} has frames of {sizes}: its tokens have no one grid"))


class _Output:
    """The tokens of one file, in a temporary folder until they are published; methods raise OSError."""

    def __init__(self, path: pathlib.Path, about: dict, stack: contextlib.ExitStack):
        self._path, self._about = path, about
        existing = next(parent for parent in pathlib.Path(os.path.abspath(path)).parents if parent.exists())
        self._folder = stack.enter_context(publish.temporary_folder(existing))
        # Without a buffer, which would be written when the file is closed, with the errors of a full disk.
        self._file = stack.enter_context(open(self._folder / "tokens", "wb", buffering=0))
        self._shape: tuple[int, ...] = ()
        self._times: list[tuple[float | None, float | None]] = []
        self.grid: TokenGrid | None = None

    def add(self, clip: Prediction) -> None:
        """Append the tokens of a clip."""
        assert clip.tokens is not None and clip.grid is not None
        if self.grid is None:
            self.grid, self._shape = clip.grid, clip.tokens.shape
            _write(self._file, _header((0, *self._shape)))
        self._times.append((clip.grid.start, clip.grid.end))
        _write(self._file, np.clip(clip.tokens, -_LARGEST, _LARGEST).astype("<f2").tobytes())

    def publish(self) -> None:
        """Complete both files and move them to their places."""
        assert self.grid is not None
        header = _header((len(self._times), *self._shape))
        assert len(header) == len(_header((0, *self._shape)))  # NumPy leaves room for the first axis to grow
        self._file.seek(0)
        _write(self._file, header)
        self._file.close()
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self._description(self.grid).items())
        storage.write_text(self._folder / "about", "{\n" + ",\n".join(lines) + "\n}\n")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _with(self._path, ".json").unlink(missing_ok=True)  # rather none than that of other tokens
        os.replace(self._folder / "tokens", _with(self._path, ".npy"))
        os.replace(self._folder / "about", _with(self._path, ".json"))

    def _description(self, grid: TokenGrid) -> dict:
        start, end = zip(*self._times)
        centres = [[None if np.isnan(x) else round(x, _DECIMALS) for x in row] for row in grid.centres.tolist()]
        tubes = [dataclasses.asdict(tube) for tube in grid.tubes]
        picture = {"height": grid.picture[0], "width": grid.picture[1]}
        return self._about | {"start": start, "end": end, "picture": picture, "tubes": tubes, "centres": centres}


def _header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
