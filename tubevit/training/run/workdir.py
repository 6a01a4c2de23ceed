"""The folder of a run, on disk or in a bucket: config.json, metrics.jsonl, TensorBoard events."""

import contextlib
import json
import math
import os
import pathlib
import tempfile
import time

from ml_collections import ConfigDict

from tubevit import storage
from tubevit.checkpoint.checkpoint import RUN_FOLDER, steps
from tubevit.checkpoint.renamed import with_current_keys
from tubevit.config import changed_keys
from tubevit.errors import RunError, UserError, cannot_write
from tubevit.sharding.hosts import is_main

# Seconds between two uploads of files that grow: a bucket cannot append.
_UPLOAD_EVERY = 30.0


def prepare_workdir(workdir: str | os.PathLike, config: ConfigDict, heads: dict, allow_change=()) -> None:
    """Write config.json; refuse a folder with checkpoints of a run that had another configuration.

    Args:
        workdir: the folder, on disk or `gs://`; this run holds its lease.
        config: the resolved configuration.
        heads: {name: Head as a dict}.
        allow_change: keys that may differ from the earlier run, in addition to those that cannot change the result.

    Raises:
        UserError: the folder cannot be written, or holds a run of another configuration.
        RunError: the disk is full.
        StorageError: the bucket is out of reach or refuses.
    """
    workdir = storage.as_path(workdir)
    path = storage.join(workdir, "config.json")
    content = config.to_dict() | {"heads": heads}
    try:
        if storage.exists(path) and steps(workdir / RUN_FOLDER):
            _compare(workdir, with_current_keys(json.loads(storage.read_bytes(path))), content, allow_change)
        storage.write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise cannot_write(f"workdir {workdir}", error) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}; name a new workdir") from error


def _compare(workdir: pathlib.PurePath, old: dict, new: dict, allow_change) -> None:
    differing = {
        key: f"{key}: {before!r} there, {now!r} now"
        for key, (before, now) in changed_keys(old, new).items()
        if not key.startswith("train.steps")
        and not (key.startswith("data.") and key.endswith(".source"))  # where the data lies
        and key not in allow_change
    }
    if differing:
        lines = list(differing.values())[:5]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{workdir} holds a run of another configuration ({'; '.join(lines)}{more}); "
            f"name a new workdir, or pass --allow-change {next(iter(differing))}"
        )


class MetricsWriter:
    """Write metrics.jsonl, one JSON object per line, and TensorBoard events.

    For a bucket the files are written to a temporary folder and uploaded at most every half minute, by `sync` and
    at the end.

    Args:
        workdir: the folder of the run, on disk or `gs://`.
        step: the step of the restored checkpoint; lines of later steps are removed.

    Raises:
        StorageError: the bucket is out of reach or refuses; so do `write`, `sync` and `close`.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        self._workdir, self._uploaded = workdir, time.monotonic()
        self._temporary = tempfile.TemporaryDirectory(prefix="tubevit-") if storage.is_remote(workdir) else None
        self._folder = pathlib.Path(self._temporary.name if self._temporary else workdir)
        self._path = self._folder / "metrics.jsonl"
        before = storage.join(workdir, "metrics.jsonl")
        kept = []
        for line in storage.read_bytes(before).decode().splitlines() if storage.exists(before) else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # the process died while it wrote this line
        storage.write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._tensorboard = _Events(self._folder, step + 1)

    def write(self, step: int, metrics: dict) -> None:
        """Append one line. Values that are None or not finite become null, and TensorBoard does not get them."""
        metrics = {
            name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()
        }
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._tensorboard.write(step, {name: value for name, value in metrics.items() if value is not None})
        except OSError as error:
            raise RunError(f"cannot write metrics into {self._folder}: {error.strerror or error}") from error
        if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
            self.sync()

    def sync(self) -> None:
        """Upload the files to a bucket. Call it before a checkpoint, so that the log is not behind the resumed step."""
        if self._temporary:
            for name in storage.names(self._folder):
                storage.upload(self._folder / name, storage.join(self._workdir, name))
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flush the events and upload the files to a bucket."""
        self._tensorboard.close()
        if self._temporary:
            try:
                self.sync()
            finally:
                self._temporary.cleanup()


class _NoMetrics:
    """No-op writer for processes other than 0."""

    def _nothing(self, *_) -> None:
        """Do nothing."""

    write = sync = close = _nothing


def open_metrics(workdir: str | os.PathLike, step: int) -> MetricsWriter | _NoMetrics:
    """Open the metrics of a run for writing: process 0 writes them, the other processes write nothing."""
    return MetricsWriter(workdir, step) if is_main() else _NoMetrics()


class _Events:
    """TensorBoard's file, written without tensorboardX's thread, which hangs when the disk is full."""

    def __init__(self, folder: pathlib.Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides what a killed run wrote after it
        self._writer.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # all that was written is flushed; the run's own error counts
            self._writer.close()
