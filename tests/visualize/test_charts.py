import io

import numpy as np
import pytest

from tubevit.errors import UserError
from tubevit.models.position import position_embedding
from tubevit.visualize import attention, confusion, curves, mistakes, positions, style

METRICS = """{"step": 10, "train/loss": 2.0, "train/a/loss": 2.0, "time/step": 0.1}
{"step": 20, "train/loss": null, "train/a/loss": 1.0}
{"step": 20, "eval/a/top1": 0.5, "eval/a/map": null, "eval/a/loss": 1.5}
"""


def test_metrics_are_read_by_name():
    metrics = curves.read_metrics(METRICS)
    assert metrics.keys() == {
        "train/loss", "train/a/loss", "time/step", "eval/a/top1", "eval/a/loss"
    }  # fmt: skip
    np.testing.assert_array_equal(metrics["train/a/loss"], [[10, 20], [2.0, 1.0]])
    np.testing.assert_array_equal(metrics["train/loss"], [[10], [2.0]])
    assert curves.read_metrics(METRICS + '{"step": 30, "tra').keys() == metrics.keys()  # a killed run's last line
    with pytest.raises(UserError, match="line 2 of metrics.jsonl"):
        curves.read_metrics('{"step": 1, "a": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(UserError, match="holds no metric"):
        curves.read_metrics("")


def test_curves_are_those_of_the_metrics():
    metrics = curves.read_metrics(METRICS)
    (axes,) = curves.loss_figure(metrics).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert lines == {"a": [[10, 2.0], [20, 1.0]], "a (evaluation)": [[20, 1.5]]}
    (axes,) = curves.score_figure(metrics).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[20, 50.0]]] and axes.get_ylim() == (0, 100)
    assert curves.has_scores(metrics) and not curves.has_scores({"train/loss": 0})
    (axes,) = curves.loss_figure({"train/loss": (np.array([1, 2]), np.array([3.0, 2.0]))}).axes
    assert len(axes.lines) == 2  # the whole loss where data sets have none of their own


def test_smoothing_is_the_mean_of_the_last():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 3) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(curves.smoothed(values, 4), expected)
    np.testing.assert_allclose(curves.smoothed(values, 0), values)


def test_similarity_is_the_cosine_of_the_embeddings(tiny):
    model = tiny()
    similarity, centres = positions.position_similarity(model)
    embedding = position_embedding(model.config.tubes.centres((16, 64, 64)), 24).astype(np.float64)
    for i, j in [(0, 0), (0, 175), (31, 32), (80, 111), (150, 7)]:
        cosine = embedding[i] @ embedding[j] / np.linalg.norm(embedding[i]) / np.linalg.norm(embedding[j])
        assert similarity[i, j] == pytest.approx(cosine, abs=1e-6)
    assert similarity.shape == (176, 176) and centres.shape == (176, 3)
    np.testing.assert_array_equal(positions.position_similarity(tiny(budget="25%"))[0], similarity)
    for position in ("none", "rope"):  # the latter rotates queries and keys
        with pytest.raises(UserError, match=f"no position embedding .*'{position}'"):
            positions.position_similarity(tiny(position=position, tubes="4x8x8/4x8x8"))


def test_similarity_figures(tiny):
    model = tiny(position="learned")
    axes = positions.similarity_figure(model).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), positions.position_similarity(model)[0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4×4×4", "8×2×2", "2×6×6", "1×8×8"]
    assert "1×8×8" in positions.neighbour_figure(model).axes[0].get_title()


def test_confusion_figure():
    matrix = np.array([[8, 2, 0], [0, 5, 5], [1, 0, 9]])
    axes = confusion.confusion_figure(matrix, ("a", "b", "c")).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), matrix / 10)
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert written == {(i, j): str(matrix[i, j]) for i, j in zip(*np.nonzero(matrix))}
    assert "22 of 30 correct (73.3%)" in axes.get_title()
    with style.themed(style.DARK):
        confusion.confusion_figure(np.eye(2, dtype=int), ("$a", "b_$^{")).savefig(io.BytesIO())  # not mathematics
    large = confusion.confusion_figure(np.eye(100, dtype=int), [str(i) for i in range(100)]).axes[0]
    assert not large.texts and len(large.get_xticklabels()) <= 40


def test_confusion_of_long_names():
    names = [f"Pretending to be tearing something that is not tearable, number {i}" for i in range(6)]
    with style.themed(style.LIGHT):
        figure = confusion.confusion_figure(np.eye(6, dtype=int), names)
        figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.5
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == 6 and shown[3] == "Pretending t…e, number 3"


def test_most_confident_mistakes():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.99, 0.01], [0.95, 0.05]])
    labels, used = np.array([1, 1, 0, 1, 0]), np.array([True, True, True, False, True])
    found = mistakes.most_confident_mistakes(probabilities, labels, used, 2)
    assert found == [mistakes.Mistake(0, 1, 0, 0.9), mistakes.Mistake(1, 1, 0, 0.8)]
    assert [each.file for each in mistakes.most_confident_mistakes(probabilities, labels, used, 9)] == [0, 1, 2]
    clips = [np.full((16, 32, 32, 3), value, np.uint8) for value in (10, 200)]
    axes = mistakes.mistakes_figure(clips, found, ("cat", "dog")).axes
    assert [each.get_title() for each in axes] == ["cat (90%), label: dog", "cat (80%), label: dog"]
    assert [each.images[0].get_array()[0, 0, 0] * 255 for each in axes] == pytest.approx([10, 200])


def test_long_names_leave_room_for_the_pictures():
    names = ("hammerhead shark, or one of its relatives", "pretending_to_be_tearing_something_that_is_not_tearable")
    found = [mistakes.Mistake(i, i % 2, 1 - i % 2, 0.9) for i in range(8)]
    clip, heat = np.zeros((16, 32, 32, 3), np.uint8), np.ones((16, 32, 32))
    text = "imagenet: " + ",  ".join(f"{name} (90%)" for name in names * 4)
    with style.themed(style.LIGHT):
        figures = [
            (mistakes.mistakes_figure([clip[0]] * 8, found, names), 6),
            (mistakes.mistakes_figure([clip] * 8, found, names), 1),
            (attention.attention_figure(clip, heat, heat, text), 1),
        ]
        for figure, columns in figures:
            figure.draw_without_rendering()
            for axes in (axes for axes in figure.axes if axes.images):
                assert axes.get_position().width * columns > 0.9
                title = axes.get_tightbbox()
                assert title.x1 <= figure.bbox.x1 + 1 and title.y1 <= figure.bbox.y1 + 1
        written = figure._suptitle.get_window_extent()
        assert written.x1 <= figure.bbox.x1 and figure.axes[0].get_tightbbox().y1 <= written.y0 + 1
