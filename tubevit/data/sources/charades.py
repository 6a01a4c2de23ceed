"""Charades: the official csv files and class list; several actions per video."""

from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import SPLITS, find_split
from tubevit.errors import UserError, unknown

CLASSES = 157
_FILES = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}


def open_charades(name: str, split: str) -> Source:
    """Read the official lists of Charades: a video has any number of actions, or none.

    Args:
        name: `charades:LIST@CLIPS_DIR`; LIST is the folder of Charades_v1_train.csv, Charades_v1_test.csv and
            Charades_v1_classes.txt.
        split: `train`; `val` or `test`, which both mean the official test list, on which results are reported; or
            `all`.
    """
    _, source, folder = listing.parse_list_and_clips(name)
    split = find_split(name, split, SPLITS)
    split = "test" if split == "val" else split
    listing.require_folder(source, f"the folder of {', '.join(_FILES.values())} and Charades_v1_classes.txt")
    codes = _classes(source)
    rows = []
    for part, file in _FILES.items():
        if split not in (part, "all"):
            continue
        path, text = listing.read_official(source, file)
        for line, cells in listing.read_table(path, text, ("id", "actions"), "id,...,actions"):
            found = [action.split()[0] for action in cells["actions"].split(";") if action.strip()]
            for code in found:
                if code not in codes:
                    raise UserError(f"{path} line {line}: {unknown('action', code, codes)}")
            rows.append(listing.Row(cells["id"].strip(), tuple(codes[code] for code in found), part))
    clips = listing.Clips(folder)
    listed = listing.Listing(name, split, rows, list(codes.values()), CLASSES, multi_label=True)
    return listed.source(lambda row: clips.find(row.clip), clips.expected(".mp4"))


def _classes(folder: str) -> dict[str, str]:
    """Return {code: class} in the order of the list; its lines are like `c000 Holding some clothes`."""
    path, text = listing.read_official(folder, "Charades_v1_classes.txt")
    classes = {}
    for number, line in enumerate(filter(str.strip, text.splitlines())):
        code, _, label = line.strip().partition(" ")
        if code != f"c{number:03d}" or not label:
            raise UserError(f"{path}: expected c{number:03d} and the name of a class; found {line.strip()}")
        classes[code] = label
    if len(set(classes.values())) < len(classes) or not classes:
        raise UserError(f"{path}: expected distinct class names")
    return classes
