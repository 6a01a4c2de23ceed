"""The operations of RandAugment against Pillow, at the magnitudes and in the directions in which they are drawn."""

import collections
import math

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data.test_warp import difference, noise, reference, smooth
from tubevit.data.randaugment import OPERATIONS, colour_changes, geometric_map, sample_ops
from tubevit.data.warp import crop_map, flip_map, sample


def affine(image, *row):
    return image.transform(image.size, Image.Transform.AFFINE, row, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)


def enhance(kind):
    return lambda image, m, sign: kind(image).enhance(1 + sign * 0.9 * m)


# (image, magnitude / 10, sign): the definitions of AutoAugment's and RandAugment's papers, in Pillow's words.
PILLOW = {
    "identity": lambda image, m, sign: image,
    "autocontrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, m, sign: ImageOps.equalize(image),
    "rotate": lambda image, m, sign: image.rotate(sign * 30 * m, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
    "solarize": lambda image, m, sign: ImageOps.solarize(image, 256 - 256 * m),
    "color": enhance(ImageEnhance.Color),
    "posterize": lambda image, m, sign: ImageOps.posterize(image, 8 - round(4 * m)),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, m, sign: affine(image, 1, sign * 0.3 * m, 0, 0, 1, 0),
    "shear_y": lambda image, m, sign: affine(image, 1, 0, 0, sign * 0.3 * m, 1, 0),
    "translate_x": lambda image, m, sign: affine(image, 1, 0, sign * m * image.width * 150 / 331, 0, 1, 0),
    "translate_y": lambda image, m, sign: affine(image, 1, 0, 0, 0, 1, sign * m * image.height * 150 / 331),
}
GEOMETRIC = [name for name in PILLOW if OPERATIONS[name].geometry]


def test_the_fourteen():
    assert sorted(OPERATIONS) == sorted(PILLOW) and len(PILLOW) == 14 and len(GEOMETRIC) == 5


def picture(name, size):
    """Smooth for geometry, noise for colours."""
    return smooth(size, size) if name in GEOMETRIC else noise(size, size)


def applied(clip, drawn):
    """The operations alone, without crop or resize."""
    size = clip.shape[1]
    clip = sample(clip, geometric_map(drawn, size), size)
    for change, value in colour_changes(drawn):
        change(clip, value)
    return clip


def rim(size, name, value):
    """(size, size) bool: within a pixel of where the picture ends; Pillow's rounding puts it elsewhere."""
    inside = sample([np.zeros((size, size, 3), np.uint8)], geometric_map([(name, value)], size), size)[0, ..., 0] == 0
    inside = np.pad(inside.astype(np.uint8), 1)
    return (cv2.dilate(inside, np.ones((3, 3))) != cv2.erode(inside, np.ones((3, 3))))[1:-1, 1:-1]


@pytest.mark.parametrize("magnitude", [0.0, 3.0, 7.5, 10.0])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_equal_pillow(name, magnitude):
    """Geometry on smooth images to 2 levels (OpenCV before 4.12 rounds positions to 1/32 pixel, Pillow cuts decimals
    off), colours to 1.
    """
    for size in (64, 61):
        image = picture(name, size)
        for sign in (1, -1):
            value = OPERATIONS[name].value(magnitude, sign)
            out = applied(image[None], [(name, value)])[0]
            expected = np.asarray(PILLOW[name](Image.fromarray(image), magnitude / 10, sign)).astype(float)
            if name not in GEOMETRIC:
                assert difference(out, expected) <= 1
                continue
            edge = rim(size, name, value)
            assert edge.mean() < 0.1
            assert difference(out[~edge], expected[~edge]) <= 2
            if magnitude and name != "rotate":
                assert (out == 128).all(axis=-1).mean() > 0.02


@pytest.mark.parametrize("name", [name for name in PILLOW if name not in ("identity", "autocontrast", "equalize")])
def test_magnitude_is_a_scale_from_nothing_to_the_strongest(name):
    """Changes grow with the magnitude; 0 changes nothing."""
    image = picture(name, 48)[None]
    for sign in (1, -1):
        changes = [
            np.abs(applied(image, [(name, OPERATIONS[name].value(magnitude, sign))]).astype(float) - image).mean()
            for magnitude in (0, 2.5, 5, 7.5, 10)
        ]
        assert changes[0] == 0 and (np.diff(changes) > 0).all()


def test_composition_is_sampled_once():
    """Crop, flip, shear and rotation as one map, against float64 and against Pillow step by step."""
    size = 96
    image = smooth(150, 210)
    drawn = [("shear_x", 0.2), ("rotate", 17.0), ("translate_y", -0.1), ("shear_y", -0.15)]
    matrix = crop_map(10.3, 30.2, 120.5, 110.1, size) @ flip_map(size) @ geometric_map(drawn, size)
    out = sample([image], matrix, size)[0].astype(float)
    assert difference(out, reference(image, matrix, size)) <= 2

    steps = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, (110.1 / size, 0, 30.2, 0, 120.5 / size, 10.3), Image.Resampling.BILINEAR
    )
    steps = ImageOps.mirror(steps)
    shown = Image.new("RGB", (size, size), (255,) * 3)  # where no step has shown its fill
    for name, value in drawn:
        fraction = abs(value / OPERATIONS[name].strongest)
        steps = PILLOW[name](steps, fraction, int(math.copysign(1, value)))
        shown = PILLOW[name](shown, fraction, int(math.copysign(1, value)))
    inside = cv2.erode(np.asarray(shown), np.ones((3, 3))).min(axis=-1) == 255
    assert inside.mean() > 0.5
    errors = np.abs(out - np.asarray(steps))[inside]
    assert errors.max() <= 5 and errors.mean() <= 2.5  # each of Pillow's five steps cuts decimals off, 0.5 on average


