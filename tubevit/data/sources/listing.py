"""What readers of lists and folders share: split names, lists as text, one listing of the clips, rows to a source."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tubevit import storage
from tubevit.data.sources.source import Source
from tubevit.errors import NothingFound, UserError, unknown, unknown_split

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts")
    + (".ogv", ".ts", ".vob", ".webm", ".wmv")
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
TRAIN_SHARE = 0.8
_SPLITS = {"training": "train", "validation": "val", "validate": "val", "valid": "val", "testing": "test"}


class Row(NamedTuple):
    """One listed file: what the list calls it, names of its classes, its split, and where it is listed."""

    clip: str
    labels: tuple[str, ...]
    split: str
    listed_at: str = ""


def canonical_split(split: str) -> str:
    """`val` for `validation`, `validate` and `valid`, likewise `train` and `test`; other names as they are."""
    return _SPLITS.get(split.lower(), split)


def split_by_hash(path: str) -> str:
    """`train` for 80 % of the paths, `test` for the others: the same for a path whatever else is listed."""
    value = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    return "train" if value < TRAIN_SHARE * 2**64 else "test"


def parse_list_and_clips(name: str) -> tuple[str, str, str]:
    """The parts of `KEY:LIST@CLIPS_DIR`.

    Raises:
        UserError: it has another form.
    """
    key, _, rest = name.partition(":")
    parts = rest.split("@")
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{name}: expected {key}:LIST@CLIPS_DIR, the official list (or its folder) and the clips")
    return key, *parts


def suffix(path: str) -> str:
    """The ending of a file's name in lower case, e.g. `.mp4`."""
    return posixpath.splitext(path)[1].lower()


def is_hidden(path: str) -> bool:
    """Whether a path is what systems leave beside the files: below `.folder` or `__MACOSX`, or named `.file`."""
    return path.startswith((".", "__MACOSX/")) or "/." in path or "/__MACOSX/" in path


def require_folder(path: str, expected: str) -> None:
    """Raises `UserError`, which says what was expected, where there is no such folder."""
    if not storage.is_folder(path):
        raise UserError(f"folder {path} does not exist; expected {expected}")


def file_names(folder: str, expected: str) -> list[str]:
    """The files directly in a folder.

    Raises:
        UserError: there is no such folder; it says what was expected.
    """
    require_folder(folder, expected)
    return storage.names(folder)


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read.
    """
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_official(folder: str, *names: str) -> tuple[str, str]:
    """Path and text of the first of several names that exists in a folder.

    Raises:
        UserError: none of them exists, or it cannot be read.
    """
    for path in (storage.join(folder, name) for name in names):
        with contextlib.suppress(FileNotFoundError):
            return path, read_text(path)
    raise NothingFound(f"{folder}: expected the official list {' or '.join(names)} in this folder, found none")


def read_table(path: str, text: str, required: Iterable[str], header: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, (line, {column: cell}), of a csv with a header; empty lines are skipped.

    Args:
        path: for messages.
        text: of the file.
        required: columns that it must have.
        header: what messages say was expected.

    Raises:
        UserError: no such header, no rows, or a malformed row (the line is named).
    """
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = next(reader, None)
        if columns is None or not set(required) <= set(columns):
            found = "nothing" if columns is None else ",".join(columns)
            raise UserError(f"{path} line 1: expected the header {header}; found {found}")
        empty = True
        for cells in reader:
            if cells and len(cells) != len(columns):
                expected = f"expected {len(columns)} columns ({','.join(columns)})"
                raise UserError(f"{path} line {reader.line_num}: {expected}; found {len(cells)}")
            if cells:
                empty = False
                yield reader.line_num, dict(zip(columns, cells))
    except csv.Error as error:
        raise UserError(f"cannot read {path} as csv: {error}") from error
    if empty:
        raise UserError(f"{path} lists no files: it has a header only")


def existing_files(paths: Sequence[str]) -> set[str]:
    """Those of the paths that are files; of those in a bucket by one listing of the folder that holds them all."""
    found = {path for path in paths if not storage.is_remote(path) and os.path.isfile(path)}
    buckets = {}
    for path in filter(storage.is_remote, paths):
        scheme, _, inner = path.partition("://")
        buckets.setdefault(f"{scheme}://{inner.partition('/')[0]}", []).append(path)
    for bucket, inside in buckets.items():
        common = posixpath.commonpath([posixpath.dirname(path[len(bucket) :]) for path in inside])
        folder = bucket + common.rstrip("/")
        listed = {f"{folder}/{name}" for name in storage.list_files(folder)}
        found.update(path for path in inside if path in listed)
    return found


