"""Worker processes that end with their parent, and loaders that end with one clear line if a worker was killed.

This module imports nothing that takes long, because workers call `end_with_parent` before anything else.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from tubevit.errors import RunError

_CHECKED_EVERY = 0.5  # seconds
_GRACE = 30.0  # seconds from SIGTERM to the end of a worker

Batch = TypeVar("Batch")


def end_with_parent(parent: int | None = None) -> None:
    """End this process within a second of its parent's end, even if the parent is killed.

    Args:
        parent: the process id of the parent; None takes that of `multiprocessing`.
    """
    process = multiprocessing.parent_process()
    if parent is None:
        parent = os.getppid() if process is None or process.pid is None else process.pid
    wait = time.sleep if process is None else process.join  # which returns at once where the parent has ended

    def follow() -> None:
        while os.getppid() == parent:  # orphans get another parent
            wait(_CHECKED_EVERY)
        os._exit(1)

    threading.Thread(target=follow, name="end_with_parent", daemon=True).start()


def start_worker(index: int, count: int) -> None:
    """Prepare worker `index` of `count`, as Grain calls it in each new worker.

    SIGTERM ends it later only: where all processes of a job get it at once, the run still saves what it has.
    """
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: _end_after(_GRACE))


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def start_quiet_tracker() -> None:
    """Start Python's process that frees the shared memory of killed workers, without the warning that it did so."""
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"  # it reads the variable when it starts
    os.environ["PYTHONWARNINGS"] = quiet if before is None else f"{before},{quiet}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def with_clear_error(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches of Grain's workers.

    Raises:
        RunError: a worker was killed, for example because the memory was full.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        remedy = "was the memory full? Lower loader.workers or batch sizes"
        if f"exit code -{signal.SIGBUS}" in str(error):
            remedy = "/dev/shm is full; enlarge it (docker run --shm-size), or set loader.workers=0"
        raise RunError(f"a process that loads data ended unexpectedly: {remedy}") from error
