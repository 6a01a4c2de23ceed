"""Multi-view evaluation: temporal x spatial views of a clip (the paper evaluates with 4x3, section 4)."""

from __future__ import annotations

import dataclasses
import re

from tubevit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Views:
    """`temporal` clips spread evenly over the video; of each, `spatial` squares spread evenly along the longer side."""

    temporal: int = 1
    spatial: int = 1

    @classmethod
    def from_text(cls, text: str) -> Views:
        """Reads `4x3`.

        Raises:
            UserError: it is not of this form.
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if not match:
            raise UserError(f"views must be TEMPORALxSPATIAL, for example 4x3; found {text!r}")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"


ONE_VIEW = Views()


def evenly_spaced(count: int) -> list[float]:
    """`count` positions from 0 (beginning) to 1 (end), evenly spaced; a single one lies in the middle."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
