"""A shard of a split: which files it holds, how it is written and published, and whether it is finished.

Every way of running the shards of a split, in one process, in several or on an engine, runs `write_shard`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from tubevit import publish, storage
from tubevit.data import shards as form
from tubevit.data.container import naming_file
from tubevit.data.recode import validated_bytes
from tubevit.data.sources import Source
from tubevit.errors import DecodeError, UserError

# One record per group, for random access. Videos and images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Job:
    """The `count` shards of one split in a folder, local or in a bucket."""

    source: Source
    split: str
    folder: str
    count: int
    short_side: int | None

    def part(self, number: int) -> str:
        """Return the path of the record of shard `number`: its keys, labels and rejected files."""
        return storage.join(self.folder, f"{form.PARTS}/{form.shard_name(self.split, number, self.count)}.json")

    def order(self) -> list[int]:
        """Return a shuffled order of the files, by hash, because random generators change between versions."""
        keys = self.source.keys
        return sorted(range(len(keys)), key=lambda i: hashlib.sha256(storage.encode(f"{i} {keys[i]}")).digest())


def finished_part(job: Job, number: int) -> dict | None:
    """Return the record of a shard if it is finished and readable, else None."""
    try:
        part = json.loads(storage.read_bytes(job.part(number)))
        shard = storage.join(job.folder, form.shard_name(job.split, number, job.count))
        form.check_shard(shard, len(part["records"]))
    except (FileNotFoundError, UserError, ValueError, LookupError, TypeError):  # also a file that was cut off
        return None
    return part


def write_shard(job: Job, number: int, order: list[int], progress: Callable[[], object]) -> dict:
    """Write shard `number`; calls `progress` after each file.

    Returns:
        {"records": [[key, label], ...], "rejected": [[key, label, reason], ...], "bytes": total size of the media}.
    """
    name = form.shard_name(job.split, number, job.count)
    target = storage.join(job.folder, name)
    with _workspace(job) as folder:
        local = os.path.join(folder, f"{name}.partial")
        pathlib.Path(local).unlink(missing_ok=True)
        try:
            with publish.naming(target):
                part = _write_records(job, order[number :: job.count], local, progress)
        except Exception:
            pathlib.Path(local).unlink(missing_ok=True)
            raise
        # The record first: a shard under its final name counts as finished.
        storage.write_text(job.part(number), json.dumps(part))
        if storage.is_remote(target):
            storage.upload(local, target)
        else:
            os.replace(local, target)
    return part


@contextlib.contextmanager
def _workspace(job: Job) -> Iterator[str]:
    """Yield a local folder for an unfinished shard: beside the finished ones, or a temporary one for a bucket."""
    if storage.is_remote(job.folder):
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    else:
        folder = storage.join(job.folder, form.PARTS)
        os.makedirs(folder, exist_ok=True)
        yield folder


def _write_records(job: Job, files: list[int], path: str, progress: Callable[[], object]) -> dict:
    """Write files to a new shard; returns what `write_shard` does."""
    part = {"records": [], "rejected": [], "bytes": 0}
    writer = ArrayRecordWriter(path, WRITER_OPTIONS)
    for index in files:
        key, label = job.source.keys[index], job.source.labels[index]
        label = np.flatnonzero(label).tolist() if job.source.multi_label else [int(label)]
        try:
            with naming_file(key):
                media = validated_bytes(job.source.media(index), job.short_side)
        except DecodeError as error:
            part["rejected"].append([key, label, str(error)])
        else:
            writer.write(form.pack(key, label, media))
            part["records"].append([key, label])
            part["bytes"] += len(media)
        progress()
    writer.close()
    form.check_shard(path, len(part["records"]))
    return part
