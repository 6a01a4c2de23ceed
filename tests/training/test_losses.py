import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tubevit.training import losses
from tubevit.training.losses import classification_loss, cutmix, mix, mixup, partners, targets
from tubevit.tubes import TubeSet
from tubevit.windows import take_windows


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 4, (6, 5)).astype(np.float32)


BLEND = jax.jit(mixup)
CUT = jax.jit(cutmix)
LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_softmax_with_smoothing(logits, smoothing):
    probabilities = np.full((6, 5), smoothing / 5)
    probabilities[np.arange(6), LABELS] += 1 - smoothing
    target = targets(jnp.asarray(LABELS), 5, smoothing, False)
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, probabilities, atol=1e-7)
    expected = -(probabilities * log_softmax(logits.astype(np.float64))).sum(axis=1)
    np.testing.assert_allclose(classification_loss(jnp.asarray(logits), target, False), expected, rtol=1e-6)


def test_several_labels(logits):
    labels = np.random.default_rng(1).integers(0, 2, (6, 5)).astype(np.float32)
    np.testing.assert_array_equal(targets(jnp.asarray(labels), 5, 0.0, True), labels)
    target = targets(jnp.asarray(labels), 5, 0.3, True)
    labels = 0.7 * labels + 0.3 / 5
    np.testing.assert_allclose(target, labels, atol=1e-7)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(axis=1)
    np.testing.assert_allclose(classification_loss(jnp.asarray(logits), target, True), expected, rtol=2e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_large_logits_stay_finite(multi_label):
    logits = jnp.array([[1e4, -1e4, 0.0]])
    for label in range(3):
        target = targets(jnp.eye(3)[label][None] if multi_label else jnp.array([label]), 3, 0.0, multi_label)
        assert np.isfinite(classification_loss(logits, target, multi_label)).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradient_equals_differences(logits, multi_label):
    labels = (np.arange(30).reshape(6, 5) % 3 == 0).astype(np.float32) if multi_label else LABELS
    with jax.enable_x64(True):
        target = targets(jnp.asarray(labels), 5, 0.1, multi_label)

        def total(x):
            return classification_loss(x, target, multi_label).sum()

        x = jnp.asarray(logits, jnp.float64)
        gradient = np.asarray(jax.grad(total)(x))
        for index in np.ndindex(6, 5):
            up, down = (total(x.at[index].add(step)) for step in (1e-5, -1e-5))
            np.testing.assert_allclose(gradient[index], (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_everyone_has_another_as_partner(count):
    found = np.asarray(partners(jnp.arange(count)[:, None] * jnp.ones((1, 3), jnp.int32)))
    assert sorted(found[:, 0]) == list(range(count)) and (found[:, 0] != np.arange(count)).all()
    neighbour = (np.arange(count) - 1) % count if count % 2 else np.arange(count) ^ 1
    np.testing.assert_array_equal(found, np.repeat(neighbour[:, None], 3, 1))


def test_partners_lie_on_one_device():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    pixels = jax.ShapeDtypeStruct((8, 2, 9, 8, 3), jnp.uint8, sharding=rows)
    target = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=rows)

    def both(pixels, target, key):
        return jax.lax.with_sharding_constraint(mix(pixels, target, 0.4, 1.0, key), rows)

    text = jax.jit(both).lower(pixels, target, jax.random.key(0)).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute", text)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_blends_pixels_and_targets_alike(dtype):
    """Sample i is pure colour i of its own, so that the shares can be read from the pixels."""
    values = np.eye(6)[:, None, None, :] * np.ones((1, 3, 4, 1))
    pixels = (values * 255).astype(np.uint8) if dtype == np.uint8 else (values * 2 - 1).astype(np.float32)
    target = jnp.eye(6)
    mixed, labels = BLEND(jnp.asarray(pixels), target, 0.4, jax.random.key(0))
    assert mixed.dtype == labels.dtype == jnp.float32 and mixed.shape == pixels.shape
    np.testing.assert_allclose(mixed, np.broadcast_to(2 * labels[:, None, None] - 1, mixed.shape), atol=1e-5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert ((labels > 1e-6).sum(axis=1) <= 2).all() and (labels >= 0).all()
    assert (jnp.diag(labels) > 0).all()


def test_mixup_shares_are_drawn_from_beta():
    label = (np.arange(4000) % 2).astype(np.float32)[:, None]
    for alpha, variance in ((0.2, 1 / 4 / 1.4), (1.0, 1 / 12), (8.0, 1 / 4 / 17)):
        pixels, mixed = map(np.asarray, BLEND(label[:, 0], label, alpha, jax.random.key(0)))
        np.testing.assert_allclose(pixels, mixed[:, 0], atol=1e-6)  # floats are not scaled again
        shares = np.abs(label[:, 0] - mixed[:, 0])  # each sample's neighbour has the other label
        assert len(np.unique(shares)) > 2000
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.var() / variance - 1) < 0.1


def test_mixup_follows_the_key():
    pixels, target = jnp.zeros((6, 3, 4, 6), jnp.uint8), jnp.eye(6)
    first, again, other = (BLEND(pixels, target, 0.4, jax.random.key(seed))[1] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_cutmix_equals_the_definition():
    """One rectangle per sample, for all frames, of one other sample; targets weighted by pixels, exactly."""
    plain = np.broadcast_to(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1, 1), (12, 3, 8, 13, 3))
    changed = 0
    for seed in range(8):
        with jax.numpy_dtype_promotion("strict"):
            pixels, target = map(np.asarray, CUT(jnp.asarray(plain), jnp.eye(12), 1.0, jax.random.key(seed)))
        assert pixels.dtype == np.uint8 and target.dtype == np.float32
        expected, weights, others = plain.copy(), np.zeros((12, 12)), []
        for i in range(12):
            foreign = (pixels[i] != i).any(axis=(0, 3))
            if foreign.any():
                rows, columns = np.flatnonzero(foreign.any(axis=1)), np.flatnonzero(foreign.any(axis=0))
                others.append(int(pixels[i, 0, rows[0], columns[0], 0]))
                expected[i, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = others[-1]
            weights[i] = np.bincount(pixels[i].ravel(), minlength=12) / pixels[i].size
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_allclose(target, weights, atol=1e-7)
        assert len(set(others)) == len(others)  # a permutation: nobody is taken twice
        changed += len(others)
    assert changed > 50


@pytest.fixture(scope="module")
def many():
    """`many(alpha)`: of 2000 samples, which pixels CutMix replaced, (2000, 30, 45) bool, and with what weight."""
    plain = jnp.arange(2000.0)[:, None, None, None] * jnp.ones((1, 30, 45, 1))
    labels = jnp.arange(2000.0)[:, None]

    def cut(alpha):
        pixels, target = CUT(plain, labels, alpha, jax.random.key(0))
        replaced = np.asarray(pixels != plain)[..., 0]
        met = replaced.any(axis=(1, 2))
        other = np.asarray(pixels).sum(axis=(1, 2, 3)) / 1350  # mean label of the pixels
        np.testing.assert_allclose(target[:, 0], other, rtol=1e-4)
        return replaced[met]

    return cut


def test_cutmix_boxes_have_the_drawn_area(many):
    """Beta(1e5, 1e5) is 1/2: boxes have sides of sqrt(1/2) of the frame's, less what lies outside."""
    replaced = many(1e5)
    assert len(replaced) > 1980
    for inside, size in ((replaced.any(axis=2), 30), (replaced.any(axis=1), 45)):
        lengths = inside.sum(axis=1)
        middles = [np.flatnonzero(line).mean() for line in inside]
        side = size * np.sqrt(0.5)
        assert abs(lengths.max() - side) <= 1 and abs(lengths.min() - side / 2) <= 1
        # Uniform centres: on average an eighth of the squared side is lost at either edge.
        assert abs(lengths.mean() - (side - side**2 / (4 * size))) < 0.02 * size
        assert abs(np.mean(middles) - (size - 1) / 2) < 0.02 * size


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_cutmix_shares_follow_beta(many, alpha):
    """Against a simulation of the paper's algorithm in NumPy: mean and spread of the shares."""
    shares = many(alpha).mean(axis=(1, 2))
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(alpha, alpha, 200_000))
    spans = []
    for _ in range(2):
        centre = rng.uniform(size=200_000)
        spans.append(np.minimum(centre + side / 2, 1) - np.maximum(centre - side / 2, 0))
    expected = spans[0] * spans[1]
    expected = expected[expected > 0.5 / 1350]
    assert abs(shares.mean() - expected.mean()) < 0.02
    assert abs(shares.std() - expected.std()) < 0.02


def test_mix_takes_one_of_the_two(monkeypatch):
    pixels, target = jnp.full((6, 2, 9, 8, 3), 255, jnp.uint8), jnp.eye(6)
    for alphas, dtype in (((0.0, 0.0), jnp.uint8), ((0.4, 0.0), jnp.float32), ((0.0, 1.0), jnp.uint8)):
        with jax.numpy_dtype_promotion("strict"):
            shapes = jax.eval_shape(lambda key: mix(pixels, target, *alphas, key), jax.random.key(0))
        assert (shapes[0].shape, shapes[0].dtype) == (pixels.shape, dtype) and shapes[1].dtype == jnp.float32
    with jax.numpy_dtype_promotion("strict"):
        shapes = jax.eval_shape(lambda key: mix(pixels, target, 0.4, 1.0, key), jax.random.key(0))
    assert (shapes[0].shape, shapes[0].dtype) == (pixels.shape, jnp.float32)

    # Which one is taken, by stand-ins that compile at once: they return the alpha that they were given.
    monkeypatch.setattr(losses, "mixup", lambda pixels, target, alpha, key: (pixels / 255.0, target * alpha))
    monkeypatch.setattr(losses, "cutmix", lambda pixels, target, alpha, key: (pixels, target * alpha))
    both = jax.jit(lambda key: mix(pixels, target, 0.25, 0.5, key))
    taken = []
    for seed in range(60):
        mixed, labels = both(jax.random.key(seed))
        taken.append(float(labels[0, 0]))
        assert (mixed == 1).all()  # in the range of normalised pixels either way
    assert set(taken) == {0.25, 0.5} and 20 <= taken.count(0.25) <= 40
    for alphas, expected in (((0.0, 0.0), 1), ((0.25, 0.0), 0.25), ((0.0, 0.5), 0.5)):
        assert mix(pixels, target, *alphas, jax.random.key(0))[1][0, 0] == expected


TUBES = TubeSet.from_text("2x4x4/4x8x8%1x2x2_3x5x6/4x6x8+1x2x0%1x3x1_1x8x8/4x6x6", "same")
MIX = jax.jit(mix, static_argnums=(2, 3))


@pytest.mark.parametrize("alphas, shape, count", [((0.4, 1.0), (7, 21, 30), 5), ((0.0, 1.0), (21, 30), 8)])
def test_windows_are_mixed_as_their_clips(alphas, shape, count):
    """Mixup and CutMix of windows are the windows of what mixup and CutMix make of the clips."""
    for seed in range(6):  # of both, where both are asked for
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        clips, target = rng.integers(0, 256, (count, *shape, 3), np.uint8), rng.dirichlet(np.ones(4), count)
        target = target.astype(np.float32)
        with jax.numpy_dtype_promotion("strict"):
            whole, whole_target = MIX(clips, target, *alphas, key)
            found, found_target = MIX(take_windows(clips, TUBES), target, *alphas, key)
        expected = take_windows(np.asarray(whole), TUBES)
        np.testing.assert_array_equal(found_target, whole_target)
        read = take_windows(np.ones_like(clips), TUBES)  # 0 beyond the clip: there the values do not count
        for one, two, inside in zip(found.windows, expected.windows, read.windows, strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(np.where(inside, one, 0), np.where(inside, two, 0))
        assert any(
            (np.asarray(one) != two).any() for one, two in zip(found.windows, take_windows(clips, TUBES).windows)
        )
