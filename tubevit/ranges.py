"""Ranges of numbers: of the keys of a configuration, the fields of a model and the flags of the command line."""

import argparse
import dataclasses
import math
import numbers
from typing import Any

from tubevit.errors import UserError

# Of int32 and float32, in which JAX computes: larger numbers overflow, smaller ones become 0.
_LARGEST = {int: 2**31 - 1, float: 3.4028234e38}
_SMALLEST = 1.1754944e-38
_NAMES = {int: "a whole number", float: "a finite number"}


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of finite numbers. It is callable, so that it serves as the `type=` of a flag as well.

    Attributes:
        kind: `int` or `float`; a number must also fit into 32 bits of that kind.
        least, most: the range includes them.
        above, below: the range does not include them.
        also: an allowed number outside of the range.
    """

    kind: type
    _: dataclasses.KW_ONLY
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    also: float | None = None

    def __contains__(self, value) -> bool:
        if not self._is_number(value):
            return False
        inside = self.least <= value <= self.most and self.above < value < self.below
        return (inside and self._fits(value)) or value == self.also

    def _is_number(self, value) -> bool:
        """Whether a value is a finite number of the kind."""
        kinds: tuple = (numbers.Integral,) if self.kind is int else (numbers.Real,)
        return isinstance(value, kinds) and not isinstance(value, bool) and -math.inf < value < math.inf

    def _fits(self, value) -> bool:
        return abs(value) <= _LARGEST[self.kind] and (value == 0 or abs(value) >= _SMALLEST)

    @property
    def limits(self) -> str:
        """The limits in words, such as `above 0 and at most 1`; "" without any."""
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        text = " and ".join(f"{word} {limit:.9g}" for word, limit in limits.items() if math.isfinite(limit))
        return text if self.also is None else f"{text}, or {self.also}"

    def described(self, value=None) -> str:
        """Describe what is expected instead of `value`, such as `a whole number, at least 1` for 1.5."""
        if not self._is_number(value):
            return ", ".join(filter(None, [_NAMES[self.kind], self.limits]))
        size = "" if self._fits(value) else f"of a size that fits into {self.kind.__name__}32"
        return ", ".join(filter(None, [self.limits, size]))

    def check(self, name: str, value) -> None:
        """Raise UserError, which names `name`, the range and the value, if the value is not in the range."""
        if value not in self:
            raise UserError(f"{name} must be {self.described(value)}; found {value!r}")

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value not in self:
            raise argparse.ArgumentTypeError(f"must be {self.described(value)}; found {text!r}")
        return value


# Of threads and processes: many more than any machine runs, and few enough that a slip does not exhaust it.
THREADS, PROCESSES = Range(int, least=1, most=4096), Range(int, least=0, most=4096)
COUNT, WHOLE = Range(int, least=1), Range(int, least=0)
POSITIVE, NOT_NEGATIVE = Range(float, above=0), Range(float, least=0)
SHARE = Range(float, least=0, most=1)
RATE = Range(float, least=0, below=1)


def check_fields(instance, prefix: str = "") -> None:
    """Check the fields of a dataclass whose metadata has a `range`, and store their numbers as Python's.

    None passes where it is the default.

    Raises UserError, which names the field behind `prefix`, the range and the value.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if "range" in field.metadata and not (value is None and field.default is None):
            for each in value if isinstance(value, tuple) else (value,):
                field.metadata["range"].check(prefix + field.name, each)
            if not isinstance(value, int | float | tuple):  # of NumPy, which JSON does not take
                object.__setattr__(instance, field.name, field.metadata["range"].kind(value))
