"""csv sources: a header `path,label[,split]`, paths relative to the file."""

from __future__ import annotations

import csv
import hashlib
import os
import pathlib

import numpy as np

from tubevit.data.sources.source import Source
from tubevit.errors import UserError, unknown

TRAIN_SHARE = 0.8


def open_csv(name: str, split: str) -> Source:
    """Reads a csv of labelled files; further columns are ignored.

    Labels are names (sorted) or all integers (indices), several joined by `|`. Without a column `split`, 80 % of the
    files are `train` and the others `test`, by a hash of the path.

    Args:
        name: path of the csv.
        split: name of a split, or `all`.

    Raises:
        UserError: it is missing or malformed (the line is named), has no such split, or none of its files exists.
    """
    rows, has_split = _read(name)
    multi_label = any("|" in row["label"] for row in rows)
    labels = [row["label"].split("|") if multi_label else [row["label"]] for row in rows]
    names = {label for several in labels for label in several}
    if all(label.isdecimal() for label in names):
        classes = tuple(str(i) for i in range(max(map(int, names)) + 1))
        labels = [[str(int(label)) for label in several] for several in labels]
    else:
        classes = tuple(sorted(names))
    index = {label: i for i, label in enumerate(classes)}

    splits = [row["split"] if has_split else _split_by_hash(row["path"]) for row in rows]
    if split != "all" and split not in splits:
        raise unknown(f"split of {name}", split, {*splits, "all"})
    chosen = [i for i in range(len(rows)) if split in (splits[i], "all")]
    folder = pathlib.Path(name).parent
    paths = {i: str(folder / rows[i]["path"]) for i in chosen}
    found = [i for i in chosen if os.path.isfile(paths[i])]
    if not found:
        raise UserError(
            f"{name}: none of the {len(chosen)} listed files exists; paths are relative to the csv, "
            f"the first is {paths[chosen[0]]}"
        )
    encoded = np.array([index[labels[i][0]] for i in found], np.int32)
    if multi_label:
        encoded = np.zeros((len(found), len(classes)), np.float32)
        for row, i in enumerate(found):
            encoded[row, [index[label] for label in labels[i]]] = 1
    notes = []
    if len(found) < len(chosen):
        notes.append(f"{name}: {len(found)} of {len(chosen)} listed files were found")
    if not has_split:
        notes.append(f"{name} has no column split: 80 % of the files are train, 20 % test, by a hash of the path")
    positions = tuple(f"{name} line {rows[i]['line']}" for i in found)
    return Source(name, tuple(paths[i] for i in found), encoded, classes, len(chosen), positions, tuple(notes))


def _read(name: str) -> tuple[list[dict], bool]:
    try:
        with open(name, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None or not {"path", "label"} <= set(header):
                found = "nothing" if header is None else ",".join(header)
                raise UserError(f"{name} line 1: expected the header path,label[,split]; found {found}")
            rows = []
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"{name} line {reader.line_num}: expected {len(header)} columns ({','.join(header)}); "
                        f"found {len(cells)}"
                    )
                row = dict(zip(header, cells)) | {"line": reader.line_num}
                for column in ("path", "label", *(["split"] if "split" in header else [])):
                    if not row[column] or (column == "label" and "" in row[column].split("|")):
                        raise UserError(f"{name} line {reader.line_num}: the {column} is empty")
                rows.append(row)
    except FileNotFoundError as error:
        raise UserError(f"csv file {name} does not exist") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {name} as csv: {error}") from error
    if not rows:
        raise UserError(f"{name} lists no files: it has a header only")
    return rows, "split" in header


def _split_by_hash(path: str) -> str:
    value = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    return "train" if value < TRAIN_SHARE * 2**64 else "test"
