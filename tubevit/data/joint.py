"""Joint training data: each step takes one sub-batch from each data set, of images or of videos."""

from collections.abc import Generator, Mapping

from tubevit.data.pipeline import SampleLoader, dataset_seed, iterate, training_rows


def joint_batches(loaders: Mapping[str, tuple[SampleLoader, int]], seed: int, **settings) -> Generator[dict]:
    """Yield endless joint batches, one for each step.

    Args:
        loaders: for each data set its loader and global batch size.
        seed: seed of the run.
        **settings: `first`, `shards`, `threads` and `workers` of `iterate`, for each data set.

    Yields:
        {name: {"pixels", "label", "file", "broken", "dense"}}; see `training_rows`.
    """
    parts = {
        name: iterate(training_rows(loader, dataset_seed(seed, name)), size, **settings)
        for name, (loader, size) in loaders.items()
    }
    while True:
        yield {name: loaders[name][0].batch(next(part)) for name, part in parts.items()}
