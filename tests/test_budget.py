"""Budgets: which tokens are kept, against exact arithmetic, loops and sets."""

import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from tubevit.budget import Budget, as_budget, shares, spread
from tubevit.errors import UserError
from tubevit.motion import changes, most_moving, motion_lines
from tubevit.tubes import PRESETS, TubeSet
from tubevit.windows import TubeBatch, take_windows

GRIDS = [((2, 4, 4), (3, 4, 4), (2, 4, 4), (1, 8, 8)), ((1, 8, 8),), ((2, 3, 5), (1, 1, 1), (7, 1, 2))]
TUBES = TubeSet.from_text("3x9x10/4x6x8+1x2x0%2x3x1_1x12x12/8x8x8_4x4x4/8x16x16")


def clips(*shape, batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *shape, 3), np.uint8)


@pytest.mark.parametrize("rule", ["even", "tube", "motion", "random"])
@pytest.mark.parametrize("grids", GRIDS)
def test_every_share(grids, rule):
    """As many tokens as asked for, each once, in order; a larger share keeps what a smaller one keeps."""
    sizes, before = list(map(math.prod, grids)), set()
    for total in range(1, sum(sizes) + 1):
        budget = Budget(total / sum(sizes), rule)
        chosen = budget.choose(grids)
        assert budget.total(sum(sizes)) == sum(map(len, chosen)) == total
        for tokens, size in zip(chosen, sizes, strict=True):
            assert (np.diff(tokens) > 0).all() and set(tokens) <= set(range(size))
        kept = {(tube, token) for tube, tokens in enumerate(chosen) for token in tokens}
        assert before < kept
        before = kept
        counts = [len(tokens) for tokens in chosen]
        if rule in ("even", "motion"):
            assert max(abs(n - total * size / sum(sizes)) for n, size in zip(counts, sizes)) <= 1
        if rule == "tube":  # whole tubes, then a part of one, then none
            whole = [n == size for n, size in zip(counts, sizes)]
            assert whole == sorted(whole, reverse=True) and not any(counts[whole.count(True) + 1 :])


def test_shares_are_rounded_and_never_to_nothing():
    assert [Budget(share).total(10) for share in (0.001, 0.14, 0.15, 0.5, 0.95, 1)] == [1, 1, 2, 5, 10, 10]


@pytest.mark.parametrize("grid", [(2, 4, 4), (3, 5, 2), (1, 6, 6), (1, 1, 1)])
def test_each_token_is_the_farthest_from_those_before(grid):
    """By fractions, with axes that are circles of length 1."""
    places = list(itertools.product(*map(range, grid)))

    def distance(one, other):
        apart = (abs(a - b) for a, b in zip(places[one], places[other]))
        return sum(Fraction(min(d, n - d), n) ** 2 for d, n in zip(apart, grid))

    order = spread(grid).tolist()
    assert sorted(order) == list(range(len(places)))
    for number in range(1, len(order)):
        nearest = [min(distance(token, other) for other in order[:number]) for token in range(len(places))]
        assert order[number] == nearest.index(max(nearest))


def test_text():
    assert str(Budget.from_text("25%")) == "25%" and Budget.from_text("12.5 %:motion") == Budget(0.125, "motion")
    for share in (0.333333333, 1 / 3, 0.07, 1e-5, np.float64(2 / 3)):
        assert Budget.from_text(str(Budget(share))) == Budget(share)
    assert shares("100%, 25%,50%,25%") == [0.25, 0.5, 1] and shares("") == []
    for text in ("25", "0.25", "%", "25%:", "-5%", "25%:motion:tube"):
        with pytest.raises(UserError, match="must be SHARE%.*for example 25%"):
            Budget.from_text(text)
    for text in ("0%", "101%"):
        with pytest.raises(UserError, match="above 0 % and at most 100 %"):
            Budget.from_text(text)
    with pytest.raises(UserError, match="unknown rule of a budget 'motoin'; did you mean 'motion'"):
        Budget.from_text("25%:motoin")
    for text in ("25%:motion", "25%:even", "25", ",", "25%,,50%"):
        with pytest.raises(UserError, match="without a rule"):
            shares(text)
    assert as_budget(None) is None and as_budget(Budget(0.5)) == as_budget("50%") == Budget(0.5)
    for number, suggested in ((0.25, "did you mean '25%'"), (25, "found 25$"), (True, "found True$")):
        with pytest.raises(UserError, match=f"must be the text SHARE%.*{suggested}"):
            as_budget(number)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_change_by_loops(padding):
    """Differences to both neighbours of each pixel that is looked at, in all windows of a token."""
    shape = (11, 23, 34)
    video, (rows, columns) = clips(*shape, batch=1)[0].astype(int), motion_lines(TUBES, shape)
    assert rows.tolist() == list(range(2, 23, 4)) and columns.tolist() == list(range(2, 34, 4))
    tubes, pixels = TubeSet(TUBES.tubes, padding), video[:, rows][:, :, columns].astype(np.uint8)[None]
    host, device = changes(tubes, pixels, shape), changes(tubes, jnp.asarray(pixels), shape, jnp)
    for tube, (found,), (again,) in zip(TUBES.tubes, host, device, strict=True):
        expected = []
        for token in itertools.product(*map(range, tube.grid(shape, padding))):
            axes = [index[at].ravel().tolist() for index, at in zip(tube.indices(shape, padding), token)]
            total = 0
            for t, y, x in itertools.product(*axes):
                if y in rows and x in columns and 0 <= t < 11 and all(np.array([t, y, x]) >= tube.offset):
                    before, after = (t - 1 if t else 1), (t + 1 if t < 10 else 9)
                    total += sum(np.abs(video[t, y, x] - video[other, y, x]).sum() for other in (before, after))
            expected.append(total)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(again, expected)


