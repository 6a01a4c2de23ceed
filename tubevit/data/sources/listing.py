"""Shared by the readers of lists and folders: lists as text, the files of a folder, rows to a source."""

import contextlib
import csv
import dataclasses
import difflib
import functools
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tubevit import storage
from tubevit.data.labels import check_distinct, label_array
from tubevit.data.sources.source import Source
from tubevit.data.suffixes import VIDEO_SUFFIXES, is_hidden, suffix
from tubevit.errors import NothingFound, UserError, unknown, unknown_split


class Row(NamedTuple):
    """One listed file: its name in the list, its class names, its split, and where it is listed."""

    clip: str
    labels: tuple[str, ...]
    split: str
    listed_at: str = ""


def parse_list_and_clips(name: str) -> tuple[str, str, str]:
    """Split `KEY:LIST@CLIPS_DIR` into its parts; raises UserError if it has another form."""
    key, _, rest = name.partition(":")
    parts = rest.split("@")
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{name}: expected {key}:LIST@CLIPS_DIR, the official list (or its folder) and the clips, "
                        "whose paths hold no @")  # fmt: skip
    return key, parts[0], parts[1]


def require_folder(path: str, expected: str) -> None:
    """Raise UserError, with what was expected, if there is no such folder."""
    if not storage.is_folder(path):
        raise UserError(f"folder {path} does not exist; expected {expected}")


def read_text(path: str, errors: str = "strict") -> str:
    """Read a UTF-8 file; `errors` as of `bytes.decode`.

    Raises FileNotFoundError if it does not exist and UserError if it cannot be read.
    """
    try:
        return storage.read_bytes(path).decode("utf-8-sig", errors)
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_official(folder: str, *names: str) -> tuple[str, str]:
    """Return the path and the text of the first of several file names that exists in a folder.

    Raises UserError if no such file exists, or it cannot be read.
    """
    for path in (storage.join(folder, name) for name in names):
        with contextlib.suppress(FileNotFoundError):
            return path, read_text(path)
    raise NothingFound(f"{folder}: expected the official list {' or '.join(names)} in this folder, found none")


