import dataclasses

import cv2
import numpy as np
import pytest

from tubevit.data import colour, randaugment
from tubevit.data.augment import FRAME_ORDERS, Augment
from tubevit.data.warp import centre_crop, sample, square_map
from tubevit.errors import UserError
from tubevit.windows import whole_grid


def rng(seed=0):
    return np.random.default_rng(seed)


def use(augment, clip, size, random):
    transform = augment.sample_transform(clip.shape[1:3], len(clip), size, random)
    return transform(clip, size, [whole_grid((len(clip), size, size))])[0]


@pytest.fixture
def clip():
    """(6, 40, 60, 3): red is the row, green the column, blue the frame."""
    t, y, x = np.meshgrid(np.arange(6), np.arange(40), np.arange(60), indexing="ij")
    return np.stack([y * 4, x * 4, t * 10], axis=-1).astype(np.uint8)


def test_by_default_the_middle(clip):
    np.testing.assert_array_equal(use(Augment(), clip, 32, rng()), centre_crop(clip, 32))
    assert Augment().clip_position(rng()) == 0.5


def test_one_crop_for_all_frames(clip):
    augment = Augment(random_crop=True, scale=1.5)
    boxes = set()
    for seed in range(50):
        out = use(augment, clip, 24, rng(seed))
        assert out.shape == (6, 24, 24, 3) and out.flags.c_contiguous
        np.testing.assert_array_equal(out[..., :2], np.broadcast_to(out[:1, ..., :2], out[..., :2].shape))
        np.testing.assert_array_equal(out[:, 0, 0, 2], np.arange(6) * 10)
        np.testing.assert_array_equal(out, use(augment, clip, 24, rng(seed)))
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
        out = use(Augment(random_crop=True, scale=2.0), clip, 64, rng(seed))[0, ..., :2].astype(int)
        extents = [np.ptp(out[..., axis]) + 1 for axis in (0, 1)]
        assert extents[0] == extents[1] <= min(shape)
        reached.append((out.min(axis=(0, 1)), out.max(axis=(0, 1))))
    low, high = np.array(reached).min(axis=0)[0], np.array(reached).max(axis=0)[1]
    assert (low <= 1).all() and (high >= np.array(shape) - max(2, max(shape) // 50 + 1)).all()  # to all edges


def test_flip_only_when_asked(clip):
    flipped = {
        flip: [
            (np.diff(use(Augment(flip=flip), clip, 40, rng(seed))[0, 0, :, 1].astype(int)) < 0).all()
            for seed in range(200)
        ]
        for flip in (False, True)
    }
    assert not any(flipped[False])
    assert 70 < sum(flipped[True]) < 130
    mirrored = use(Augment(flip=True), clip, 40, rng(flipped[True].index(True)))
    np.testing.assert_array_equal(mirrored, centre_crop(clip, 40)[:, :, ::-1])


def test_frame_orders(clip):
    plain = centre_crop(clip, 32)
    np.testing.assert_array_equal(use(Augment(frame_order="reversed"), clip, 32, rng()), plain[::-1])
    orders = set()
    for seed in range(30):
        out = use(Augment(frame_order="shuffled"), clip, 32, rng(seed))
        order = tuple((out[:, 0, 0, 2] // 10).tolist())
        np.testing.assert_array_equal(out, plain[list(order)])
        orders.add(order)
    assert len(orders) > 25 and all(sorted(order) == list(range(6)) for order in orders)


ALL = Augment(random_crop=True, area=0.3, flip=True, rand_layers=3, rand_magnitude=9.0, colour_jitter=0.4, erasing=0.5)


@pytest.fixture
def still():
    """(5, 47, 61, 3): five times the same frame."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.repeat(cv2.resize(coarse, (61, 47))[None], 5, axis=0)


def test_one_draw_for_all_frames(still):
    """A still clip stays still; the seed decides, and not the number of frames (save for the counts of equalize)."""
    without = dataclasses.replace(ALL, rand_layers=0)
    seen = set()
    for seed in range(60):
        out = use(ALL, still, 33, rng(seed))
        assert out.shape == (5, 33, 33, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
        np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))
        np.testing.assert_array_equal(use(without, still, 33, rng(seed))[:1], use(without, still[:1], 33, rng(seed)))
        np.testing.assert_array_equal(out, use(ALL, still, 33, rng(seed)))
        seen.add(out.tobytes())
    assert len(seen) == 60


def test_the_clip_itself_is_left_alone(still):
    before = still.copy()
    use(ALL, still, 47, rng(3))
    use(Augment(rand_layers=4), still[:, :, :47], 47, rng(3))  # a map that changes nothing
    np.testing.assert_array_equal(still, before)


def test_order_of_the_stages(still):
    """Geometry, RandAugment's colours, jitter, erasing, each as its own module does it."""
    for seed in range(20):
        augment = Augment(rand_layers=2, rand_magnitude=7.0, colour_jitter=0.3, erasing=1.0)
        random = rng(seed)
        drawn = randaugment.sample_ops(2, 7.0, random)
        expected = sample(still, square_map(47, 61, 40) @ randaugment.geometric_map(drawn, 40), 40)
        for change, value in [*randaugment.colour_changes(drawn), *colour.sample_jitter(0.3, random)]:
            change(expected, value)
        random.uniform()
        colour.Noise.sample(40, random).paste(expected, whole_grid(expected.shape[:3]))
        np.testing.assert_array_equal(use(augment, still, 40, rng(seed)), expected)


def test_erasing_has_its_probability(clip):
    plain = centre_crop(clip, 32)
    erased = [(use(Augment(erasing=0.25), clip, 32, rng(seed)) != plain).any() for seed in range(400)]
    assert 70 < sum(erased) < 130


def test_random_resized_crops():
    """Positions are read from the pixels: share of the frame, shape, and that all of it is reached."""
    row, column = np.meshgrid(np.arange(200), np.arange(250), indexing="ij")
    clip = np.stack([row, column, row * 0], axis=-1)[None].astype(np.uint8)
    shares, ratios, corners = [], [], []
    for seed in range(300):
        out = use(Augment(random_crop=True, area=0.2, ratio=1.5), clip, 64, rng(seed))[0, ..., :2].astype(float)
        rows, columns = (out[..., axis].max() - out[..., axis].min() + 1 for axis in (0, 1))
        shares.append(rows * columns / 50_000), ratios.append(columns / rows)
        corners.append(out[0, 0]), corners.append(out[-1, -1])
    assert 0.17 < min(shares) < 0.25 and 0.9 < max(shares) <= 1
    assert 0.64 < min(ratios) < 0.75 and 1.4 < max(ratios) < 1.56
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    assert (low < 4).all() and (high > (195, 245)).all()


def test_fields_are_plain_values():
    """They are keys of the configuration, read by the types of their defaults."""
    for field in dataclasses.fields(Augment):
        assert type(field.default) in (bool, int, float, str)


def test_positions_cover_the_video():
    clip_positions = [Augment(random_crop=True).clip_position(rng(seed)) for seed in range(200)]
    assert 0 <= min(clip_positions) < 0.05 and 0.95 < max(clip_positions) < 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"scale": 0.9, "random_crop": True}, "augment.scale must be at least 1; found 0.9"),
        ({"scale": 1.2}, "needs augment.random_crop"),
        ({"area": 0.0, "random_crop": True}, "augment.area must be above 0 and at most 1; found 0.0"),
        ({"area": 0.5}, "augment.area below 1 needs augment.random_crop"),
        ({"area": 0.5, "scale": 1.2, "random_crop": True}, "set one of them"),
        ({"ratio": 0.5}, "augment.ratio must be at least 1; found 0.5"),
        ({"rand_layers": -1}, "augment.rand_layers must be at least 0 and at most 100; found -1"),
        ({"rand_magnitude": 10.5}, "augment.rand_magnitude must be at least 0 and at most 10; found 10.5"),
        (
            {"rand_magnitude": float("nan")},
            "augment.rand_magnitude must be a finite number",
        ),
        ({"colour_jitter": 1.5}, "augment.colour_jitter must be at least 0 and at most 1; found 1.5"),
        ({"erasing": -0.1}, "augment.erasing must be at least 0 and at most 1; found -0.1"),
        ({"frame_order": "reverse"}, "unknown frame_order 'reverse'; did you mean 'reversed'"),
        ({"frame_order": None}, f"valid: {', '.join(FRAME_ORDERS)}"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(UserError) as error:
        Augment(**fields)
    assert message in str(error.value)


def test_speed():
    """Factors from a half to 2, as many slower as faster; without it nothing is drawn."""
    factors = [Augment(speed=2.0).clip_speed(rng(seed)) for seed in range(300)]
    assert 0.5 <= min(factors) < 0.52 and 1.95 < max(factors) <= 2 and 120 < sum(f < 1 for f in factors) < 180
    random = rng()
    assert Augment().clip_speed(random) == 1.0 and random.uniform() == rng().uniform()
    with pytest.raises(UserError, match="augment.speed must be at least 1"):
        Augment(speed=0.5)


def test_a_ratio_needs_crops_of_another_area():
    with pytest.raises(UserError, match="augment.ratio is that of crops of another area: it goes with augment.area"):
        Augment(random_crop=True, ratio=2.0)
    assert Augment(random_crop=True, area=0.5, ratio=2.0).ratio == 2