def test_moving_tokens_are_kept():
    """Where one part of a clip moves and the rest stands still, tokens there come first, and then those of `even`."""
    tubes, video = PRESETS["small"].with_budget("25%:motion"), np.full((2, 16, 64, 64, 3), 90, np.uint8)
    video[0, 8:, 32:48, 48:] = clips(8, 16, 16, batch=1)[0]
    batch = take_windows(video, tubes)
    even = tubes.budget.choose(tubes.grid((16, 64, 64)))
    whole = take_windows(video, tubes.with_budget(None))
    for tube, kept, still, windows, chosen in zip(
        tubes.tubes, tubes.kept((16, 64, 64)), even, whole.windows, batch.chosen
    ):
        moving = {i for i, window in enumerate(windows[0]) if tube.kernel[0] > 1 and window.std() > 1}
        assert len(moving) <= kept and moving <= set(chosen[0]), tube
        np.testing.assert_array_equal(chosen[1], still)
    floats = most_moving(tubes, (video[:, :, 1::2, 1::2] / 127.5 - 1).astype(np.float32), (16, 64, 64))
    for one, other in zip(floats, most_moving(tubes, video[:, :, 1::2, 1::2], (16, 64, 64)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("budget", ["25%", "60%:tube", "30%:random", "25%:motion", "97%"])
def test_windows_are_those_of_the_kept_tokens(budget, padding):
    shape = (13, 37, 50)
    tubes, video = TubeSet(TUBES.tubes, padding).with_budget(budget), clips(*shape)
    for given, used in ((video, tubes), (video[:, 0], tubes.for_images())):
        whole, batch = take_windows(given, used.with_budget(None)), take_windows(given, tubes)
        batch.check()
        assert [window.shape[1] for window in batch.windows] == used.kept(batch.clip_shape)
        for found, windows, kept in zip(batch.windows, whole.windows, batch.kept, strict=True):
            for row in range(2):
                np.testing.assert_array_equal(found[row], windows[row][kept[row] if kept.ndim == 2 else kept])
        assert take_windows(given[:0], tubes).windows[0].shape[0] == 0


def test_counts_of_a_budget():
    shape, tubes = (16, 64, 64), PRESETS["small"].with_budget("25%:random")
    batch = take_windows(clips(*shape, batch=1), tubes)
    assert batch.nbytes == tubes.values_read(shape)
    centres = PRESETS["small"].centres(shape)
    kept = np.concatenate([at + low for at, low in zip(tubes.chosen(shape), (0, 32, 80, 112))])
    np.testing.assert_array_equal(tubes.centres(shape), centres[kept])
    read = np.zeros(shape, bool)
    for tube, tokens in zip(tubes.tubes, tubes.chosen(shape)):
        for token in zip(*np.unravel_index(tokens, tube.grid(shape))):
            axes = [index[at].ravel() for index, at in zip(tube.indices(shape), token)]
            read[np.ix_(*(axis[axis < size] for axis, size in zip(axes, shape)))] = True
    assert tubes.pixels_read(shape) == read.mean() < PRESETS["small"].pixels_read(shape)
    for budget in ("100%", "100%:motion"):
        assert tubes.with_budget(budget) == PRESETS["small"]
    for counted in (tubes.with_budget("25%:motion").centres, tubes.with_budget("25%:motion").pixels_read):
        with pytest.raises(UserError, match="budget 25%:motion are different in each clip"):
            counted(shape)


def test_chosen_tokens_are_checked():
    tubes = PRESETS["small"].with_budget("25%:motion")
    batch = take_windows(clips(16, 64, 64), tubes)
    with pytest.raises(UserError, match="chosen tokens of budget 25%:motion must be"):
        TubeBatch(batch.windows, tubes, batch.shape, batch.chosen[:-1]).check()
