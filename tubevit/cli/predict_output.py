"""What `tubevit predict` writes: the most probable labels as text, JSON or csv, or pooled features."""

from __future__ import annotations

import argparse
import csv
import json
import pathlib

import jax
import numpy as np

from tubevit.errors import UserError

COLUMNS = ("file", "start", "end", "head", "rank", "label", "probability")


def _open(path: str, mode: str, **settings):
    """Opened before anything is computed.

    Raises:
        UserError: it cannot be written.
    """
    try:
        return open(path, mode, **settings)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


class LabelRows:
    """The labels of each head, printed or written as soon as they are known.

    Args:
        args: of the command line.
        model: with heads.
    """

    def __init__(self, args: argparse.Namespace, model):
        self._args, self._model, self._heads = args, model, dict(model.config.heads)
        if args.csv:
            # UTF-8 everywhere; names of files that are none come out as they are.
            self._file = _open(args.csv, "w", newline="", encoding="utf-8", errors="surrogateescape")
            self._csv = csv.writer(self._file, lineterminator="\n")
            self._csv.writerow(COLUMNS)

    def add(self, path: pathlib.Path, kind: str, pooled: jax.Array, start: float | None, end: float | None) -> None:
        """Adds a clip or an image.

        Args:
            path: of the file.
            kind: `image` or `video`.
            pooled: features (1, D).
            start, end: in seconds; None of a file as a whole.

        Raises:
            UserError: no head takes such a file.
        """
        for name in self._names(path, kind):
            head = self._heads[name]
            logits = self._model.heads[name](pooled)[0]
            shares = np.asarray(head.probabilities(logits))
            best = np.argsort(-shares, kind="stable")[: self._args.top]
            top = [(head.class_name(i), float(shares[i])) for i in best]
            self._write(str(path), [] if start is None else [round(start, 3), round(end, 3)], name, top)

    def _names(self, path: pathlib.Path, kind: str) -> list[str]:
        fitting = [name for name, head in self._heads.items() if head.modality in (kind, "any")]
        wanted = self._args.head
        if wanted is not None and wanted not in fitting:
            raise UserError(f"{path} is {_a(kind)}; head {wanted!r} takes {self._heads[wanted].modality}s")
        if not fitting:
            raise UserError(f"{path} is {_a(kind)}; no head of {self._args.checkpoint} takes one")
        return [wanted] if wanted else fitting

    def _write(self, path: str, times: list[float], head: str, top: list[tuple[str, float]]) -> None:
        if self._args.json:
            labels = [{"label": label, "probability": round(share, 6)} for label, share in top]
            record = {"file": path, **dict(zip(("start", "end"), times)), "head": head, "top": labels}
            print(json.dumps(record), flush=True)
        elif self._args.csv:
            for rank, (label, share) in enumerate(top, 1):
                self._csv.writerow([path, *(times or ("", "")), head, rank, label, round(share, 6)])
            self._file.flush()
        else:
            part = f"  {times[0]:.2f}-{times[1]:.2f} s" if times else ""
            print(f"{path}{part}  {head}: " + "  ".join(f"{label} {share:.3f}" for label, share in top), flush=True)

    def close(self) -> None:
        """Closes the csv."""
        if self._args.csv:
            self._file.close()


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


class FeatureFile:
    """Pooled features of clips and images in the order in which they came, written at the end, by NumPy.

    Args:
        path: of the .npz: `files` (n,) paths, `features` (n, D) float32, `start` and `end` (n,) seconds, NaN of a file
            as a whole.
        width: D.
    """

    def __init__(self, path: str, width: int):
        _open(path, "ab").close()  # can it be written? What it holds stays until there is something in its place
        self._path, self._width = path, width
        self._rows: list[tuple] = []

    def add(self, path: pathlib.Path, kind: str, pooled: jax.Array, start: float | None, end: float | None) -> None:
        """Adds a clip or an image; see `LabelRows.add`."""
        times = (np.nan, np.nan) if start is None else (start, end)
        self._rows.append((str(path), *times, np.asarray(pooled[0], np.float32)))

    def close(self) -> None:
        """Writes the file."""
        files, start, end, features = zip(*self._rows) if self._rows else ((),) * 4
        with _open(self._path, "wb") as file:
            np.savez(
                file,
                files=np.array(files, str),
                features=np.array(features, np.float32).reshape(-1, self._width),
                start=np.array(start, np.float64),
                end=np.array(end, np.float64),
            )
