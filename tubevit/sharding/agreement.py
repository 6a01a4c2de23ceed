"""Processes agree on configuration, data and initial parameters before they start, or none of them starts."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from tubevit import storage
from tubevit.data.labels import distinct_names
from tubevit.data.sources.source import Source
from tubevit.errors import UserError
from tubevit.sharding.hosts import gather, run_on_all, run_on_main

_PARTS = 1024  # digests in a message: 20 kB, however long the listings are
_READ = 4096  # entries in memory at once


def agree(listings: Callable[[], Mapping[str, Sequence[str]]]) -> None:
    """Compare what the processes are about to work with; if anything differs, raise the same error in all of them.

    Every process calls it, for example `evaluate` with its data sets and its checkpoint:

        agree(lambda: {"data.eval.clips": SourceEntries(source), "the checkpoint": manifest_entries(folder)})

    Only digests are exchanged; where they differ, digests of ever smaller parts lead to the first entry that does. A
    single process compares nothing.

    Args:
        listings: returns {name: entries}; an error that it raises in one process is raised in all.

    Raises:
        UserError: entries differ. The message has the name, a process and the first entry that differs from process 0.
    """
    if jax.process_count() == 1:
        return
    mine = run_on_all(listings)
    summaries = gather({name: (len(entries), _digest(entries, 0, len(entries))) for name, entries in mine.items()})
    differing = run_on_main(lambda: _first_name(summaries))
    if differing is None:
        return
    name, process, lengths = differing
    entries, start, end = mine.get(name, ()), 0, max(lengths)
    while end - start > 1:
        starts = range(start, end, -(-(end - start) // _PARTS))
        digests = gather([_digest(entries, first, min(first + starts.step, end)) for first in starts])
        start = starts[run_on_main(lambda: _first_part(digests, process))]  # noqa: B023 (called at once)
        end = min(start + starts.step, end)
    found = gather(list(entries[start:end]))
    run_on_main(lambda: _refuse(name, process, lengths, found))


def mapping_entries(values: Mapping) -> list[str]:
    """List nested dicts, such as a configuration, as `key = value` texts."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(values), is_leaf=lambda value: not isinstance(value, dict))
    return [f"{jax.tree_util.keystr(path, simple=True, separator='.')} = {value!r}" for path, value in leaves]


@dataclasses.dataclass(frozen=True)
class SourceEntries(Sequence):
    """The classes, then the files of a source with their labels, as texts that are made when they are read."""

    source: Source

    def __len__(self) -> int:
        return len(self.source.classes) + len(self.source)

    def __getitem__(self, part: slice) -> list[str]:
        """The entries of a slice."""
        return [self._entry(i - len(self.source.classes)) for i in range(*part.indices(len(self)))]

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return distinct_names(self.source.classes)

    def _entry(self, index: int) -> str:
        classes = self._names
        if index < 0:
            return f"class {classes[index]}"
        label = self.source.labels[index]
        labels = np.flatnonzero(label) if self.source.multi_label else [label]
        return f"{self.source.keys[index]} labelled {'|'.join(classes[i] for i in labels)}"


def _digest(entries: Sequence[str], start: int, end: int) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for first in range(start, end, _READ):
        for entry in entries[first : min(first + _READ, end)]:
            digest.update(storage.encode(entry) + b"\0")
    return digest.hexdigest()


def _first_name(summaries: list[dict]) -> tuple[str, int, tuple[int, int]] | None:
    """The first listing that differs, a process of another one, and the lengths in process 0 and in that."""
    for name in dict.fromkeys(name for summary in summaries for name in summary):
        values = [summary.get(name, (0, "")) for summary in summaries]
        for process, value in enumerate(values):
            if value != values[0]:
                return name, process, (values[0][0], value[0])
    return None


def _first_part(digests: list[list[str]], process: int) -> int:
    return next(i for i, (one, other) in enumerate(zip(digests[0], digests[process], strict=True)) if one != other)


def _refuse(name: str, process: int, lengths: tuple[int, int], found: list[list[str]]) -> None:
    here, there = (repr(entries[0]) if entries else "nothing" for entries in (found[0], found[process]))
    counts = f" ({lengths[0]} and {lengths[1]} entries)" if lengths[0] != lengths[1] else ""
    raise UserError(
        f"the processes differ in {name}{counts}: process 0 has {here} where process {process} has {there}; "
        "give all processes the same files and flags"
    )
