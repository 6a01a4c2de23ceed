"""The format of shards: ArrayRecord files of encoded videos or images, beside an index.

    OUT/index.json                              see `Index`
    OUT/train.records.csv                       key,label of every record of a split, in the order of its shards
    OUT/train-00000-of-00016.array_record       records, see `pack`
    OUT/rejected.csv                            path,label,reason,split of the files that were left out
    OUT/parts/                                  what an interrupted run needs to go on; reading does not

Labels are indices of the classes, several joined by `|`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import msgpack
from array_record.python.array_record_module import ArrayRecordReader

from tubevit import storage
from tubevit.errors import UserError

FORMAT = 1
INDEX, REJECTED, PARTS = "index.json", "rejected.csv", "parts"
CHECKS_AT_ONCE = 16
# Of array_record when the checksum of a record does not fit; other failures are the storage's.
DAMAGED = "Corrupted"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its name in the folder, how many records it holds, and how many bytes of videos or images."""

    file: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """One split.

    Attributes:
        shards: in order.
        listed: number of files that the source listed, found or not.
        rejected: how many were found and left out.
        records_sha256: of the csv of its records.
        settings: what the shards were made with.
    """

    shards: tuple[Shard, ...]
    listed: int
    rejected: int
    records_sha256: str
    settings: dict

    @property
    def records(self) -> int:
        """Number of records of all shards."""
        return sum(shard.records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Index:
    """What index.json holds: the classes in order, their digest (`Source.label_hash`), and the splits by name."""

    classes: tuple[str, ...]
    label_hash: str
    multi_label: bool
    splits: dict[str, SplitIndex]

    def to_json(self) -> str:
        """The text of index.json."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Index:
        """Reads index.json.

        Raises:
            UserError: it is not one, or of another version; the message says `where`.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("format")
            if version != FORMAT:
                raise UserError(f"{where} has format {version}; this version of tubevit reads format {FORMAT}")
            for name, split in fields["splits"].items():
                shards = tuple(Shard(**shard) for shard in split.pop("shards"))
                fields["splits"][name] = SplitIndex(shards=shards, **split)
            return cls(**fields | {"classes": tuple(fields["classes"])})
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is not the index of shards: {error!r}") from error


def read_index(folder: str) -> Index:
    """The index of a folder of shards, local or in a bucket.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = storage.join(folder, INDEX)
    try:
        return Index.from_json(storage.read_bytes(path), path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} holds no finished shards: there is no {INDEX} in it; make them with "
            f"`tubevit shard-videos SOURCE {folder}`"
        ) from error


def shard_name(split: str, number: int, count: int) -> str:
    """The file of shard `number` of `count`."""
    return f"{file_name(split)}-{number:05d}-of-{count:05d}.array_record"


def file_name(split: str) -> str:
    """A split's name as a part of file names."""
    return urllib.parse.quote(split, safe="")


def records_name(split: str) -> str:
    """The csv that lists the records of a split."""
    return f"{file_name(split)}.records.csv"


def pack(key: str, label: list[int], media: bytes) -> bytes:
    """A record: what the file was called, its class indices (one, or any number), its encoded bytes."""
    return msgpack.packb({"key": key, "label": label, "media": media})


def unpack(record: bytes) -> dict:
    """The inverse of `pack`: {"key", "label", "media"}."""
    return msgpack.unpackb(record)


def to_csv(header: tuple[str, ...], rows) -> str:
    """Rows as csv text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def join_label(label: list[int]) -> str:
    """Class indices as the csv files have them."""
    return "|".join(map(str, label))


def read_records(folder: str, split: str, index: SplitIndex) -> tuple[list[str], list[list[int]]]:
    """The keys and the class indices of every record of a split.

    Raises:
        UserError: the csv is not the one that the index was written with.
    """
    path = storage.join(folder, records_name(split))
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; write the shards again with `tubevit shard-videos`") from error
    if hashlib.sha256(content).hexdigest() != index.records_sha256:
        raise UserError(f"{path} has changed since {INDEX} was written; write the shards again")
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))[1:]
    return [key for key, _ in rows], [[int(number) for number in label.split("|") if number] for _, label in rows]


def check_shard(path: str, records: int) -> None:
    """Opens a shard; an unreadable one looks like an empty one to its reader.

    Raises:
        UserError: it is missing, cut off or damaged, or does not hold as many records.
    """

    def look() -> tuple[int, str | None]:
        # The buffer's default, 1 MB, would read a megabyte of each shard in a bucket.
        reader = ArrayRecordReader(path, "readahead_buffer_size:0", file_reader_buffer_size=32768)
        found, reason = reader.num_records(), None if reader.ok() else "it is damaged"
        try:
            reader.close()
        except RuntimeError as error:  # says why it cannot be read
            reason = str(error).split(";")[0]
        return found, reason

    found, reason = storage.call(path, look)
    if reason is not None:
        what = f"cannot be read: {reason}" if storage.exists(path) else "is missing"
        raise UserError(f"shard {path} {what}; expected {records} records")
    if found != records:
        raise UserError(f"shard {path} holds {found} records; expected {records}")


def check_shards(folder: str, shards: tuple[Shard, ...]) -> None:
    """As `check_shard`, of several at once."""
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        list(pool.map(lambda shard: check_shard(storage.join(folder, shard.file), shard.records), shards))
