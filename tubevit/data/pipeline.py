"""From a source to batches, with Grain: each row of each batch follows from the seed and its number alone."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from tubevit.data.augment import Augment
from tubevit.data.container import naming_file
from tubevit.data.decode import decode_media
from tubevit.data.sources import Source
from tubevit.data.views import ONE_VIEW, Views, evenly_spaced
from tubevit.data.warp import Frame, frame_size, sample_grids, square_map, use_one_opencv_thread
from tubevit.data.workers import start_quiet_tracker, start_worker, with_clear_error
from tubevit.errors import DecodeError
from tubevit.tubes import Triple, TubeSet
from tubevit.windows import PixelGrid, TubeBatch, WindowPlan, sample_arrays, whole_grid

ATTEMPTS = 20  # files tried in place of a broken one
ENDLESS = 2**48  # rows; Grain needs a number
Pixels = np.ndarray | tuple[np.ndarray, ...]  # dense, or the windows of each tube


@dataclasses.dataclass(frozen=True)
class SampleLoader:
    """Decodes and augments the files of a source.

    Attributes:
        source: of videos or of images.
        frames, fps, size: of the clips; see `tubevit.read_video`.
        augment: applied in training; evaluation applies its frame order only.
        tubes: tubes of a model that take the samples: their windows are loaded. None loads all pixels.
    """

    source: Source
    frames: int
    fps: float | None
    size: int
    augment: Augment
    tubes: TubeSet | None = None

    def decode(self, index: int, clip_position: float, *, spread: bool = False, speed: float = 1.0) -> list[Frame]:
        """Decode a clip of file `index`, or an image, for `warp.sample`.

        Raises DecodeError, or RunError if the system cannot read the file; both name it.

        `speed` multiplies `fps`. With `spread`, the frames are spread over the whole video, whatever `fps` is.
        """
        use_one_opencv_thread()
        try:
            fps = None if spread or self.fps is None else self.fps * speed
            with naming_file(self.source.keys[index]):
                decoded = decode_media(self.source.media(index), self.frames, fps, clip_position)
            self.source.check_kind(index, decoded.kind)
            return decoded.frames
        except DecodeError as error:
            raise DecodeError(str(error).replace("the file", self.source.keys[index], 1)) from error

    def augmented(self, index: int, rng: np.random.Generator) -> tuple[Pixels, bool]:
        """Load a training sample.

        Returns:
            A clip (T, size, size, 3) uint8, an image (size, size, 3), or the windows of each tube (N, f, ...); and
            whether windows were taken from a densely computed clip.

        Raises:
            DecodeError: the file is broken.
        """
        frames = self.decode(index, self.augment.clip_position(rng), speed=self.augment.clip_speed(rng))
        transform = self.augment.sample_transform(frame_size(frames[0]), len(frames), self.size, rng)
        pixels = self._pixels(transform(frames, self.size, self._grids))
        return pixels, self.tubes is not None and not transform.pointwise

    def view(self, index: int, temporal: int, views: Views, rng: np.random.Generator) -> Pixels:
        """Load the S spatial views of a temporal view: (S, T, size, size, 3) uint8, (S, size, size, 3) for an image,
        or the windows of each tube (S, N, f, ...)."""
        frames = self.decode(index, views.clip_positions[temporal], spread=views.placement == "spread")
        frames = [frames[i] for i in self.augment.order(len(frames), rng)]
        shape, share = frame_size(frames[0]), views.crop_share(self.size)
        maps = (square_map(*shape, self.size, place, share) for place in evenly_spaced(views.spatial))
        loaded = [self._pixels(sample_grids(frames, each, self.size, self._grids)) for each in maps]
        return np.stack(loaded) if self.tubes is None else tuple(map(np.stack, zip(*loaded)))

    def empty_view(self, views: Views) -> Pixels:
        """Return black pixels of the shapes of `view`."""
        arrays = sample_arrays(self.shape, self.tubes)
        empty = tuple(np.zeros((views.spatial, *shape), dtype) for shape, dtype in arrays)
        return empty[0] if self.tubes is None else empty

    def batch(self, rows: dict) -> dict:
        """Return a batch of rows as a model takes it: windows as a `TubeBatch`."""
        return rows if self.tubes is None else rows | {"pixels": TubeBatch.of(rows["pixels"], self.tubes, self.shape)}

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, size, size) of clips, (size, size) of images."""
        return (*(() if self.source.modality == "image" else (self.frames,)), self.size, self.size)

    @functools.cached_property
    def _plan(self) -> WindowPlan:
        return WindowPlan(self.tubes, self._clip_shape)  # pyright: ignore[reportArgumentType]

    @property
    def _clip_shape(self) -> Triple:
        return (1, *self.shape)[-3:]

    @property
    def _grids(self) -> Sequence[PixelGrid]:
        return [whole_grid(self._clip_shape)] if self.tubes is None else self._plan.grids

    def _pixels(self, parts: list[np.ndarray]) -> Pixels:
        """Return a sample from its pixels at `_grids`."""
        return parts[0].reshape(*self.shape, 3) if self.tubes is None else self._plan.arrays(parts)

    def reason(self, index: int, views: Views = ONE_VIEW) -> str:
        """Return why file `index` cannot be decoded."""
        for clip_position in (0.0, 0.5, 1.0, *views.clip_positions):
            try:
                self.decode(index, clip_position, spread=views.placement == "spread")
            except DecodeError as error:
                return str(error)
        return f"{self.source.keys[index]} is damaged in places"


