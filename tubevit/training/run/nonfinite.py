"""Losses and gradients that are not finite: the run stops before it saves them and reports the files of the batch."""

import io
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence

import clu.metrics
import jax
import numpy as np
from jax.experimental import multihost_utils

from tubevit import storage
from tubevit.errors import RunError
from tubevit.sharding.hosts import is_main

logger = logging.getLogger(__name__)


class NonFiniteGuard:
    """Check that the metrics of each step are finite; all processes of a run see the same metrics.

    Args:
        workdir: receives nonfinite_step_<n>.npz, process 0's part of the batch, before mixup.
        names: {data set: the paths of its files}.
        batch_of: loads the joint batch of a step again, including `file`.
        skip: report such steps, whose updates were left out (`train.skip_nonfinite`), instead of raising.
    """

    def __init__(
        self, workdir: os.PathLike, names: Mapping[str, Sequence], batch_of: Callable[[int], dict], skip: bool
    ):
        self._workdir, self._names, self._batch_of, self._skip = workdir, names, batch_of, skip

    def take(self, pending: list[tuple[int, clu.metrics.Collection]]) -> list[clu.metrics.Collection]:
        """Return the finite metrics; raises RunError, with step and files, for others unless they are skipped."""
        finite = []
        for step, metrics in pending:
            values = {name: float(value) for name, value in metrics.compute().items()}
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if not bad:
                finite.append(metrics)
            elif self._skip:
                logger.warning(f"step {step}: {bad[0]} is not finite; skipped the step (files: {self._files(step)})")
            else:
                raise RunError(self._report(step, bad[0]))
        return finite

    def _report(self, step: int, name: str) -> str:
        path = storage.join(self._workdir, f"nonfinite_step_{step}.npz")
        files, batch = self._files(step), self._batch_of(step)
        if is_main():
            leaves = jax.tree_util.tree_flatten_with_path(batch)[0]  # windows of tubes are pixels/windows/<i>
            arrays = {jax.tree_util.keystr(key, simple=True, separator="/"): value for key, value in leaves}
            file = io.BytesIO()
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
            storage.write_bytes(path, file.getvalue())
        return (
            f"{name} of step {step} is not finite; nothing of it is saved. The batch is in {path}, its files are "
            f"{files}. A smaller optimizer.learning_rate, optimizer.grad_clip_norm or "
            "train.skip_nonfinite=true may help"
        )

    def _files(self, step: int) -> str:
        """List the files of a step's batch in all processes."""
        lines = []
        for name, part in sorted(self._batch_of(step).items()):
            index = np.asarray(part["file"], np.int32)
            if jax.process_count() > 1:
                index = np.asarray(multihost_utils.process_allgather(index)).reshape(-1)
            lines.append(f"{name}: " + ", ".join(str(self._names[name][i]) for i in index))
        return "; ".join(lines)
