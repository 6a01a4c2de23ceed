import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, top_k_accuracy_score

from tubevit.evaluation.metrics import average_precisions, class_accuracies, confusion_matrix, score


def softmax(logits):
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [6, 10, 80])
def test_single_labels_against_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 3, (200, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 200)
    labels[:100] = logits[:100].argmax(axis=1)
    result = score(softmax(logits), labels)
    names = np.arange(classes)
    assert result["top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=names), abs=1e-12)
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names), abs=1e-12)
    assert result["loss"] == pytest.approx(log_loss(labels, softmax(logits), labels=names), rel=1e-9)
    assert result["map"] is None


def test_ties_count_against_the_model():
    result = score(np.full((4, 8), 1 / 8), np.arange(4))
    assert result == {"top1": 0.0, "top5": 0.0, "map": None, "loss": pytest.approx(np.log(8))}
    shares = np.array([[0.4, 0.4, 0.1, 0.1, 0, 0], [0.5, 0.3, 0.1, 0.1, 0, 0], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])
    result = score(shares, np.array([0, 0, 1]))
    assert result["top1"] == pytest.approx(1 / 3) and result["top5"] == pytest.approx(2 / 3)


def test_no_prediction_is_never_right():
    assert score(np.full((3, 8), np.nan), np.arange(3))["top1"] == 0
    assert score(np.full((3, 8), np.nan), np.arange(3))["top5"] == 0
    assert class_accuracies(np.full((3, 8), np.nan), np.arange(3))[:3].tolist() == [0, 0, 0]


def test_a_probability_of_zero_has_a_finite_loss():
    assert np.isfinite(score(np.eye(6), np.arange(6)[::-1])["loss"])
    assert np.isfinite(score(np.eye(6), 1 - np.eye(6))["loss"])


def test_by_class():
    rng = np.random.default_rng(1)
    shares, labels = softmax(rng.normal(size=(300, 7))), rng.choice([0, 1, 2, 4, 5, 6], 300)
    best = shares.argmax(axis=1)
    expected = [np.mean(best[labels == i] == i) if i != 3 else np.nan for i in range(7)]
    np.testing.assert_allclose(class_accuracies(shares, labels), expected, atol=1e-12)
    matrix = confusion_matrix(shares, labels)
    assert matrix.shape == (7, 7) and matrix.sum() == 300 and not matrix[3].any()
    assert all(matrix[i, j] == ((labels == i) & (best == j)).sum() for i in range(7) for j in range(7))
    several = rng.uniform(size=(300, 7)) < 0.2
    several[:, 2] = False
    each = average_precisions(shares, several.astype(np.float32))
    ranked = np.where(several.any(axis=1), shares[:, 4], -1)  # Charades ranks files without any label last
    assert np.isnan(each[2]) and each[4] == pytest.approx(average_precision_score(several[:, 4], ranked))
    assert each[4] > average_precision_score(several[:, 4], shares[:, 4])


@pytest.mark.parametrize("classes, there", [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes, there):
    result = score(np.eye(classes)[[0, 1]], np.array([0, 1]))
    assert (result["top5"] is not None) == there and result["top1"] == 1.0


def test_several_labels_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=(60, 7)) < 0.3).astype(np.float32)
    labels[:, 3] = 0  # does not occur: left out of the mean
    logits = (rng.normal(0, 2, (60, 7)) + labels).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    result = score(p, labels)
    ranked = np.where(labels.any(axis=1, keepdims=True), logits, -1e9)  # as Charades' own evaluation
    each = [average_precision_score(labels[:, i], ranked[:, i]) for i in range(7) if i != 3]
    assert result["map"] == pytest.approx(np.mean(each), abs=1e-12)
    assert result["loss"] == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)), rel=1e-9)
    assert result["top1"] is None and result["top5"] is None
