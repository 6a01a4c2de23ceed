"""The windows of tubes as data: what travels in place of a clip on the sparse input path. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Sequence

import numpy as np

from tubevit.errors import UserError
from tubevit.tubes import Triple, Tube, TubeSet


@dataclasses.dataclass(frozen=True)
class TubeBatch:
    """The pixels that the tubes read of a batch of clips or images; a model takes it where it takes those.

    In JAX it is a pytree of its windows. The first batch of a process registers it, which imports JAX.

    Attributes:
        windows: for each tube (B, N, f, k_t * k_y * k_x * 3), uint8 0..255 or float -1..1: N tokens in row-major order
            of the grid, each of f sub-windows (space-to-depth). What lies beyond the clip holds 0 and is not read.
        tubes: of a model, or of its tubes those that serve images.
        shape: (T, H, W) of the clips, (H, W) of images.
    """

    windows: tuple
    tubes: TubeSet
    shape: tuple[int, ...]

    def __new__(cls, *args, **kwargs):  # unpickling calls it too
        with _REGISTERING:
            _register_pytree()
        return super().__new__(cls)

    @property
    def clip_shape(self) -> Triple:
        """(T, H, W); T is 1 of an image."""
        return (1, *self.shape)[-3:]

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """That of the clips or images themselves: (B, T, H, W, 3) or (B, H, W, 3)."""
        return (len(self.windows[0]), *self.shape, 3)

    @property
    def nbytes(self) -> int:
        """Of all windows."""
        return sum(window.nbytes for window in self.windows)

    def check(self) -> None:
        """Raises UserError unless the windows are those of the tubes in clips of this shape."""
        if len(self.windows) != len(self.tubes.tubes):
            raise UserError(f"expected windows of {len(self.tubes.tubes)} tubes; found {len(self.windows)}")
        for tube, expected, window in zip(self.tubes.tubes, window_shapes(self.tubes, self.clip_shape), self.windows):
            if tuple(window.shape[1:]) != expected or len(window) != len(self.windows[0]):
                wanted = ", ".join(map(str, (len(self.windows[0]), *expected)))
                raise UserError(f"windows of tube {tube} must be ({wanted}); found {tuple(window.shape)}")


_REGISTERING = threading.Lock()


@functools.cache
def _register_pytree() -> None:
    from jax.tree_util import register_dataclass

    register_dataclass(TubeBatch, ["windows"], ["tubes", "shape"])


def sample_shapes(shape: tuple[int, ...], tubes: TubeSet | None) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays of one sample: the windows of each tube, or (*shape, 3) if `tubes` is None."""
    return [(*shape, 3)] if tubes is None else window_shapes(tubes, (1, *shape)[-3:])


def window_shapes(tubes: TubeSet, shape: Triple) -> list[Triple]:
    """(N, f, k_t * k_y * k_x * 3) of each tube in a clip of `shape` (T, H, W); UserError where one does not fit."""
    return [(math.prod(grid), tube.sub_windows, 3 * tube.volume) for tube, grid in zip(tubes.tubes, tubes.grid(shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class PixelGrid:
    """Pixels of a clip: those rows and columns of those frames; each rising."""

    times: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def shape(self) -> Triple:
        """Numbers of frames, rows and columns."""
        return len(self.times), len(self.rows), len(self.columns)

    @property
    def index(self) -> tuple[np.ndarray, ...]:
        """To take them from a clip (T, H, W, ...)."""
        return np.ix_(self.times, self.rows, self.columns)


def whole_grid(shape: Triple) -> PixelGrid:
    """All pixels of a clip of `shape` (T, H, W)."""
    return PixelGrid(*map(np.arange, shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """What a tube reads along one axis.

    Attributes:
        positions: the frames, rows or columns that are read, rising, each once.
        places: (n, f, k), for each position of a window its index in `positions`; -1 beyond the clip.
    """

    positions: np.ndarray
    places: np.ndarray

    @property
    def in_order(self) -> bool:
        """Whether the windows follow one another, without overlap and padding."""
        return self.places.size == len(self.positions) and (self.places >= 0).all()


@functools.lru_cache(maxsize=256)
def axes_read(tube: Tube, shape: Triple, padding: str) -> tuple[Axis, Axis, Axis]:
    """What a tube reads of a clip of `shape` (T, H, W), along (t, y, x)."""
    axes = []
    for index, offset, size in zip(tube.indices(shape, padding), tube.offset, shape):
        inside = (index >= offset) & (index < size)
        positions, places = np.unique(index[inside], return_inverse=True)
        all_places = np.full(index.shape, -1)
        all_places[inside] = places.ravel()
        axes.append(Axis(positions, all_places))
    return tuple(axes)


def arrange(pixels: np.ndarray, tube: Tube, axes: tuple[Axis, Axis, Axis]) -> np.ndarray:
    """Windows of a tube from the pixels at the positions that it reads.

    Args:
        pixels: (t, y, x, 3), of the `positions` along each axis.
        tube: whose they are.
        axes: see `axes_read`.

    Returns:
        (N, f, k_t * k_y * k_x * 3), see `TubeBatch`.
    """
    for number, axis in enumerate(axes):
        if not axis.in_order:
            padded = (axis.places < 0).any()
            edge = [(0, int(padded and number == other)) for other in range(4)]
            pixels = np.take(np.pad(pixels, edge) if padded else pixels, axis.places.ravel(), axis=number)
    runs = np.dtype(("V", tube.kernel[2] * 3 * pixels.itemsize))  # rows of a window are copied whole
    (n_t, f_t, k_t), (n_y, f_y, k_y), (n_x, f_x, _) = (axis.places.shape for axis in axes)
    rows = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], -1).view(runs)
    rows = rows.reshape(n_t, f_t, k_t, n_y, f_y, k_y, n_x, f_x).transpose(0, 3, 6, 1, 4, 7, 2, 5)
    windows = np.ascontiguousarray(rows).view(pixels.dtype)
    return windows.reshape(n_t * n_y * n_x, tube.sub_windows, 3 * tube.volume)


class WindowPlan:
    """What the tubes of a set read of a clip, and how it becomes their windows.

    Args:
        tubes: of a model, or of its tubes those that serve images.
        shape: (T, H, W) of the clip.

    Raises:
        UserError: the clip is too small for a tube.
    """

    def __init__(self, tubes: TubeSet, shape: Triple):
        tubes.grid(shape)
        self._tubes = tubes.tubes
        self._axes = [axes_read(tube, tuple(shape), tubes.padding) for tube in tubes.tubes]
        self.grids = [PixelGrid(*(axis.positions for axis in axes)) for axes in self._axes]

    def windows(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Windows (N, f, k_t * k_y * k_x * 3) of each tube from the pixels of its grid, (times, rows, columns, 3)."""
        return tuple(map(arrange, pixels, self._tubes, self._axes))


def take_windows(clips: np.ndarray, tubes: TubeSet) -> TubeBatch:
    """The windows of decoded clips.

    Args:
        clips: (B, T, H, W, 3), or images (B, H, W, 3), of any dtype.
        tubes: of a model; images take those of temporal size 1.

    Returns:
        The batch, to be passed to the model in place of the clips.

    Raises:
        UserError: the clips are too small for a tube, or no tube takes images.
    """
    shape = clips.shape[1:-1]
    if len(shape) == 2:
        tubes, clips = tubes.for_images(), clips[:, None]
    reading = WindowPlan(tubes, clips.shape[1:-1])
    windows = [reading.windows([clip[grid.index] for grid in reading.grids]) for clip in clips]
    return TubeBatch(tuple(map(np.stack, zip(*windows))), tubes, shape)
