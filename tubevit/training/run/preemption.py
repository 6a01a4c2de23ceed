"""SIGTERM, by which Cloud TPU, Slurm and Kubernetes say that a process is to end: all processes stop at one step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The process was asked to end; the state is saved, the same command goes on from there."""


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Gives `stop(step)`, to be called once each step in every process: whether the run is to end after this step.

    With `jax.distributed` its service catches the signal, of any process, and chooses the step.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    caught: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    except ValueError:  # not the main thread: notices go elsewhere
        yield lambda step: False
        return
    try:
        yield lambda step: bool(caught)
    finally:
        signal.signal(signal.SIGTERM, before)
