"""Random augmentation of clips: crops in space and time, flips, colours; sampled once for all frames of a clip."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tubevit.data import colour, randaugment
from tubevit.data.warp import Frame, crop_map, flip_map, sample_grids, square_map
from tubevit.errors import UserError, unknown
from tubevit.ranges import Range, check_fields
from tubevit.windows import PixelGrid, whole_grid

FRAME_ORDERS = ("forward", "reversed", "shuffled")


@dataclasses.dataclass(frozen=True, eq=False)
class SampledTransform:
    """The transform that was sampled for one clip.

    Attributes:
        matrix: (3, 3) map from the output to the frame: crop, resize, flip and the geometric operations in one.
        changes: colour operations in order: (function, value), see `tubevit.data.colour`.
        noise: noise that replaces a rectangle, or None.
        order: indices of the frames in the order of the output.
    """

    matrix: np.ndarray
    changes: tuple[tuple[Callable, float], ...]
    noise: colour.Noise | None
    order: np.ndarray

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel depends only on the frame at its own position."""
        return all(change in colour.POINTWISE for change, _ in self.changes)

    def __call__(self, frames: Sequence[Frame], size: int, grids: Sequence[PixelGrid]) -> list[np.ndarray]:
        """Apply the transform to T frames; arguments and result are those of `warp.sample_grids`.

        The whole clip is computed only if a colour operation needs it (not `pointwise`).
        """
        frames = [frames[i] for i in self.order]
        computed = grids if self.pointwise else [whole_grid((len(frames), size, size))]
        parts = sample_grids(frames, self.matrix, size, computed)
        for part, grid in zip(parts, computed):
            for change, value in self.changes:
                change(part, value)
            if self.noise:
                self.noise.paste(part, grid)
        return parts if self.pointwise else [parts[0][grid.index] for grid in grids]


def _ranged(default, **limits):
    return dataclasses.field(default=default, metadata={"range": Range(type(default), **limits)})


@dataclasses.dataclass(frozen=True)
class Augment:
    """How decoded clips are augmented.

    Crop, resize, flip and the geometric operations of RandAugment form one map, which is sampled once. The colour
    operations of RandAugment, colour jitter and random erasing follow. All frames of a clip share one transform.

    Attributes:
        random_crop: whether crops are random in time and space; otherwise they are centred, as in evaluation.
        scale: the side of the square crop is the short side of the frame over a factor drawn from 1 to `scale`.
        area: smallest share of the frame that a rectangular crop covers (random resized crop); excludes `scale`.
        ratio: the aspect ratio of such a rectangle is drawn from 1 / ratio to ratio.
        speed: the frame rate of a clip is multiplied by a factor drawn from 1 / speed to speed, so that it covers more
            or less time; without effect where frames are spread over the whole video.
        flip: mirror half of the clips horizontally; only if the labels allow it.
        rand_layers: number of RandAugment operations for each clip; 2 in the paper.
        rand_magnitude: magnitude of RandAugment, 0 to 10; 10 in the paper.
        colour_jitter: brightness, contrast and saturation are scaled, in random order, by factors drawn from
            1 - colour_jitter to 1 + colour_jitter.
        erasing: probability that a rectangle of 2 to 33 % of the frame is replaced by noise.
        frame_order: `forward`; `reversed` or `shuffled` (for each clip anew) measure how much the order matters.
    """

    random_crop: bool = False
    scale: float = _ranged(1.0, least=1)
    area: float = _ranged(1.0, above=0, most=1)
    ratio: float = _ranged(4 / 3, least=1)
    speed: float = _ranged(1.0, least=1, most=4)
    flip: bool = False
    rand_layers: int = _ranged(0, least=0, most=100)
    rand_magnitude: float = _ranged(10.0, least=0, most=randaugment.STRONGEST)
    colour_jitter: float = _ranged(0.0, least=0, most=1)
    erasing: float = _ranged(0.0, least=0, most=1)
    frame_order: str = "forward"

    def __post_init__(self):
        if self.frame_order not in FRAME_ORDERS:
            raise unknown("frame_order", str(self.frame_order), FRAME_ORDERS)
        check_fields(self, "augment.")
        if (self.scale > 1 or self.area < 1) and not self.random_crop:
            raise UserError(f"augment.{'scale above' if self.scale > 1 else 'area below'} 1 needs augment.random_crop")
        if self.ratio != type(self).ratio and self.area == 1:
            raise UserError("augment.ratio is that of crops of another area: it goes with augment.area below 1")
        if self.scale > 1 and self.area < 1:
            raise UserError("augment.scale and augment.area are two ways to draw the crop: set one of them")

    def clip_position(self, rng: np.random.Generator) -> float:
        """Sample where in the video the clip lies, 0 (beginning) to 1 (end)."""
        return float(rng.uniform()) if self.random_crop else 0.5

    def clip_speed(self, rng: np.random.Generator) -> float:
        """Sample the factor of a clip's frame rate, see `speed`."""
        return 1.0 if self.speed == 1 else float(np.exp(rng.uniform(-np.log(self.speed), np.log(self.speed))))

    def sample_transform(
        self, shape: tuple[int, int], frames: int, size: int, rng: np.random.Generator
    ) -> SampledTransform:
        """Sample the transform from `frames` frames of `shape` (height, width) to (size, size)."""
        matrix = self._crop(*shape, size, rng)
        if self.flip and rng.uniform() < 0.5:
            matrix = matrix @ flip_map(size)
        operations = randaugment.sample_ops(self.rand_layers, self.rand_magnitude, rng)
        changes = randaugment.colour_changes(operations)
        if self.colour_jitter:
            changes += colour.sample_jitter(self.colour_jitter, rng)
        noise = colour.Noise.sample(size, rng) if self.erasing and rng.uniform() < self.erasing else None
        matrix = matrix @ randaugment.geometric_map(operations, size)
        return SampledTransform(matrix, tuple(changes), noise, self.order(frames, rng))

    def order(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Return the indices of `frames` frames in the order of the output, see `frame_order`."""
        order = np.arange(frames)
        if self.frame_order == "reversed":
            return order[::-1]
        return rng.permutation(frames) if self.frame_order == "shuffled" else order

    def _crop(self, height: int, width: int, size: int, rng: np.random.Generator) -> np.ndarray:
        if not self.random_crop:
            return square_map(height, width, size)
        if self.area < 1:
            rows, columns = _random_rectangle(height, width, self.area, self.ratio, rng)
        else:
            rows = columns = min(height, width) / rng.uniform(1, self.scale)
        return crop_map(rng.uniform(0, height - rows), rng.uniform(0, width - columns), rows, columns, size)


def _random_rectangle(height: int, width: int, area: float, ratio: float, rng) -> tuple[float, float]:
    """Sample height and width of a rectangle that fits into the frame; after ten failures, the largest square."""
    for _ in range(10):
        pixels = height * width * rng.uniform(area, 1)
        shape = np.exp(rng.uniform(-np.log(ratio), np.log(ratio)))
        rows, columns = np.sqrt(pixels / shape), np.sqrt(pixels * shape)
        if rows <= height and columns <= width:
            return float(rows), float(columns)
    return float(min(height, width)), float(min(height, width))
