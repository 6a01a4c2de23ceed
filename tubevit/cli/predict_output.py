"""Output of `tubevit predict`: labels as text, JSON or csv, or pooled features. `search` shows times alike."""

import contextlib
import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from tubevit.errors import UserError, cannot_write
from tubevit.evaluation import Prediction
from tubevit.evaluation.features import Features
from tubevit.evaluation.search import Moment

logger = logging.getLogger(__name__)
COLUMNS = ("file", "start", "end", "head", "rank", "label", "probability")


@contextlib.contextmanager
def opened(path: str, mode: str, **settings) -> Iterator[IO]:
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


def usable(predictions: Iterable[Prediction], files: Sequence, left_out: list) -> Iterator[Prediction]:
    """Yield the predictions of files that can be read, and log warnings and errors.

    Args:
        predictions: of `files`.
        files: what was to be predicted. If it is a single one, an error before its first prediction is raised.
        left_out: receives the files with an error, see `check_complete`.
    """
    for number, found in enumerate(predictions):
        for warning in found.warnings:
            logger.warning(f"tubevit: warning: {found.file} {warning}")
        if found.error is None:
            yield found
        elif len(files) == 1 and number == 0:
            raise found.error
        else:
            left_out.append(found.file)
            logger.error(f"tubevit: {found.error}")


def check_complete(left_out: Sequence, files: Sequence) -> None:
    """Raise UserError if files were left out."""
    if left_out:
        raise UserError(f"{len(left_out)} of {len(files)} files are left out: {', '.join(map(str, left_out))}")


def span(found: Prediction | Moment) -> list[float]:
    """Return start and end in seconds for display; nothing for what stands for a whole file."""
    return [] if found.start is None or found.end is None else [round(found.start, 3), round(found.end, 3)]


def span_text(times: list[float]) -> str:
    """Write what `span` returned behind the name of a file."""
    return f"  {times[0]:.2f}-{times[1]:.2f} s" if times else ""


def visible(label: str) -> str:
    """Return a label for a terminal, which line breaks and escape sequences of a foreign model would change."""
    joiners = "\u200c\u200d"  # between letters, and between the parts of an emoji
    kept = (each if each.isprintable() or each in joiners else each.encode("unicode_escape").decode() for each in label)
    return "".join(kept)


def print_labels(predictions: Iterable[Prediction], as_json: bool) -> None:
    """Print labels as soon as they are known, one line per file or clip and head."""
    for found in predictions:
        times = span(found)
        for head, labels in found.labels.items():
            if as_json:
                top = [{"label": label, "probability": round(share, 6)} for label, share in labels]
                named = dict(zip(("start", "end"), times))
                print(json.dumps({"file": str(found.file), **named, "head": head, "top": top}), flush=True)
            else:
                shown = "  ".join(f"{visible(label)} {share:.3f}" for label, share in labels)
                print(f"{found.file}{span_text(times)}  {head}: {shown}", flush=True)


def write_labels(path: str, predictions: Iterable[Prediction]) -> None:
    """Write labels to a csv file as soon as they are known, one row per label."""
    # UTF-8 everywhere; file names that are not UTF-8 keep their bytes.
    with opened(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for found in predictions:
            for head, labels in found.labels.items():
                for rank, (label, share) in enumerate(labels, 1):
                    rows.writerow([found.file, *(span(found) or ("", "")), head, rank, label, round(share, 6)])
            file.flush()


def write_features(path: str, features: Features) -> None:
    """Write features to an .npz file, see `Features.save`."""
    with opened(path, "wb") as file:
        features.save(file)
