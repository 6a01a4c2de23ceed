"""Worker processes of loaders."""

import multiprocessing
import os
import signal
import time

from tubevit.data.workers import start_worker


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
