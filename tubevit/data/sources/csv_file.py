"""csv sources: a header `path,label[,split]`, paths relative to the file."""

import difflib
import functools
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import SPLIT_NOTE, SPLITS, canonical_split, merged_splits, split_by_hash
from tubevit.errors import UserError, closest

_MOST_CLASSES = 1_000_000


class _Line(NamedTuple):
    """A row of a csv: number of its line, path as it is used, the file that the path leads to, labels and split."""

    number: int
    path: str
    file: str
    labels: tuple[str, ...]
    split: str


def open_csv(name: str, split: str, allow_overlap: bool = False) -> Source:
    """Read a csv of labelled files, local or in a bucket; further columns are ignored.

    Labels are names (sorted), or all are integers (class indices); several are joined by `|`. Without a column
    `split`, 80 % of the files are `train` and the rest `test`, by a hash of the path. Blanks around cells and labels
    and the case of columns and splits do not matter; see `canonical_split` for other names of splits.

    A row that repeats another is used once, with a note. Rows are of one file if their paths lead to it, also through
    symbolic links.

    Args:
        name: path of the csv.
        split: name of a split, or `all`.
        allow_overlap: accept a file in two splits.

    Raises:
        UserError: the csv is missing or malformed, has an unknown split, lists a file with different labels or in two
            splits (the message names the lines), has no such split, or none of its files exists.
    """
    rows, notes = _read(name)
    multi_label = any(len(row.labels) > 1 for row in rows)
    labels = {label for row in rows for label in row.labels}
    numbers = {label for label in labels if label.isdecimal()}
    if numbers == labels:
        last = max(map(int, labels))
        if last > _MOST_CLASSES:
            raise UserError(f"{name}: integer labels are indices, up to {_MOST_CLASSES}; found {last}")
        classes = [str(i) for i in range(last + 1)]
        rows = [row._replace(labels=tuple(str(int(label)) for label in row.labels)) for row in rows]
    else:
        classes = sorted(labels)
        if numbers:
            row = next(row for row in rows if not numbers.issuperset(row.labels))
            notes.append(f"{name}: labels are names, not indices: line {row.number} has {'|'.join(row.labels)}")
    split = canonical_split(split)
    chosen, repeated = _without_repeated(name, rows, split, allow_overlap)
    listed = [listing.Row(row.path, row.labels, row.split, f"{name} line {row.number}") for row in chosen]
    found = listing.existing_files([row.clip for row in listed if split in (row.split, "all")])
    return listing.Listing(name, split, listed, classes, multi_label=multi_label, what="files").source(
        lambda row: row.clip if row.clip in found else None,
        lambda row: f"paths are relative to the csv, the first is {row.clip}",
        notes + repeated,
    )


def _read(name: str) -> tuple[list[_Line], list[str]]:
    """Return the rows of a csv and notes on its columns."""
    try:
        text = listing.read_text(name, "surrogateescape")  # names of files need not be UTF-8
    except FileNotFoundError as error:
        raise UserError(f"csv file {name} does not exist") from error
    if "\0" in text:
        raise UserError(f"cannot read {name} as csv: it is not text in UTF-8")
    rows, spellings, by_hash, columns = [], set(), {}, {}
    real_folder = functools.cache(lambda folder: os.path.realpath(folder))
    for number, columns in listing.read_table(name, text, ("path", "label"), "path,label[,split]"):
        where = f"{name} line {number}"
        cells = {column: columns[column] for column in ("path", "label", "split") if column in columns}
        labels = tuple(dict.fromkeys(label.strip() for label in cells["label"].split("|")))
        for column, cell in cells.items():
            if not cell.strip() or (column == "label" and "" in labels):
                raise UserError(f"{where}: the {column} is empty")
        if storage.printable(cells["label"]) != cells["label"]:
            raise UserError(f"{where}: the label {cells['label']!r} is not UTF-8; save the csv as UTF-8")
        path = _resolve(name, cells["path"])
        file = _file(path, real_folder)
        if "split" in cells:
            spellings.add(cells["split"])
            split = canonical_split(cells["split"])
            if split not in SPLITS:
                raise UserError(f"{where}: unknown split {cells['split'].strip()!r}; {closest(split, SPLITS)}")
        else:
            split = by_hash.setdefault(file, split_by_hash(cells["path"]))
        rows.append(_Line(number, path, file, labels, split))
    if by_hash:
        similar = difflib.get_close_matches("split", columns, 1)
        return rows, [f"{name} has no column split{f' (but {similar[0]})' if similar else ''}: {SPLIT_NOTE}"]
    return rows, merged_splits(name, spellings)


def _resolve(name: str, path: str) -> str:
    """Return the path of a file from its cell in the csv `name`; blanks around it count only if such a file exists."""
    if storage.is_remote(path):
        return path.strip()
    if storage.is_remote(name):
        scheme, _, inner = name.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(inner), path.strip()))}"
    resolved = storage.join(os.path.dirname(name), path)
    if path == path.strip() or os.path.exists(resolved):
        return resolved
    return storage.join(os.path.dirname(name), path.strip())


def _file(path: str, real_folder: Callable[[str], str]) -> str:
    """Return the name of a file that is the same for every path to it."""
    if storage.is_remote(path):
        return path
    folder, name = os.path.split(path)
    file = os.path.join(real_folder(folder), name)
    return os.path.realpath(file) if os.path.islink(file) else file


def _without_repeated(
    name: str, rows: Sequence[_Line], wanted: str, allow_overlap: bool
) -> tuple[list[_Line], list[str]]:
    """Return the first of all rows of a file, in each split or for `all`, and a note on the others.

    Raises UserError if a file has different labels or, unless `allow_overlap`, is in two splits.
    """
    first: dict[str, _Line] = {}
    kept: dict[tuple[str, str], _Line] = {}
    repeated, overlaps = [], []
    for row in rows:
        before = first.setdefault(row.file, row)
        if set(before.labels) != set(row.labels):
            raise UserError(
                f"{name} lines {before.number} and {row.number}: {row.path} has the labels {'|'.join(before.labels)} "
                f"and {'|'.join(row.labels)}; several labels of a file are joined by | in one row"
            )
        if before.split != row.split:
            overlaps.append((before, row))
        earlier = kept.setdefault((row.file, "all" if wanted == "all" else row.split), row)
        if earlier is not row:
            repeated.append((earlier, row))
    if overlaps and not allow_overlap:
        before, row = overlaps[0]
        more = f" ({len(overlaps)} such rows)" if len(overlaps) > 1 else ""
        raise UserError(
            f"{name} lines {before.number} and {row.number}: {row.path} is in the splits {before.split} and "
            f"{row.split}{more}; remove it from one, or accept it with --allow-overlap (allow_overlap=True)"
        )
    notes = []
    if repeated:
        before, row = repeated[0]
        what = f"{len(repeated)} row{'s' * (len(repeated) > 1)} of files that are listed already"
        notes = [f"{name}: {what}, e.g. line {row.number} repeats line {before.number}: each file is used once"]
    return list(kept.values()), notes
