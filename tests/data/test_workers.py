"""Worker processes of loaders."""

import multiprocessing
import os
import signal
import time

import pytest

from tubevit.data.workers import start_worker, with_clear_error
from tubevit.errors import RunError


def work(started):
    start_worker(0, 1)
    started.set()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        time.sleep(0.05)


def test_sigterm_to_a_worker_does_not_end_it_at_once():
    """A service may send it to all processes of a job; the run goes on to its next save."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    worker = context.Process(target=work, args=(started,))
    worker.start()
    assert started.wait(60)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("code, remedy", [(-7, "/dev/shm is full; enlarge it"), (-9, "was the memory full\\?")])
def test_a_process_that_was_ended_by_the_system(code, remedy):
    def batches():
        yield 1
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}.")

    found = with_clear_error(batches())
    assert next(found) == 1
    with pytest.raises(RunError, match=remedy):
        next(found)
