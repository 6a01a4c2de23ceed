"""Find the steps on the Pareto front of time and chip-time without compiling all. Nothing here compiles by itself.

A candidate is left out if one that was compiled is as good in both, by a bound of the candidate: its roofline, over the
share of it that the compiled steps suggest at most (`share_bound`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from tubevit.errors import RunError, TookTooLong
from tubevit.models.config import REMAT
from tubevit.preflight.candidates import Candidate

TOLERANCE = 0.05  # estimates that differ by less count as equal
_FAILURES = 3  # after so many and nothing else, a search stops
Seconds = Mapping[Candidate, float]  # of a step
_KEPT = tuple(REMAT)  # from least memory to most


class OutOfTime(Exception):
    """There is no time left to compile a candidate."""


@dataclasses.dataclass
class Found:
    """What a search found.

    Attributes:
        seconds: {candidate that was compiled and fits: seconds of a step}.
        misfits: candidates that were compiled and do not fit.
        failed: {candidate that the compiler failed for: its reason}.
        too_large: number of candidates that need too much memory by arithmetic, or no less than a misfit.
        bounded: number of candidates that a bound left out.
        open: candidates that were neither compiled nor left out when the search was stopped, the best first.
    """

    seconds: dict[Candidate, float] = dataclasses.field(default_factory=dict)
    misfits: list[Candidate] = dataclasses.field(default_factory=list)
    failed: dict[Candidate, str] = dataclasses.field(default_factory=dict)
    too_large: int = 0
    bounded: int = 0
    open: list[Candidate] = dataclasses.field(default_factory=list)


def front(seconds: Seconds, tolerance: float = TOLERANCE) -> list[Candidate]:
    """Return the candidates that no other one beats in seconds and in devices x seconds, the fastest first.

    A slower one must be better by more than `tolerance` in devices x seconds.
    """
    best, result = math.inf, []
    for candidate in sorted(seconds, key=lambda c: (seconds[c], c.devices)):
        if candidate.devices * seconds[candidate] * (1 + tolerance) < best:
            result.append(candidate)
            best = candidate.devices * seconds[candidate]
    return result


def shares_of(seconds: Seconds) -> dict[tuple[str, int], float]:
    """Return {(attention, rows): the largest share of its roofline that a compiled candidate reaches}.

    Meshes of FSDP alone are left out: they may reach less than others, and limit only themselves.
    """
    shares: dict[tuple[str, int], float] = {}
    for c, found in seconds.items():
        if not c.only_fsdp:
            shares[c.attention, c.rows] = max(shares.get((c.attention, c.rows), 0.0), c.bounds.seconds / found)
    return shares


def share_bound(attention: str, rows: int, shares: Mapping[tuple[str, int], float]) -> float:
    """Return the share of its roofline that a candidate reaches at most, judged by `shares_of` those compiled.

    The share is taken to be a factor of the attention times one of the rows of a device: in multiples of the roofline,
    a step takes a constant time and one for each row, so that the share rises with the rows, ever more slowly.
    """
    own = {n: share for (kind, n), share in shares.items() if kind == attention}
    limits = [1.0, _share_by_rows(rows, own)]
    for kind in {kind for kind, _ in shares} - {attention}:
        other = {n: share for (each, n), share in shares.items() if each == kind}
        factors = [own[n] / other[n] for n in own.keys() & other.keys()]
        limits += [max(factors) * _share_by_rows(rows, other)] if factors else []
    return min(limits)


def _share_by_rows(rows: int, shares: Mapping[int, float]) -> float:
    """Bound the share at a number of rows by those at others; infinity if they say nothing."""
    if rows in shares:
        return shares[rows]
    more, fewer = [n for n in shares if n > rows], sorted(n for n in shares if n < rows)
    limits = [shares[min(more)]] if more else []
    if len(fewer) > 1:
        first, last = fewer[-2:]
        time, before = last / shares[last], first / shares[first]
        per_row = min(max(time - before, 0) / (last - first), time / last)  # the share does not fall with the rows
        limits.append(rows / (time + per_row * (rows - last)))
    return min(limits, default=math.inf)


def search(
    candidates: Sequence[Candidate],
    compiled: Callable[[Candidate], float | None],
    memory: int,
    stop: Callable[[], bool] = lambda: False,
    tolerance: float = TOLERANCE,
) -> Found:
    """Compile candidates until no other can be on the front, `stop` says so, or all fail.

    Those with an attention that was compiled before come first, then those whose mesh is not of FSDP alone, and of them
    the fastest.

    Args:
        candidates: candidates of one generation of chips.
        compiled: compiles a candidate and returns the seconds of a step, or None if it does not fit; raises
            `OutOfTime` to stop the search, or RunError to go on without the candidate.
        memory: bytes of a device. What needs no less of any part of the memory than a misfit does not fit either.
        stop: whether to stop before the next one.
        tolerance: a candidate must be better by this share.
    """
    found, failures = Found(), 0
    remaining = [c for c in candidates if c.bounds.memory <= memory]
    found.too_large = len(candidates) - len(remaining)
    while remaining:
        shares = shares_of(found.seconds)
        programs = {(c.attention, c.rows) for c in remaining}
        bound = {program: share_bound(*program, shares) for program in programs}
        kept = [c for c in remaining if not _beaten(c, bound[c.attention, c.rows], found.seconds, tolerance)]
        found.bounded += len(remaining) - len(kept)
        tried = {attention for attention, _ in shares}  # of another one, nothing but the roofline is known

        def rank(c: Candidate) -> tuple:
            unknown = bool(tried) and c.attention not in tried
            least = c.bounds.in_turn / bound[c.attention, c.rows]  # noqa: B023
            return unknown, c.only_fsdp, least, c.devices, c.attention

        remaining = sorted(kept, key=rank)
        if not remaining or stop():
            break
        candidate = remaining.pop(0)
        try:
            seconds = compiled(candidate)
        except OutOfTime:
            remaining.insert(0, candidate)
            break
        except RunError as error:
            found.failed[candidate] = str(error)
            failures += not isinstance(error, TookTooLong)  # others may be smaller
            if failures == _FAILURES and not found.seconds and not found.misfits:
                break  # it is not the candidates
            continue
        if seconds is not None:
            found.seconds[candidate] = seconds
            continue
        found.misfits.append(candidate)
        kept = [c for c in remaining if not _as_large(c, candidate)]
        found.too_large += len(remaining) - len(kept)
        remaining = kept
    found.open = remaining
    return found


def _beaten(candidate: Candidate, share: float, seconds: Seconds, tolerance: float) -> bool:
    least = candidate.bounds.seconds / share * (1 + tolerance)
    return any(s <= least and c.devices * s <= candidate.devices * least for c, s in seconds.items())


def _as_large(candidate: Candidate, misfit: Candidate) -> bool:
    keeps_no_less = _KEPT.index(candidate.remat) >= _KEPT.index(misfit.remat)
    same = candidate.attention == misfit.attention
    return same and keeps_no_less and candidate.bounds.needs_no_less(misfit.bounds)
