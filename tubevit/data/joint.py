"""Joint training data: every step holds one sub-batch of each data set, of images or of videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tubevit.data.pipeline import ONE_HOST, BatchShards, SampleLoader, dataset_seed, iterate, training_rows


def joint_batches(
    loads: Mapping[str, tuple[SampleLoader, int]],
    seed: int,
    *,
    first: int = 0,
    host: BatchShards = ONE_HOST,
    threads: int = 1,
    workers: int = 0,
) -> Iterator[dict]:
    """Endless joint batches, one for each step.

    Args:
        loads: for each data set its loading and its global batch size.
        seed: of the run.
        first: step to begin with; its batch does not depend on the earlier ones.
        host, threads, workers: see `iterate`; threads and workers are those of each data set.

    Returns:
        An iterator of {name: {"pixels", "label", "file", "broken", "dense"}}; see `training_rows`.
    """
    parts = {
        name: iterate(
            training_rows(load, dataset_seed(seed, name)),
            size,
            first=first,
            host=host,
            threads=threads,
            workers=workers,
        )
        for name, (load, size) in loads.items()
    }
    while True:
        yield {name: loads[name][0].batch(next(part)) for name, part in parts.items()}
