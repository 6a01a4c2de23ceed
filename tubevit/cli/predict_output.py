"""Output of `tubevit predict`: labels as text, JSON or csv, or pooled features."""

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from tubevit.errors import cannot_write
from tubevit.evaluation import Prediction

COLUMNS = ("file", "start", "end", "head", "rank", "label", "probability")


@contextlib.contextmanager
def _opened(path: str, mode: str, **settings) -> Iterator[IO]:
    """Open a file for writing; it is removed if writing fails, for example because the disk is full."""
    try:
        file = open(path, mode, **settings)
        try:
            with file:
                yield file
        except OSError:
            if os.path.isfile(path):  # not /dev/stdout
                os.unlink(path)
            raise
    except OSError as error:
        raise cannot_write(path, error, "name another file") from error


def _times(found: Prediction) -> list[float]:
    return [] if found.start is None or found.end is None else [round(found.start, 3), round(found.end, 3)]


def print_labels(predictions: Iterable[Prediction], as_json: bool) -> None:
    """Print labels as soon as they are known, one line per file or clip and head."""
    for found in predictions:
        times = _times(found)
        for head, labels in found.labels.items():
            if as_json:
                top = [{"label": label, "probability": round(share, 6)} for label, share in labels]
                span = dict(zip(("start", "end"), times))
                print(json.dumps({"file": str(found.file), **span, "head": head, "top": top}), flush=True)
            else:
                span = f"  {times[0]:.2f}-{times[1]:.2f} s" if times else ""
                shown = "  ".join(f"{label} {share:.3f}" for label, share in labels)
                print(f"{found.file}{span}  {head}: {shown}", flush=True)


def write_labels(path: str, predictions: Iterable[Prediction]) -> None:
    """Write labels to a csv file as soon as they are known, one row per label."""
    # UTF-8 everywhere; file names that are not UTF-8 keep their bytes.
    with _opened(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for found in predictions:
            for head, labels in found.labels.items():
                for rank, (label, share) in enumerate(labels, 1):
                    rows.writerow([found.file, *(_times(found) or ("", "")), head, rank, label, round(share, 6)])
            file.flush()


def write_features(path: str, predictions: Iterable[Prediction], width: int) -> None:
    """Write features to an .npz file at the end: `files` (n,) paths, `features` (n, width) float32, and `start` and
    `end` (n,) in seconds, NaN for a whole file."""
    rows = [(str(found.file), found.features, found.start, found.end) for found in predictions]
    files, features, start, end = zip(*rows) if rows else ((),) * 4
    with _opened(path, "wb") as file:
        np.savez(
            file,
            files=np.array(files, str),
            features=np.array(features, np.float32).reshape(-1, width),
            start=np.array(start, np.float64),  # None becomes NaN
            end=np.array(end, np.float64),
        )
