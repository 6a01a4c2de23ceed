"""Random crops in time and space, scale jitter, flips: one draw for all frames of a clip."""

from __future__ import annotations

import dataclasses

import numpy as np

from tubevit.data.video import centre_crop, crop_resize
from tubevit.errors import UserError, unknown

FRAME_ORDERS = ("forward", "reversed", "shuffled")


@dataclasses.dataclass(frozen=True)
class Augment:
    """How a decoded clip becomes the model's input.

    Attributes:
        random_crop: crop at random in time and space; otherwise the middle, as in evaluation.
        scale: the side of the crop is the short side of the frame divided by a factor drawn from 1 to this.
        flip: mirror left and right half of the clips; only where the labels allow it.
        frame_order: `forward`, or `reversed` or `shuffled` (anew for each clip) to see what the order is worth.
    """

    random_crop: bool = False
    scale: float = 1.0
    flip: bool = False
    frame_order: str = "forward"

    def __post_init__(self):
        if self.frame_order not in FRAME_ORDERS:
            raise unknown("frame_order", str(self.frame_order), FRAME_ORDERS)
        if self.scale < 1:
            raise UserError(f"augment.scale must be at least 1; found {self.scale}")
        if self.scale > 1 and not self.random_crop:
            raise UserError("augment.scale above 1 needs augment.random_crop")

    def position(self, rng: np.random.Generator) -> float:
        """Where in the video the clip lies, 0 to 1."""
        return float(rng.uniform()) if self.random_crop else 0.5

    def __call__(self, clip: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """(T, H, W, 3) uint8 -> (T, size, size, 3) uint8."""
        if self.random_crop:
            height, width = clip.shape[1:3]
            side = min(height, width) / rng.uniform(1, self.scale)
            box = (rng.uniform(0, height - side), rng.uniform(0, width - side), side)
            clip = crop_resize(clip, box, size)
        else:
            clip = centre_crop(clip, size)
        if self.flip and rng.uniform() < 0.5:
            clip = clip[:, :, ::-1]
        if self.frame_order == "reversed":
            clip = clip[::-1]
        elif self.frame_order == "shuffled":
            clip = clip[rng.permutation(len(clip))]
        return np.ascontiguousarray(clip)
