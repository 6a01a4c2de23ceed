"""The format of shards: ArrayRecord files of encoded videos or images, and an index.

    OUT/index.json                              see `Index`
    OUT/train.records.csv                       key,label of each record of a split, in the order of its shards
    OUT/train-00000-of-00016.array_record       records, see `pack`
    OUT/rejected.csv                            path,label,reason,split of the files that are left out
    OUT/parts/                                  state that an interrupted run resumes from; not needed for reading

Labels are class indices; several are joined by `|`.
"""

import csv
import dataclasses
import hashlib
import io
import json
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import msgpack
from array_record.python.array_record_module import ArrayRecordReader

from tubevit import storage
from tubevit.errors import UserError

FORMAT = 1
INDEX, REJECTED, PARTS = "index.json", "rejected.csv", "parts"
CHECKS_AT_ONCE = 16
# In the error of array_record if the checksum of a record is wrong; other errors come from the storage.
DAMAGED = "Corrupted"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its name in the folder, number of records, and bytes of videos or images."""

    file: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """One split: its shards in order, the numbers of listed and of rejected files, the hash of the csv of its records,
    and the settings of `shard_writer`."""

    shards: tuple[Shard, ...]
    listed: int
    rejected: int
    records_sha256: str
    settings: dict

    @property
    def records(self) -> int:
        """The number of records of all shards."""
        return sum(shard.records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of index.json: the classes in order, their hash (`Source.label_hash`), and the splits by name."""

    classes: tuple[str, ...]
    label_hash: str
    multi_label: bool
    splits: dict[str, SplitIndex]

    def to_json(self) -> str:
        """Return the text of index.json."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Parse index.json; raises UserError, with the path `where`, if it is malformed or has another version."""
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
    """Read the index of a folder of shards, local or in a bucket; raises UserError if it is missing or damaged."""
    check_folder(folder)
    path = storage.join(folder, INDEX)
    try:
        return Index.from_json(storage.read_bytes(path), path)
    except (FileNotFoundError, NotADirectoryError) as error:
        expected = f"it has no {INDEX}; write them with `tubevit shard-videos SOURCE {folder}`"
        raise UserError(f"{folder} holds no finished shards: {expected}") from error


def check_folder(folder: str) -> None:
    """Raise UserError if array_record cannot open files in a folder: its path must be UTF-8."""
    if storage.printable(folder) != folder:
        raise UserError(f"shards need a folder whose path is UTF-8; found {folder!r}")


def shard_name(split: str, number: int, count: int) -> str:
    """Return the file name of shard `number` of `count`."""
    return f"{file_name(split)}-{number:05d}-of-{count:05d}.array_record"


def file_name(split: str) -> str:
    """Return the name of a split as part of a file name."""
    return urllib.parse.quote(split, safe="")


def pack(key: str, label: list[int], media: bytes) -> bytes:
    """Encode a record: the key of the file, its class indices (one, or any number), and its encoded bytes."""
    return msgpack.packb({"key": key, "label": label, "media": media}, unicode_errors="surrogateescape")


def unpack(record: bytes) -> dict:
    """Decode a record to {"key", "label", "media"}, the inverse of `pack`."""
    return msgpack.unpackb(record, unicode_errors="surrogateescape")


def to_csv(header: tuple[str, ...], rows) -> str:
    """Return rows as the text of a csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_records(folder: str, split: str, index: SplitIndex) -> tuple[list[str], list[list[int]]]:
    """Read the keys and the class indices of all records of a split; raises UserError if their csv was changed."""
    path = storage.join(folder, f"{file_name(split)}.records.csv")
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; write the shards again with `tubevit shard-videos`") from error
    if hashlib.sha256(content).hexdigest() != index.records_sha256:
        raise UserError(f"{path} has changed since {INDEX} was written; write the shards again")
    rows = list(csv.reader(io.StringIO(storage.decode(content), newline="")))[1:]
    return [key for key, _ in rows], [[int(number) for number in label.split("|") if number] for _, label in rows]


def check_shard(path: str, records: int) -> None:
    """Open a shard and raise UserError if it is missing, truncated, damaged or has another number of records.

    Without this check an unreadable shard would look like an empty one.
    """

    def open_and_count() -> tuple[int, str | None]:
        # The default buffer would read 1 MB of each shard in a bucket.
        reader = ArrayRecordReader(path, "readahead_buffer_size:0", file_reader_buffer_size=32768)
        found, reason = reader.num_records(), None if reader.ok() else "it is damaged"
        try:
            reader.close()
        except RuntimeError as error:  # the reason why it cannot be read
            reason = str(error).split(";")[0]
        return found, reason

    found, reason = storage.call(path, open_and_count)
    if reason is not None:
        what = f"cannot be read: {reason}" if storage.exists(path) else "is missing"
        raise UserError(f"shard {path} {what}; expected {records} records")
    if found != records:
        raise UserError(f"shard {path} holds {found} records; expected {records}")


def check_shards(folder: str, shards: tuple[Shard, ...]) -> None:
    """Check several shards at once, see `check_shard`."""
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        list(pool.map(lambda shard: check_shard(storage.join(folder, shard.file), shard.records), shards))
