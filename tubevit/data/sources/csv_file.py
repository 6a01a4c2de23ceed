"""csv sources: a header `path,label[,split]`, paths relative to the file."""

from __future__ import annotations

import os
import posixpath

from tubevit import storage
from tubevit.data.sources.listing import (
    Row,
    canonical_split,
    existing_files,
    labelled_source,
    read_table,
    read_text,
    split_by_hash,
)
from tubevit.data.sources.source import Source
from tubevit.errors import UserError

_MOST_CLASSES = 1_000_000


def open_csv(name: str, split: str) -> Source:
    """Reads a csv of labelled files, local or in a bucket; further columns are ignored.

    Labels are names (sorted) or all integers (indices), several joined by `|`. Without a column `split`, 80 % of the
    files are `train` and the others `test`, by a hash of the path. `validation`, `validate` and `valid` mean `val`.

    Args:
        name: path of the csv.
        split: name of a split, or `all`.

    Raises:
        UserError: it is missing or malformed (the line is named), has no such split, or none of its files exists.
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
    paths = {row["path"]: _resolve(name, row["path"]) for _, row in cells}
    rows = [
        Row(
            paths[row["path"]],
            several,
            canonical_split(row["split"]) if has_split else split_by_hash(row["path"]),
            f"{name} line {line}",
        )
        for (line, row), several in zip(cells, labels)
    ]
    split = canonical_split(split)
    found = existing_files([row.clip for row in rows if split in (row.split, "all")])
    notes = [f"{name} has no column split: 80 % of the files are train, 20 % test, by a hash of the path"]
    return labelled_source(
        name,
        split,
        rows,
        classes,
        lambda row: row.clip if row.clip in found else None,
        lambda row: f"paths are relative to the csv, the first is {row.clip}",
        multi_label=multi_label,
        what="files",
        notes=lambda: () if has_split else notes,
    )


def _resolve(name: str, path: str) -> str:
    if storage.is_remote(path) or not storage.is_remote(name):
        return path if storage.is_remote(path) else storage.join(os.path.dirname(name), path)
    scheme, _, inner = name.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(inner), path))}"


def _read(name: str) -> tuple[list[tuple[int, dict]], bool]:
    try:
        text = read_text(name)
    except FileNotFoundError as error:
        raise UserError(f"csv file {name} does not exist") from error
    rows = list(read_table(name, text, ("path", "label"), "path,label[,split]"))
    has_split = "split" in rows[0][1]
    for line, row in rows:
        for column in ("path", "label", *(["split"] if has_split else [])):
            if not row[column] or (column == "label" and "" in row[column].split("|")):
                raise UserError(f"{name} line {line}: the {column} is empty")
    return rows, has_split
