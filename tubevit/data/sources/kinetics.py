"""Kinetics: the official csv files, `label,youtube_id,time_start,time_end,split`, over a folder of clips."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

from tubevit import storage
from tubevit.data.sources.listing import (
    Clips,
    Row,
    canonical_split,
    class_count_note,
    file_names,
    labelled_source,
    parse_list_and_clips,
    read_table,
    read_text,
)
from tubevit.data.sources.source import Source
from tubevit.errors import SplitError, UserError, unknown_split

CLASSES = {"k400": 400, "k600": 600, "k700": 700}
_HEADER = "label,youtube_id,time_start,time_end,split"


def open_kinetics(name: str, split: str) -> Source:
    """Reads an official list of Kinetics over clips as downloaders leave them: trimmed, missing ones left out.

    Clips are found by name in any folders below CLIPS_DIR: ID_000010_000020.mp4, with or without leading zeros, or
    ID.mp4, with any suffix of a video. Where one ID is listed with several times, ID.mp4 counts as found only in a
    folder of its class, and only if that class has the ID once. Classes are the sorted labels of the whole list.

    Args:
        name: `k400:LIST@CLIPS_DIR` (or k600, k700); LIST is a csv, or a folder of which every csv with the header
            `label,youtube_id,time_start,time_end,split` is read. Without the column, a file's name tells its split.
        split: `train`, `val` or `test`, as far as the list has them, or `all`.

    Raises:
        UserError: a list or folder is missing or malformed, has no such split, has no labels for it (as the test
            lists that were held out for a challenge), or none of the clips exists.
    """
    key, source, folder = parse_list_and_clips(name)
    split = canonical_split(split)
    listed = list(dict.fromkeys(row for path, text in _lists(source) for row in _rows(path, text)))
    if split != "all" and all(row.split != split for row in listed):
        raise unknown_split(name, split, {*(row.split for row in listed), "all"})
    rows = [row for row in listed if row.labels]
    held_out = sum(split in (row.split, "all") and not row.labels for row in listed)
    if held_out and not any(split in (row.split, "all") for row in rows):
        raise SplitError(f"{name}: the list of {split} has no labels (held out): expected a column label")
    classes = sorted({row.labels[0] for row in rows})

    clips = Clips(folder)
    names = {(row.clip, row.labels) for row in listed}
    times = collections.Counter(_youtube_id(clip) for clip in {clip for clip, _ in names})
    times_in_class = collections.Counter((_youtube_id(clip), labels) for clip, labels in names)
    ambiguous = 0

    def find(row: Row) -> str | None:
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
            yield f"{name}: {ambiguous} clips are there as ID alone, listed with several times: counted as not found"
        yield from class_count_note(name, classes, CLASSES[key])

    return labelled_source(
        name,
        split,
        rows,
        classes,
        find,
        lambda row: f"expected e.g. {row.clip}.mp4 or {_youtube_id(row.clip)}.mp4 in {folder} or folders below",
        notes=notes,
    )


def _lists(source: str) -> list[tuple[str, str]]:
    """Path and text of the csv files of a list."""
    expected = f"a csv {_HEADER} or the folder that holds the official csv files"
    if storage.is_folder(source):
        names = [file for file in file_names(source, expected) if file.lower().endswith(".csv")]
        paths = [storage.join(source, file) for file in names]
    elif storage.exists(source):
        paths = [source]
    else:
        raise UserError(f"{source} does not exist; expected {expected}")
    texts = [(path, read_text(path)) for path in paths]
    if paths != [source]:  # other csv files may lie beside them
        texts = [(path, text) for path, text in texts if "youtube_id" in text.partition("\n")[0]]
    if not texts:
        raise UserError(f"{source} holds no list of Kinetics; expected {expected}")
    return texts


def _rows(path: str, text: str) -> Iterator[Row]:
    of_file = canonical_split(re.split(r"[/_.-]", path.removesuffix(".csv"))[-1])
    for line, cells in read_table(path, text, ("youtube_id", "time_start", "time_end"), _HEADER):
        split = canonical_split(cells.get("split") or of_file)
        if split not in ("train", "val", "test"):
            expected = "a column split of train, val or test, or a name of the file that ends with one"
            raise UserError(f"{path} line {line}: expected {expected}; found {split}")
        try:
            start, end = int(float(cells["time_start"])), int(float(cells["time_end"]))
        except ValueError as error:
            raise UserError(f"{path} line {line}: expected times in seconds; found {error}") from error
        label = cells.get("label", "").strip()
        yield Row(f"{cells['youtube_id']}_{start:06d}_{end:06d}", (label,) if label else (), split)


def _youtube_id(clip: str) -> str:
    return clip.rsplit("_", 2)[0]


def _unpadded(clip: str) -> str:
    youtube_id, start, end = clip.rsplit("_", 2)
    return f"{youtube_id}_{int(start)}_{int(end)}"
