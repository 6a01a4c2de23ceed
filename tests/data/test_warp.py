import av
import cv2
import numpy as np
import pytest

from tubevit.data.warp import FILL, centre_crop, crop_map, flip_map, sample, sample_grids, square_map
from tubevit.data.yuv import to_rgb
from tubevit.windows import PixelGrid


def affine(a, b, c, d, e, f):
    return np.array([[a, b, c], [d, e, f], [0, 0, 1.0]])


def about(matrix, y, x):
    return affine(1, 0, x, 0, 1, y) @ matrix @ affine(1, 0, -x, 0, 1, -y)


def rotated(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return affine(cos, sin, 0, -sin, cos, 0)


def points(matrix, size):
    """(size, size) each: x and y of the source at the centres of the output's pixels."""
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    return [row[0] * x + row[1] * y + row[2] for row in matrix[:2]]


def reference(image, matrix, size):
    """Bilinear in float64; the outermost pixels reach to the edge of the image, beyond it is FILL."""
    height, width = image.shape[:2]
    x, y = points(matrix, size)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy))
            values = image[np.clip(top + dy, 0, height - 1), np.clip(left + dx, 0, width - 1)]
            total = total + weight[..., None] * values
    total[outside] = FILL
    return total


def smooth(height, width, seed=0):
    """Neighbouring pixels differ by a few grey levels at most."""
    coarse = np.random.default_rng(seed).integers(40, 216, (2 + height // 40, 2 + width // 40, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def yuv(image):
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv420p")


def difference(clip, expected):
    return np.abs(clip.astype(float) - expected).max()


SHAPES = [(64, 64), (47, 61), (96, 55), (8, 200), (1, 1), (2, 9)]
MAPS = {
    "rotated": lambda h, w, size: about(rotated(20), h / 2, w / 2) @ crop_map(0, 0, h, w, size),
    "rotated far": lambda h, w, size: about(rotated(-130), h / 2, w / 2) @ crop_map(0, 0, h, w, size),
    "sheared": lambda h, w, size: affine(1, 0.3, 0, 0, 1, 0) @ square_map(h, w, size),
    "upside down": lambda h, w, size: affine(1, 0, 0, 0, -1, h) @ crop_map(0, 0, h, w, size),
    "enlarged": lambda h, w, size: affine(0.3, 0.1, 0.2 * w, -0.1, 0.3, 0.4 * h) @ square_map(h, w, size),
    "beyond the frame": lambda h, w, size: crop_map(-h / 4, w / 3, h, w, size),
    "far away": lambda h, w, size: crop_map(9 * h, 9 * w, h, w, size),
}


@pytest.mark.parametrize("name", MAPS)
def test_any_map_equals_the_reference(name):
    """To 2 levels: older versions of OpenCV round positions to 1/32 of a pixel."""
    for height, width in SHAPES:
        image = smooth(height, width)
        for size in (max(height, width) // 2 + 1, max(height, width), 97):
            matrix = MAPS[name](height, width, size)
            expected = reference(image, matrix, size)
            if np.hypot(*matrix[:2, :2]).min() < 2:
                assert difference(sample([image], matrix, size)[0], expected) <= 2
            if name == "far away":
                assert (expected == FILL).all()


def test_turns_by_right_angles_are_exact():
    image = noise(31, 31)
    for quarters in range(4):
        matrix = about(np.round(rotated(90 * quarters)), 15.5, 15.5)
        for mirrored in (False, True):
            whole = matrix @ flip_map(31) if mirrored else matrix
            turned = np.rot90(image, -quarters)
            expected = turned[:, ::-1] if mirrored else turned
            np.testing.assert_array_equal(sample([image], whole, 31)[0], expected)


@pytest.mark.parametrize("shift", [(3, -5), (-40, 2), (0.0, 0.0)])
def test_shifts_by_whole_pixels_are_exact(shift):
    image = noise(24, 30)
    padded = np.pad(image, ((50, 50), (50, 50), (0, 0)), constant_values=FILL)
    rows, columns = 50 + np.array(shift, int)
    expected = padded[rows : rows + 24, columns : columns + 24]
    np.testing.assert_array_equal(sample([image], crop_map(*shift, 24, 24, 24), 24)[0], expected)


def test_crops_inside_the_frame_are_exact_to_whole_pixels():
    clip = np.stack([noise(20, 30, seed) for seed in range(3)])
    np.testing.assert_array_equal(sample(clip, crop_map(2.4, 3.6, 12, 12, 12), 12), clip[:, 2:14, 4:16])
    np.testing.assert_array_equal(sample(clip, crop_map(2.4, 3.6, 12.3, 11.8, 12), 12), clip[:, 3:15, 4:16])
    np.testing.assert_array_equal(centre_crop(clip, 20), clip[:, :, 5:25])
    np.testing.assert_array_equal(centre_crop(clip.transpose(0, 2, 1, 3), 20), clip.transpose(0, 2, 1, 3)[:, 5:25])
    flipped = square_map(20, 30, 20, 1.0) @ flip_map(20)
    np.testing.assert_array_equal(sample(clip, flipped, 20), clip[:, :, :9:-1])
    halved = clip[:, :, 5:25].reshape(3, 10, 2, 10, 2, 3).mean(axis=(2, 4))  # shrinking averages blocks
    assert difference(centre_crop(clip, 10), halved) <= 0.5
    np.testing.assert_array_equal(
        sample([np.rot90(clip[0])], square_map(30, 20, 20, 0), 20)[0], np.rot90(clip[0])[:20]
    )  # views with negative strides


@pytest.mark.parametrize("as_yuv", [False, True])
def test_rounding_moves_no_edge_by_more_than_a_pixel(as_yuv):
    """Ramps along both axes tell where each pixel comes from; a pixel of the source or of the output."""
    rng = np.random.default_rng(0)
    height, width = 150, 220
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, y], axis=-1).astype(np.uint8)
    frame = np.stack([x + 16] * 3, axis=-1).astype(np.uint8)  # grey, since colours beyond RGB are cut
    for _ in range(60):
        size = int(rng.integers(4, 130)) * 2
        rows, columns = rng.uniform(8, height), rng.uniform(8, width)
        top, left = rng.uniform(0, height - rows), rng.uniform(0, width - columns)
        matrix = crop_map(top, left, rows, columns, size)
        if rng.uniform() < 0.5:
            matrix = matrix @ flip_map(size)
        expected_x, expected_y = points(matrix, size)
        step = max(rows, columns) / size
        # half a pixel at the rim where bilinear sampling has nothing to go on with
        allowed = 0.5 + max(1.0, step) * (1.5 if as_yuv else 1) + (1 if as_yuv else 0)
        if as_yuv:
            shown = sample([yuv(frame)], matrix, size)[0, ..., 1].astype(float) - 16
            assert difference(shown, expected_x - 0.5) <= allowed + 1
        else:
            shown = sample([image], matrix, size)[0]
            assert difference(shown[..., 1], expected_x - 0.5) <= allowed + 0.5
            assert difference(shown[..., 0], expected_y - 0.5) <= allowed + 0.5


def test_squares_of_a_share_of_the_short_side():
    """Squares of 28 of 32 rows: the middle of the short side, three places along the other, as blocks of 2 x 2."""
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    means = lambda part: part.reshape(14, 2, 14, 2, 3).mean(axis=(1, 3))  # noqa: E731
    for place, left in ((0.0, 0), (0.5, 10), (1.0, 20)):
        wide = sample([frame], square_map(32, 48, 14, place, 28 / 32), 14)[0]
        tall = sample([frame.transpose(1, 0, 2)], square_map(48, 32, 14, place, 28 / 32), 14)[0]
        np.testing.assert_allclose(wide, means(frame[2:30, left : left + 28]), atol=0.5)
        np.testing.assert_array_equal(tall, wide.transpose(1, 0, 2))


@pytest.mark.parametrize("factor", [2, 3, 4.6])
@pytest.mark.parametrize("name", ["centre", "odd crop", "rotated"])
def test_reductions_average_all_pixels(name, factor):
    """Stripes of one pixel vanish; without averaging they would alias."""
    height, width = 131, 187
    size = int(120 / factor)
    matrix = {
        "centre": square_map(height, width, size),
        "odd crop": crop_map(3, 5, factor * size, factor * size, size),
        "rotated": about(rotated(10), height / 2, width / 2) @ crop_map(20, 30, factor * size, factor * size, size),
    }[name]
    ramp = smooth(height, width)
    assert difference(sample([ramp], matrix, size)[0], reference(ramp, matrix, size)) <= 6 * factor
    stripes = np.broadcast_to((np.arange(width) % 2 * 200 + 28)[:, None], (height, width, 3)).astype(np.uint8)
    contrast = np.ptp(sample([stripes], matrix, size)[0])
    block = int(np.hypot(*matrix[:2, :2]).min() + 1e-6)
    assert contrast <= 1 + (200 / block if block % 2 else 0)  # odd blocks hold a stripe more of one kind


@pytest.mark.parametrize("height, size", [(133, 30), (133, 44), (131, 60), (135, 17)])
def test_reductions_keep_the_last_pixels_in_place(height, size):
    """Where the frame is no multiple of the block; a ramp, all of it, upside down."""
    image = np.broadcast_to((np.arange(height) * 1.9).astype(np.uint8)[:, None, None], (height, height, 3))
    matrix = affine(1, 0, 0, 0, -1, height) @ crop_map(0, 0, height, height, size)
    inner = slice(2, -2)  # the reference does not average blocks, which shows at the rim
    errors = sample([image], matrix, size)[0, inner] - reference(image, matrix, size)[inner]
    assert np.abs(errors + 0.25).max() <= 1.25


YUV_MAPS = {
    "centre": lambda h, w, size: square_map(h, w, size),
    "left": lambda h, w, size: square_map(h, w, size, 0.0),
    "flipped": lambda h, w, size: square_map(h, w, size) @ flip_map(size),
    "odd crop": lambda h, w, size: crop_map(0.23 * h, 0.11 * w, 0.61 * h, 0.73 * w, size),
    "rotated": MAPS["rotated"],
    "upside down": MAPS["upside down"],
    "sheared": MAPS["sheared"],
}


@pytest.mark.parametrize("size", [32, 33, 130])
@pytest.mark.parametrize("name", YUV_MAPS)
def test_planes_sampled_before_conversion_equal_rgb(name, size):
    for height, width in ((96, 128), (150, 90), (300, 404), (2, 2), (8, 200)):
        corners = np.random.default_rng(0).integers(40, 216, (2, 2, 3), np.uint8)
        frame = yuv(cv2.resize(corners, (width, height)))
        matrix = YUV_MAPS[name](height, width, size)
        first = sample([to_rgb(frame)], matrix, size).astype(float)
        clip = sample([frame], matrix, size)
        assert clip.shape == (1, size, size, 3)
        if min(height, width) > 8:  # of smaller ones rounding a rectangle to even pixels changes much
            errors = clip - first
            assert np.abs(errors).mean() <= 2 and np.abs(errors).max() <= 12
            assert np.abs(errors.mean(axis=(0, 1, 2))).max() <= 2
        x, y = points(matrix, size)
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        assert (clip[0][outside] == FILL).all()


def test_colour_and_brightness_show_the_same_place():
    """An edge of both: where it lies in luma and in chroma."""
    image = np.zeros((240, 320, 3), np.uint8)
    image[:, :160], image[:, 160:] = (200, 40, 40), (90, 200, 230)
    for size in (224, 160, 80, 62, 48, 38, 18):
        for matrix in (square_map(240, 320, size), crop_map(9, 31, 201, 205, size), crop_map(0, 50, 240, 240, size)):
            for whole in (matrix, matrix @ flip_map(size), about(rotated(4), 120, 160) @ matrix):
                row = sample([yuv(image)], whole, size)[0, size // 2].astype(float)
                luma, red = row @ [0.299, 0.587, 0.114], row[:, 0] - row @ [0.299, 0.587, 0.114]
                first, second = ((v - v[0]).sum() / (v[-1] - v[0]) for v in (luma, red))
                assert abs(first - second) < 0.5


def test_held_and_mixed_frames():
    frames = [yuv(smooth(48, 64, seed)) for seed in range(2)]
    matrix = about(rotated(30), 24, 32) @ square_map(48, 64, 32)
    clip = sample([frames[0], frames[0], frames[1], frames[0]], matrix, 32)
    np.testing.assert_array_equal(clip[:2], clip[[3, 0]])
    assert (clip[2] != clip[0]).any()
    mixed = sample([frames[0], to_rgb(frames[1])], matrix, 32)  # a stream that changes its format
    np.testing.assert_array_equal(mixed, sample([to_rgb(frame) for frame in frames], matrix, 32))


@pytest.mark.parametrize("size", [1450, 2161, 2162])
def test_large_outputs(size):
    """More pixels than OpenCV takes in one line or column; some alone and beside others are the same."""
    frame, matrix = yuv(smooth(96, 128, 0)), about(rotated(7), 48, 64) @ square_map(96, 128, size)
    whole = sample([frame], matrix, size)
    time, ends = np.arange(1), np.arange(size)[[0, 1, 2, -3, -2, -1]]
    for grids in (
        [PixelGrid(time, ends, np.arange(100))],
        [PixelGrid(time, ends, ends), PixelGrid(time, np.arange(3, size, 3), ends)],
    ):
        for grid, part in zip(grids, sample_grids([frame], matrix, size, grids), strict=True):
            np.testing.assert_array_equal(part, whole[grid.index])
