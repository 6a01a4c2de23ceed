"""`shards:DIR`: what `tubevit shard-videos` wrote, on disk or in a bucket; records are read in any order."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from tubevit import storage
from tubevit.data.shards import DAMAGED, INDEX, REJECTED, check_shards, read_index, read_records, unpack
from tubevit.data.sources.listing import canonical_split
from tubevit.data.sources.source import Source
from tubevit.errors import DecodeError, UserError, unknown_split


@dataclasses.dataclass(frozen=True)
class Records:
    """`records(i)` is the encoded bytes of record i; files are opened when they are first read, in each process.

    Attributes:
        keys: expected of the records.
        files: paths of the shards.
        ends: number of records up to the end of each shard.
        data: the records of all shards.
    """

    keys: Sequence[str]
    files: tuple[str, ...]
    ends: tuple[int, ...]
    data: ArrayRecordDataSource

    def __call__(self, index: int) -> bytes:
        """The encoded bytes of record `index`.

        Raises:
            DecodeError: the record is damaged.
            UserError: the shard holds another record than the index says.
            OSError: the shard cannot be read (any more).
        """
        index = int(index)
        file = self.files[bisect.bisect_right(self.ends, index)]
        try:
            record = unpack(storage.call(file, self.data.__getitem__, index))
        except RuntimeError as error:
            if DAMAGED in str(error):
                raise DecodeError(f"cannot read {self.keys[index]}: its record in {file} is damaged") from error
            raise OSError(f"cannot read {self.keys[index]} in {file}: {error}") from error
        if record["key"] != self.keys[index]:
            raise UserError(
                f"shard {file} is not the one that {INDEX} describes: expected {self.keys[index]}, "
                f"found {record['key']}"
            )
        return record["media"]


def open_shards(name: str, split: str) -> Source:
    """Opens shards; every shard is checked against the index.

    Args:
        name: `shards:DIR`, DIR local or in a bucket.
        split: name of a split, or `all`.

    Raises:
        UserError: there is no index, no such split, a shard is missing, cut off or damaged, or the classes are not
            those that the index was written with.
    """
    folder, split = name.removeprefix("shards:"), canonical_split(split)
    index = read_index(folder)
    if split not in (*index.splits, "all"):
        raise unknown_split(name, split, {*index.splits, "all"})
    chosen = {key: value for key, value in index.splits.items() if split in (key, "all")}
    shards = tuple(shard for value in chosen.values() for shard in value.shards)
    check_shards(folder, shards)

    keys: list[str] = []
    classes_of: list[list[int]] = []
    for key, value in chosen.items():
        these, labels = read_records(folder, key, value)
        if len(these) != value.records:
            raise UserError(f"{folder}: {INDEX} counts {value.records} records of {key}; their csv {len(these)}")
        keys += these
        classes_of += labels
    if index.multi_label:
        labels = np.zeros((len(keys), len(index.classes)), np.float32)
        for row, several in enumerate(classes_of):
            labels[row, several] = 1
    else:
        labels = np.array([label for (label,) in classes_of], np.int32)

    files = tuple(storage.join(folder, shard.file) for shard in shards)
    ends = tuple(itertools.accumulate(shard.records for shard in shards))
    # With the range in the name, no file is opened here.
    ranges = [f"{file}[0:{shard.records}]" for file, shard in zip(files, shards)]
    keys = tuple(keys)
    listed, rejected = (sum(getattr(value, field) for value in chosen.values()) for field in ("listed", "rejected"))
    notes = []
    if len(keys) < listed:
        notes.append(f"{name}: {len(keys)} of {listed} listed files are in the shards ({rejected} are in {REJECTED})")
    read = Records(keys, files, ends, ArrayRecordDataSource(ranges))
    source = Source(name, keys, labels, index.classes, listed, notes=tuple(notes), read=read)
    if source.label_hash != index.label_hash:
        raise UserError(
            f"{folder}: the classes of {INDEX} have been changed: expected those of label_hash {index.label_hash}, "
            f"found {source.label_hash}"
        )
    return source
