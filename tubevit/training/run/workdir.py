"""The folder of a run, on disk or in a bucket: config.json, metrics.jsonl, TensorBoard events; and other services."""

import contextlib
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from tubevit import storage
from tubevit.checkpoint.checkpoint import RUN_FOLDER, steps
from tubevit.checkpoint.renamed import with_current_keys
from tubevit.config import changed_keys
from tubevit.errors import RunError, UserError, cannot_write
from tubevit.sharding.hosts import is_main
from tubevit.training.run.trackers import Tracker, make_tracker, start_trackers

# Seconds between two uploads of files that grow: a bucket cannot append.
_UPLOAD_EVERY = 30.0
TENSORBOARD = "tensorboard"


def services(to: Sequence[str]) -> list[str]:
    """List the services of `log.to` that are not files of the workdir."""
    return [name for name in dict.fromkeys(to) if name != TENSORBOARD]


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
        shown = list(differing)[:5]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{workdir} holds a run of another configuration ({'; '.join(differing[key] for key in shown)}{more}); "
            f"name a new workdir, or pass {' '.join(f'--allow-change {key}' for key in shown)}"
        )


class MetricsWriter:
    """Write metrics.jsonl, one JSON object per line, and pass the metrics on to TensorBoard and other services.

    For a bucket the files are written to a temporary folder and uploaded at most every half minute, by `sync` and
    at the end.

    Args:
        workdir: the folder of the run, on disk or `gs://`.
        step: the step of the restored checkpoint; lines of later steps are removed.
        to: where the metrics go besides, see `log.to`.
        make_tracker: makes the tracker of a service other than TensorBoard.

    Raises:
        UserError: the package of a service is not installed.
        StorageError: the bucket is out of reach or refuses; so do `write`, `sync` and `close`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int,
        to: Sequence[str] = (TENSORBOARD,),
        make_tracker: Callable[[str], Tracker] = make_tracker,
    ):
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
        self._tensorboard = _Events(self._folder, step + 1) if TENSORBOARD in to else None
        self._trackers = start_trackers(workdir, step, {name: make_tracker(name) for name in services(to)})

    def write(self, step: int, metrics: dict) -> None:
        """Append one line. Values that are None or not finite become null, and the services do not get them."""
        metrics = {
            name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()
        }
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            finite = {name: value for name, value in metrics.items() if value is not None}
            if self._tensorboard:
                self._tensorboard.write(step, finite)
        except OSError as error:
            raise RunError(f"cannot write metrics into {self._folder}: {error.strerror or error}") from error
        for tracker in self._trackers:
            tracker.log(step, finite)
        if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
            self.sync()

    def sync(self) -> None:
        """Upload the files to a bucket. Call it before a checkpoint, so that the log is not behind the resumed step."""
        if self._temporary:
            for name in storage.names(self._folder):
                storage.upload(self._folder / name, storage.join(self._workdir, name))
            self._uploaded = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """Flush the events, upload the files to a bucket and end the run of each service, as failed or not."""
        if self._tensorboard:
            self._tensorboard.close()
        try:
            if self._temporary:
                self.sync()
        finally:
            if self._temporary:
                self._temporary.cleanup()
            for tracker in self._trackers:
                tracker.close(failed)


class _NoMetrics:
    """No-op writer for processes other than 0."""

    def _nothing(self, *_) -> None:
        """Do nothing."""

    write = sync = _nothing


@contextlib.contextmanager
def open_metrics(
    workdir: str | os.PathLike, step: int, to: Sequence[str], make_tracker: Callable[[str], Tracker]
) -> Iterator[MetricsWriter | _NoMetrics]:
    """Yield the writer of a run's metrics: process 0 writes them, the other processes write nothing."""
    if not is_main():
        yield _NoMetrics()
        return
    writer, failed = MetricsWriter(workdir, step, to, make_tracker), True
    try:
        yield writer
        failed = False
    finally:
        writer.close(failed)


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
