"""ImageNet-1k (ILSVRC 2012) as folders of JPEG files."""

from __future__ import annotations

import importlib.util
import pathlib
import re

from tubevit import storage
from tubevit.data.sources.listing import (
    IMAGE_SUFFIXES,
    Row,
    canonical_split,
    class_count_note,
    is_hidden,
    labelled_source,
    suffix,
)
from tubevit.data.sources.source import Source
from tubevit.errors import UserError, unknown_split

CLASSES = 1000
_SPLITS = ("train", "val")
_ROOTS = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # the latter two: as Kaggle packs it


def open_imagenet(name: str, split: str) -> Source:
    """Reads DIR/train/n01440764/*.JPEG and DIR/val, which has class folders too or all images in one.

    Classes are the sorted WordNet ids of the folders. Images of a flat DIR/val, ILSVRC2012_val_00000001.JPEG, are
    labelled by their number from the list that tensorflow_datasets carries.

    Args:
        name: `imagenet:DIR`; DIR may also hold ILSVRC/Data/CLS-LOC/train and val.
        split: `train`, `val` or `all`; the official test images have no labels.

    Raises:
        UserError: no such folder or split, or no images in class folders.
    """
    split = canonical_split(split)
    if split not in (*_SPLITS, "all"):
        raise unknown_split(name, split, (*_SPLITS, "all"))
    root = _root(name.partition(":")[2])
    rows = []
    for part in _SPLITS:
        if split in (part, "all"):
            rows += _rows(root, part)
            if not any(row.split == part for row in rows):
                raise UserError(f"{name}: expected {root}/{part}/n01440764/*.JPEG; found no images in such folders")
    classes = {row.labels[0] for row in rows}
    if len(classes) != CLASSES and split != "all":  # a part of it: the other split may have further classes
        classes |= {row.labels[0] for part in _SPLITS if part != split for row in _rows(root, part)}
    classes = sorted(classes)
    return labelled_source(
        name,
        split,
        rows,
        classes,
        lambda row: row.clip,
        lambda row: row.clip,
        what="images",
        notes=lambda: class_count_note(name, classes, CLASSES),
    )


def validation_labels() -> list[str]:
    """WordNet ids of the 50,000 validation images in the order of their numbers, as tensorflow_datasets has them."""
    package = importlib.util.find_spec("tensorflow_datasets").submodule_search_locations[0]  # without importing it
    return (pathlib.Path(package) / "datasets/imagenet2012/validation_labels.txt").read_text().split()


def _root(folder: str) -> str:
    for inner in _ROOTS:
        root = storage.join(folder, inner) if inner else folder.rstrip("/")
        if any(storage.is_folder(storage.join(root, part)) for part in _SPLITS):
            return root
    raise UserError(f"imagenet:{folder}: expected {folder}/train and {folder}/val (or ILSVRC/Data/CLS-LOC in it)")


def _rows(root: str, split: str) -> list[Row]:
    rows, flat = [], None
    for name in storage.list_files(f"{root}/{split}"):
        if suffix(name) not in IMAGE_SUFFIXES or is_hidden(name):
            continue
        wnid = name.partition("/")[0]
        if match := re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", name):
            flat = flat or validation_labels()
            if split != "val" or not 0 < int(match[1]) <= len(flat):
                raise UserError(f"{root}/{split}/{name}: expected {root}/val/ILSVRC2012_val_00000001.JPEG to 00050000")
            wnid = flat[int(match[1]) - 1]
        if re.fullmatch(r"n\d{8}", wnid):
            rows.append(Row(f"{root}/{split}/{name}", (wnid,), split))
    return rows
