"""A key of a configuration: its type, its default and the values that are allowed."""

import dataclasses

from tubevit.errors import UserError, unknown
from tubevit.ranges import Range


@dataclasses.dataclass(frozen=True)
class Key:
    """The type of a key, its default and the values that are allowed.

    Attributes:
        home, name: the dataclass and its field.
        kind: the type of a value.
        default: None if the value follows from the architecture or is switched off.
        meaning: what it does; empty if the docstring of `home` describes it.
        range: the range of a number, or of each number of a tuple; every numeric key has one.
        choices: the allowed values; empty if any will do.
        several: whether a value is any number of the choices, joined by commas.
    """

    home: type
    name: str
    kind: type
    default: object
    meaning: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    several: bool = False

    def check(self, path: str, value) -> None:
        """Check a value; raises UserError, which names `path`, if it is unset, has another type, or is not allowed."""
        if value is None:
            if self.default is not None:
                raise UserError(f"{path} must be set; its default is {self.default!r}")
            return
        if not isinstance(value, {float: float | int, tuple: tuple | list}.get(self.kind, self.kind)):
            raise UserError(f"{path} must be of type {self.kind.__name__}; found {value!r}")
        for each in names(value) if self.several else (value,):
            if self.choices and each not in self.choices:
                raise unknown(path, each, self.choices)
        if self.range:
            for each in value if self.kind is tuple else (value,):
                self.range.check(path, each)


def names(text: str) -> list[str]:
    """Split `a, b` into ["a", "b"]."""
    return [name.strip() for name in text.split(",") if name.strip()]


def key(default, meaning: str, range: Range | None = None, **checks):
    """Return the field of a dataclass that declares a key; see `Key` for the arguments."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "range": range, **checks})
