"""The lists of clips that benchmarks/finetuning.py trains on."""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterable

from benchmarks.results import read, write

FIELDS = ["path", "label", "split"]
CLIPS, CLASSES = 520, 26  # training clips and classes of the set `digits`
FOLDS, FEWEST = 4, 8  # folds of real sets, and the fewest clips of a label that is used


def digits_list(rows: list[dict], seed: int) -> list[dict]:
    """Choose classes of the embedded data, training clips of them, and all of their clips of `val`.

    The classes have the same number of training clips, unless there are too few of one. If there are fewer rows than
    needed, there are fewer classes or clips.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    train, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
    evaluated = {row["label"] for row in held_out}
    labels = rng.permutation(sorted({row["label"] for row in train}))
    chosen = set(sorted(labels, key=lambda label: label not in evaluated)[:CLASSES])
    ranked, count = [], collections.Counter()
    for row in (train[i] for i in rng.permutation(len(train))):
        if row["label"] in chosen:
            ranked.append((count[row["label"]], row))
            count[row["label"]] += 1
    ranked.sort(key=lambda pair: pair[0])  # the first clip of every class, then the second of every class
    return [row for _, row in ranked[:CLIPS]] + [row for row in held_out if row["label"] in chosen]


def source_of(name: str) -> str:
    """Return the part of a clip's name that all clips of its patient share, for a patient who is not listed.

    It is what stands between the label and the first digit, such as `northumbria` in `Pneu_northumbria_0409_set3_vid1`.
    Several patients may share it, and then they stay together: this is safe, and splitting a patient would not be.
    """
    rest = re.sub(r"^[a-z]+[\W_]+", "", name.lower())
    common = re.sub(r"([\W_]+[a-z])?[\W_]*$", "", re.split(r"\d", rest)[0])
    return common or name.lower()


def folds_of(groups: Iterable[tuple[str, str]], folds: int = FOLDS) -> dict[str, int]:
    """Assign groups to folds so that each fold has about the same share of every label.

    Groups are assigned from the largest to the smallest, each to the fold where the shares stay closest to each other.

    Args:
        groups: the group and the label of each clip.
        folds: the number of folds.
    """
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for group, label in groups:
        counts[group][label] += 1
    total = sum(counts.values(), collections.Counter())
    filled = [collections.Counter() for _ in range(folds)]
    found = {}
    for group, count in sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])):

        def cost(fold: int, count=count) -> tuple:
            added = ((filled[fold][label] + n) ** 2 - filled[fold][label] ** 2 for label, n in count.items())
            return sum(more / total[label] ** 2 for label, more in zip(count, added)), filled[fold].total(), fold

        found[group] = min(range(folds), key=cost)
        filled[found[group]] += count
    return found


def ultrasound_list(folder: pathlib.Path, seed: int) -> list[dict]:
    """List the clips of lung ultrasound, divided into folds by patient."""
    from tubevit.data.suffixes import is_hidden, named_kind

    def without_suffix(name: str) -> str:
        name = name.strip().lower()
        return name.rpartition(".")[0] if named_kind(name) else name

    videos, patients = folder / "pocus_videos", {}
    for row in read(folder / "dataset_metadata.csv"):
        if patient := row["Patient ID / Name"].strip():
            patients.setdefault(without_suffix(row["Filename"]), f"patient {patient}")
    clips = []
    for path in sorted(videos.rglob("*")):
        inside = path.relative_to(videos)
        # The labels of clips in the folder `label_uncertain` are guesses.
        if named_kind(path.name) == "video" and not is_hidden(str(inside)) and "label_uncertain" not in inside.parts:
            name = without_suffix(path.name)
            clips.append((str(path.absolute()), name[:3], patients.get(name) or source_of(name)))
    return in_folds(clips, seed)


def fights_list(folder: pathlib.Path, seed: int) -> list[dict]:
    """List the clips of surveillance cameras, divided into folds by the video that they were cut from."""
    sources, source = {}, None
    for line in (folder / "videos.txt").read_text().splitlines():
        if line.startswith("http"):
            source = line.strip()
        elif of_set := re.match(r"\s*nofi(\d+)\s*-\s*nofi(\d+)\s*:\s*(.+)", line):  # the clips of another data set
            first, last, name = of_set.groups()
            sources |= dict.fromkeys((f"nofi{number:03}" for number in range(int(first), int(last) + 1)), name)
        elif clip := re.match(r"\s*((?:no)?fi\d+)\s*:", line):
            sources[clip[1]] = source
    paths = (path for name in ("fight", "noFight") for path in sorted((folder / name).glob("*.mp4")))
    clips = ((str(path.absolute()), path.parent.name, sources.get(path.stem, path.stem)) for path in paths)
    return in_folds(list(clips), seed)


def in_folds(clips: list[tuple[str, str, str]], seed: int) -> list[dict]:
    """Divide clips into folds. The fold that the seed chooses is the split `val`, the others are `train`.

    Args:
        clips: the path, the label and the group of each clip. A group is in one fold. Labels of fewer than `FEWEST`
            clips are left out.
        seed: chooses the fold that is held out, in turn.
    """
    count = collections.Counter(label for _, label, _ in clips)
    clips = [clip for clip in clips if count[clip[1]] >= FEWEST]
    folds = folds_of((group, label) for _, label, group in clips)
    splits = ("val" if folds[group] == seed % FOLDS else "train" for _, _, group in clips)
    return [dict(zip(FIELDS, (path, label, split))) for (path, label, _), split in zip(clips, splits)]


FOLDERS = {"ultrasound": ultrasound_list, "fights": fights_list}


def make_list(spec: str, seed: int, folder: pathlib.Path) -> str:
    """Return the path of a set's csv, which is written to the folder unless the set is a csv itself.

    Args:
        spec: `digits`, `ultrasound=DIR`, `fights=DIR` or `NAME=LIST.csv`, see benchmarks/finetuning.py.
        seed: chooses classes and clips, or the fold that is held out.
        folder: receives the csv.
    """
    from tubevit.data.sources import open_source
    from tubevit.data.sources.embedded import embedded_folder

    name, _, where = spec.partition("=")
    if name == "digits":
        open_source("moving_digits", "val", "digit_motion")  # makes the data
        rows = digits_list(read(embedded_folder() / "digit_motion.csv"), seed)
        rows = [{**row, "path": embedded_folder().absolute() / row["path"]} for row in rows]
    elif name in FOLDERS:
        rows = FOLDERS[name](pathlib.Path(where), seed)
    else:
        return where
    if not rows:
        raise SystemExit(f"{name}: expected labelled clips, {FEWEST} or more of a label; found none in {where}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f"clips_{seed}.csv"
    write(path, FIELDS, [{field: row[field] for field in FIELDS} for row in rows])
    return str(path)
