"""Plain folders: DIR/train/class/clip, or DIR/class/clip."""

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.errors import UserError

_EXPECTED = "DIR/class/clip or DIR/train/class/clip (and val, test)"


def open_folder(name: str, split: str) -> Source:
    """Read the videos and images of class folders, at any depth; the names of the folders are the labels.

    If a folder `train`, `val` (or `validation`) or `test` holds class folders, these are the splits. Otherwise 80 % of
    the files are `train` and the rest `test`, by a hash of the path below DIR. Classes are sorted over all splits,
    by value if all are integers.

    Args:
        name: path of the folder, local or remote.
        split: name of a split, or `all`.
    """
    listing.require_folder(name, _EXPECTED)
    paths = [path for path in storage.list_files(name) if not listing.is_hidden(path)]
    media = [path for path in paths if listing.suffix(path) in listing.VIDEO_SUFFIXES | listing.IMAGE_SUFFIXES]
    parts = [path.split("/") for path in media]
    splits = [listing.canonical_split(p[0]) if len(p) > 2 else "" for p in parts]
    in_split = [of_file in ("train", "val", "test") for of_file in splits]
    has_splits, rows = any(in_split), []
    for path, p, of_file, inside in zip(media, parts, splits, in_split):
        if inside:
            rows.append(listing.Row(path, (p[1],), of_file))
        elif not has_splits and len(p) > 1:
            rows.append(listing.Row(path, (p[0],), listing.split_by_hash(path)))
    if not rows:
        found = f"{len(media)} videos and images, none of them in a class folder" if media else "no videos or images"
        raise UserError(f"{name}: expected {_EXPECTED}; found {found}")
    names = {row.labels[0] for row in rows}
    classes = sorted(names, key=int) if all(label.isdecimal() for label in names) else sorted(names)
    notes = []
    if not has_splits:
        notes.append(f"{name} has no folders train and val or test: {listing.SPLIT_NOTE}")
    if len(rows) < len(paths):
        used = {row.clip for row in rows}
        first = next(path for path in paths if path not in used)
        left_out = len(paths) - len(rows)
        notes.append(f"{name}: left out {left_out} files that are no media or in no class folder, e.g. {first}")
    folder = name.rstrip("/")
    listed = listing.Listing(name, listing.canonical_split(split), rows, classes)
    return listed.source(lambda row: f"{folder}/{row.clip}", lambda row: row.clip, notes)
