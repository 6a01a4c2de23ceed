"""Preemption by SIGTERM, as Cloud TPU, Slurm and Kubernetes announce it: all processes stop at the same step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The process was asked to end. The state is saved; the same command resumes the run."""


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yield `stop(step)`: whether the run must end after this step. Every process calls it once per step.

    In a job of several processes, JAX's coordination service catches the signal of any of them and chooses the step.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    caught: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    except ValueError:  # not the main thread, which alone receives signals
        yield lambda step: False
        return
    try:
        yield lambda step: bool(caught)
    finally:
        signal.signal(signal.SIGTERM, before)
