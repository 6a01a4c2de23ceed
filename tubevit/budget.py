"""Budgets: what share of the tokens of a clip a model takes, and by which rule they are chosen. NumPy only.

Fixed positions say where a token was, so that any part of the tokens is a valid input (paper section 3.3).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Self

import numpy as np
from jaxtyping import Int

from tubevit.errors import UserError, unknown

# even: of each tube, spread over its grid. tube: the tubes in their order, each of them whole while the budget lasts.
# motion: of each tube, where the clip moves most. random: of all tubes together.
RULES = ("even", "tube", "motion", "random")
Grid = tuple[int, ...]  # tokens of a tube along (t, y, x)


@dataclasses.dataclass(frozen=True)
class Budget:
    """A share of the tokens, and the rule by which they are chosen.

    With all rules but `motion`, the tokens are the same for all clips. A smaller share of `even`, `tube` or `random`
    is a part of a larger one.

    Attributes:
        share: above 0 and at most 1.
        rule: one of `RULES`. Images do not move: for them `motion` is `even`.

    Raises:
        UserError: the share is out of range, or the rule is unknown.
    """

    share: float
    rule: str = "even"

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise UserError(f"a budget must be above 0 % and at most 100 % of the tokens; found {100 * self.share:g} %")
        if self.rule not in RULES:
            raise unknown("rule of a budget", str(self.rule), RULES)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `SHARE%[:RULE]`, such as `25%` or `50%:motion`; raises UserError if it has another form."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%(?::(\w+))?", text)
        if not match:
            raise UserError(f"a budget must be SHARE%[:RULE], for example 25% or 50%:motion; found {text!r}")
        return cls(float(Decimal(match[1]) / 100), match[2] or "even")

    def __str__(self) -> str:
        percent = (100 * Decimal(repr(float(self.share)))).normalize()  # `from_text` gives the same share again
        return f"{percent:f}%" + (f":{self.rule}" if self.rule != "even" else "")

    def total(self, tokens: int) -> int:
        """Return how many of a number of tokens are kept, at least 1."""
        return max(math.floor(self.share * tokens + 0.5), 1)

    def choose(self, grids: Sequence[Grid]) -> tuple[Int[np.ndarray, " n"], ...]:
        """Choose the tokens of each tube, as ascending indices into its grid in row-major order.

        With `motion`, the result holds for clips that stand still; it has as many tokens of each tube as any clip.
        """
        return _choose(self, tuple(map(tuple, grids)))


def numbered(kept: Sequence, grids: Sequence[Grid]) -> list:
    """Turn indices into the grid of each tube, the last axis of arrays, into numbers among the tokens of all tubes."""
    first = np.cumsum([0, *map(math.prod, grids)])
    return [each + low.astype(each.dtype) for each, low in zip(kept, first)]


def as_budget(budget: "str | Budget | None") -> Budget | None:
    """Return a budget from its text, see `Budget.from_text`; None stays None. Raises UserError for a number."""
    if isinstance(budget, str):
        return Budget.from_text(budget)
    if budget is None or isinstance(budget, Budget):
        return budget
    percent = f"; did you mean '{100 * budget:g}%'?" if isinstance(budget, float) and 0 < budget <= 1 else ""
    raise UserError(f"a budget must be the text SHARE%[:RULE], such as '25%'; found {budget!r}{percent}")


def shares(text: str) -> list[float]:
    """Parse shares joined by commas, such as `25%,50%,100%`, into ascending numbers up to 1; none of an empty text.

    Raises UserError if one has another form or a rule.
    """
    found = set()
    for part in text.split(",") if text.strip() else ():
        if not re.fullmatch(r"\s*\d+(\.\d+)?\s*%\s*", part):
            raise UserError(f"expected shares of the tokens without a rule, such as 25%,50%,100%; found {text!r}")
        found.add(Budget.from_text(part.strip()).share)
    return sorted(found)


@functools.lru_cache(maxsize=256)
def _choose(budget: Budget, grids: tuple[Grid, ...]) -> tuple[np.ndarray, ...]:
    sizes = [math.prod(grid) for grid in grids]
    total, ends = budget.total(sum(sizes)), np.cumsum(sizes)
    if budget.rule == "random":
        kept = np.sort(np.random.default_rng(0).permutation(ends[-1])[:total])
        tubes = np.searchsorted(ends, kept, side="right")
        return tuple(kept[tubes == i] - (ends[i] - sizes[i]) for i in range(len(sizes)))
    if budget.rule == "tube":
        counts = [min(max(total - int(end) + size, 0), size) for end, size in zip(ends, sizes)]
    else:
        counts = _proportional(total, sizes)
    return tuple(np.sort(spread(grid)[:count]) for grid, count in zip(grids, counts))


def _proportional(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide a total over parts in proportion to their sizes (Sainte-Laguë); a larger total gives no part less."""
    counts = np.zeros(len(sizes), np.int64)
    for _ in range(total):
        counts[np.argmax(np.asarray(sizes) / (2 * counts + 1))] += 1
    return counts.tolist()


@functools.lru_cache(maxsize=256)
def spread(grid: Grid) -> Int[np.ndarray, " N"]:
    """Order the tokens of a grid such that the first n of them, for any n, are spread evenly over it.

    Each token is the one that is farthest from all before it. Each axis counts as a circle of the same length: then no
    token lies at an edge, which would attract the first ones. Distances are compared as integers, and ties go to the
    lower index.
    """
    places, size = np.indices(grid).reshape(3, -1), math.prod(grid)
    order, nearest = np.zeros(size, np.int64), np.full(size, np.iinfo(np.int64).max)
    for number in range(1, size):
        apart = [np.abs(axis - axis[order[number - 1]]) for axis in places]
        parts = (np.minimum(d, n - d).astype(np.int64) * (size // n) for d, n in zip(apart, grid))
        nearest = np.minimum(nearest, sum(part**2 for part in parts))
        order[number] = nearest.argmax()
    return order