@functools.cache
def _words(label: str) -> str:
    return re.sub("[^a-z0-9]+", " ", label.lower()).strip()


class Clips:
    """The videos below a folder, listed once, found by name without suffix in whatever folders they lie.

    Args:
        folder: of the clips, local or remote.

    Raises:
        UserError: there is no such folder, or there are no videos below it.
    """

    def __init__(self, folder: str):
        require_folder(folder, "the folder of the clips")
        self._folder = folder.rstrip("/")
        self._names: dict[str, list[str]] = {}
        for name in storage.list_files(folder):
            stem, _, ending = name.rpartition("/")[2].rpartition(".")
            if f".{ending.lower()}" not in VIDEO_SUFFIXES or is_hidden(name):
                continue
            while suffix(stem) in VIDEO_SUFFIXES:  # downloaders leave id.mp4.webm
                stem = posixpath.splitext(stem)[0]
            self._names.setdefault(stem, []).append(name)
        if not self._names:
            raise UserError(f"{folder}: expected clips (.mp4, .webm, .avi ...) in it or in folders below; found none")

    def find(self, stem: str, label: str | None = None, only_in_class: bool = False) -> str | None:
        """Path of a clip, or None; of several the one in the folder of its class, else the first.

        Args:
            stem: its name without suffix.
            label: its class; folders may be named so with other case, blanks and punctuation.
            only_in_class: None for clips in other folders.
        """
        names = self._names.get(stem, [])
        if label is not None and (only_in_class or len(names) > 1):
            inside = [name for name in names if _words(label) in map(_words, name.split("/")[:-1])]
            names = inside if only_in_class else inside or names
        return f"{self._folder}/{names[0]}" if names else None


def class_count_note(name: str, classes: Sequence[str], expected: int) -> tuple[str, ...]:
    """A note where a list does not have the classes of its data set."""
    if len(classes) == expected:
        return ()
    key = name.partition(":")[0]
    return (f"{name}: a list of {len(classes)} classes; {key} has {expected}: indices follow this list",)


def labelled_source(
    name: str,
    split: str,
    rows: Sequence[Row],
    classes: Sequence[str],
    find: Callable[[Row], str | None],
    expected: Callable[[Row], str],
    *,
    multi_label: bool = False,
    what: str = "clips",
    notes: Callable[[], Iterable[str]] = tuple,
) -> Source:
    """The files of a split that were found, with their labels.

    Args:
        name: of the source.
        split: one of those of the rows, or `all`.
        rows: of all splits, or of the one asked for.
        classes: names of the classes in order.
        find: gives the path of a row's file, or None.
        expected: says of the first row what was looked for, where nothing is found.
        multi_label: whether rows may have several labels, or none.
        what: is listed, for messages.
        notes: called at the end, gives further notes.

    Raises:
        UserError: no such split, an unknown label, or none of the listed files was found.
    """
    if not rows:
        raise UserError(f"{name}: the list is empty")
    chosen = [row for row in rows if split in (row.split, "all")]
    if not chosen:
        raise unknown_split(name, split, {*(row.split for row in rows), "all"})
    index = {label: i for i, label in enumerate(classes)}
    found = [(path, row) for row in chosen if (path := find(row)) is not None]
    if not found:
        raise NothingFound(f"{name}: none of the {len(chosen)} listed {what} exists; {expected(chosen[0])}")
    for _, row in found:
        for label in row.labels:
            if label not in index:
                raise UserError(f"{name}: {row.listed_at or row.clip}: {unknown('label', label, index)}")
    if multi_label:
        labels = np.zeros((len(found), len(classes)), np.float32)
        for i, (_, row) in enumerate(found):
            labels[i, [index[label] for label in row.labels]] = 1
    else:
        labels = np.array([index[row.labels[0]] for _, row in found], np.int32)
    lines = list(notes())
    if len(found) < len(chosen):
        lines.insert(0, f"{name}: {len(found)} of {len(chosen)} listed {what} were found")
    listed_at = tuple(row.listed_at for _, row in found) if chosen[0].listed_at else ()
    return Source(name, tuple(path for path, _ in found), labels, tuple(classes), len(chosen), listed_at, tuple(lines))
