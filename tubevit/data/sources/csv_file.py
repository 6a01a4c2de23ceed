"""csv sources: a header `path,label[,split]`, paths relative to the file."""

import os
import posixpath

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.errors import UserError

_MOST_CLASSES = 1_000_000


def open_csv(name: str, split: str) -> Source:
    """Read a csv of labelled files, local or in a bucket; further columns are ignored.

    Labels are names (sorted), or all are integers (class indices); several are joined by `|`. Without a column
    `split`, 80 % of the files are `train` and the rest `test`, by a hash of the path. `validation`, `validate` and
    `valid` mean `val`.

    Args:
        name: path of the csv.
        split: name of a split, or `all`.

    Raises:
        UserError: the csv is missing or malformed (the message names the line), has no such split, or none of its
            files exists.
    """
    cells, has_split = _read(name)
    multi_label = any("|" in row["label"] for _, row in cells)
    labels = [tuple(row["label"].split("|")) if multi_label else (row["label"],) for _, row in cells]
    names = {label for several in labels for label in several}
    if all(label.isdecimal() for label in names):
        if max(map(int, names)) > _MOST_CLASSES:
            raise UserError(f"{name}: integer labels are indices, up to {_MOST_CLASSES}; found {max(names, key=int)}")
        classes = [str(i) for i in range(max(map(int, names)) + 1)]
        labels = [tuple(str(int(label)) for label in several) for several in labels]
    else:
        classes = sorted(names)
    rows = []
    for (line, row), several in zip(cells, labels):
        path = row["path"]
        of_row = listing.canonical_split(row["split"]) if has_split else listing.split_by_hash(path)
        rows.append(listing.Row(_resolve(name, path), several, of_row, f"{name} line {line}"))
    split = listing.canonical_split(split)
    found = listing.existing_files([row.clip for row in rows if split in (row.split, "all")])
    notes = [] if has_split else [f"{name} has no column split: {listing.SPLIT_NOTE}"]
    return listing.Listing(name, split, rows, classes, multi_label=multi_label, what="files").source(
        lambda row: row.clip if row.clip in found else None,
        lambda row: f"paths are relative to the csv, the first is {row.clip}",
        notes,
    )


def _resolve(name: str, path: str) -> str:
    if storage.is_remote(path) or not storage.is_remote(name):
        return path if storage.is_remote(path) else storage.join(os.path.dirname(name), path)
    scheme, _, inner = name.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(inner), path))}"


def _read(name: str) -> tuple[list[tuple[int, dict]], bool]:
    try:
        text = listing.read_text(name)
    except FileNotFoundError as error:
        raise UserError(f"csv file {name} does not exist") from error
    rows = list(listing.read_table(name, text, ("path", "label"), "path,label[,split]"))
    has_split = "split" in rows[0][1]
    for line, row in rows:
        for column in ("path", "label", *(["split"] if has_split else [])):
            if not row[column] or (column == "label" and "" in row[column].split("|")):
                raise UserError(f"{name} line {line}: the {column} is empty")
    return rows, has_split
