"""Names of splits: data sets spell them in many ways."""

import hashlib
import re
from collections.abc import Iterable

from tubevit import storage
from tubevit.errors import unknown_split

SPLITS = ("train", "val", "test")
TRAIN_SHARE = 0.8
SPLIT_NOTE = "80 % of the files are train, 20 % are test, by a hash of the path"
_SYNONYMS = {"training": "train", "testing": "test"} | dict.fromkeys(
    ("validation", "validate", "valid", "eval", "evaluation", "dev", "development"), "val"
)


def canonical_split(name: str) -> str:
    """Return `train`, `val` or `test` for each of their usual names, such as ` Train`, `dev` or `TESTING`.

    Case and surrounding blanks never matter. Other names are returned in lower case, without these blanks.
    """
    name = name.strip().lower()
    return _SYNONYMS.get(name, name)


def training_split(held_out: str) -> str | None:
    """Return the training split beside a held-out one, such as `train2` beside `test2` of UCF101 and HMDB51.

    Returns None for what is not held out, such as `train`, `train2` or `all`.
    """
    kind, number = _parts(held_out)
    return None if kind in ("train", "all") else f"train{number}"


def held_out_beside(training: str) -> str | None:
    """Return the test split beside a numbered training split, such as `test2` beside `train2`; None for others."""
    kind, number = _parts(training)
    return f"test{number}" if kind == "train" and number else None


def _parts(name: str) -> tuple[str, str]:
    """Divide the name of a split of UCF101 and HMDB51 from its number; other names have none."""
    match = re.fullmatch(r"(train|test)([23])", canonical_split(name))
    return (match[1], match[2]) if match else (canonical_split(name), "")


def find_split(source: str, wanted: str, splits: Iterable[str]) -> str:
    """Return the split that is meant: one of `splits`, as it is spelled there, or `all`.

    Raises SplitError, with the closest name, if there is none.
    """
    choices = [*splits, "all"]
    meant = [wanted] if wanted in choices else [s for s in choices if canonical_split(s) == canonical_split(wanted)]
    if len(meant) != 1:
        raise unknown_split(source, wanted, choices)
    return meant[0]


def merged_splits(source: str, found: Iterable[str]) -> list[str]:
    """Return a note for each split that a source names in several ways, such as `dev` and `val`."""
    spellings: dict[str, set[str]] = {}
    for name in found:
        spellings.setdefault(canonical_split(name), set()).add(name.strip().lower())
    return [
        f"{source}: {' and '.join(sorted(names))} are taken together as the split {split}"
        for split, names in sorted(spellings.items())
        if len(names) > 1
    ]


def split_by_hash(path: str) -> str:
    """Return `train` for 80 % of all paths, else `test`; it does not depend on the other listed files."""
    value = int.from_bytes(hashlib.sha256(storage.encode(path)).digest()[:8], "big")
    return "train" if value < TRAIN_SHARE * 2**64 else "test"
