import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from tests.models.reference import assert_close, read_parameters
from tubevit.errors import UserError
from tubevit.models.config import Head
from tubevit.windows import take_windows

PLAIN = "4x4x4/8x16x16_8x2x2/3x16x16+2x4x4_2x6x6/8x16x16+0x8x8_1x8x8/16x8x8"  # `small` without space-to-depth
OVERLAPPING = "3x9x10/4x6x8+1x2x0%2x3x1_1x12x12/8x8x8"
DENSE = "1x16x16/8x16x16"
HEADS = {"motion": Head(8, "video"), "digit": Head(10, "image"), "both": Head(3)}


@pytest.fixture(scope="module")
def several_heads(tiny):
    return tiny(heads=HEADS)


def pixels(*shape, dtype=np.uint8, batch=2):
    rng = np.random.default_rng(0)
    if dtype == np.uint8:
        return rng.integers(0, 256, (batch, *shape, 3), np.uint8)
    return rng.uniform(-1, 1, (batch, *shape, 3)).astype(dtype)


@nnx.jit
def stages(model, video):
    encoded = model.encode(video)
    return *model.tokenize(video), encoded, model.pooling.weights(encoded), model.features(video), model(video)


def reference_stages(model, video):
    return reference.stages(read_parameters(model), model.config, video)


@pytest.mark.parametrize(
    "tubes, padding, width, shape, dtype",
    [
        ("small", "valid", 48, (16, 64, 64), np.uint8),
        ("small", "same", 64, (17, 35, 50), np.float32),
        ("small", "same", 64, (5, 61, 30), np.uint8),  # half of each long tube lies beyond the clip
        (PLAIN, "valid", 64, (21, 45, 66), np.float32),
        (PLAIN, "same", 44, (13, 50, 37), np.uint8),
        (OVERLAPPING, "valid", 48, (11, 29, 38), np.uint8),
        (OVERLAPPING, "same", 48, (9, 26, 31), np.float32),
        ("small", "valid", 48, (64, 64), np.uint8),  # images
        (PLAIN, "same", 64, (45, 70), np.float32),
    ],
)
def test_forward_pass_equals_the_float64_reference(tiny, tubes, padding, width, shape, dtype):
    model = tiny(tubes=tubes, padding=padding, width=width, scan="small" in tubes)
    video = pixels(*shape, dtype=dtype)
    for found, expected in zip(stages(model, video), reference_stages(model, video), strict=True):
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "map"},
        {"tubes": PLAIN, "interpolated": True, "class_token": True, "pooling": "cls"},
        {"tubes": DENSE, "pattern": "divided", "class_token": True},
        {"tubes": DENSE, "pattern": "factorised_encoder", "temporal_depth": 1, "class_token": True},
        {"tubes": DENSE, "pattern": "factorised_encoder", "temporal_depth": 1, "frame_pooling": "none"},
        {"tubes": DENSE, "pattern": "factorised_dot"},
    ],
)
def test_an_empty_batch(tiny, fields):
    """No rows in, no rows out, whatever the input: clips, images, windows, uint8 or float."""
    model = tiny(heads=HEADS, **fields)
    for dtype in (np.uint8, np.float32):
        clips = pixels(16, 64, 64, dtype=dtype)
        for video, head, classes in ((clips, "motion", 8), (clips[:, 0], "digit", 10)):
            windows = take_windows(video, model.config.tubes)
            for empty in (
                video[:0], take_windows(video[:0], model.config.tubes), jax.tree.map(lambda x: x[:0], windows)
            ):  # fmt: skip
                logits = jax.eval_shape(lambda x, head=head: model(x, head=head), empty)
                assert logits.shape == (0, classes) and logits.dtype == jnp.float32
        assert model(clips[:0], head="motion").shape == (0, 8)
    assert model.features(clips[:0]).shape == (0, 24) == model.features(clips[:0], key=jax.random.key(0)).shape
    assert model.encode(clips[:0]).shape == (0, *jax.eval_shape(model.encode, clips).shape[1:])


def test_one_model_serves_images_and_clips_of_any_length_and_size(tiny):
    """An image takes the 2D tube only, with the very tokens that a clip beginning with it has."""
    model = tiny()
    clip = pixels(16, 64, 80)
    video_tokens, video_centres, *_ = stages(model, clip)
    image_tokens, image_centres, *_ = stages(model, clip[:, 0])
    count = model.config.tubes.tubes[-1].num_tokens((1, 64, 80))
    assert image_tokens.shape == (2, count, 24) and count == 80
    assert_close(image_tokens, video_tokens[:, -count:], 1e-6)
    np.testing.assert_array_equal(image_centres, video_centres[-count:])
    assert not image_centres[:, 0].any()
    fast = nnx.jit(model)
    for video in (clip[:, 1:, 7:, 5:], clip[:, 0, 20:]):
        assert_close(fast(video), reference_stages(model, video)[-1], 1e-5)


