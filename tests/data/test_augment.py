import numpy as np
import pytest

from tubevit.data.augment import FRAME_ORDERS, Augment
from tubevit.data.warp import centre_crop
from tubevit.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def clip():
    """(6, 40, 60, 3): red is the row, green the column, blue the frame."""
    t, y, x = np.meshgrid(np.arange(6), np.arange(40), np.arange(60), indexing="ij")
    return np.stack([y * 4, x * 4, t * 10], axis=-1).astype(np.uint8)


def test_by_default_the_middle(clip):
    np.testing.assert_array_equal(Augment()(clip, 32, rng()), centre_crop(clip, 32))
    assert Augment().position(rng()) == 0.5


def test_one_crop_for_all_frames(clip):
    augment = Augment(random_crop=True, scale=1.5)
    boxes = set()
    for seed in range(50):
        out = augment(clip, 24, rng(seed))
        assert out.shape == (6, 24, 24, 3) and out.flags.c_contiguous
        np.testing.assert_array_equal(out[..., :2], np.broadcast_to(out[:1, ..., :2], out[..., :2].shape))
        np.testing.assert_array_equal(out[:, 0, 0, 2], np.arange(6) * 10)
        np.testing.assert_array_equal(out, augment(clip, 24, rng(seed)))
        assert (np.diff(out[0, :, 0, 0].astype(int)) >= 0).all() and (np.diff(out[0, 0, :, 1].astype(int)) >= 0).all()
        rows, columns = np.ptp(out[0, :, 0, 0].astype(int)) / 4, np.ptp(out[0, 0, :, 1].astype(int)) / 4
        assert abs(rows - columns) < 1.5  # squares
        assert 40 / 1.5 * 23 / 24 - 3 < rows <= 40
        boxes.add((out[0, 0, 0, 0], out[0, 0, 0, 1], rows))
    assert len(boxes) > 40


@pytest.mark.parametrize("shape", [(8, 8), (8, 9), (31, 8), (8, 200)])
def test_crops_stay_inside(shape):
    """A crop beyond the frame would be cut short, and no longer square."""
    row, column = np.meshgrid(*map(np.arange, shape), indexing="ij")
    clip = np.stack([row, column, row * 0], axis=-1)[None].astype(np.uint8)
    reached = []
    for seed in range(200):
        out = Augment(random_crop=True, scale=2.0)(clip, 64, rng(seed))[0, ..., :2].astype(int)
        extents = [np.ptp(out[..., axis]) + 1 for axis in (0, 1)]
        assert extents[0] == extents[1] <= min(shape)
        reached.append((out.min(axis=(0, 1)), out.max(axis=(0, 1))))
    low, high = np.array(reached).min(axis=0)[0], np.array(reached).max(axis=0)[1]
    assert (low <= 1).all() and (high >= np.array(shape) - max(2, max(shape) // 50 + 1)).all()  # to all edges


def test_flip_only_when_asked(clip):
    flipped = {
        flip: [
            (np.diff(Augment(flip=flip)(clip, 40, rng(seed))[0, 0, :, 1].astype(int)) < 0).all() for seed in range(200)
        ]
        for flip in (False, True)
    }
    assert not any(flipped[False])
    assert 70 < sum(flipped[True]) < 130
    mirrored = Augment(flip=True)(clip, 40, rng(flipped[True].index(True)))
    np.testing.assert_array_equal(mirrored, centre_crop(clip, 40)[:, :, ::-1])


def test_frame_orders(clip):
    plain = centre_crop(clip, 32)
    np.testing.assert_array_equal(Augment(frame_order="reversed")(clip, 32, rng()), plain[::-1])
    orders = set()
    for seed in range(30):
        out = Augment(frame_order="shuffled")(clip, 32, rng(seed))
        order = tuple((out[:, 0, 0, 2] // 10).tolist())
        np.testing.assert_array_equal(out, plain[list(order)])
        orders.add(order)
    assert len(orders) > 25 and all(sorted(order) == list(range(6)) for order in orders)


def test_positions_cover_the_video():
    positions = [Augment(random_crop=True).position(rng(seed)) for seed in range(200)]
    assert 0 <= min(positions) < 0.05 and 0.95 < max(positions) < 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"scale": 0.9, "random_crop": True}, "augment.scale must be at least 1; found 0.9"),
        ({"scale": 1.2}, "needs augment.random_crop"),
        ({"frame_order": "reverse"}, "unknown frame_order 'reverse'; did you mean 'reversed'"),
        ({"frame_order": None}, f"valid: {', '.join(FRAME_ORDERS)}"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(UserError) as error:
        Augment(**fields)
    assert message in str(error.value)
