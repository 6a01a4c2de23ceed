"""Plain folders: DIR/train/class/clip, or DIR/class/clip."""

from __future__ import annotations

from tubevit import storage
from tubevit.data.sources.listing import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Row,
    canonical_split,
    is_hidden,
    labelled_source,
    require_folder,
    split_by_hash,
    suffix,
)
from tubevit.data.sources.source import Source
from tubevit.errors import UserError

_EXPECTED = "DIR/class/clip or DIR/train/class/clip (and val, test)"


def open_folder(name: str, split: str) -> Source:
    """Takes the names of folders as the labels of the videos and images in them, however deep.

    Where a folder `train`, `val` (or `validation`) or `test` holds class folders, the splits are these; else 80 % of
    the files are `train` and the others `test`, by a hash of the path below DIR. Classes are those of all splits,
    sorted; by value where all are integers.

    Args:
        name: path of the folder, local or remote.
        split: name of a split, or `all`.

    Raises:
        UserError: no such folder or split, or it holds no videos or images in class folders.
    """
    require_folder(name, _EXPECTED)
    paths = [path for path in storage.list_files(name) if not is_hidden(path)]
    media = [path for path in paths if suffix(path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    parts = [path.split("/") for path in media]
    has_splits = any(len(p) > 2 and canonical_split(p[0]) in ("train", "val", "test") for p in parts)
    rows = []
    for path, p in zip(media, parts):
        if has_splits and len(p) > 2 and canonical_split(p[0]) in ("train", "val", "test"):
            rows.append(Row(path, (p[1],), canonical_split(p[0])))
        elif not has_splits and len(p) > 1:
            rows.append(Row(path, (p[0],), split_by_hash(path)))
    if not rows:
        found = f"{len(media)} videos and images, none of them in a class folder" if media else "no videos or images"
        raise UserError(f"{name}: expected {_EXPECTED}; found {found}")
    names = {row.labels[0] for row in rows}
    classes = sorted(names, key=int) if all(label.isdecimal() for label in names) else sorted(names)
    notes = []
    if not has_splits:
        notes.append(f"{name} has no folders train and val or test: 80 % of the files are train, 20 % test, by a hash")
    if len(rows) < len(paths):
        used = {row.clip for row in rows}
        first = next(path for path in paths if path not in used)
        notes.append(f"{name}: left out {len(paths) - len(rows)} files that are no media or in no class, e.g. {first}")
    folder = name.rstrip("/")
    return labelled_source(
        name,
        canonical_split(split),
        rows,
        classes,
        lambda row: f"{folder}/{row.clip}",
        lambda row: row.clip,
        notes=lambda: notes,
    )
