"""Each change of a single frame against Pillow; clips against the definition."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tubevit.data import colour
from tubevit.windows import whole_grid

SHAPES = [(64, 64), (47, 61), (8, 200), (33, 2), (1, 1), (3, 3), (1, 7)]


def images():
    for seed, (height, width) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        yield rng.integers(0, 256, (height, width, 3), np.uint8)
        yield rng.integers(60, 190, (height, width, 3), np.uint8)
        yield cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (width, height))
        yield np.full((height, width, 3), (200, 30, 90), np.uint8)
        grey = rng.integers(0, 256, (height, width, 1), np.uint8)
        yield np.repeat(grey, 3, axis=2)
        yield rng.choice(np.array([0, 7, 255], np.uint8), (height, width, 3), p=[0.9, 0.07, 0.03])


def changed(function, clip, *arguments):
    clip = np.array(clip)
    assert function(clip, *arguments) is None
    return clip


FACTORS = (0.0, 0.1, 0.37, 0.55, 1.0, 1.23, 1.9)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    "function, enhance, tolerance",
    [
        (colour.brightness, ImageEnhance.Brightness, 0),
        (colour.contrast, ImageEnhance.Contrast, 1),  # the mean is of exact greys, not of rounded ones
        (colour.saturation, ImageEnhance.Color, 1),  # OpenCV rounds greys otherwise
        (colour.sharpness, ImageEnhance.Sharpness, 1),  # decimals just below a whole number
    ],
    ids=["brightness", "contrast", "saturation", "sharpness"],
)
def test_factors(function, enhance, tolerance, factor):
    different, pixels = 0, 0
    for image in images():
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(int)
        errors = np.abs(changed(function, image[None], factor)[0] - expected)
        assert errors.max() <= tolerance
        if factor == 1:
            np.testing.assert_array_equal(expected, image)
            assert errors.max() == 0
        different, pixels = different + (errors > 0).sum(), pixels + errors.size
    assert different <= 0.02 * pixels


@pytest.mark.parametrize(
    "function, pillow, values",
    [
        (colour.posterize, ImageOps.posterize, range(1, 9)),
        (colour.solarize, ImageOps.solarize, (0, 1, 77, 128, 255, 256)),
        (lambda clip, _: colour.autocontrast(clip), lambda image, _: ImageOps.autocontrast(image), [None]),
        (lambda clip, _: colour.equalize(clip), lambda image, _: ImageOps.equalize(image), [None]),
    ],
    ids=["posterize", "solarize", "autocontrast", "equalize"],
)
def test_tables_are_exact(function, pillow, values):
    for value in values:
        for image in images():
            expected = np.asarray(pillow(Image.fromarray(image), value))
            np.testing.assert_array_equal(changed(function, image[None], value)[0], expected)


@pytest.mark.parametrize("function", [colour.autocontrast, colour.equalize, lambda clip: colour.contrast(clip, 0.3)])
def test_statistics_are_of_the_whole_clip(function):
    """A clip comes out as one tall image of its frames does."""
    clip = np.stack([np.random.default_rng(i).integers(20 * i, 120 + 30 * i, (17, 23, 3), np.uint8) for i in range(4)])
    tall = changed(function, clip.reshape(1, -1, 23, 3)).reshape(clip.shape)
    whole = changed(function, clip)
    np.testing.assert_array_equal(whole, tall)
    assert any((changed(function, clip[i : i + 1])[0] != whole[i]).any() for i in range(4))


def test_jitter():
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 11, 3), np.uint8)
    factors, orders = [], set()

    class Recorder:
        """A generator that notes the factors it draws."""

        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def permutation(self, items):
            order = self.rng.permutation(items)
            orders.add(tuple(change.__name__ for change in order))
            return order

        def uniform(self, low, high):
            factors.append(self.rng.uniform(low, high))
            return factors[-1]

    for seed in range(100):
        rng = Recorder(seed)
        out = image.copy()
        for change, value in colour.sample_jitter(0.4, rng):
            change(out, value)
        expected = image.copy()
        rng = np.random.default_rng(seed)
        for change in rng.permutation([colour.brightness, colour.contrast, colour.saturation]):
            change(expected, rng.uniform(0.6, 1.4))
        np.testing.assert_array_equal(out, expected)
    assert len(orders) == 6 and len(factors) == 300
    assert 0.6 <= min(factors) < 0.63 and 1.37 < max(factors) <= 1.4


@pytest.mark.parametrize("size", [224, 61, 7, 1])
def test_erasing(size):
    clip = np.full((2, size, size, 3), 44, np.uint8)
    areas, ratios, tops, bottoms = [], [], [], []
    for seed in range(300):
        out = clip.copy()
        colour.Noise.sample(size, np.random.default_rng(seed)).paste(out, whole_grid(clip.shape[:3]))
        np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))  # the same in all frames
        erased = (out[0] != clip[0]).any(axis=-1)
        if not erased.any():
            assert size < 8
            continue
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        box = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.99  # noise can meet the old value
        areas.append(box.size / erased.size)
        ratios.append(box.shape[0] / box.shape[1])
        tops.append(rows[0]), bottoms.append(rows[-1])
    if size == 224:
        assert 0.018 < min(areas) < 0.03 and 0.31 < max(areas) < 0.335
        assert 0.28 < min(ratios) < 0.35 and 2.8 < max(ratios) < 3.5
        assert 0.85 < np.exp(np.mean(np.log(ratios))) < 1.18
        assert min(tops) < 5 and max(bottoms) > 218
        assert abs(out[0][erased].mean() - 127.5) < 3  # noise
