"""Multi-view evaluation: temporal x spatial views of a clip (the paper evaluates with 4x3, section 4)."""

import dataclasses
import re
from typing import Self

from tubevit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Views:
    """`temporal` clips spaced evenly over the video, and for each `spatial` squares along the longer side."""

    temporal: int = 1
    spatial: int = 1

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse text such as `4x3`; raises UserError if it has another form."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if not match:
            raise UserError(f"views must be TEMPORALxSPATIAL, for example 4x3; found {text!r}")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"


ONE_VIEW = Views()


def evenly_spaced(count: int) -> list[float]:
    """Return `count` evenly spaced positions from 0 (beginning) to 1 (end); a single one is in the middle."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
