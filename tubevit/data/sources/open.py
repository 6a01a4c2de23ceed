"""Opens the source that a string names."""

from __future__ import annotations

from tubevit.data.sources import csv_file, embedded
from tubevit.data.sources.source import Source
from tubevit.errors import unknown


def default_head(name: str, dataset: str) -> str:
    """The head of a data set that names none: its label set's of embedded data, else the data set's own name.

    Args:
        name: of the source.
        dataset: name of the data set in the configuration.
    """
    return embedded.HEADS[name][0] if name in embedded.HEADS else dataset


def open_source(name: str, split: str = "all", head: str | None = None) -> Source:
    """Opens the source that a string names.

    Args:
        name: `FILE.csv`, or `moving_digits` or `still_digits` (made in the cache on first use).
        split: name of a split, or `all`.
        head: chooses between the label sets of `moving_digits`: `motion` (default) or `digit_motion`.

    Raises:
        UserError: no such source, split or head; a malformed file; none of the listed files exists.
    """
    if name in embedded.NAMES:
        return embedded.open_embedded(name, split, head)
    if name.endswith(".csv"):
        return csv_file.open_csv(name, split)
    raise unknown("source", name, ("FILE.csv", *embedded.NAMES))
