"""Plain folders: DIR/train/class/clip, or DIR/class/clip."""

import collections
from collections.abc import Sequence

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import SPLIT_NOTE, SPLITS, canonical_split, merged_splits, split_by_hash
from tubevit.data.suffixes import is_hidden, named_kind
from tubevit.errors import UserError, closest

_EXPECTED = "DIR/class/clip or DIR/train/class/clip (and val, test)"


def open_folder(name: str, split: str) -> Source:
    """Read the videos and images of class folders, at any depth; the names of the folders are the labels.

    If a folder `train`, `val` or `test` (or `Training`, `dev`, see `canonical_split`) holds class folders, these are
    the splits. Otherwise 80 % of the files are `train` and the rest `test`, by a hash of the path below DIR. Classes
    are sorted over all splits, by value if all are integers.

    Args:
        name: path of the folder, local or remote.
        split: name of a split, or `all`.
    """
    listing.require_folder(name, _EXPECTED)
    paths = [path for path in storage.list_files(name) if not is_hidden(path)]
    media = [path for path in paths if named_kind(path)]
    parts = [path.split("/") for path in media]
    has_splits = any(len(p) > 2 and canonical_split(p[0]) in SPLITS for p in parts)
    rows = []
    for path, p in zip(media, parts):
        if has_splits and len(p) > 2 and canonical_split(p[0]) in SPLITS:
            rows.append(listing.Row(path, (p[1].strip(),), canonical_split(p[0])))
        elif not has_splits and len(p) > 1:
            rows.append(listing.Row(path, (p[0].strip(),), split_by_hash(path)))
    if not rows:
        found = f"{len(media)} videos and images, none of them in a class folder" if media else "no videos or images"
        raise UserError(f"{name}: expected {_EXPECTED}; found {found}")
    names = {row.labels[0] for row in rows}
    classes = (
        sorted(names, key=lambda name: (int(name), name))
        if all(label.isdecimal() for label in names)
        else sorted(names)
    )
    notes = _notes_on_folders(name, parts, has_splits)
    if len(rows) < len(paths):
        used = {row.clip for row in rows}
        first = next(path for path in paths if path not in used)
        left_out = len(paths) - len(rows)
        notes.append(f"{name}: left out {left_out} files that are no media or in no class folder, e.g. {first}")
    folder = name.rstrip("/")
    listed = listing.Listing(name, canonical_split(split), rows, classes)
    return listed.source(lambda row: f"{folder}/{row.clip}", lambda row: row.clip, notes)


def _notes_on_folders(name: str, parts: Sequence[Sequence[str]], has_splits: bool) -> list[str]:
    """Return notes on what the folders were taken for; `parts` are the paths of all files, split at `/`."""
    tops = sorted({p[0] for p in parts if len(p) > 1})
    if has_splits:
        others = [top for top in tops if canonical_split(top) not in SPLITS]
        notes = merged_splits(name, set(tops) - set(others))
        if others:
            notes.append(
                f"{name}: left out the folders beside the splits, e.g. {others[0]}; "
                f"{closest(others[0].strip().lower(), SPLITS)}"
            )
        return notes
    notes = [f"{name} has no folders train and val or test: {SPLIT_NOTE}"]
    splits = [top for top in tops if canonical_split(top) in SPLITS]
    if splits:
        notes.append(f"{name}: {splits[0]} is a class, because it holds no folders; expected {_EXPECTED}")
    inner = collections.Counter(second for _, second in {(p[0], p[1]) for p in parts if len(p) > 2})
    shared = next((second for second, n in inner.items() if n > 1 or canonical_split(second) in SPLITS), None)
    if shared:
        holding = [p[0] for p in parts if len(p) > 2 and p[1] == shared]
        notes.append(f"{name}: its folders are the classes, although {holding[0]} holds {shared}; expected {_EXPECTED}")
    return notes
