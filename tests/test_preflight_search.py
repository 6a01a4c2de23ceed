"""The search of a plan finds the same front as compiling everything, for compilers that respect the bounds."""

import dataclasses
import itertools
import random

import pytest

from tubevit.preflight.bounds import Bounds
from tubevit.preflight.candidates import Candidate
from tubevit.preflight.search import OutOfTime, front, search, share_bound, shares_of

HBM = 1000


def candidate(devices=4, rows=8, seconds=1.0, attention="auto", memory=10, fsdp=1, network=0.0, **fields):
    """A candidate that needs so many seconds and bytes at least."""
    bounds = Bounds(memory, 0, 0, False, seconds, 0.0, network)
    given = dict(topology=f"slice of {devices}", chip="v5e", mesh=(devices // fsdp, fsdp, 1), grad_accum_steps=1)
    given |= {"remat": "names"} | fields
    return Candidate(**given, devices=devices, attention=attention, rows=rows, bounds=bounds)


def random_candidates(rng):
    """Candidates of some slices, as the real ones are: the fewer devices, the more rows, or the more parts."""
    found = []
    for devices, fsdp, parts in itertools.product((1, 2, 4, 8, 16), (1, 2, 4), (1, 2, 4, 8)):
        rows = 64 // (devices * parts)
        if rows and devices >= fsdp:
            for attention in ("auto", "einsum"):
                seconds = 64 / devices + rng.random() * parts / 4 + 1 / fsdp
                memory = rng.randrange(200, 700) // fsdp + 9 * rows
                one = candidate(devices, rows, seconds, attention, memory, fsdp, rng.random(), grad_accum_steps=parts)
                found.append(one)
    return rng.sample(found, rng.randrange(1, len(found)))


def compiler(rng):
    """A compiler as the search takes it to be, and the list of its calls: memory and time beyond the bounds."""
    kinds, of_fsdp_alone = {"auto": rng.uniform(0.3, 1), "einsum": rng.uniform(0.2, 1)}, rng.uniform(0.3, 1)
    constant, more, calls = rng.uniform(0, 20), rng.uniform(1, 2), []

    def compiled(c):
        calls.append(c)
        share = kinds[c.attention] * c.rows / (c.rows + constant) * (of_fsdp_alone if c.only_fsdp else 1)
        return c.bounds.seconds / share if c.bounds.memory * more <= HBM else None

    return compiled, calls


def points(found, seconds):
    return [(seconds[c], c.devices * seconds[c]) for c in found]


@pytest.mark.parametrize("seed", range(40))
def test_the_front_is_that_of_compiling_everything(seed):
    rng = random.Random(seed)
    given = random_candidates(rng)
    compiled, calls = compiler(rng)
    everything = {c: s for c in given if (s := compiled(c)) is not None}
    calls.clear()
    found = search(given, compiled, HBM, tolerance=1e-9)
    expected = points(front(everything, 1e-9), everything)
    assert points(front(found.seconds, 1e-9), found.seconds) == [pytest.approx(point) for point in expected]
    assert not found.open and len(calls) == len(set(calls)) == len(found.seconds) + len(found.misfits)
    assert len(given) == len(calls) + found.too_large + found.bounded
    assert all(c.bounds.memory <= HBM for c in calls)

    calls.clear()
    found = search(given, compiled, HBM)
    near = points(front(found.seconds, 0), found.seconds)
    for time, cost in expected:
        assert any(t <= 1.05 * time * (1 + 1e-9) and c <= 1.05 * cost * (1 + 1e-9) for t, c in near)
    shown = points(front(found.seconds), found.seconds)
    for time, cost in near:
        assert any(t <= time and c <= 1.05 * cost * (1 + 1e-9) for t, c in shown)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_alone_lose_nothing(seed):
    """Steps with an attention each say nothing about each other: times are any that the rooflines allow."""
    rng = random.Random(seed)
    given = [dataclasses.replace(c, attention=str(i)) for i, c in enumerate(random_candidates(rng))]
    seconds = {c: c.bounds.seconds * rng.uniform(1, 1.5) for c in given}
    found = search(given, seconds.__getitem__, 10 * HBM, tolerance=0.0)
    assert set(front(found.seconds, 0)) == set(front(seconds, 0))
    assert len(given) < 20 or found.bounded > 0


def test_a_slower_step_must_save_more_than_5_percent():
    """Of devices x seconds: 8, 7.7, which counts as equal, and 7.5; the fastest is on the front in any case."""
    seconds = {candidate(devices=devices): time for devices, time in ((4, 2.0), (2, 3.85), (1, 7.5), (16, 1.99))}
    assert [c.devices for c in front(seconds)] == [16, 4, 1] and len(front(seconds, 0)) == 4


def test_few_steps_are_compiled():
    """Of the slices, meshes, parts and kinds of attention of a large run: one for each number of rows, and one more."""
    rng = random.Random(0)
    given = [
        candidate(devices, 256 // devices // parts, 256 / devices + 0.01 * parts + 0.1 / fsdp, attention, 10, fsdp)
        for devices in (1, 4, 8, 16, 32, 64, 128, 256) for parts in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8, 16)
        for attention in ("auto", "einsum") if devices % fsdp == 0 and 256 // devices >= parts
    ]  # fmt: skip
    rng.shuffle(given)

    def compiled(c):
        return c.bounds.seconds / (0.6 * c.rows / (c.rows + 2) * (0.7 if c.attention == "einsum" else 1))

    found = search(given, compiled, HBM)
    assert len(given) > 200 and len(found.seconds) <= 9 and not found.misfits
    assert {c.attention for c in front(found.seconds)} == {"auto"}


def test_a_misfit_excludes_what_needs_more():
    small, large = candidate(memory=100), candidate(memory=900, seconds=2.0, devices=2)
    other = candidate(memory=950, devices=2, seconds=2.0, attention="einsum")
    calls = []
    found = search([large, small, other], lambda c: calls.append(c) or None, HBM)
    assert found.misfits == calls and set(calls) == {small, other} and found.too_large == 1


def test_a_misfit_excludes_only_what_keeps_no_less():
    """Arithmetic counts the same for all that keep at least what `names` does."""
    kept = {remat: candidate(memory=900, remat=remat) for remat in ("none", "names", "full")}
    for misfit, excluded in (("none", 0), ("names", 1), ("full", 2)):
        order = [kept[misfit], *(c for c in kept.values() if c is not kept[misfit])]
        seconds = [dataclasses.replace(c.bounds, compute=i + 1.0) for i, c in enumerate(order)]
        order = [dataclasses.replace(c, bounds=each) for c, each in zip(order, seconds)]
        found = search(order, lambda c: None if c is order[0] else 5.0, HBM)  # noqa: B023
        assert found.misfits == order[:1] and found.too_large == excluded, misfit


def test_a_search_out_of_time_leaves_the_rest_open():
    given = [candidate(devices, 64 // devices, 64 / devices) for devices in (1, 2, 4, 8)]

    def compiled(c):
        if c.devices == 4:
            raise OutOfTime
        return c.bounds.seconds * 2

    found = search(given, compiled, HBM)
    assert [c.devices for c in found.seconds] == [8] and [c.devices for c in found.open] == [4, 2, 1]


def test_stopping_leaves_the_rest_open():
    given = [candidate(devices, 64 // devices, 64 / devices) for devices in (1, 2, 4, 8)]
    stops = iter([False, True])
    found = search(given, lambda c: c.bounds.seconds * 2, HBM, lambda: next(stops))
    assert [c.devices for c in found.seconds] == [8] and not found.bounded + found.too_large
    assert [c.devices for c in found.open] == [4, 2, 1]


def test_share():
    """Where steps take a constant time and one per row, the bound is exact with more rows; attention is a factor."""

    def share(rows):
        return 0.8 * rows / (rows + 2)

    shares = {("auto", n): share(n) for n in (2, 4, 16)} | {("einsum", 4): share(4) / 2}
    given = {candidate(rows=n, attention=kind): 1 / found for (kind, n), found in shares.items()}
    assert shares == pytest.approx(shares_of(given))
    for rows in (2, 4, 8, 12, 16, 64, 256):
        assert share_bound("auto", rows, shares) == pytest.approx(share(rows)), rows
        assert share_bound("einsum", rows, shares) == pytest.approx(share(rows) / 2), rows
    assert share_bound("auto", 1, shares) == pytest.approx(share(2))
    assert share_bound("xla", 2, shares) == 1.0
    falling = {("auto", 8): 0.6, ("auto", 16): 0.4}  # a share is never taken to fall
    assert share_bound("auto", 64, falling) == pytest.approx(0.4) and share_bound("auto", 1, falling) == 0.6


def test_another_attention_is_tried_last():
    """Of it, nothing is known but the roofline, which is that of the first."""
    calls = []
    given = [candidate(d, 64 // d, 64 / d, kind) for d in (8, 4, 2) for kind in ("auto", "einsum")]
    search(given, lambda c: calls.append(c.attention) or c.bounds.seconds * (2 if c.attention == "auto" else 3), HBM)
    assert calls == ["auto"] * (len(calls) - 1) + ["einsum"] and len(calls) > 2
