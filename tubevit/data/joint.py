"""Joint training data: every step holds one sub-batch of each data set, of images or of videos."""

from __future__ import annotations

from collections.abc import Mapping

import grain

from tubevit.data.pipeline import Load, dataset_seed, training_batches


def joint_batches(loads: Mapping[str, tuple[Load, int]], seed: int, steps: range) -> grain.MapDataset:
    """Zips data sets: an element is the joint batch of one step.

    Args:
        loads: for each data set its loading and its batch size.
        seed: of the run.
        steps: which steps, with a stride of 1; the batch of a step does not depend on the others.

    Returns:
        A data set of {name: {"pixels", "label"}}; see `training_batches`.
    """
    # Each is endless, but of another length to Python: cut before zipping.
    parts = [
        training_batches(load, size, dataset_seed(seed, name))[steps.start : steps.stop]
        for name, (load, size) in loads.items()
    ]
    return grain.experimental.ZipMapDataset(parts).map(lambda batches: dict(zip(loads, batches)))