def test_order_of_maps():
    """The operation that was drawn first is applied to the crop, the second to its result."""
    image = smooth(64, 64)
    drawn = [("rotate", 30.0), ("translate_x", 0.2)]
    steps = PILLOW["translate_x"](PILLOW["rotate"](Image.fromarray(image), 1, 1), 0.2 * 331 / 150, 1)
    other = PILLOW["rotate"](PILLOW["translate_x"](Image.fromarray(image), 0.2 * 331 / 150, 1), 1, 1)
    out = applied(image[None], drawn)[0].astype(float)
    inner = slice(24, 36)
    assert difference(out[inner, inner], np.asarray(steps)[inner, inner]) <= 3
    assert difference(out[inner, inner], np.asarray(other)[inner, inner]) > 10


def test_order_of_colours():
    image = noise(9, 9)[None]
    drawn = [("solarize", 100), ("posterize", 5), ("brightness", 1.5)]
    expected = Image.fromarray(image[0])
    expected = ImageEnhance.Brightness(ImageOps.posterize(ImageOps.solarize(expected, 100), 5)).enhance(1.5)
    np.testing.assert_array_equal(applied(image, drawn)[0], np.asarray(expected))


def test_draws():
    rng = np.random.default_rng(0)
    drawn = [sample_ops(2, 10.0, rng) for _ in range(3000)]
    assert all(len(pair) == 2 for pair in drawn)
    counts = collections.Counter(name for pair in drawn for name, _ in pair)
    assert set(counts) == set(OPERATIONS)
    assert all(abs(count - 6000 / 14) < 5 * math.sqrt(6000 / 14) for count in counts.values())
    assert abs(sum(a == b for (a, _), (b, _) in drawn) / 3000 - 1 / 14) < 0.03  # with replacement, independent
    values = collections.defaultdict(collections.Counter)
    for pair in drawn:
        for name, value in pair:
            values[name][round(value, 6)] += 1
    extremes = {
        "rotate": (-30, 30), "shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3), "solarize": (0,), "posterize": (4,),
        "translate_x": (-0.453172, 0.453172), "translate_y": (-0.453172, 0.453172),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.1, 1.9)),
        **dict.fromkeys(("identity", "autocontrast", "equalize"), (0,)),
    }  # fmt: skip
    for name, expected in extremes.items():
        assert sorted(values[name]) == sorted(expected)
        assert min(values[name].values()) > 0.35 * counts[name]
    assert sample_ops(5, 4.0, np.random.default_rng(3)) == sample_ops(5, 4.0, np.random.default_rng(3))
    assert sample_ops(0, 10.0, rng) == []
