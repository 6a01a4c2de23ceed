"""Windows of tubes as data, which replace clips on the sparse input path. NumPy only."""

import dataclasses
import functools
import threading
from collections.abc import Sequence

import einops
import numpy as np
from jaxtyping import Int, Shaped

from tubevit.errors import UserError
from tubevit.motion import most_moving, motion_lines
from tubevit.tubes import Triple, Tube, TubeSet


@dataclasses.dataclass(frozen=True)
class TubeBatch:
    """The pixels that tubes read from a batch of clips or images. Models accept it in place of the clips.

    In JAX it is a pytree of its windows. The first batch of a process registers the pytree, which imports JAX.

    Attributes:
        windows: an array (B, N, f, k_t * k_y * k_x * 3) per tube, uint8 0..255 or float -1..1, of N tokens in row-major
            order of the grid and f sub-windows each (space-to-depth). Values outside the clip are 0 and not used.
        tubes: tubes of a model, or its tubes for images; with a budget, there are windows of the kept tokens only.
        shape: shape (T, H, W) of the clips, or (H, W) of images.
        chosen: an array (B, N) int32 per tube, which tokens of its grid the windows are, if the budget depends on the
            clip.
    """

    windows: tuple
    tubes: TubeSet
    shape: tuple[int, ...]
    chosen: tuple = ()

    def __new__(cls, *args, **kwargs):  # unpickling calls it too
        with _REGISTERING:
            _register_pytree()
        return super().__new__(cls)

    @classmethod
    def of(cls, arrays: Sequence, tubes: TubeSet, shape: tuple[int, ...]) -> "TubeBatch":
        """Make a batch from its arrays in the order of `sample_arrays`, each with the axis of the batch."""
        count = len(tubes.tubes)
        return cls(tuple(arrays[:count]), tubes, shape, tuple(arrays[count:]))

    @property
    def kept(self) -> tuple | None:
        """The tokens of each tube's grid that the windows are: (N,), or (B, N) by the clip; None for all of them."""
        return self.chosen or self.tubes.chosen(self.clip_shape)

    @property
    def clip_shape(self) -> Triple:
        """The shape (T, H, W), where T is 1 for images."""
        return (1, *self.shape)[-3:]

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """The shape of the clips (B, T, H, W, 3) or images (B, H, W, 3)."""
        return (len(self.windows[0]), *self.shape, 3)

    @property
    def nbytes(self) -> int:
        """The total size in bytes."""
        return sum(array.nbytes for array in (*self.windows, *self.chosen))

    def check(self) -> None:
        """Raise UserError unless the windows fit the tubes and the shape."""
        if len(self.windows) != len(self.tubes.tubes):
            raise UserError(f"expected windows of {len(self.tubes.tubes)} tubes; found {len(self.windows)}")
        for tube, expected, window in zip(self.tubes.tubes, window_shapes(self.tubes, self.clip_shape), self.windows):
            if tuple(window.shape[1:]) != expected or len(window) != len(self.windows[0]):
                wanted = ", ".join(map(str, (len(self.windows[0]), *expected)))
                raise UserError(f"windows of tube {tube} must be ({wanted}); found {tuple(window.shape)}")
        wanted = [window.shape[:2] for window in self.windows] if self.tubes.depends_on_clip(self.clip_shape) else []
        if (found := [tuple(each.shape) for each in self.chosen]) != wanted:
            raise UserError(f"the chosen tokens of budget {self.tubes.budget} must be {wanted}; found {found}")


_REGISTERING = threading.Lock()


@functools.cache
def _register_pytree() -> None:
    from jax.tree_util import register_dataclass

    register_dataclass(TubeBatch, ["windows", "chosen"], ["tubes", "shape"])


def sample_arrays(shape: tuple[int, ...], tubes: TubeSet | None) -> list[tuple[tuple[int, ...], type]]:
    """Return shape and dtype of the arrays of one sample: (*shape, 3) if `tubes` is None, else those of a `TubeBatch`.

    These are the windows of each tube, and the chosen tokens of each tube if its budget depends on the clip.
    """
    if tubes is None:
        return [((*shape, 3), np.uint8)]
    shapes, clip = window_shapes(tubes, (1, *shape)[-3:]), (1, *shape)[-3:]
    chosen = [((count,), np.int32) for count, *_ in shapes] if tubes.depends_on_clip(clip) else []
    return [(each, np.uint8) for each in shapes] + chosen


