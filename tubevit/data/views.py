"""Multi-view evaluation: temporal x spatial views of a clip (the paper evaluates with 4x3, section 4)."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Self

from tubevit.errors import UserError, unknown

PLACEMENTS = ("even", "start", "spread")
AVERAGES = ("probabilities", "logits")


@dataclasses.dataclass(frozen=True)
class Views:
    """Which clips of a video are taken, which squares of their frames, and what is averaged over them.

    Attributes:
        temporal: number of clips.
        spatial: number of squares of each clip, spaced evenly along the longer side.
        placement: where the clips lie, for k = 0 ... n - 1 of n. `even`: the first begins with the video, the last ends
            with it, and a single one lies in the middle. `start`: clip k begins after k / n of the time that one clip
            leaves, so that a single one begins with the video. `spread`: the frames of each clip are spread over the
            whole video, whatever the frame rate; clip k takes the frame at k / n of each of T equal parts, and a single
            one the middles.
        short_side: short side that frames are resized to, in pixels, before squares of the input's size are cut from
            them; None takes the largest squares.
        average: `probabilities`, or `logits`, whose mean is then converted to probabilities.

    Raises:
        UserError: there is no such placement or average.
    """

    temporal: int = 1
    spatial: int = 1
    placement: str = "even"
    short_side: int | None = None
    average: str = "probabilities"

    def __post_init__(self):
        for what, value, choices in (
            ("placement of clips", self.placement, PLACEMENTS),
            ("average of views", self.average, AVERAGES),
        ):
            if value not in choices:
                raise unknown(what, value, choices)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse text such as `4x3`; raises UserError if it has another form."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if not match:
            raise UserError(f"views must be TEMPORALxSPATIAL, for example 4x3; found {text!r}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_keys(cls, keys: Mapping) -> Self:
        """Return the views of the group `eval` of a configuration, in which older runs lack keys."""
        return dataclasses.replace(
            cls.from_text(keys.get("views", "1x1")),
            placement=keys.get("clip_placement", cls.placement),
            short_side=keys.get("short_side"),
            average=keys.get("average", cls.average),
        )

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"

    @property
    def clip_positions(self) -> list[float]:
        """The position of each clip, see `decode_frames`."""
        if self.placement == "even" or (self.placement == "spread" and self.temporal == 1):
            return evenly_spaced(self.temporal)
        return [k / self.temporal for k in range(self.temporal)]

    def crop_share(self, size: int) -> float:
        """Return the side of a square as a share of the short side of the frame, for an input of `size` pixels.

        Raises:
            UserError: the squares would be larger than the frame.
        """
        if self.short_side is not None and self.short_side < size:
            raise UserError(f"eval.short_side must be at least the {size} pixels of the input; found {self.short_side}")
        return 1.0 if self.short_side is None else size / self.short_side


ONE_VIEW = Views()


def evenly_spaced(count: int) -> list[float]:
    """Return `count` evenly spaced positions from 0 (beginning) to 1 (end); a single one is in the middle."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