@dataclasses.dataclass(frozen=True)
class BatchShards:
    """The rows of each batch that this process loads: `shards`, in ascending order, of `count` equal parts."""

    shards: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, batch_size: int) -> list[int]:
        """Return their numbers in a batch whose size is a multiple of `count`."""
        size = batch_size // self.count
        return [shard * size + row for shard in self.shards for row in range(size)]


def dataset_seed(seed: int, name: str) -> int:
    """Derive the seed of a data set from the seed of a run."""
    return zlib.crc32(f"{seed}/{name}".encode())


def training_rows(loader: SampleLoader, seed: int) -> grain.MapDataset:
    """Return endless shuffled rows: row i belongs to step i // B and is row i % B of its batch, for any batch size B.

    A broken file is replaced by another that is drawn from the row's own random numbers.

    Returns:
        A data set of {"pixels": see `SampleLoader.augmented`, "label", "file": int32 index, "broken": index of the
        file that was replaced, or -1, "dense": 1 if windows were taken from a densely computed clip}.
    """

    def row(index: int, rng: np.random.Generator) -> dict:
        broken, attempts = -1, 0
        while True:
            try:
                pixels, dense = loader.augmented(index, rng)
                row = {"pixels": pixels, "label": loader.source.labels[index], "file": np.int32(index)}
                return row | {"broken": np.int32(broken), "dense": np.int32(dense)}
            except DecodeError as error:
                attempts += 1
                if attempts == ATTEMPTS:
                    raise DecodeError(f"{ATTEMPTS} files in a row cannot be decoded, the last: {error}") from error
                broken = index if broken < 0 else broken
                index = int(rng.integers(len(loader.source)))

    return grain.MapDataset.range(len(loader.source)).seed(seed).shuffle().repeat().random_map(row)


def evaluation_rows(loader: SampleLoader, views: Views, batch_size: int, seed: int) -> grain.MapDataset:
    """Return each temporal view of each file once, in order, padded to whole batches with rows of `mask` 0.

    Returns:
        A data set of {"pixels": the spatial views, see `SampleLoader.view`, "file": int32 index, "mask": float32,
        "broken": int32 index of the file if it cannot be decoded, else -1}.

    Raises:
        UserError: `views.short_side` is smaller than the input.
    """
    views.crop_share(loader.size)
    count = len(loader.source) * views.temporal

    def row(number: int, rng: np.random.Generator) -> dict:
        index, temporal = divmod(number, views.temporal)
        empty = {"pixels": loader.empty_view(views), "mask": np.float32(0), "broken": np.int32(-1)}
        if number >= count:
            return empty | {"file": np.int32(0)}
        try:
            pixels = loader.view(index, temporal, views, rng)
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
    shards: BatchShards = BatchShards(),
    threads: int = 1,
    workers: int = 0,
) -> Iterator[dict]:
    """Return an iterator over batches of this process's rows, prefetched by threads or worker processes.

    The rows of the global batch do not depend on the number of hosts, threads or workers.

    Args:
        rows: rows of the global stream.
        batch_size: global batch size; a multiple of `shards.count`.
        first: number of the first batch.
        shards: the rows of this process.
        threads: threads in each worker.
        workers: worker processes; 0 loads in this process. They end with this process, however it ends.

    Raises RunError, on iteration, if a worker was killed.
    """
    own_rows = shards.rows(batch_size)
    local = len(own_rows)
    total = min(len(rows), ENDLESS) // batch_size * local

    def own(number: int):
        batch, row = divmod(number, local)
        return rows[batch * batch_size + own_rows[row]]

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.range(first * local, total).map(own).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags when it starts processes
            flags.FLAGS.mark_as_parsed()
        start_quiet_tracker()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2 * threads)
        dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
    # After the processes: a batch made inside one would depend on their number.
    dataset = dataset.batch(local)
    batches = iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1))
    return with_clear_error(batches) if workers else batches
