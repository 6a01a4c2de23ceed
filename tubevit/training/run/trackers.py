"""Services that get the metrics of a run beside metrics.jsonl.

None of them can stop or slow a run. At its end, a run waits for each of them for 30 s at most.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import queue
import threading
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from tubevit import storage
from tubevit.config import flatten
from tubevit.private import redacted, shareable

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds that the end of a run waits for each service
_RUN = "tracked_run.json"


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a service gets to know about a run.

    Attributes:
        id: the same for the whole life of a run, however often it resumes.
        name: the name of the workdir.
        config: {key: value} of config.json by full name, as others may see it.
        folder: the workdir; None for a bucket.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    folder: pathlib.Path | None


class Tracker(Protocol):
    """A service for metrics. All calls come from one thread, and any of them may raise any error."""

    def start(self, run: TrackedRun) -> int:
        """Begin or continue the run there; return the last step of which the service has metrics, or -1."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add finite metrics of a step; steps never decrease."""
        ...

    def finish(self, failed: bool) -> None:
        """End the run there."""
        ...


def make_tracker(name: str) -> Tracker:
    """Make the tracker of a service, `wandb` or `mlflow`; raises UserError if its package is not installed."""
    from tubevit.training.run.mlflow import MlflowTracker  # here, as they import this module
    from tubevit.training.run.wandb import WandbTracker

    return {"mlflow": MlflowTracker, "wandb": WandbTracker}[name]()


def start_trackers(workdir: str | os.PathLike, step: int, trackers: Mapping[str, Tracker]) -> list["TrackerThread"]:
    """Start the services of a run, whose workdir holds config.json.

    Args:
        workdir: the folder of the run, on disk or `gs://`.
        step: the step of the restored checkpoint; a run from step 0 is a new one for the services.
        trackers: the services by name.

    Raises:
        StorageError: the bucket is out of reach or refuses.
    """
    if not trackers:
        return []
    config = json.loads(storage.read_bytes(storage.join(workdir, "config.json")))
    folder = None if storage.is_remote(workdir) else pathlib.Path(workdir)
    shown = {key: _shown(value) for key, value in flatten(config).items()}
    run = TrackedRun(_run_id(workdir, step), os.path.basename(os.path.abspath(workdir)), shown, folder)
    return [TrackerThread(name, tracker, run) for name, tracker in trackers.items()]


def _run_id(workdir: str | os.PathLike, step: int) -> str:
    """Return the id of the run that is resumed from a step, or a new one; the workdir holds it."""
    path = storage.join(workdir, _RUN)
    if step and storage.exists(path):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the process died while it wrote this file
            return json.loads(storage.read_bytes(path))["id"]
    content = {"id": uuid.uuid4().hex}
    storage.write_text(path, json.dumps(content) + "\n")
    return content["id"]


def _shown(value: Any) -> Any:
    """Return a value as others may see it: paths are shortened, and secrets are replaced by what they are."""
    value = shareable(value)
    text = redacted(str(value))
    return value if text == str(value) else text


class TrackerThread:
    """Call a tracker in a thread of its own. Its first error is logged as a warning, and it gets nothing more.

    Metrics of steps that the service has already are left out: a resumed run repeats the steps after its checkpoint.

    Args:
        name: the name of the service.
        tracker: the service.
        run: what it gets to know.
        patience: seconds that `close` waits.
    """

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, patience: float = PATIENCE):
        self._name, self._tracker, self._run, self._patience = name, tracker, run, patience
        self._rows: queue.SimpleQueue[tuple[int, dict[str, float]] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand over metrics, without waiting for the service."""
        if self._thread.is_alive():
            self._rows.put((step, dict(metrics)))

    def close(self, failed: bool) -> None:
        """Wait, but not forever, until the service has all metrics."""
        self._rows.put(failed)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            logger.warning(f"{self._name} has not taken all metrics within {self._patience} s; metrics.jsonl has them")

    def _work(self) -> None:
        try:
            last = self._tracker.start(self._run)
            while not isinstance(row := self._rows.get(), bool):
                step, metrics = row
                if step > last:
                    self._tracker.log(step, metrics)
            self._tracker.finish(failed=row)
        except BaseException as error:  # libraries also call sys.exit
            reason = f"{type(error).__name__}: {_shown(str(error))}"
            logger.warning(f"{self._name} gets no more metrics of this run; metrics.jsonl has them: {reason}")