@pytest.mark.parametrize("shape, count", [((1, 224, 224, 3), 196), ((1, 32, 224, 224, 3), 539)])
def test_tokens_of_the_paper(tiny, shape, count):
    model = tiny(tubes="paper", width=24)
    tokens, centres = jax.eval_shape(model.tokenize, jax.ShapeDtypeStruct(shape, jnp.uint8))
    assert tokens.shape == (1, count, 24) and centres.shape == (count, 3)


def test_dropout_needs_a_key(tiny):
    video = pixels(16, 64, 64)
    model = tiny(dropout=0.2, stochastic_depth=0.2, tubes="1x8x8/4x8x8")
    run = nnx.jit(lambda model, key: model(video, key=key))
    assert_close(run(model, None), reference_stages(model, video)[-1], 1e-5)
    first = run(model, jax.random.key(0))
    np.testing.assert_array_equal(first, run(model, jax.random.key(0)))
    assert np.abs(first - run(model, jax.random.key(1))).max() > 1e-3


@pytest.mark.standard_promotion
def test_bfloat16_keeps_parameters_pooling_and_logits_in_float32(tiny):
    video = pixels(16, 64, 64)
    tokens, _, encoded, weights, pooled, logits = stages(tiny(precision="bfloat16"), video)
    assert tokens.dtype == encoded.dtype == jnp.bfloat16
    assert weights.dtype == pooled.dtype == logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tiny(precision="bfloat16")))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-6)
    expected = reference_stages(tiny(), video)
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert_close(tokens, expected[0], eps)
    assert_close(logits, expected[-1], 4 * eps)  # after two blocks


def test_heads(tiny):
    model, clip, image = tiny(heads=HEADS, tubes="1x8x8/4x8x8"), pixels(16, 64, 64), pixels(64, 64)
    params = read_parameters(model)
    for video, heads in ((clip, ("motion", "both")), (image, ("digit", "both"))):
        run = nnx.jit(lambda m, video, heads=heads: (m.features(video), *(m(video, head=head) for head in heads)))
        pooled, *found = run(model, video)
        for head, logits in zip(heads, found, strict=True):
            assert_close(logits, reference.classify(params, np.asarray(pooled, np.float64), head), 1e-6)
    headless = tiny(heads={}, tubes="1x8x8/4x8x8")
    np.testing.assert_array_equal(*nnx.jit(lambda model, image: (model(image), model.features(image)))(headless, image))
    assert model.labels == {"motion": (), "digit": (), "both": ()}
    assert tiny(heads={"a": Head(2, labels=["x", "y"])}).labels == {"a": ("x", "y")}
    assert model.input == {"frames": 16, "fps": None, "size": 64}


@pytest.mark.parametrize(
    "shape, dtype, head, words",
    [
        ((1, 16, 64, 64, 3), np.uint8, None, ["several heads", "head=", "'motion'", "'digit'", "'both'"]),
        ((1, 16, 64, 64, 3), np.uint8, "motoin", ["head 'motoin'", "did you mean 'motion'"]),
        ((16, 64, 64, 3), np.uint8, "motion", ["takes videos", "(16, 64, 64, 3)", "batch axis", "video[None]"]),
        ((1, 16, 64, 64, 3), np.uint8, "digit", ["'digit' takes images", "(1, 16, 64, 64, 3)"]),
        ((64, 64, 3), np.uint8, "both", ["batch axis", "image[None]"]),
        ((64, 64), np.uint8, "both", ["2 axes"]),
        ((1, 3, 16, 64, 64), np.uint8, "both", ["channels last", "(1, 3, 16, 64, 64)", "x.transpose(0, 2, 3, 4, 1)"]),
        ((1, 16, 3, 64, 64), np.uint8, "both", ["x.transpose(0, 1, 3, 4, 2)"]),
        ((1, 3, 64, 64), np.uint8, "both", ["x.transpose(0, 2, 3, 1)"]),
        ((1, 64, 64, 1), np.uint8, "both", ["channels last", "(1, 64, 64, 1)"]),
        ((1, 64, 64, 3), np.int32, "both", ["uint8", "float -1..1", "int32"]),
        ((1, 64, 64, 3), bool, "both", ["uint8", "bool"]),
        ((1, 9, 64, 64, 3), np.uint8, "both", ["9x64x64", "tube 8x2x2/3x16x16", "at least 10x6x6", "dense_2x16x16"]),
        ((1, 7, 64, 3), np.uint8, "both", ["1x7x64", "at least 1x8x8"]),
    ],
)  # fmt: skip
def test_errors_of_the_input(several_heads, shape, dtype, head, words):
    with pytest.raises(UserError) as error:
        several_heads(np.zeros(shape, dtype), head)
    assert not [word for word in words if word not in str(error.value)], str(error.value)


def test_a_set_without_2d_tubes_refuses_images(tiny):
    with pytest.raises(UserError, match="takes no images.*1x16x16/32x16x16"):
        tiny(tubes="4x4x4/8x16x16")(pixels(64, 64))
