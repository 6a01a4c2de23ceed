"""ImageNet-1k (ILSVRC 2012) as folders of JPEG files."""

import dataclasses
import importlib.util
import pathlib
import re

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import canonical_split, find_split
from tubevit.data.suffixes import IMAGE_SUFFIXES, is_hidden, suffix
from tubevit.errors import UserError

CLASSES = 1000
_SPLITS = ("train", "val")
_ROOTS = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # the last two: in the archives of Kaggle


def open_imagenet(name: str, split: str) -> Source:
    """Read DIR/train/n01440764/*.JPEG and DIR/val, with class folders or all images in one folder.

    Classes are the sorted WordNet ids of the folders. Images of a flat DIR/val, ILSVRC2012_val_00000001.JPEG, are
    labelled by their number, from the list in tensorflow_datasets.

    Args:
        name: `imagenet:DIR`; DIR may also hold ILSVRC/Data/CLS-LOC/train and val.
        split: `train`, `val` or `all`; the official test images have no labels.
    """
    split = find_split(name, split, _SPLITS)
    root = _root(name.partition(":")[2])
    rows = []
    for part in _SPLITS:
        if split in (part, "all"):
            rows += _rows(root, part)
            if not any(row.split == part for row in rows):
                raise UserError(f"{name}: expected {root}/{part}/n01440764/*.JPEG; found no images in such folders")
    classes = {row.labels[0] for row in rows}
    if len(classes) != CLASSES and split != "all":  # a subset: the other split may have further classes
        classes |= {row.labels[0] for part in _SPLITS if part != split for row in _rows(root, part)}
    listed = listing.Listing(name, split, rows, sorted(classes), CLASSES, what="images")
    return listed.source(lambda row: row.clip, lambda row: row.clip)


def in_index_order(source: Source, classes: tuple[str, ...]) -> Source:
    """Return a source of ImageNet-1k, whose classes are WordNet ids, with the 1,000 names that a model gives them.

    Models of ImageNet-1k number its classes in the order of their ids, whatever their names (tench is 0, goldfish 1).
    Other sources, and other numbers of classes, are returned as they are.
    """
    ids = all(re.fullmatch(r"n\d{8}", name) for name in source.classes)
    if not ids or len(source.classes) != CLASSES or len(classes) != CLASSES or set(source.classes) & set(classes):
        return source
    note = f"{source.name}: the model's classes are taken to be those of ImageNet-1k in the order of their WordNet ids"
    return dataclasses.replace(source, classes=classes, notes=(*source.notes, note))


def validation_labels() -> list[str]:
    """Return the WordNet ids of the 50,000 validation images in the order of their numbers."""
    spec = importlib.util.find_spec("tensorflow_datasets")  # without importing it
    assert spec and spec.origin
    return (pathlib.Path(spec.origin).parent / "datasets/imagenet2012/validation_labels.txt").read_text().split()


def _root(folder: str) -> str:
    for inner in _ROOTS:
        root = storage.join(folder, inner) if inner else folder.rstrip("/")
        if _folders(root):
            return root
    raise UserError(f"imagenet:{folder}: expected {folder}/train and {folder}/val (or ILSVRC/Data/CLS-LOC in it)")


def _folders(root: str) -> dict[str, str]:
    """Return {split: name of its folder}; the usual name is preferred to others, such as `Train` or `validation`."""
    names = sorted(storage.names(root), key=lambda name: name in _SPLITS)
    return {
        canonical_split(name): name
        for name in names
        if canonical_split(name) in _SPLITS and storage.is_folder(storage.join(root, name))
    }


def _rows(root: str, split: str) -> list[listing.Row]:
    rows, flat = [], None
    folder = f"{root}/{_folders(root).get(split, split)}"
    for name in storage.list_files(folder):
        if suffix(name) not in IMAGE_SUFFIXES or is_hidden(name):
            continue
        wnid = name.partition("/")[0]
        if match := re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", name):
            flat = flat or validation_labels()
            if split != "val" or not 0 < int(match[1]) <= len(flat):
                raise UserError(f"{folder}/{name}: expected {root}/val/ILSVRC2012_val_00000001.JPEG to 00050000")
            wnid = flat[int(match[1]) - 1]
        if re.fullmatch(r"n\d{8}", wnid):
            rows.append(listing.Row(f"{folder}/{name}", (wnid,), split))
    return rows
