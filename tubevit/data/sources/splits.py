"""Names of splits: data sets spell them in many ways."""

import hashlib
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
