"""Pooled features of videos and images as an .npz file, which says what model made them."""

import dataclasses
import os
from collections.abc import Iterable
from typing import BinaryIO, Self

import numpy as np

from tubevit.errors import UserError
from tubevit.evaluation.predict import Prediction

_KINDS = {"files": "U", "features": "f", "start": "f", "end": "f", "model": "U", "fingerprint": "U"}
_REMEDY = "write it again with `tubevit predict --features`"


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features of n clips and images.

    Attributes:
        files: (n,) paths.
        features: (n, D) float32.
        start, end: (n,) float64, of the clip in seconds; NaN for a clip that stands for the whole file.
        model: name of the checkpoint.
        fingerprint: see `checkpoint.fingerprint`.
    """

    files: np.ndarray
    features: np.ndarray
    start: np.ndarray
    end: np.ndarray
    model: str
    fingerprint: str

    @classmethod
    def collect(cls, predictions: Iterable[Prediction], width: int, model: str, fingerprint: str) -> Self:
        """Collect the features of all predictions; `width` is D, also if there are none."""
        rows = [(os.fspath(found.file), found.features, found.start, found.end) for found in predictions]
        files, features, start, end = zip(*rows) if rows else ((),) * 4
        return cls(
            np.array(files, str),
            np.array(features, np.float32).reshape(-1, width),
            np.array(start, np.float64),  # None becomes NaN
            np.array(end, np.float64),
            model,
            fingerprint,
        )

    def save(self, file: BinaryIO) -> None:
        """Write an .npz file with an array for each attribute."""
        np.savez(file, **{name: np.asarray(getattr(self, name)) for name in _KINDS})


def read_features(path: str | os.PathLike) -> Features:
    """Read what `Features.save` wrote.

    Raises:
        UserError: the file is missing, empty, damaged or of an older version, or holds no features.
    """
    arrays = _read_arrays(path)
    missing = [name for name in _KINDS if name not in arrays]
    if missing == ["model", "fingerprint"]:
        raise UserError(f"{path} is of an older version, which did not record the model; {_REMEDY}")
    if missing:
        raise UserError(f"{path} holds no {' and no '.join(missing)}, only {', '.join(arrays) or 'nothing'}; {_REMEDY}")
    count = arrays["files"].shape
    shapes = {name: count for name in ("files", "start", "end")} | {"model": (), "fingerprint": ()}
    shapes["features"] = (*count, *arrays["features"].shape[1:])
    for name, array in arrays.items():
        if array.dtype.kind != _KINDS[name] or array.shape != shapes[name] or array.ndim > 2:
            raise UserError(f"{path} is damaged: its {name} are {array.dtype} of shape {array.shape}; {_REMEDY}")
    if arrays["features"].ndim != 2 or len(count) != 1:
        raise UserError(f"{path} is damaged: its features are of shape {arrays['features'].shape}; {_REMEDY}")
    if not arrays["features"].size:
        raise UserError(f"{path} holds no features: predict found no clip that could be decoded")
    if not np.isfinite(arrays["features"]).all():
        row = int(np.flatnonzero(~np.isfinite(arrays["features"]).all(axis=1))[0])
        raise UserError(f"{path} holds features that are not finite, first of {arrays['files'][row]} (row {row})")
    return Features(**{name: array.item() if array.ndim == 0 else array for name, array in arrays.items()})


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            found = np.load(file)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is a single array; expected the .npz file that `predict --features` wrote")
            return {name: found[name] for name in _KINDS if name in found}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # NumPy and zipfile raise ten kinds for what is damaged
        raise UserError(f"{path} is damaged or no .npz file ({type(error).__name__}); {_REMEDY}") from error
