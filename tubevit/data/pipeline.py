"""From a source to batches, with Grain: every row of every batch follows from the seed and its number alone."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from tubevit.data.augment import Augment
from tubevit.data.decode import decode_frames, decode_image
from tubevit.data.sources import Source
from tubevit.data.views import ONE_VIEW, Views, evenly_spaced
from tubevit.data.warp import frame_size, sample, sample_grids, square_map, use_one_opencv_thread
from tubevit.errors import DecodeError
from tubevit.tubes import Triple, TubeSet
from tubevit.windows import TubeBatch, WindowPlan, window_shapes

ATTEMPTS = 20  # files tried in place of a broken one
ENDLESS = 2**48  # rows; Grain needs a number


@dataclasses.dataclass(frozen=True)
class SampleLoader:
    """Decodes and augments the files of a source.

    Attributes:
        source: of videos or of images.
        frames, fps, size: of the clips; see `tubevit.read_video`.
        augment: applied to the decoded clip in training; evaluation takes its order of frames only.
        tubes: whose windows take the place of clips or images, those of a model that serve them; None for all pixels.
    """

    source: Source
    frames: int
    fps: float | None
    size: int
    augment: Augment
    tubes: TubeSet | None = None

    def decode(self, index: int, clip_position: float) -> list:
        """The frames of file `index` as `warp.sample` takes them, one of an image.

        Raises:
            DecodeError: the file is broken; the message names it.
        """
        use_one_opencv_thread()
        try:
            media = self.source.media(index)
            if self.source.modality == "image":
                return [decode_image(media)]
            return decode_frames(media, self.frames, self.fps, clip_position)
        except DecodeError as error:
            raise DecodeError(str(error).replace("the file", self.source.keys[index], 1)) from error

    def augmented(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray | tuple[np.ndarray, ...], bool]:
        """A clip (T, size, size, 3) uint8 or an image (size, size, 3), or the windows of its tubes.

        Second, whether all pixels had to be computed for windows.

        Raises:
            DecodeError: the file is broken.
        """
        frames = self.decode(index, self.augment.clip_position(rng))
        transform = self.augment.sample_transform(frame_size(frames[0]), len(frames), self.size, rng)
        if self.tubes is None:
            return self._shaped(transform(frames, self.size)), False
        parts = transform.at_grids(frames, self.size, self._reading.grids)
        return self._reading.windows(parts), not transform.pointwise

    def view(self, index: int, temporal: int, views: Views, rng: np.random.Generator):
        """The spatial views of one temporal view: (S, T, size, size, 3) uint8, (S, size, size, 3) of an image, or the
        windows of each tube (S, N, f, ...)."""
        frames = self.decode(index, evenly_spaced(views.temporal)[temporal])
        frames = [frames[i] for i in self.augment.order(len(frames), rng)]
        maps = [square_map(*frame_size(frames[0]), self.size, place) for place in evenly_spaced(views.spatial)]
        if self.tubes is None:
            return np.stack([self._shaped(sample(frames, each, self.size)) for each in maps])
        parts = (sample_grids(frames, each, self.size, self._reading.grids) for each in maps)
        return tuple(map(np.stack, zip(*map(self._reading.windows, parts))))

    def empty_view(self, views: Views):
        """What `view` returns, black."""
        if self.tubes is None:
            return np.zeros((views.spatial, *self._shape, 3), np.uint8)
        shapes = window_shapes(self.tubes, self._clip_shape)
        return tuple(np.zeros((views.spatial, *shape), np.uint8) for shape in shapes)

    def batch(self, rows: dict) -> dict:
        """A batch of rows as a model takes it: windows as a `TubeBatch`."""
        if self.tubes is None:
            return rows
        return rows | {"pixels": TubeBatch(rows["pixels"], self.tubes, self._shape)}

    @property
    def _shape(self) -> tuple[int, ...]:
        """(T, size, size), of images (size, size)."""
        return (*(() if self.source.modality == "image" else (self.frames,)), self.size, self.size)

    @property
    def _clip_shape(self) -> Triple:
        return (1, *self._shape)[-3:]

    @functools.cached_property
    def _reading(self) -> WindowPlan:
        return WindowPlan(self.tubes, self._clip_shape)

    def reason(self, index: int, views: Views = ONE_VIEW) -> str:
        """Why file `index` cannot be decoded."""
        for clip_position in (0.0, 0.5, 1.0, *evenly_spaced(views.temporal)):
            try:
                self.decode(index, clip_position)
            except DecodeError as error:
                return str(error)
        return f"{self.source.keys[index]} is damaged in places"

    def _shaped(self, clip: np.ndarray) -> np.ndarray:
        return clip[0] if self.source.modality == "image" else clip


@dataclasses.dataclass(frozen=True)
class BatchShards:
    """Which rows of every batch this process loads: `shards`, rising, of `count` equal parts."""

    shards: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, batch_size: int) -> list[int]:
        """Their numbers in a batch whose size is a multiple of `count`."""
        size = batch_size // self.count
        return [shard * size + row for shard in self.shards for row in range(size)]


ONE_HOST = BatchShards()


def dataset_seed(seed: int, name: str) -> int:
    """A seed of its own for each data set of a run."""
    return zlib.crc32(f"{seed}/{name}".encode())


def training_rows(load: SampleLoader, seed: int) -> grain.MapDataset:
    """Endless shuffled rows: row i of the stream is row i % B of the batch of step i // B, for any batch size B.

    A broken file is replaced by another that is transform from the row's own random numbers.

    Returns:
        A data set of {"pixels": see `SampleLoader.augmented`, "label", "file": int32 index, "broken": index of the
        file that was replaced, or -1, "dense": 1 where all pixels were computed for windows}.
    """

    def row(index: int, rng: np.random.Generator) -> dict:
        broken = -1
        for attempt in range(ATTEMPTS):
            try:
                pixels, dense = load.augmented(index, rng)
                row = {"pixels": pixels, "label": load.source.labels[index], "file": np.int32(index)}
                return row | {"broken": np.int32(broken), "dense": np.int32(dense)}
            except DecodeError:
                if attempt == ATTEMPTS - 1:
                    raise
                broken = index if broken < 0 else broken
                index = int(rng.integers(len(load.source)))

    return grain.MapDataset.range(len(load.source)).seed(seed).shuffle().repeat().random_map(row)


def evaluation_rows(load: SampleLoader, views: Views, batch_size: int, seed: int) -> grain.MapDataset:
    """Every temporal view of every file once, in order, filled up to whole batches with rows of `mask` 0.

    Returns:
        A data set of {"pixels": the spatial views, see `SampleLoader.view`, "file": int32 index, "mask": float32,
        "broken": int32 index of the file if it cannot be decoded, else -1}.
    """
    count = len(load.source) * views.temporal

    def row(number: int, rng: np.random.Generator) -> dict:
        index, temporal = divmod(number, views.temporal)
        empty = {"pixels": load.empty_view(views), "mask": np.float32(0), "broken": np.int32(-1)}
        if number >= count:
            return empty | {"file": np.int32(0)}
        try:
            pixels = load.view(index, temporal, views, rng)
        except DecodeError:
            return empty | {"file": np.int32(index), "broken": np.int32(index)}
        return empty | {"pixels": pixels, "file": np.int32(index), "mask": np.float32(1)}

    total = -(-count // batch_size) * batch_size
    return grain.MapDataset.range(total).seed(seed).random_map(row)


def iterate(
    rows: grain.MapDataset,
    batch_size: int,
    *,
    first: int = 0,
    host: BatchShards = ONE_HOST,
    threads: int = 1,
    workers: int = 0,
) -> Iterator[dict]:
    """Batches of this host's rows, loaded ahead in threads, or in worker processes.

    The rows of the global batch do not depend on the number of hosts, threads or workers.

    Args:
        rows: of the global stream.
        batch_size: of the global batch; a multiple of `host.count`.
        first: batch to begin with.
        host: of how many.
        threads: that load rows, in each worker.
        workers: processes; 0 loads in this one.
    """
    own_rows = host.rows(batch_size)
    local = len(own_rows)
    total = (len(rows) if len(rows) < ENDLESS else ENDLESS) // batch_size * local

    def own(number: int):
        batch, row = divmod(number, local)
        return rows[batch * batch_size + own_rows[row]]

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.range(first * local, total).map(own).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own when it starts processes
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2 * threads)
        dataset = dataset.mp_prefetch(options)
    # After the processes: a batch made inside one would depend on their number.
    dataset = dataset.batch(local)
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1))
