"""Geometry of sparse video tubes: grids, token counts, centres, pixels read. NumPy only.

A tube is a strided window over a clip (paper sections 3.2 and 3.4). All triples are ordered (t, y, x): frames, rows,
columns.
"""

import dataclasses
import math
import re
from typing import Self

import numpy as np

from tubevit import presets
from tubevit.budget import Budget, as_budget
from tubevit.errors import UserError, unknown

Triple = tuple[int, ...]  # of three, (t, y, x)
PADDINGS = ("valid", "same")


def _triple(value, what: str, smallest: int) -> Triple:
    try:
        triple = tuple(int(v) for v in value)
        exact = all(v == w for v, w in zip(triple, value))
    except (TypeError, ValueError):
        triple, exact = (), False
    if len(triple) != 3 or not exact or min(triple) < smallest:
        raise UserError(f"{what} must be 3 integers (t, y, x) of at least {smallest}; found {value!r}")
    return triple


@dataclasses.dataclass(frozen=True)
class Tube:
    """A strided 3D window.

    Attributes:
        kernel: size of a window in frames, rows and columns.
        stride: spacing of the tokens in frames and pixels.
        offset: start of the first window; the clip before it is not read.
        space_to_depth: number of sub-windows that a token concatenates along each axis (paper section 3.4). They are
            `stride / space_to_depth` apart, and each is projected to `1 / prod(space_to_depth)` of the width. The
            number of tokens does not change. Beyond the clip, sub-windows read 0 after normalisation.

    Raises:
        UserError: a triple is malformed, or a stride is not divisible by its space-to-depth factor.
    """

    kernel: Triple
    stride: Triple
    offset: Triple = (0, 0, 0)
    space_to_depth: Triple = (1, 1, 1)

    def __post_init__(self):
        for name, smallest in (("kernel", 1), ("stride", 1), ("offset", 0), ("space_to_depth", 1)):
            object.__setattr__(self, name, _triple(getattr(self, name), f"{name} of a tube", smallest))
        for stride, factor, axis in zip(self.stride, self.space_to_depth, "tyx"):
            if stride % factor:
                expected = f"must be divisible by its space-to-depth factor {factor}"
                raise UserError(f"tube {self}: stride {stride} along {axis} {expected}")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `KERNEL/STRIDE[+OFFSET][%SPACE_TO_DEPTH]`, e.g. `16x4x4/6x32x32+4x8x8%1x2x2`."""
        triple = r"(\d+x\d+x\d+)"
        match = re.fullmatch(rf"{triple}/{triple}(?:\+{triple})?(?:%{triple})?", text)
        if not match:
            form = "KERNEL/STRIDE[+OFFSET][%SPACE_TO_DEPTH], each TxYxX, such as 8x8x8/16x32x32%2x1x1"
            raise UserError(f"{text!r} is not a tube; expected {form}")
        names = ("kernel", "stride", "offset", "space_to_depth")
        triples = {n: tuple(map(int, g.split("x"))) for n, g in zip(names, match.groups()) if g}
        return cls(**triples)

    def __str__(self) -> str:
        text = f"{_text(self.kernel)}/{_text(self.stride)}"
        if self.offset != (0, 0, 0):
            text += f"+{_text(self.offset)}"
        if self.space_to_depth != (1, 1, 1):
            text += f"%{_text(self.space_to_depth)}"
        return text

    @property
    def is_2d(self) -> bool:
        """Whether a window covers a single frame, so that the tube also takes images (paper section 3.5)."""
        return self.kernel[0] == 1

    @property
    def volume(self) -> int:
        """The number of pixels of a window."""
        return math.prod(self.kernel)

    @property
    def plain(self) -> Self:
        """The tube without space-to-depth."""
        return dataclasses.replace(self, space_to_depth=(1, 1, 1))

    @property
    def sub_windows(self) -> int:
        """The number of windows that a token concatenates."""
        return math.prod(self.space_to_depth)

    def smallest_shape(self, padding: str = "valid") -> Triple:
        """Return the smallest clip shape (T, H, W) with at least one token."""
        extra = self.kernel if padding == "valid" else (1, 1, 1)
        return tuple(o + e for o, e in zip(self.offset, extra))

    def grid(self, shape: Triple, padding: str = "valid") -> Triple:
        """Return the number of tokens along (t, y, x) in a clip (T, H, W); 0 along an axis that is too small.

        An image is a clip of one frame, (1, H, W). Raises UserError if `shape` is not 3 integers of at least 0.
        """
        counts, shape = [], _triple(shape, "the shape of a clip", 0)
        for size, kernel, stride, offset in zip(shape, self.kernel, self.stride, self.offset):
            rest = size - offset
            count = (rest - kernel) // stride + 1 if padding == "valid" else -(-rest // stride)
            counts.append(max(count, 0))
        return tuple(counts)

    def num_tokens(self, shape: Triple, padding: str = "valid") -> int:
        """Return the number of tokens in a clip of `shape` (T, H, W)."""
        return math.prod(self.grid(shape, padding))

    def origin(self, shape: Triple, padding: str = "valid") -> Triple:
        """Return frame, row and column of the start of the first window: the offset minus the left padding."""
        if padding == "valid":
            return self.offset
        origin = []
        for size, n, k, s, o in zip(shape, self.grid(shape, padding), self.kernel, self.stride, self.offset):
            total = max((n - 1) * s + k - (size - o), 0)
            origin.append(o - total // 2)
        return tuple(origin)

    def starts(self, shape: Triple, padding: str = "valid") -> tuple[np.ndarray, ...]:
        """Return the starts of the windows along each axis: three arrays (n, f) for n tokens of f sub-windows."""
        origin, grid = self.origin(shape, padding), self.grid(shape, padding)
        return tuple(
            o + np.arange(n)[:, None] * s + np.arange(f)[None, :] * (s // f)
            for o, n, s, f in zip(origin, grid, self.stride, self.space_to_depth)
        )

    def centres(self, shape: Triple, padding: str = "valid") -> np.ndarray:
        """Return the centre of the region that each token reads: (N, 3) float64 (t, y, x) in frames and pixels.

        The centre of frames 0 to 7 is 3.5; tokens are in row-major order of the grid.
        """
        axes = [s.mean(axis=1) + (k - 1) / 2 for s, k in zip(self.starts(shape, padding), self.kernel)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    def indices(self, shape: Triple, padding: str = "valid") -> tuple[np.ndarray, ...]:
        """Return the frames, rows and columns of the windows: three arrays (n, f, k).

        Indices below the offset or beyond the clip are padding, which is not read.
        """
        return tuple(s[..., None] + np.arange(k) for s, k in zip(self.starts(shape, padding), self.kernel))


def _text(triple: Triple) -> str:
    return "x".join(map(str, triple))


@dataclasses.dataclass(frozen=True)
class TubeSet:
    """Several tubes over one clip; their tokens are concatenated in the order of the tubes.

    Attributes:
        tubes: at least one `Tube`.
        padding: `valid` (windows stay inside the clip) or `same` (one token per started stride; the left padding
            shifts the centres).
        interpolated: whether all 3D tubes share one kernel, resized to each of them (paper section 3.4).
        budget: what share of the tokens is kept; None keeps all, and a share of 100 % becomes None.

    Raises:
        UserError: there is no tube, or one twice; the padding is unknown; interpolated tubes have space-to-depth.
    """

    tubes: tuple[Tube, ...]
    padding: str = "valid"
    interpolated: bool = False
    budget: Budget | None = None

    def __post_init__(self):
        object.__setattr__(self, "tubes", tuple(self.tubes) if isinstance(self.tubes, tuple | list) else (self.tubes,))
        if not self.tubes or not all(isinstance(t, Tube) for t in self.tubes) or len({*self.tubes}) < len(self.tubes):
            raise UserError(f"a tube set must hold at least one Tube and none twice; found {self.tubes!r}")
        if self.budget is not None and self.budget.share == 1:
            object.__setattr__(self, "budget", None)
        if self.padding not in PADDINGS:
            raise unknown("padding", str(self.padding), PADDINGS)
        for tube in self.tubes if self.interpolated else ():
            if tube.sub_windows > 1:
                raise UserError(f"interpolated kernels have no space-to-depth; found {tube}, expected {tube.plain}")

    @classmethod
    def from_text(cls, text: str, padding: str = "valid", interpolated: bool = False) -> Self:
        """Parse tubes joined by `_`, e.g. `8x8x8/16x32x32%2x1x1_1x16x16/32x16x16`."""
        return cls(tuple(Tube.from_text(part) for part in text.split("_")), padding, interpolated)

    def __str__(self) -> str:
        return "_".join(map(str, self.tubes))

    def grid(self, shape: Triple) -> tuple[Triple, ...]:
        """Return the tokens of each tube along (t, y, x) in a clip (T, H, W); UserError if it is too small for one."""
        grids = tuple(tube.grid(shape, self.padding) for tube in self.tubes)
        for tube, grid in zip(self.tubes, grids):
            if 0 in grid:
                fitting = [name for name, tubes in PRESETS.items() if tubes.fits(shape)]
                smallest = np.max([each.smallest_shape(self.padding) for each in self.tubes], axis=0)
                raise UserError(
                    f"a clip of {_text(shape)} (T x H x W) is too small for tube {tube}, which needs at least "
                    f"{_text(tube.smallest_shape(self.padding))} (all tubes together: {_text(smallest)}); "
                    + (f"presets that fit: {', '.join(fitting)}" if fitting else "no preset fits")
                )
        return grids

    def fits(self, shape: Triple) -> bool:
        """Whether every tube has a token in a clip of `shape` (T, H, W)."""
        return all(tube.num_tokens(shape, self.padding) for tube in self.tubes)

    def num_tokens(self, shape: Triple) -> int:
        """Return the number of tokens that are kept in a clip (T, H, W); raises UserError if a tube does not fit."""
        return sum(self.kept(shape))

    def kept(self, shape: Triple) -> list[int]:
        """Return the number of tokens of each tube that are kept in a clip of `shape` (T, H, W)."""
        grids = self.grid(shape)
        return list(map(math.prod, grids)) if self.budget is None else list(map(len, self.budget.choose(grids)))

    def chosen(self, shape: Triple) -> tuple[np.ndarray, ...] | None:
        """Return the tokens of each tube that the budget keeps, None for all; UserError if that depends on the clip."""
        if self.budget is None:
            return None
        if self.depends_on_clip(shape):
            raise UserError(f"the tokens of budget {self.budget} are different in each clip; expected another rule")
        return self.budget.choose(self.grid(shape))

    def depends_on_clip(self, shape: Triple) -> bool:
        """Whether the tokens that are kept are not the same in all clips of `shape`."""
        return self.budget is not None and self.budget.rule == "motion" and shape[0] > 1

    def centres(self, shape: Triple) -> np.ndarray:
        """Return the centres of the tokens that are kept, (N, 3) float64; see `Tube.centres` and `chosen`."""
        self.grid(shape)
        centres, chosen = [tube.centres(shape, self.padding) for tube in self.tubes], self.chosen(shape)
        return np.concatenate(centres if chosen is None else [each[at] for each, at in zip(centres, chosen)])

    def with_budget(self, budget: str | Budget | None) -> "TubeSet":
        """Return the same tubes with another budget, or its text; None keeps all tokens."""
        return dataclasses.replace(self, budget=as_budget(budget))

    def for_images(self) -> "TubeSet":
        """Return the tubes that take images, of temporal size 1 (paper section 3.5); raises UserError without any."""
        flat = tuple(tube for tube in self.tubes if tube.is_2d)
        if not flat:
            expected = "expected a tube of temporal size 1, such as 1x16x16/32x16x16"
            raise UserError(f"the tube set {self} takes no images: {expected}")
        return TubeSet(flat, self.padding, budget=self.budget)

    @property
    def is_2d(self) -> bool:
        """Whether all tubes are 2D, as in a plain ViT."""
        return all(tube.is_2d for tube in self.tubes)

    def pixels_read(self, shape: Triple, only: Tube | None = None) -> float:
        """Return the share of the clip's pixels that at least one token reads, 0 to 1; or one of a single tube.

        Raises UserError if the tokens that are kept are different in each clip.
        """
        read, chosen = np.zeros(shape, bool), self.chosen(shape)
        for i, (tube, grid) in enumerate(zip(self.tubes, self.grid(shape))):
            if only not in (None, tube):
                continue
            axes = tube.indices(shape, self.padding)
            # All tokens together read a grid of pixels, and so does each by itself.
            tokens = [(slice(None),) * 3] if chosen is None else zip(*np.unravel_index(chosen[i], grid))
            for token in tokens:
                found = [np.unique(index[at]) for index, at in zip(axes, token)]
                limits = zip(found, tube.offset, shape)
                read[np.ix_(*(index[(index >= offset) & (index < size)] for index, offset, size in limits))] = True
        return float(read.mean())

    def values_read(self, shape: Triple) -> int:
        """Return the number of values in the windows of the kept tokens: 3 per pixel, again for each of its windows."""
        whole = self.budget is None  # then there may be tubes that do not fit
        counts = [tube.num_tokens(shape, self.padding) for tube in self.tubes] if whole else self.kept(shape)
        return sum(3 * count * tube.sub_windows * tube.volume for count, tube in zip(counts, self.tubes))


PRESETS: dict[str, TubeSet] = {
    name: TubeSet.from_text(text, interpolated=name in presets.INTERPOLATED) for name, text in presets.TEXTS.items()
}


def list_tubes() -> list[str]:
    """Return the names of the tube presets, for the argument `tubes`."""
    return sorted(PRESETS)


def as_tube_set(
    tubes: str | Tube | TubeSet,
    padding: str | None = None,
    interpolated: bool | None = None,
    budget: Budget | None = None,
) -> TubeSet:
    """Return a tube set from a preset's name, text, a tube or a tube set; what else is given replaces its own.

    Raises UserError if the text is neither a preset nor well formed.
    """
    if isinstance(tubes, Tube):
        tubes = TubeSet((tubes,))
    elif isinstance(tubes, str):
        if tubes in PRESETS:
            tubes = PRESETS[tubes]
        elif "/" in tubes:
            tubes = TubeSet.from_text(tubes)
        else:
            raise unknown("tube preset", tubes, PRESETS)
    elif not isinstance(tubes, TubeSet):
        raise UserError(f"tubes must be a preset's name, text or a TubeSet; found {tubes!r}")
    changes = {"padding": padding, "interpolated": interpolated, "budget": budget}
    return dataclasses.replace(tubes, **{key: value for key, value in changes.items() if value is not None})
