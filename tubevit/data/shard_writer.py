"""Writing of shards in several processes: each file is validated, and an interrupted run resumes."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from tubevit import publish, storage
from tubevit.data import shards as form
from tubevit.data.labels import distinct_names
from tubevit.data.recode import validated_bytes
from tubevit.data.sources import Source
from tubevit.data.warp import use_one_opencv_thread
from tubevit.data.workers import end_with_parent, start_quiet_tracker
from tubevit.errors import DecodeError, UserError

SHARD_BYTES = 2**30
HOSTS = 8  # the default number of shards is a multiple
SAMPLE = 64  # files whose sizes give an estimate for all
# One record per group, for random access. Videos and images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Job:
    """The `count` shards of one split in a folder, local or in a bucket; `work` holds unfinished ones locally."""

    source: Source
    split: str
    folder: str
    work: str
    count: int
    short_side: int | None

    def part(self, number: int) -> str:
        """Return the path of the record of shard `number`: its keys, labels and rejected files."""
        return storage.join(self.folder, f"{form.PARTS}/{form.shard_name(self.split, number, self.count)}.json")

    def order(self) -> list[int]:
        """Return a shuffled order of the files, by hash, because random generators change between versions."""
        keys = self.source.keys
        return sorted(range(len(keys)), key=lambda i: hashlib.sha256(storage.encode(f"{i} {keys[i]}")).digest())


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


def write_shards(
    source: Source,
    split: str,
    folder: str,
    shards: int | None = None,
    short_side: int | None = None,
    processes: int = 1,
) -> dict:
    """Write the shards of one split; other splits in the folder are kept.

    Shard k holds the files k, k + N, ... of a shuffled order. Files that do not decode completely are left out and
    listed in rejected.csv. Repeating the same call keeps finished shards and writes damaged ones again.

    Args:
        folder: local, where other processes that write to it wait, or in a bucket, where only one may write at a time.
        shards: number of shards; None uses `default_shards`.
        short_side: in pixels, see `recode.validated_bytes`; None keeps all bytes.
        processes: number of worker processes; 1 uses this process.

    Returns:
        {"written", "rejected", "kept": number of written files that were in finished shards, "shards", "bytes",
        "seconds"}.

    Raises:
        UserError: the folder was begun with other settings, files or classes, or no file can be decoded.
        OSError: the folder cannot be written; the shards that are finished stay.
    """
    began = time.monotonic()
    form.check_folder(folder)
    with contextlib.ExitStack() as stack:
        work = storage.join(folder, form.PARTS)
        if storage.is_remote(folder):  # shards are uploaded when they are finished
            work = stack.enter_context(tempfile.TemporaryDirectory())
        else:
            stack.enter_context(publish.locked(storage.join(work, ".lock")))
        settings = _settings(source, split, folder, shards, short_side)
        others = _other_splits(source, split, folder)
        job = Job(source, split, folder, work, settings["shards"], short_side)
        finished = {number: part for number in range(job.count) if (part := _finished_part(job, number)) is not None}
        kept = sum(len(part["records"]) for part in finished.values())
        todo = [number for number in range(job.count) if number not in finished]
        done = sum(len(part["records"]) + len(part["rejected"]) for part in finished.values())
        shown = {"unit": " files", "desc": split, "file": sys.stderr, "disable": None}  # None shows it on terminals
        write = _write_in_processes if processes > 1 else _write_serially
        with tqdm(total=len(source), initial=done, **shown) as bar:
            finished.update(write(job, todo, processes, bar.update))
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
        earlier = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        settings["shards"] = shards or default_shards(source)
        storage.write_text(path, json.dumps(settings))
        return settings
    settings["shards"] = shards or earlier["shards"]
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


def _finished_part(job: Job, number: int) -> dict | None:
    """Return the record of a shard if it is finished and readable, else None."""
    try:
        part = json.loads(storage.read_bytes(job.part(number)))
        shard = storage.join(job.folder, form.shard_name(job.split, number, job.count))
        form.check_shard(shard, len(part["records"]))
    except (FileNotFoundError, UserError):
        return None
    return part


def write_shard(job: Job, number: int, order: list[int], progress: Callable[[], object]) -> dict:
    """Write shard `number`; calls `progress` after each file.

    Returns:
        {"records": [[key, label], ...], "rejected": [[key, label, reason], ...], "bytes": total size of the media}.
    """
    name = form.shard_name(job.split, number, job.count)
    os.makedirs(job.work, exist_ok=True)
    local, target = storage.join(job.work, f"{name}.partial"), storage.join(job.folder, name)
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
        os.unlink(local)
    else:
        os.replace(local, target)
    return part


def _write_records(job: Job, files: list[int], path: str, progress: Callable[[], object]) -> dict:
    """Write files to a new shard; returns what `write_shard` does."""
    part = {"records": [], "rejected": [], "bytes": 0}
    writer = ArrayRecordWriter(path, WRITER_OPTIONS)
    for index in files:
        key, label = job.source.keys[index], job.source.labels[index]
        label = np.flatnonzero(label).tolist() if job.source.multi_label else [int(label)]
        try:
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


def _write_serially(job: Job, todo: list[int], processes: int, advance: Callable[[int], object]):
    order = job.order()
    for number in todo:
        yield number, write_shard(job, number, order, lambda: advance(1))


def _write_in_processes(job: Job, todo: list[int], processes: int, advance: Callable[[int], object]):
    start_quiet_tracker()
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    shown = 0
    processes = min(processes, len(todo)) or 1
    with concurrent.futures.ProcessPoolExecutor(processes, context, _start_worker, (job, counter, stop)) as pool:
        numbers = {pool.submit(_in_worker, number): number for number in todo}
        waiting = set(numbers)
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, timeout=0.2)
                advance(counter.value - shown)
                shown = counter.value
                for future in done:
                    yield numbers[future], future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ChildProcessError("a process died (out of memory?); the same command resumes") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_WORKER: dict = {}


def _start_worker(job: Job, counter, stop) -> None:
    end_with_parent()
    use_one_opencv_thread()
    _WORKER.update(job=job, order=job.order(), counter=counter, stop=stop)


def _in_worker(number: int) -> dict:
    def progress() -> None:
        with _WORKER["counter"].get_lock():
            _WORKER["counter"].value += 1
        if _WORKER["stop"].is_set():
            raise InterruptedError("stopped")

    return write_shard(_WORKER["job"], number, _WORKER["order"], progress)


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
