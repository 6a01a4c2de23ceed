"""UCF101 and HMDB51: the official lists of three train and test splits."""

import re

from tubevit import storage
from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import find_split
from tubevit.data.suffixes import is_hidden
from tubevit.errors import UserError

CLASSES = {"ucf101": 101, "hmdb51": 51}
SPLITS = ("train", "test", "train2", "test2", "train3", "test3")


def open_ucf101(name: str, split: str) -> Source:
    """Read the official lists of UCF101; classInd.txt gives the order of the classes.

    Args:
        name: `ucf101:LIST@CLIPS_DIR`; LIST is the folder of classInd.txt, trainlist01.txt and testlist01.txt.
        split: `train` or `test` of the first of the three official splits, `train2` or `test2` of the second,
            `train3` or `test3` of the third; `all` is both parts of the first, which is every clip.
    """
    _, source, _ = listing.parse_list_and_clips(name)
    parts, number = _parts(name, split)
    listing.require_folder(source, "the folder of classInd.txt, trainlist01.txt and testlist01.txt")
    path, text = listing.read_official(source, "classInd.txt")
    numbered = {}
    for line in filter(str.strip, text.splitlines()):
        index, _, label = line.strip().partition(" ")
        if not index.isdecimal() or not label or int(index) in numbered:
            raise UserError(f"{path}: expected the index and name of a class, each once; found {line.strip()}")
        numbered[int(index)] = label.strip()
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise UserError(f"{path}: expected the indices 1 to {len(numbered)}; found {min(numbered)} to {max(numbered)}")
    classes = [numbered[index] for index in sorted(numbered)]
    rows = []
    for part in parts:
        path, text = listing.read_official(source, f"{part}list0{number}.txt")
        for number_of_line, line in enumerate(text.splitlines(), 1):
            clip, separator, file = line.strip().partition("/")
            if line.strip() and not (separator and file.strip()):
                raise UserError(f"{path} line {number_of_line}: expected Class/clip.avi; found {line.strip()}")
            if line.strip():
                rows.append(listing.Row(file.split()[0].removesuffix(".avi"), (clip,), part))
    return _labelled(name, rows, classes)


def open_hmdb51(name: str, split: str) -> Source:
    """Read the official lists of HMDB51; its classes are sorted.

    Args:
        name: `hmdb51:LIST@CLIPS_DIR`; LIST is the folder of the files CLASS_test_split1.txt, ..2 and ..3 with lines
            `clip.avi 1`, where 1 means train, 2 test and 0 neither.
        split: see `open_ucf101`; `all` leaves out the clips that are in neither part of the first split.
    """
    _, source, _ = listing.parse_list_and_clips(name)
    parts, number = _parts(name, split)
    files = {}
    listing.require_folder(source, "the folder of CLASS_test_split1.txt")
    for file in storage.names(source):
        if (match := re.fullmatch(rf"(.+)_test_split{number}\.txt", file)) and not is_hidden(file):
            files[match[1]] = file
    if not files:
        raise UserError(f"{source}: expected the official lists CLASS_test_split{number}.txt in it; found none")
    classes = sorted(files)
    rows = []
    for label in classes:
        path, text = listing.read_official(source, files[label])
        for line_number, line in enumerate(text.splitlines(), 1):
            clip, _, code = line.strip().rpartition(" ")
            if line.strip() and (code not in ("0", "1", "2") or not clip):
                raise UserError(f"{path} line {line_number}: expected clip.avi and 0, 1 or 2; found {line.strip()}")
            part = {"1": "train", "2": "test"}.get(code)
            if part in parts:
                rows.append(listing.Row(clip.strip().removesuffix(".avi"), (label,), part))
    return _labelled(name, rows, classes)


def _parts(name: str, split: str) -> tuple[tuple[str, ...], str]:
    """Return the parts, of `train` and `test`, and the number of the official split."""
    split = find_split(name, split, SPLITS)
    if split == "all":
        return ("train", "test"), "1"
    return (split.rstrip("23"),), split[-1] if split[-1] in "23" else "1"


def _labelled(name: str, rows: list[listing.Row], classes: list[str]) -> Source:
    key, _, folder = listing.parse_list_and_clips(name)
    clips = listing.Clips(folder)
    listed = listing.Listing(name, "all", rows, classes, CLASSES[key])  # all rows are of the requested split
    return listed.source(lambda row: clips.find(row.clip, row.labels[0]), clips.expected(".avi"))
