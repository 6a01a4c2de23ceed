"""Pooled features of videos and images as an .npz file, which says what model made them."""

import dataclasses
import os
from collections.abc import Iterable
from typing import IO, Self

import numpy as np

from tubevit import storage
from tubevit.errors import UserError
from tubevit.evaluation.predict import Prediction

_MODEL = ("model", "fingerprint", "budget")
_KINDS = {"features": "f", "files": "U", "start": "f", "end": "f"} | dict.fromkeys(_MODEL, "U")
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
        budget: text of the model's budget, "" if it took all tokens.
    """

    files: np.ndarray
    features: np.ndarray
    start: np.ndarray
    end: np.ndarray
    model: str
    fingerprint: str
    budget: str = ""

    @classmethod
    def collect(cls, predictions: Iterable[Prediction], width: int, **made_with: str) -> Self:
        """Collect the features of all predictions.

        Args:
            predictions: those of `predict`.
            width: D, also if there are none.
            **made_with: `model`, `fingerprint` and `budget`.
        """
        rows = [(os.fspath(found.file), found.features, found.start, found.end) for found in predictions]
        files, features, start, end = zip(*rows) if rows else ((),) * 4
        return cls(
            np.array(files, str),
            np.array(features, np.float32).reshape(-1, width),
            np.array(start, np.float64),  # None becomes NaN
            np.array(end, np.float64),
            **made_with,
        )

    def save(self, file: IO[bytes]) -> None:
        """Write an .npz file with an array for each attribute."""
        np.savez(
            file,
            files=self.files,
            features=self.features,
            start=self.start,
            end=self.end,
            model=np.array(self.model),
            fingerprint=np.array(self.fingerprint),
            budget=np.array(self.budget),
        )


def read_features(path: str | os.PathLike) -> Features:
    """Read what `Features.save` wrote.

    Raises:
        UserError: the file is missing, empty, in a bucket, damaged or of an older version, or holds no features.
    """
    if storage.is_remote(path):
        raise UserError(f"expected features in a local file; found {path}: copy it")
    arrays = _read_arrays(path)
    missing = [name for name in _KINDS if name not in arrays]
    if missing and set(missing) <= set(_MODEL):
        raise UserError(f"{path} is of an older version, which did not record the {missing[0]}; {_REMEDY}")
    if missing:
        raise UserError(f"{path} holds no {' and no '.join(missing)}, only {', '.join(arrays) or 'nothing'}; {_REMEDY}")
    shape = arrays["features"].shape
    rows, expected = shape[:1], {"features": shape[:1] + shape[1:2]} | dict.fromkeys(_MODEL, ())
    for name, array in arrays.items():
        if array.dtype.kind != _KINDS[name] or array.shape != expected.get(name, rows) or len(shape) != 2:
            raise UserError(f"{path} is damaged: {name} has shape {array.shape} and type {array.dtype}; {_REMEDY}")
    if not arrays["features"].size:
        raise UserError(f"{path} holds no features: predict found no clip that could be decoded")
    if not np.isfinite(arrays["features"]).all():
        row = int(np.flatnonzero(~np.isfinite(arrays["features"]).all(axis=1))[0])
        raise UserError(f"{path} holds features that are not finite, first of {arrays['files'][row]} (row {row})")
    model, fingerprint, budget = (str(arrays.pop(name)) for name in _MODEL)
    return Features(**arrays, model=model, fingerprint=fingerprint, budget=budget)


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
