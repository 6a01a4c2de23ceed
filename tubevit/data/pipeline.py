"""From a source to batches, with Grain at MapDataset level: every batch follows from (seed, step) alone."""

from __future__ import annotations

import dataclasses
import zlib

import grain
import numpy as np
from absl import flags

from tubevit.data.augment import Augment
from tubevit.data.sources import Source
from tubevit.data.video import decode_clip, decode_image


@dataclasses.dataclass(frozen=True)
class Load:
    """Decodes and augments file `index` of a source.

    Attributes:
        source: of videos or of images.
        frames, fps, size: of the clips; see `tubevit.read_video`.
        augment: applied to the decoded clip.
    """

    source: Source
    frames: int
    fps: float | None
    size: int
    augment: Augment

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`pixels` uint8 (T, size, size, 3), or (size, size, 3) of an image, and `label`."""
        path = self.source.paths[index]
        if self.source.modality == "image":
            pixels = self.augment(decode_image(path)[None], self.size, rng)[0]
        else:
            clip = decode_clip(path, self.frames, self.fps, self.augment.position(rng))
            pixels = self.augment(clip, self.size, rng)
        return {"pixels": pixels, "label": self.source.labels[index]}


def dataset_seed(seed: int, name: str) -> int:
    """A seed of its own for each data set of a run."""
    return zlib.crc32(f"{seed}/{name}".encode())


def training_batches(load: Load, batch_size: int, seed: int) -> grain.MapDataset:
    """Endless shuffled batches: element i is the batch of step i.

    Returns:
        A data set of {"pixels": (B, ...) uint8, "label": (B,) or (B, classes)}.
    """
    files = grain.MapDataset.range(len(load.source.paths)).seed(seed)
    return files.shuffle().repeat().random_map(load).batch(batch_size)


def evaluation_batches(load: Load, batch_size: int, seed: int) -> grain.MapDataset:
    """Every file once, in order; the last batch is filled up with the last file, `mask` 0 there.

    Returns:
        A data set of {"pixels", "label", "mask": (B,) float32}.
    """
    count = len(load.source.paths)
    total = -(-count // batch_size) * batch_size

    def masked(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return load(min(index, count - 1), rng) | {"mask": np.float32(index < count)}

    return grain.MapDataset.range(total).seed(seed).random_map(masked).batch(batch_size)


def iterate(batches: grain.MapDataset, threads: int, workers: int = 0):
    """An iterator that loads ahead in threads, or in worker processes; the batches do not depend on their number."""
    # Grain's defaults count whole batches here: 500 of them would fill the memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1) * 2)
    dataset = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own when it starts processes
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)
