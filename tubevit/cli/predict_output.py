"""Output of `tubevit predict`: labels as text, JSON or csv, or pooled features."""

from __future__ import annotations

import csv
import json

import numpy as np

from tubevit.errors import UserError
from tubevit.evaluation import Prediction

COLUMNS = ("file", "start", "end", "head", "rank", "label", "probability")


def _open(path: str, mode: str, **settings):
    """Open a file before anything is computed; raises UserError if it cannot be written."""
    try:
        return open(path, mode, **settings)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


class LabelRows:
    """Prints or writes the labels of each head as soon as they are known.

    Args:
        path: csv file; None prints.
        as_json: print JSON instead of text.
    """

    def __init__(self, path: str | None = None, as_json: bool = False):
        self._json, self._file = as_json, None
        if path:
            # UTF-8 everywhere; file names that are not UTF-8 keep their bytes.
            self._file = _open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")
            self._csv = csv.writer(self._file, lineterminator="\n")
            self._csv.writerow(COLUMNS)

    def add(self, found: Prediction) -> None:
        """Add the prediction for a clip or an image."""
        times = [] if found.start is None else [round(found.start, 3), round(found.end, 3)]
        for head, labels in found.labels.items():
            self._write(str(found.file), times, head, labels)

    def _write(self, path: str, times: list[float], head: str, labels: list[tuple[str, float]]) -> None:
        if self._json:
            top = [{"label": label, "probability": round(share, 6)} for label, share in labels]
            print(
                json.dumps({"file": path, **dict(zip(("start", "end"), times)), "head": head, "top": top}), flush=True
            )
        elif self._file:
            for rank, (label, share) in enumerate(labels, 1):
                self._csv.writerow([path, *(times or ("", "")), head, rank, label, round(share, 6)])
            self._file.flush()
        else:
            part = f"  {times[0]:.2f}-{times[1]:.2f} s" if times else ""
            print(f"{path}{part}  {head}: " + "  ".join(f"{label} {share:.3f}" for label, share in labels), flush=True)

    def close(self) -> None:
        """Close the csv."""
        if self._file:
            self._file.close()


class FeatureFile:
    """Collects pooled features of clips and images in the order of the files; written at the end, by NumPy.

    Args:
        path: .npz file with `files` (n,) paths, `features` (n, D) float32, `start` and `end` (n,) seconds, NaN for a
            whole file.
        width: D.
    """

    def __init__(self, path: str, width: int):
        _open(path, "ab").close()  # can it be written? The old content stays until there is new content
        self._path, self._width = path, width
        self._rows: list[tuple] = []

    def add(self, found: Prediction) -> None:
        """Add the features of a clip or an image."""
        times = (np.nan, np.nan) if found.start is None else (found.start, found.end)
        self._rows.append((str(found.file), *times, found.features))

    def close(self) -> None:
        """Write the file."""
        files, start, end, features = zip(*self._rows) if self._rows else ((),) * 4
        with _open(self._path, "wb") as file:
            np.savez(
                file,
                files=np.array(files, str),
                features=np.array(features, np.float32).reshape(-1, self._width),
                start=np.array(start, np.float64),
                end=np.array(end, np.float64),
            )
