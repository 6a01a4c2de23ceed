"""`shards:DIR`: the shards that `tubevit shard-videos` wrote, on disk or in a bucket, with random access."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource

from tubevit import storage
from tubevit.data.labels import label_array
from tubevit.data.shards import DAMAGED, INDEX, REJECTED, check_shards, read_index, read_records, unpack
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import find_split
from tubevit.errors import DecodeError, UserError


@dataclasses.dataclass(frozen=True)
class Records:
    """Reads records; each process opens a shard when it first reads from it.

    `ends` is the cumulative number of records at the end of each of the `files`.
    """

    keys: Sequence[str]
    files: tuple[str, ...]
    ends: tuple[int, ...]
    data: ArrayRecordDataSource

    def __call__(self, index: int) -> bytes:
        """Return the encoded bytes of record `index`.

        Raises:
            DecodeError: the record is damaged.
            UserError: the shard holds another record than the index lists.
            OSError: the shard can no longer be read.
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
            raise UserError(f"shard {file} does not match {INDEX}: expected {self.keys[index]}; found {record['key']}")
        return record["media"]


def open_shards(name: str, split: str) -> Source:
    """Open shards and check each of them against the index.

    Args:
        name: `shards:DIR`, DIR local or in a bucket.
        split: name of a split, or `all`.

    Raises:
        UserError: there is no index or no such split; a shard is missing, truncated or damaged; or the classes were
            changed after the index was written.
    """
    folder = name.removeprefix("shards:")
    index = read_index(folder)
    split = find_split(name, split, index.splits)
    chosen = {key: value for key, value in index.splits.items() if split in (key, "all")}
    shards = tuple(shard for value in chosen.values() for shard in value.shards)
    check_shards(folder, shards)

    keys: list[str] = []
    indices: list[list[int]] = []
    for key, value in chosen.items():
        of_split, labels = read_records(folder, key, value)
        if len(of_split) != value.records:
            raise UserError(f"{folder}: {INDEX} counts {value.records} records of {key}; their csv {len(of_split)}")
        keys += of_split
        indices += labels
    labels = label_array(indices, len(index.classes), index.multi_label)
    files = tuple(storage.join(folder, shard.file) for shard in shards)
    ends = tuple(itertools.accumulate(shard.records for shard in shards))
    # A range in the name saves opening the file here.
    ranges = [f"{file}[0:{shard.records}]" for file, shard in zip(files, shards)]
    listed, rejected = (sum(getattr(value, field) for value in chosen.values()) for field in ("listed", "rejected"))
    notes = []
    if len(keys) < listed:
        notes.append(f"{name}: {len(keys)} of {listed} listed files are in the shards ({rejected} are in {REJECTED})")
    read = Records(tuple(keys), files, ends, ArrayRecordDataSource(ranges))
    source = Source(name, tuple(keys), labels, index.classes, listed, notes=tuple(notes), read=read)
    if source.label_hash != index.label_hash:
        hashes = f"expected label_hash {index.label_hash}; found {source.label_hash}"
        raise UserError(f"{folder}: the classes in {INDEX} were changed: {hashes}")
    return source