def window_shapes(tubes: TubeSet, shape: Triple) -> list[Triple]:
    """Return (N, f, k_t * k_y * k_x * 3) for each tube in a clip (T, H, W); a clip that is too small is a UserError."""
    return [(kept, tube.sub_windows, 3 * tube.volume) for tube, kept in zip(tubes.tubes, tubes.kept(shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class PixelGrid:
    """A grid of pixels of a clip, given by sorted frames, rows and columns."""

    times: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def shape(self) -> Triple:
        """The number of frames, rows and columns."""
        return len(self.times), len(self.rows), len(self.columns)

    @property
    def index(self) -> tuple[np.ndarray, ...]:
        """The index that selects the grid from a clip (T, H, W, ...)."""
        return np.ix_(self.times, self.rows, self.columns)


def whole_grid(shape: Triple) -> PixelGrid:
    """Select all pixels of a clip of `shape` (T, H, W)."""
    return PixelGrid(*map(np.arange, shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """The positions that a tube reads along one axis.

    Attributes:
        positions: frames, rows or columns that are read, sorted and unique.
        places: index in `positions` of each element of the n windows with f sub-windows; -1 outside the clip.
    """

    positions: Int[np.ndarray, " read"]
    places: Int[np.ndarray, "n f k"]

    @functools.cached_property
    def is_padded(self) -> bool:
        """Whether windows reach outside the clip."""
        return bool((self.places < 0).any())

    @property
    def in_order(self) -> bool:
        """Whether the windows follow one another, without overlap and padding."""
        return self.places.size == len(self.positions) and not self.is_padded

    def of(self, tokens: Int[np.ndarray, " n"]) -> "Axis":
        """Return what some of the windows read, given by ascending numbers."""
        places = self.places[tokens]
        used = np.unique(places[places >= 0])
        renumbered = np.where(places < 0, -1, np.searchsorted(used, places))
        return dataclasses.replace(self, positions=self.positions[used], places=renumbered)


@functools.lru_cache(maxsize=256)
def axes_read(tube: Tube, shape: Triple, padding: str) -> tuple[Axis, Axis, Axis]:
    """Return what a tube reads from a clip of `shape` (T, H, W) along t, y and x."""
    axes = []
    for index, offset, size in zip(tube.indices(shape, padding), tube.offset, shape):
        inside = (index >= offset) & (index < size)
        positions, places = np.unique(index[inside], return_inverse=True)
        all_places = np.full(index.shape, -1)
        all_places[inside] = places.ravel()
        axes.append(Axis(positions, all_places))
    return tuple(axes)


def arrange(
    pixels: Shaped[np.ndarray, "t y x 3"], tube: Tube, axes: tuple[Axis, Axis, Axis]
) -> Shaped[np.ndarray, "N {tube.sub_windows} {3*tube.volume}"]:
    """Arrange the pixels that a tube reads into its windows, see `TubeBatch`.

    Args:
        pixels: pixels at the `positions` of the three axes.
        tube: the tube that reads them.
        axes: see `axes_read`.
    """
    for number, axis in enumerate(axes):
        if axis.is_padded:  # index -1 takes the zeros that are appended
            pixels = np.pad(pixels, [(0, int(number == other)) for other in range(4)])
        if not axis.in_order:
            pixels = np.take(pixels, axis.places.ravel(), axis=number)
    (f_t, f_y, f_x), (k_t, k_y, k_x) = tube.space_to_depth, tube.kernel
    run = np.dtype(("V", k_x * 3 * pixels.itemsize))  # the rows of a window are copied whole
    rows = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], 3 * pixels.shape[2]).view(run)
    pattern = "(t ft kt) (y fy ky) (x fx) -> (t y x) (ft fy fx) (kt ky)"
    rows = einops.rearrange(rows, pattern, ft=f_t, kt=k_t, fy=f_y, ky=k_y, fx=f_x)
    return np.ascontiguousarray(rows).view(pixels.dtype)


class WindowPlan:
    """The pixels that tubes read from a clip, and how they are arranged into windows.

    Args:
        tubes: tubes of a model, or its tubes for images.
        shape: shape (T, H, W) of the clip.

    Attributes:
        grids: the pixels of each tube, and then those that a budget looks at, if it depends on the clip.

    Raises:
        UserError: the clip is too small for a tube.
    """

    def __init__(self, tubes: TubeSet, shape: Triple):
        self._tubes, self._shape = tubes, shape
        self._moving = tubes.depends_on_clip(shape)
        chosen = None if self._moving else tubes.chosen(shape)
        self._axes, self._picked = [], []
        for i, (tube, grid) in enumerate(zip(tubes.tubes, tubes.grid(shape))):
            axes, picked = axes_read(tube, tuple(shape), tubes.padding), None
            if chosen is not None:
                rows, places = zip(*(np.unique(at, return_inverse=True) for at in np.unravel_index(chosen[i], grid)))
                axes = tuple(axis.of(at) for axis, at in zip(axes, rows))
                picked = np.ravel_multi_index(places, tuple(map(len, rows)))
            self._axes.append(axes)
            self._picked.append(picked)
        self.grids = [PixelGrid(*(axis.positions for axis in axes)) for axes in self._axes]
        if self._moving:
            self.grids.append(PixelGrid(np.arange(shape[0]), *motion_lines(tubes, shape)))

    def arrays(self, pixels: Sequence[Shaped[np.ndarray, "_ _ _ 3"]]) -> tuple[Shaped[np.ndarray, "..."], ...]:
        """Arrange the pixels of `grids` into the arrays of `sample_arrays`."""
        picked, chosen = self._picked, ()
        if self._moving:
            picked = chosen = [each[0] for each in most_moving(self._tubes, pixels[-1][None], self._shape)]
        windows = map(arrange, pixels, self._tubes.tubes, self._axes)
        return (*(each if at is None else each[at] for each, at in zip(windows, picked)), *chosen)


def take_windows(clips: Shaped[np.ndarray, "B *T H W 3"], tubes: TubeSet) -> TubeBatch:
    """Extract the windows of clips (B, T, H, W, 3) or images (B, H, W, 3) as a batch that models accept instead.

    Args:
        clips: clips or images of any dtype.
        tubes: tubes of a model; images use only the tubes of temporal size 1. With a budget, only the windows of the
            tokens that it keeps are taken.

    Raises:
        UserError: the clips are too small for a tube, or no tube takes images.
    """
    shape = clips.shape[1:-1]
    if len(shape) == 2:
        tubes, clips = tubes.for_images(), clips[:, None]
    plan = WindowPlan(tubes, clips.shape[1:-1])
    if not len(clips):
        shapes = sample_arrays(shape, tubes)
        empty = [np.zeros((0, *each), clips.dtype if dtype == np.uint8 else dtype) for each, dtype in shapes]
        return TubeBatch.of(empty, tubes, shape)
    arrays = [plan.arrays([clip[grid.index] for grid in plan.grids]) for clip in clips]
    return TubeBatch.of(list(map(np.stack, zip(*arrays))), tubes, shape)