def read_table(path: str, text: str, required: Iterable[str], header: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a csv as (line, {column: cell}); empty lines are skipped.

    The names of columns are in lower case, without surrounding blanks. Messages name `path` and the expected `header`,
    which must include the `required` columns.

    Raises:
        UserError: the header is another one, there are no rows, or a row is malformed (the message names the line).
    """
    # A blank after a comma would make the quotes that follow it a part of the cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        if (problem := _wrong_header(columns, required)) is not None:
            found = ",".join(columns)[:100] or "nothing"
            raise UserError(f"{path} line 1: expected the header {header}; found {found}{problem}")
        empty = True
        for cells in reader:
            if cells and len(cells) != len(columns):
                expected = f"expected {len(columns)} columns ({','.join(columns)})"
                raise UserError(f"{path} line {reader.line_num}: {expected}; found {len(cells)}")
            if cells:
                empty = False
                yield reader.line_num, dict(zip(columns, cells))
    except csv.Error as error:
        raise UserError(f"cannot read {path} as csv: line {reader.line_num}: {error}") from error
    if empty:
        raise UserError(f"{path} lists no files: it has a header only")


def _wrong_header(columns: Sequence[str], required: Iterable[str]) -> str | None:
    """Return what is wrong with a header, to follow a list of its columns; None if nothing is."""
    repeated = {column for column in columns if column and columns.count(column) > 1}
    missing = [column for column in required if column not in columns]
    if repeated:
        return f": column {min(repeated)} occurs twice"
    if not missing:
        return None
    separator = next((each for each in (";", "\t") if each in "".join(columns)), None)
    if separator:
        return f": separate the columns by commas, not by {separator!r}"
    similar = {column: difflib.get_close_matches(column, columns, 1) for column in missing}
    renamed = [f"rename {found[0]} to {column}" for column, found in similar.items() if found]
    return f": {' and '.join(renamed)}" if renamed else ""


def existing_files(paths: Sequence[str]) -> set[str]:
    """Return the paths that exist; a bucket is listed once, at the deepest folder that holds all its paths."""
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
    """The videos below a folder, at any depth. They are listed once and found by name without suffix.

    Raises UserError if the folder does not exist or holds no videos.
    """

    def __init__(self, folder: str):
        require_folder(folder, "the folder of the clips")
        self._folder = folder.rstrip("/")
        self._names: dict[str, list[str]] = {}
        for name in storage.list_files(folder):
            stem, _, ending = name.rpartition("/")[2].rpartition(".")
            if f".{ending.lower()}" not in VIDEO_SUFFIXES or is_hidden(name):
                continue
            while suffix(stem) in VIDEO_SUFFIXES:  # downloaders write id.mp4.webm
                stem = posixpath.splitext(stem)[0]
            self._names.setdefault(stem, []).append(name)
        if not self._names:
            raise UserError(f"{folder}: expected clips (.mp4, .webm, .avi ...) in it or in folders below; found none")

    def find(self, stem: str, label: str | None = None, only_in_class: bool = False) -> str | None:
        """Return the path of a clip, or None. Of several clips, the one in the folder of its class is preferred.

        Args:
            stem: file name without suffix.
            label: name of its class; case, blanks and punctuation of the folder's name may differ.
            only_in_class: whether clips outside the folder of the class are ignored.
        """
        names = self._names.get(stem, [])
        if label is not None and (only_in_class or len(names) > 1):
            inside = [name for name in names if _words(label) in map(_words, name.split("/")[:-1])]
            names = inside if only_in_class else inside or names
        return f"{self._folder}/{names[0]}" if names else None

    def expected(self, ending: str) -> Callable[[Row], str]:
        """Return the text about the clip of a row that `Listing.source` takes."""
        return lambda row: f"expected e.g. {row.clip}{ending} in {self._folder} or folders below"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The rows of a list or a folder, before their files are looked for.

    Attributes:
        name, split: the requested source and split.
        rows: of all splits, or of the requested one.
        classes: names of the classes in order.
        class_count: number of classes of the data set; None for any number.
        multi_label: whether rows may have several labels, or none.
        what: noun for the listed files in messages.
    """

    name: str
    split: str
    rows: Sequence[Row]
    classes: Sequence[str]
    class_count: int | None = None
    multi_label: bool = False
    what: str = "clips"

    def source(
        self, find: Callable[[Row], str | None], expected: Callable[[Row], str], notes: Iterable[str] = ()
    ) -> Source:
        """Return the files of the split that exist, with their labels.

        `find` returns the path of a row's file, or None. `expected` describes the file of a row, for the error if none
        is found. Further `notes` are read after all files were looked for.

        Raises:
            UserError: there is no such split, a label is unknown, or none of the listed files exists.
        """
        if not self.rows:
            raise UserError(f"{self.name}: the list is empty")
        chosen = [row for row in self.rows if self.split in (row.split, "all")]
        if not chosen:
            raise unknown_split(self.name, self.split, {*(row.split for row in self.rows), "all"})
        check_distinct(self.name, self.classes)
        index = {label: i for i, label in enumerate(self.classes)}
        found = [(path, row) for row in chosen if (path := find(row)) is not None]
        if not found:
            missing = f"none of the {len(chosen)} listed {self.what} exists"
            raise NothingFound(f"{self.name}: {missing}; {expected(chosen[0])}")
        for _, row in found:
            for label in row.labels:
                if label not in index:
                    raise UserError(f"{self.name}: {row.listed_at or row.clip}: {unknown('label', label, index)}")
        indices = [[index[label] for label in row.labels] for _, row in found]
        labels = label_array(indices, len(self.classes), self.multi_label)
        lines = [*notes, *self._similar_classes()]
        if len(found) < len(chosen):
            lines.insert(0, f"{self.name}: {len(found)} of {len(chosen)} listed {self.what} were found")
        count, key = len(self.classes), self.name.partition(":")[0]
        if count != (self.class_count or count):
            counts = f"a list of {count} classes; {key} has {self.class_count}"
            lines.append(f"{self.name}: {counts}: indices follow this list")
        listed_at = tuple(row.listed_at for _, row in found) if chosen[0].listed_at else ()
        paths, classes = tuple(path for path, _ in found), tuple(self.classes)
        return Source(self.name, paths, labels, classes, len(chosen), listed_at, tuple(lines))

    def _similar_classes(self) -> list[str]:
        """Return a note if names of classes differ in their case, or in how accents are encoded, only."""
        spellings: dict[str, list[str]] = {}
        for label in self.classes:
            spellings.setdefault(unicodedata.normalize("NFC", label).casefold(), []).append(label)
        similar = next((names for names in spellings.values() if len(names) > 1), None)
        return [f"{self.name}: {' and '.join(similar)} are different classes"] if similar else []
