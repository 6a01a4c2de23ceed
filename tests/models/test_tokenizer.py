import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import assert_close, inside, positions, resized, windows
from tubevit.models.config import ModelConfig
from tubevit.models.tokenizer import (
    Tokenizer,
    TubeProjection,
    as_windows,
    extract_windows,
    normalise,
    resize_trilinear,
    standardise,
)
from tubevit.tubes import PRESETS, Tube, TubeSet

TUBES = [  # gaps, overlaps along some axes, offsets, a 2D patch
    "4x4x4/8x16x16",
    "8x2x2/3x8x9+2x4x5",
    "5x7x6/2x3x6+1x0x2",
    "1x8x8/4x8x8",
]


def config_of(tubes, width=12, **fields):
    return ModelConfig(name="x", width=width, depth=1, num_heads=1, mlp_dim=8, tubes=tubes, **fields)


def tokenizer(randomised, text, padding="valid", width=12, **fields):
    tubes = TubeSet.from_text(text, padding)
    module = randomised(lambda: Tokenizer(config_of(tubes, width, **fields), jnp.float32, rngs=nnx.Rngs(0)))
    return tubes, module, nnx.jit(lambda module, video: module(as_windows(video, tubes)))


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, *shape, 3), np.uint8)


def convolution(video, tube, kernel, bias, padding):
    """Strided 3D convolution of the normalised clip, sliced at the offset: (B, T, H, W, 3) -> (B, N, D)."""
    out = jax.lax.conv_general_dilated(
        normalise(video, jnp.float32)[:, *(slice(o, None) for o in tube.offset)],
        kernel, tube.stride, padding.upper(), dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
        precision="highest",
    )  # fmt: skip
    return out.reshape(len(video), -1, out.shape[-1]) + bias


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("text", TUBES)
@pytest.mark.parametrize("shape", [(16, 32, 48), (13, 29, 41)])
def test_extraction_and_matmul_equal_a_convolution(randomised, text, padding, shape):
    tubes, module, apply = tokenizer(randomised, text, padding)
    video, projection = pixels(shape), module.tubes["0"]
    expected = convolution(video, tubes.tubes[0], projection.kernel[...], projection.bias[...], padding)
    assert_close(apply(module, video), expected, 1e-5)
    assert_close(apply(module, normalise(video, jnp.float32)), expected, 1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_windows_hold_the_pixels_of_the_clip(padding):
    tube, shape = Tube.from_text("5x5x4/2x6x8+1x2x0%2x3x1"), (11, 26, 21)
    video = pixels(shape) | 1  # never 0, which is what lies beyond the clip
    extract = jax.jit(lambda video: extract_windows(video, tube, padding))
    found = extract(video)
    expected = np.zeros((2, *(found.shape[1:3]), tube.volume, 3), np.uint8)
    for n, token in enumerate(windows(tube, shape, padding)):
        for f, window in enumerate(token):
            for i, position in enumerate(positions([window])):
                if inside(position, tube, shape):
                    expected[:, n, f, i] = video[:, *position]
    assert found.dtype == np.uint8 and not expected.all()
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    as_float = extract(video.astype(np.float32))
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(found, as_float)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("text", ["4x4x4/8x16x16%2x1x1", "8x2x2/3x16x16+2x4x4%1x2x2", "5x5x4/2x6x8+1x2x0%2x3x1"])
def test_beyond_the_clip_is_grey_and_sub_windows_lie_in_order(text, padding):
    """With kernels of ones and biases of 0 a black clip gives -3 for each position inside: sums are exact."""
    tubes, shape = TubeSet.from_text(text, padding), (13, 26, 31)
    module = nnx.eval_shape(lambda: Tokenizer(config_of(tubes), jnp.float32, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    fill = {"kernel": jnp.ones, "bias": jnp.zeros}
    state = jax.tree_util.tree_map_with_path(lambda path, leaf: fill[path[-2].key](leaf.shape), state)
    counts = [
        [-3 * sum(inside(p, tubes.tubes[0], shape) for p in positions([window])) for window in token]
        for token in windows(tubes.tubes[0], shape, padding)
    ]
    full = -3 * tubes.tubes[0].volume
    assert any(count > full for token in counts for count in token)  # some do reach beyond the clip
    expected = np.repeat(np.array(counts), 12 // tubes.tubes[0].sub_windows, axis=1)
    found = nnx.jit(lambda module, video: module(as_windows(video, tubes)))(
        nnx.merge(graph, state), np.zeros((1, *shape, 3), np.uint8)
    )
    np.testing.assert_array_equal(found[0], expected)


def test_a_pixel_changes_exactly_the_tokens_that_read_it(randomised):
    text, shape = "4x4x4/8x16x16%2x1x1_3x5x4/2x6x8+1x2x0%2x3x1_1x8x8/8x8x8", (13, 26, 31)
    tubes, module, apply = tokenizer(randomised, text, "same")
    tokens = [
        {p for p in positions(token) if inside(p, tube, shape)}
        for tube in tubes.tubes
        for token in windows(tube, shape, "same")
    ]
    rng = np.random.default_rng(0)
    read = sorted(set.union(*tokens))
    # Half from what is read, else few would be; half from anywhere, so that some are read by no tube.
    chosen = [read[i] for i in rng.integers(0, len(read), 20)] + [tuple(rng.integers(0, shape)) for _ in range(20)]
    video = np.repeat(pixels(shape)[:1], len(chosen) + 1, axis=0)
    for clip, position in zip(video[1:], chosen):
        clip[*position, rng.integers(3)] ^= 255
    found = np.asarray(apply(module, video))
    changed = (found[1:] != found[:1]).any(axis=-1)
    expected = np.array([[position in token for token in tokens] for position in chosen])
    np.testing.assert_array_equal(changed, expected)
    assert expected.any() and not expected.any(axis=1).all()


def test_normalisation():
    found = normalise(np.array([0, 51, 255], np.uint8), jnp.float32)
    np.testing.assert_allclose(found, [-1, -0.6, 1], rtol=0, atol=1e-6)
    assert normalise(np.float32([-1, 0.3]), jnp.float32).tolist() == [-1, np.float32(0.3)]
    assert normalise(np.zeros(1, np.uint8), jnp.bfloat16).dtype == jnp.bfloat16


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_standardisation():
    """(p / 255 - mean) / std; floats -1..1 are the same pixels."""
    values = pixels((3, 4, 5)).reshape(2, 12, 15)
    expected = (values.reshape(2, 12, 5, 3) / 255 - np.array(MEAN)) / np.array(STD)
    for given in (values, np.float32(values / 127.5 - 1)):
        found = standardise(jnp.asarray(given), MEAN, STD, jnp.float32)
        assert_close(found, expected.reshape(values.shape), 1e-6)
    assert standardise(jnp.asarray(values), MEAN, STD, jnp.bfloat16).dtype == jnp.bfloat16
    half = (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(standardise(values, half, half, jnp.float32), normalise(values, jnp.float32))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("text", ["4x4x4/8x16x16%2x1x1", "5x5x4/2x6x8+1x2x0%2x3x1"])
def test_beyond_the_clip_is_the_mean(randomised, text, padding):
    """A clip of the mean colour reads 0 inside as well, so that every token is its bias, wherever it lies."""
    shape, colour = (13, 26, 31), np.array([51, 102, 204], np.uint8)
    mean = tuple(colour / 255)
    tubes, module, apply = tokenizer(randomised, text, padding, mean=mean, std=STD)
    bias = np.tile(module.tubes["0"].bias[...], tubes.tubes[0].sub_windows)
    reached = [
        all(inside(p, tubes.tubes[0], shape) for p in positions(t)) for t in windows(tubes.tubes[0], shape, padding)
    ]
    assert any(reached) and not all(reached)
    clips = np.broadcast_to(colour, (1, *shape, 3))
    for video in (clips, np.float32(clips / 127.5 - 1)):
        np.testing.assert_allclose(
            apply(module, video)[0], np.broadcast_to(bias, (len(reached), 12)), rtol=0, atol=2e-5
        )
    black = np.asarray(apply(module, np.zeros_like(clips)))
    assert (np.abs(black - bias).max(axis=-1) > 0.1).all()


@pytest.mark.parametrize("gain_norm", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(4, 16, 16), (32, 4, 4), (8, 8, 8), (1, 5, 11), (16, 8, 3)])
def test_resized_kernels_equal_loops(size, antialias, gain_norm):
    kernel = np.random.default_rng(0).normal(size=(8, 8, 8, 3, 2))
    found = resize_trilinear(jnp.asarray(kernel, jnp.float32), size, gain_norm, antialias)
    assert found.dtype == jnp.float32
    assert_close(found, resized(kernel, size, antialias) * (512 / np.prod(size) if gain_norm else 1), 1e-6)


def test_gain_norm_keeps_the_response_to_a_constant_clip():
    """The sum over a constant kernel stays; without it, it grows with the volume."""
    kernel = jnp.full((8, 8, 8, 3, 2), 0.25)
    for size in ((4, 16, 16), (32, 4, 4), (3, 5, 7)):
        kept, grown = (resize_trilinear(kernel, size, norm, True).sum(axis=(0, 1, 2)) for norm in (True, False))
        np.testing.assert_allclose(kept, 128, rtol=1e-5)
        np.testing.assert_allclose(grown, 0.25 * np.prod(size), rtol=1e-5)


def test_interpolated_tubes_share_one_kernel_and_2d_tubes_keep_theirs():
    config = config_of("interpolated", 24)
    module = nnx.eval_shape(lambda: Tokenizer(config, jnp.float32, rngs=nnx.Rngs(0)))
    found = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module))}
    number = len(PRESETS["interpolated"].tubes) - 1
    biases = {f"tubes/{i}/bias": (24,) for i in range(number + 1)}
    assert found == {"kernel": (8, 8, 8, 3, 24), f"tubes/{number}/kernel": (1, 16, 16, 3, 24), **biases}


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_interpolated_tubes_are_convolutions_with_the_resized_kernel(padding):
    tubes = TubeSet.from_text("6x10x5/7x9x8+1x0x2", padding, interpolated=True)
    config = config_of(tubes, 4, gain_norm=True)
    rng = np.random.default_rng(1)
    shared, bias = rng.normal(size=(8, 8, 8, 3, 4)), jnp.asarray(rng.normal(size=4), jnp.float32)
    graph, state = nnx.split(nnx.eval_shape(lambda: Tokenizer(config, jnp.float32, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, {"kernel": jnp.asarray(shared, jnp.float32), "tubes": {"0": {"bias": bias}}})
    video = pixels((13, 29, 41))
    kernel = jnp.asarray(resized(shared, (6, 10, 5), False) * 512 / 300, jnp.float32)
    expected = convolution(video, tubes.tubes[0], kernel, bias, padding)
    assert_close(nnx.merge(graph, state)(as_windows(video, tubes)), expected, 1e-5)


def test_initial_kernels_give_tokens_the_variance_of_pixels():
    tube = Tube.from_text("2x4x4/2x4x4%1x2x2")
    first, second = (TubeProjection(tube, config_of(tube, 96), jnp.float32, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert first.kernel.shape == (2, 4, 4, 3, 24) and not first.bias[...].any()
    assert abs(float(first.kernel[...].std()) * 96**0.5 - 1) < 0.05  # 96 values in a window
    assert (first.kernel[...] != second.kernel[...]).all()


def test_a_linear_layer_that_widens_begins_orthogonal():
    """It keeps the lengths of a smaller model's tokens; the 2D tube makes the full width by itself."""
    flat, deep = Tube.from_text("1x4x4/2x4x4"), Tube.from_text("2x1x1/2x4x4")
    config = config_of(TubeSet((flat, deep)), 12, tube_width=8, tube_linear=True)
    module = TubeProjection(deep, config, jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.asarray(module.widen.kernel[...])
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), rtol=0, atol=1e-5)
    assert module.kernel.shape[-1] == 8 and module.widen.bias is None
    image = nnx.eval_shape(lambda: TubeProjection(flat, config, jnp.float32, rngs=nnx.Rngs(0)))
    assert image.kernel.shape[-1] == 12 and not hasattr(image, "widen")


@pytest.mark.parametrize("tube_width", [8, 20])
def test_narrow_tubes_are_filled_up_and_wide_ones_cut_off(randomised, tube_width):
    """With the same weights: the channels that there are equal those of a model of the tubes' own width."""
    text, video = "3x4x4/4x8x8%2x1x1_1x8x8/4x8x8", pixels((8, 16, 24))
    _, module, apply = tokenizer(randomised, text, width=12, tube_width=tube_width)
    _, own, apply_own = tokenizer(randomised, text, width=tube_width)
    nnx.update(own.tubes["0"], nnx.state(module.tubes["0"]))
    found, expected, count = apply(module, video), apply_own(own, video), 2 * 2 * 3
    kept = min(tube_width, 12)
    assert_close(found[:, :count, :kept], expected[:, :count, :kept], 1e-6)
    assert not found[:, :count, kept:].any() and found[:, count:].all()


def test_not_slower_than_the_convolution(randomised):
    """Both from uint8 to tokens, in alternating rounds of one process."""
    tubes, module, apply = tokenizer(randomised, "8x8x8/16x32x32", width=96)
    projection, video = module.tubes["0"], jnp.asarray(pixels((32, 224, 224)))
    arguments = video, projection.kernel[...], projection.bias[...]
    convolve = jax.jit(lambda video, kernel, bias: convolution(video, tubes.tubes[0], kernel, bias, "valid"))
    extract = lambda *_: apply(module, video)  # noqa: E731
    times = {convolve: [], extract: []}
    for _ in range(8):
        for function, spent in times.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            spent.append(time.perf_counter() - start)
    slow, fast = (statistics.median(spent[1:]) for spent in times.values())  # the first round compiles
    assert fast <= slow, f"{fast / slow:.2f} of the convolution's time"
