"""Profiles of some steps, for XProf and TensorBoard."""

import logging
import os
import re

import jax

from tubevit import storage
from tubevit.errors import UserError

logger = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[int, int]:
    """Parse `steps=10:13` into (10, 13), the first step and the one after the last; raises UserError for other text."""
    match = re.fullmatch(r"(?:steps=)?(\d+):(\d+)", text)
    first, end = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first < end:
        raise UserError(f"--profile must be steps=FIRST:END with 1 <= FIRST < END, such as steps=10:13; found {text!r}")
    return first, end


class Profile:
    """Write a trace of the steps first to end - 1 to WORKDIR/profile.

    Args:
        workdir: the folder of the run.
        steps: (first, end), see `parse_steps`; None disables tracing.
    """

    def __init__(self, workdir: os.PathLike, steps: tuple[int, int] | None):
        self._folder = storage.join(workdir, "profile")
        self._first, self._end = steps or (0, 0)
        self._on = False

    def before(self, step: int) -> None:
        """Start the trace if `step` is its first. Call it before each step."""
        if self._first <= step < self._end and not self._on:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, result) -> None:
        """Stop the trace after its last step, once `result` is computed. Call it after each step."""
        if self._on and step >= self._end - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Stop the trace, even if its last step was not reached."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            logger.info(f"trace written to {self._folder}: xprof --logdir {self._folder}, or TensorBoard")
