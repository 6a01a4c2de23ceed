"""Something-Something v2: json lists and a label map, over a folder of webm files."""

import contextlib
import csv
import json

from tubevit.data.sources import listing
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import SPLITS, find_split
from tubevit.errors import NothingFound, SplitError, UserError

CLASSES = 174
_PREFIX = "something-something-v2-"
_FILES = {"train": "train.json", "val": "validation.json"}
_ANSWERS = "test-answers.csv"


def open_something(name: str, split: str) -> Source:
    """Read the official lists of Something-Something v2; the label map gives the order of the classes.

    Args:
        name: `ssv2:LIST@CLIPS_DIR`; LIST is the folder of the json files, something-something-v2-train.json,
            -validation.json and -labels.json or, in the later release, train.json, validation.json and labels.json.
        split: `train`, `val`, `test` (labelled by test-answers.csv of the later release), or `all` that exist.
    """
    _, source, folder = listing.parse_list_and_clips(name)
    split = find_split(name, split, SPLITS)
    listing.require_folder(source, "the folder of train.json, validation.json and labels.json")
    path, label_map = _read_json(source, "labels.json", dict)
    try:
        classes = [_plain(label) for label in sorted(label_map, key=lambda label: int(label_map[label]))]
        indices = sorted(int(index) for index in label_map.values())
    except (TypeError, ValueError) as error:
        raise UserError(f'{path}: expected {{"template": "index"}}; found {error}') from error
    if indices != list(range(len(classes))) or len(set(classes)) < len(classes):
        raise UserError(f"{path}: expected distinct templates with the indices 0 to {len(classes) - 1}, each once")
    rows = []
    for part, file in _FILES.items():
        if split in (part, "all"):
            rows += _listed(source, file, part)
    if split == "test":
        rows = _answers(source)
    elif split == "all":
        with contextlib.suppress(SplitError):  # the older release has no answers
            rows += _answers(source)
    clips = listing.Clips(folder)
    listed = listing.Listing(name, split, rows, classes, CLASSES)
    return listed.source(lambda row: clips.find(row.clip), clips.expected(".webm"))


def _plain(template: str) -> str:
    """Remove the brackets around [something] from a template: the label map has none."""
    return template.replace("[", "").replace("]", "").strip()


def _read_json(folder: str, file: str, kind: type):
    path, text = listing.read_official(folder, _PREFIX + file, file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"cannot read {path} as json: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a json {'object' if kind is dict else 'array'}")
    return path, content


def _listed(folder: str, file: str, split: str) -> list[listing.Row]:
    path, content = _read_json(folder, file, list)
    rows = []
    for i, entry in enumerate(content):
        if not isinstance(entry, dict) or not {"id", "template"} <= set(entry):
            raise UserError(f"{path} entry {i}: expected an object with id and template")
        rows.append(listing.Row(str(entry["id"]), (_plain(entry["template"]),), split))
    return rows


def _answers(folder: str) -> list[listing.Row]:
    try:
        path, text = listing.read_official(folder, _ANSWERS, _PREFIX + _ANSWERS)
    except NothingFound as error:
        raise SplitError(f"split test has no labels: {error}") from error
    rows = []
    for line, cells in enumerate(csv.reader(text.splitlines(), delimiter=";"), 1):
        if len(cells) != 2:
            raise UserError(f"{path} line {line}: expected id;label")
        rows.append(listing.Row(cells[0], (_plain(cells[1]),), "test"))
    return rows
