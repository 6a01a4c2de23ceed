import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import assert_close, inside, positions, windows
from tubevit.models.tokenizer import Tokenizer, TubeProjection, extract_windows, normalise
from tubevit.tubes import Tube, TubeSet

TUBES = [  # gaps, overlaps along some axes, offsets, a 2D patch
    "4x4x4/8x16x16",
    "8x2x2/3x8x9+2x4x5",
    "5x7x6/2x3x6+1x0x2",
    "1x8x8/4x8x8",
]


def tokenizer(randomised, text, padding="valid", width=12):
    tubes = TubeSet.from_text(text, padding)
    module = randomised(lambda: Tokenizer(tubes, width, jnp.float32, rngs=nnx.Rngs(0)))
    return tubes, module, nnx.jit(lambda module, video: module(video, tubes))


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
    module = nnx.eval_shape(lambda: Tokenizer(tubes, 12, jnp.float32, rngs=nnx.Rngs(0)))
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
    found = nnx.jit(lambda module, video: module(video, tubes))(
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


def test_initial_kernels_give_tokens_the_variance_of_pixels():
    first, second = (
        TubeProjection(Tube.from_text("2x4x4/2x4x4%1x2x2"), 96, jnp.float32, rngs=nnx.Rngs(seed)) for seed in (0, 1)
    )
    assert first.kernel.shape == (2, 4, 4, 3, 24) and not first.bias[...].any()
    assert abs(float(first.kernel[...].std()) * 96**0.5 - 1) < 0.05  # 96 values in a window
    assert (first.kernel[...] != second.kernel[...]).all()


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
