"""Writing of the shards of a split and their index; an interrupted run resumes."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from tubevit import publish, storage
from tubevit.data import shards as form
from tubevit.data.labels import distinct_names
from tubevit.data.shard_job import Job, finished_part, write_shard
from tubevit.data.sources import Source
from tubevit.errors import DecodeError, UserError

SHARD_BYTES = 2**30
HOSTS = 8  # the default number of shards is a multiple
SAMPLE = 64  # files whose sizes give an estimate for all
# Writes the numbered shards of a job, calls the function with numbers of files that are done, and yields the number and
# the record of each shard, see `shard_job.write_shard`.
Write = Callable[[Job, list[int], Callable[[int], object]], Iterable[tuple[int, dict]]]


def default_shards(source: Source, shard_bytes: float = SHARD_BYTES) -> int:
    """Return the number of shards of about 1 GiB, by the sizes of 64 files: a multiple of 8, at most one per file."""
    sample = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
    size = np.mean([_size(source, int(i)) for i in sample]) * len(source)
    return min(len(source), HOSTS * math.ceil(max(size, 1) / shard_bytes / HOSTS))


def _size(source: Source, index: int) -> int:
    try:
        media = source.media(index)
        if isinstance(media, np.ndarray):
            return media.nbytes
        return len(media) if isinstance(media, bytes) else os.path.getsize(media)
    except (DecodeError, OSError):
        return 0


def write_serially(job: Job, todo: list[int], advance: Callable[[int], object]) -> Iterator[tuple[int, dict]]:
    """Write shards one after the other in this process: a `Write`."""
    order = job.order()
    for number in todo:
        yield number, write_shard(job, number, order, lambda: advance(1))


def write_shards(
    source: Source,
    split: str,
    folder: str,
    shards: int | None = None,
    short_side: int | None = None,
    write: Write = write_serially,
) -> dict:
    """Write the shards of one split; other splits in the folder are kept.

    Shard k holds the files k, k + N, ... of a shuffled order. Files that do not decode completely are left out and
    listed in rejected.csv. Repeating the same call keeps finished shards and writes damaged ones again.

    Args:
        folder: local, where other processes that write to it wait, or in a bucket, where only one may write at a time.
        shards: number of shards; None uses `default_shards`.
        short_side: in pixels, see `recode.validated_bytes`; None keeps all bytes.
        write: where the shards are written: in this process, in several (`shard_processes.in_processes`) or on an
            engine (`beam_engine.on_beam`). The files are the same.

    Returns:
        {"written", "rejected", "kept": number of written files that were in finished shards, "shards", "bytes",
        "seconds"}.

    Raises:
        UserError: the folder was begun with other settings, files or classes, or no file can be decoded.
        OSError: the folder cannot be written; the shards that are finished stay.
        RunError: the engine failed; the shards that are finished stay.
    """
    began = time.monotonic()
    form.check_folder(folder)
    with contextlib.ExitStack() as stack:
        if not storage.is_remote(folder):
            stack.enter_context(publish.locked(storage.join(folder, f"{form.PARTS}/.lock")))
        settings = _settings(source, split, folder, shards, short_side)
        others = _other_splits(source, split, folder)
        job = Job(source, split, folder, settings["shards"], short_side)
        finished = {number: part for number in range(job.count) if (part := finished_part(job, number)) is not None}
        kept = sum(len(part["records"]) for part in finished.values())
        todo = [number for number in range(job.count) if number not in finished]
        done = sum(len(part["records"]) + len(part["rejected"]) for part in finished.values())
        shown = {"unit": " files", "desc": split, "file": sys.stderr, "disable": None}  # None shows it on terminals
        with tqdm(total=len(source), initial=done, **shown) as bar:
            finished.update(write(job, todo, bar.update))
        parts = [finished[number] for number in range(job.count)]
        index = _write_index(job, parts, settings, others)
    size, seconds = sum(shard.bytes for shard in index.shards), round(time.monotonic() - began, 3)
    counts = {"written": index.records, "rejected": index.rejected, "kept": kept, "shards": job.count}
    return counts | {"bytes": size, "seconds": seconds}


def _settings(source: Source, split: str, folder: str, shards: int | None, short_side: int | None) -> dict:
    """Return the settings of the shards; raises UserError if an earlier call had others."""
    if shards is not None and not 1 <= shards <= len(source):
        raise UserError(f"{split}: expected 1 to {len(source)} shards, so that each holds a file; found {shards}")
    listing = hashlib.sha256(storage.encode("\n".join(source.keys)) + source.labels.tobytes()).hexdigest()[:16]
    settings = {"source": source.name, "files": len(source), "classes": source.label_hash, "listing": listing}
    settings |= {"short_side": short_side, "shards": shards}
    path = storage.join(folder, f"{form.PARTS}/{form.file_name(split)}.json")
    try:
        earlier = dict(json.loads(storage.read_bytes(path)))
        settings["shards"] = shards or earlier["shards"]
    except FileNotFoundError:
        settings["shards"] = shards or default_shards(source)
        storage.write_text(path, json.dumps(settings))
        return settings
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged: remove it, or write to another folder") from error
    for name, value in settings.items():
        if earlier.get(name) != value:
            begun = f"{split} was begun with {name} {earlier.get(name)}; found {value}"
            raise UserError(f"{folder}: {begun}: use the same, or write to another folder")
    return settings


def _other_splits(source: Source, split: str, folder: str) -> dict[str, form.SplitIndex]:
    """Return the other splits in the folder; raises UserError if their classes differ."""
    if not storage.exists(storage.join(folder, form.INDEX)):
        return {}
    index = form.read_index(folder)
    others = {name: value for name, value in index.splits.items() if name != split}
    if others and (index.label_hash, index.multi_label) != (source.label_hash, source.multi_label):
        raise UserError(
            f"{folder} holds {', '.join(others)} with {len(index.classes)} classes (label_hash {index.label_hash}); "
            f"{split} of {source.name} has {len(source.classes)} (label_hash {source.label_hash})"
        )
    return others


def _write_index(job: Job, parts: list[dict], settings: dict, others: dict[str, form.SplitIndex]) -> form.SplitIndex:
    """Write rejected.csv, the csv of the records and, last, the index."""
    source, names = job.source, distinct_names(job.source.classes)
    rejected = [
        (key, "|".join(names[i] for i in label), reason, job.split)
        for part in parts
        for key, label, reason in part["rejected"]
    ]
    path = storage.join(job.folder, form.REJECTED)
    earlier = storage.decode(storage.read_bytes(path)) if storage.exists(path) else ""
    rejected += [tuple(row) for row in list(csv.reader(io.StringIO(earlier, newline="")))[1:] if row[3] in others]
    storage.write_text(path, form.to_csv(("path", "label", "reason", "split"), sorted(rejected)))
    if not any(part["records"] for part in parts):
        raise UserError(f"none of the {len(source)} files of {job.split} of {source.name} can be decoded; see {path}")

    records = [(key, "|".join(map(str, label))) for part in parts for key, label in part["records"]]
    text = form.to_csv(("key", "label"), records)
    storage.write_text(storage.join(job.folder, f"{form.file_name(job.split)}.records.csv"), text)
    files = [form.shard_name(job.split, number, job.count) for number in range(job.count)]
    shards = [form.Shard(file, len(part["records"]), part["bytes"]) for file, part in zip(files, parts)]
    digest = hashlib.sha256(storage.encode(text)).hexdigest()
    count = sum(len(part["rejected"]) for part in parts)
    split = form.SplitIndex(tuple(shards), source.listed, count, digest, settings)
    splits = dict(sorted((others | {job.split: split}).items()))
    index = form.Index(source.classes, source.label_hash, source.multi_label, splits)
    storage.write_text(storage.join(job.folder, form.INDEX), index.to_json())
    return split
