"""Kinetics: the official csv files, `label,youtube_id,time_start,time_end,split`, over a folder of clips."""

import collections
import re
from collections.abc import Iterator

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import SPLITS, canonical_split, find_split
from tubevit.data.suffixes import is_hidden, suffix
from tubevit.errors import SplitError, UserError, closest

CLASSES = {"k400": 400, "k600": 600, "k700": 700}
_HEADER = "label,youtube_id,time_start,time_end,split"


def open_kinetics(name: str, split: str) -> Source:
    """Read an official list of Kinetics; the clips are trimmed, as downloaders write them, and some may be missing.

    Clips are found by name at any depth below CLIPS_DIR: ID_000010_000020.mp4, with or without leading zeros, or
    ID.mp4, with any suffix of a video. If an ID is listed with several times, ID.mp4 is used only from a folder of
    its class, and only if that class lists the ID once. Classes are the sorted labels of the whole list.

    Args:
        name: `k400:LIST@CLIPS_DIR` (or k600, k700); LIST is a csv, or a folder, from which each csv with the header
            `label,youtube_id,time_start,time_end,split` is read. Without that column, the file name gives the split.
        split: `train`, `val` or `test`, as far as the list has them, or `all`.

    Raises:
        UserError: a list or folder is missing or malformed, has no such split, has no labels for it (like the test
            lists that were held out for a challenge), or none of the clips exists.
    """
    key, source, folder = listing.parse_list_and_clips(name)
    listed = list(dict.fromkeys(row for path, text in _lists(source) for row in _rows(path, text)))
    split = find_split(name, split, sorted({row.split for row in listed}))
    rows = [row for row in listed if row.labels]
    held_out = sum(split in (row.split, "all") and not row.labels for row in listed)
    if held_out and not any(split in (row.split, "all") for row in rows):
        raise SplitError(f"{name}: the list of {split} has no labels (held out): expected a column label")
    classes = sorted({row.labels[0] for row in rows})

    clips = listing.Clips(folder)
    names = {(row.clip, row.labels) for row in listed}
    times = collections.Counter(_youtube_id(clip) for clip in {clip for clip, _ in names})
    times_in_class = collections.Counter((_youtube_id(clip), labels) for clip, labels in names)
    ambiguous = 0

    def find(row: listing.Row) -> str | None:
        nonlocal ambiguous
        label, youtube_id = row.labels[0], _youtube_id(row.clip)
        found = clips.find(row.clip, label) or clips.find(_unpadded(row.clip), label)
        if found or clips.find(youtube_id) is None:
            return found
        if times[youtube_id] == 1:
            return clips.find(youtube_id, label)
        if times_in_class[youtube_id, row.labels] == 1:
            found = clips.find(youtube_id, label, only_in_class=True)
        ambiguous += found is None
        return found

    def notes():
        if held_out:
            yield f"{name}: {held_out} listed clips have no label (held out) and are left out"
        if ambiguous:
            yield f"{name}: {ambiguous} clips have an ID that is listed with several times: counted as not found"

    def expected(row: listing.Row) -> str:
        return f"expected e.g. {row.clip}.mp4 or {_youtube_id(row.clip)}.mp4 in {folder} or folders below"

    return listing.Listing(name, split, rows, classes, CLASSES[key]).source(find, expected, notes())


def _lists(source: str) -> list[tuple[str, str]]:
    """Return the path and the text of each csv file of a list."""
    expected = f"a csv {_HEADER} or the folder that holds the official csv files"
    if storage.is_folder(source):
        names = [file for file in storage.names(source) if suffix(file) == ".csv" and not is_hidden(file)]
        paths = [storage.join(source, file) for file in names]
    elif storage.exists(source):
        paths = [source]
    else:
        raise UserError(f"{source} does not exist; expected {expected}")
    if paths != [source]:  # the folder may hold other csv files, in any encoding
        paths = [path for path in paths if "youtube_id" in listing.read_text(path, "replace").partition("\n")[0]]
    texts = [(path, listing.read_text(path)) for path in paths]
    if not texts:
        raise UserError(f"{source} holds no list of Kinetics; expected {expected}")
    return texts


def _rows(path: str, text: str) -> Iterator[listing.Row]:
    of_file = canonical_split(re.split(r"[/_.-]", path.lower().removesuffix(".csv"))[-1])
    for line, cells in listing.read_table(path, text, ("youtube_id", "time_start", "time_end"), _HEADER):
        split = canonical_split(cells.get("split") or of_file)
        if split not in SPLITS:
            expected = "a column split of train, val or test, or a file name that ends with one"
            raise UserError(f"{path} line {line}: expected {expected}; found {split}; {closest(split, SPLITS)}")
        try:
            start, end = int(float(cells["time_start"])), int(float(cells["time_end"]))
        except ValueError as error:
            raise UserError(f"{path} line {line}: expected times in seconds; found {error}") from error
        label = cells.get("label", "").strip()
        yield listing.Row(f"{cells['youtube_id'].strip()}_{start:06d}_{end:06d}", (label,) if label else (), split)


def _youtube_id(clip: str) -> str:
    return clip.rsplit("_", 2)[0]


def _unpadded(clip: str) -> str:
    youtube_id, start, end = clip.rsplit("_", 2)
    return f"{youtube_id}_{int(start)}_{int(end)}"
