import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tubevit.training.losses import classification_loss, mixup, targets


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 4, (6, 5)).astype(np.float32)


BLEND = jax.jit(mixup)
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
    target = targets(jnp.asarray(labels), 5, 0.3, True)
    np.testing.assert_array_equal(target, labels)  # not smoothed
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
        partners = np.abs(label[:, 0] - mixed[:, 0])  # half of the samples meet one of the other label
        shares = partners[partners > 0]
        assert 1800 < len(shares) < 2200 and len(np.unique(shares)) > 1000
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.var() / variance - 1) < 0.1


def test_mixup_follows_the_key():
    pixels, target = jnp.zeros((6, 3, 4, 6), jnp.uint8), jnp.eye(6)
    first, again, other = (BLEND(pixels, target, 0.4, jax.random.key(seed))[1] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
