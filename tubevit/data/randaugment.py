"""RandAugment (Cubuk et al. 2019) for clips: all frames share the same operations.

Geometric operations become part of the map that is sampled once (`tubevit.data.warp`). They therefore precede the
colour operations, whatever order was sampled, and show more of the frame where the crop is smaller than the frame.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tubevit.data import colour

STRONGEST = 10.0  # magnitude; the paper's scale is 0 to 10


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the fourteen operations.

    Attributes:
        weakest, strongest: values at magnitudes 0 (no change) and 10, linear in between.
        signed: whether the sign of the change is random.
        colour: (clip, value) changes a clip in place.
        geometry: (value, size) -> (3, 3) map from a point of the output to the point that it shows.
    """

    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False
    colour: Callable | None = None
    geometry: Callable | None = None

    def value(self, magnitude: float, sign: int) -> float:
        """Return the argument of the operation; `sign` is 1 or -1."""
        change = (self.strongest - self.weakest) * magnitude / STRONGEST
        return self.weakest + (sign * change if self.signed else change)


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> np.ndarray:
    return np.array([[a, b, c], [d, e, f], [0, 0, 1.0]])


def rotation_map(degrees: float, size: int) -> np.ndarray:
    """Return the map that rotates an output (size, size) counter-clockwise about its centre."""
    cos, sin, half = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), size / 2
    return _affine(cos, -sin, half - half * cos + half * sin, sin, cos, half - half * sin - half * cos)


def _enhance(change: Callable) -> Operation:
    return Operation(1.0, 1.9, True, change)  # 0.1 to 1.9


# The operations are those of RandAugment, the ranges those of AutoAugment (Cubuk et al. 2018, table of operations in
# the appendix), where translations reach 150 of 331 pixels. Solarize (threshold 256 to 0) and posterize (8 to 4 bits)
# change an image more at larger magnitudes. Shears keep the upper left corner, as AutoAugment's calls of Pillow do.
OPERATIONS = {
    "identity": Operation(),
    "autocontrast": Operation(colour=colour.autocontrast),
    "equalize": Operation(colour=colour.equalize),
    "rotate": Operation(0, 30, True, geometry=rotation_map),
    "solarize": Operation(256, 0, colour=colour.solarize),
    "color": _enhance(colour.saturation),
    "posterize": Operation(8, 4, colour=colour.posterize),
    "contrast": _enhance(colour.contrast),
    "brightness": _enhance(colour.brightness),
    "sharpness": _enhance(colour.sharpness),
    "shear_x": Operation(0, 0.3, True, geometry=lambda value, size: _affine(1, value, 0, 0, 1, 0)),
    "shear_y": Operation(0, 0.3, True, geometry=lambda value, size: _affine(1, 0, 0, value, 1, 0)),
    "translate_x": Operation(0, 150 / 331, True, geometry=lambda value, size: _affine(1, 0, value * size, 0, 1, 0)),
    "translate_y": Operation(0, 150 / 331, True, geometry=lambda value, size: _affine(1, 0, 0, 0, 1, value * size)),
}

RandAugmentOps = Sequence[tuple[str, float]]  # names and values, in order


def sample_ops(layers: int, magnitude: float, rng: np.random.Generator) -> RandAugmentOps:
    """Sample `layers` operations with replacement, each with its value; `magnitude` is 0 to 10."""
    names = list(OPERATIONS)
    ops = []
    for _ in range(layers):
        name = names[rng.integers(len(names))]
        ops.append((name, OPERATIONS[name].value(magnitude, 1 if rng.integers(2) else -1)))
    return ops


def geometric_map(ops: RandAugmentOps, size: int) -> np.ndarray:
    """Return the (3, 3) map of the geometric operations, from the output (size, size) to the picture before them."""
    matrix = np.eye(3)
    for name, value in ops:
        if geometry := OPERATIONS[name].geometry:
            matrix = matrix @ geometry(value, size)  # applied to the output of the previous one
    return matrix


def colour_changes(ops: RandAugmentOps) -> list[tuple[Callable, float]]:
    """Return the colour operations in order: (function, value); functions change (T, H, W, 3) uint8 in place."""
    return [(colour, value) for name, value in ops if (colour := OPERATIONS[name].colour)]
