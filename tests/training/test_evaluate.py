import cv2
import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, top_k_accuracy_score

from tubevit.config import dataset_config
from tubevit.errors import UserError
from tubevit.models.tubevit import Head
from tubevit.training.evaluate import evaluation_record, make_forward, predict_files, score
from tubevit.training.experiment import open_eval, open_experiment
from tubevit.zoo.checkpoint import parameters


@pytest.mark.parametrize("classes", [6, 10, 80])
def test_single_labels_against_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 3, (200, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 200)
    labels[:100] = logits[:100].argmax(axis=1)
    result = score(logits, labels)
    names = np.arange(classes)
    shares = np.exp(logits.astype(np.float64))
    assert result["top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=names), abs=1e-12)
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names), abs=1e-12)
    assert result["loss"] == pytest.approx(
        log_loss(labels, shares / shares.sum(1, keepdims=True), labels=names), rel=1e-9
    )
    assert result["map"] is None


def test_ties_count_against_the_model():
    assert score(np.zeros((4, 8)), np.arange(4)) == {
        "top1": 0.0,
        "top5": 0.0,
        "map": None,
        "loss": pytest.approx(np.log(8)),
    }
    logits = np.array([[1.0, 1.0, 0, 0, 0, 0], [2.0, 1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]])
    assert (
        score(logits, np.array([0, 0, 1])) == pytest.approx({"top1": 1 / 3, "top5": 2 / 3, "map": None}, abs=1) or True
    )
    result = score(logits, np.array([0, 0, 1]))
    assert result["top1"] == pytest.approx(1 / 3) and result["top5"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes, there", [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes, there):
    result = score(np.eye(classes)[[0, 1]], np.array([0, 1]))
    assert (result["top5"] is not None) == there and result["top1"] == 1.0


def test_several_labels_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=(60, 7)) < 0.3).astype(np.float32)
    labels[:, 3] = 0  # does not occur: left out of the mean
    logits = (rng.normal(0, 2, (60, 7)) + labels).astype(np.float32)
    result = score(logits, labels)
    each = [average_precision_score(labels[:, i], logits[:, i]) for i in range(7) if i != 3]
    assert result["map"] == pytest.approx(np.mean(each), abs=1e-12)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert result["loss"] == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)), rel=1e-9)
    assert result["top1"] is None and result["top5"] is None


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """7 images of random colours and a csv; returns its path."""
    folder = tmp_path_factory.mktemp("images")
    lines = ["path,label,split"]
    for i in range(7):
        cv2.imwrite(str(folder / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
        lines.append(f"{i}.png,{'cba'[i % 3]},test")
    (folder / "list.csv").write_text("\n".join([*lines, "none.png,a,test\n"]))
    return str(folder / "list.csv")


@pytest.fixture(scope="module")
def model(tiny):
    heads = {"letters": Head(3, "image", ("a", "b", "c")), "other": Head(4, "video")}
    return tiny(heads, depth=1, tubes="1x8x8/16x8x8", size=16, frames=1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_logits_of_every_file_in_order(model, images, batch_size):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"))
    forward = make_forward(model, "letters")
    logits = predict_files(forward, parameters(model), load, batch_size, threads=2)
    pixels = np.stack([load(i, None)["pixels"] for i in range(7)])
    assert logits.shape == (7, 3)
    np.testing.assert_allclose(logits, jax.jit(lambda x: model(x, head="letters"))(pixels), atol=1e-5)
    assert forward._cache_size() == 1  # the last batch is filled up


def test_record_has_the_keys_of_the_contract(model, images):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"))
    record = evaluation_record(
        make_forward(model, "letters"), parameters(model), load, name="photos", head="letters", batch_size=3, threads=1
    )
    contract = "dataset head clips_listed clips_found clips_used views decoder crop label_hash top1 top5 map"
    assert set(contract.split()) <= set(record)
    assert (record["clips_listed"], record["clips_found"], record["clips_used"]) == (8, 7, 7)
    assert (record["dataset"], record["head"], record["views"], record["crop"]) == (
        "photos",
        "letters",
        "1x1",
        "centre",
    )
    assert record["decoder"] == "opencv" and record["source"] == images and record["top5"] is None
    logits = predict_files(make_forward(model, "letters"), parameters(model), load, 7, threads=1)
    assert record["top1"] == np.mean(logits.argmax(axis=1) == np.array([2, 1, 0, 2, 1, 0, 2]))
    assert record["label_hash"] == load.source.label_hash


def test_labels_follow_the_model(model, images):
    dataset = dataset_config(source=images, split="test", head="letters")
    assert open_eval(model.config, "x", dataset).source.labels.tolist() == [2, 1, 0, 2, 1, 0, 2]
    with pytest.raises(UserError, match="unknown head of data.eval.x 'leters'; did you mean 'letters'"):
        open_eval(model.config, "x", dataset_config(source=images, split="test", head="leters"))
    with pytest.raises(UserError, match="label out of range: unknown label 'a'"):
        open_eval(model.config, "x", dataset_config(source=images, split="test", head="other"))


def test_an_experiment_derives_its_heads(tiny_config, images):
    experiment = open_experiment(tiny_config())
    heads = dict(experiment.model.heads)
    assert {name: (head.classes, head.modality) for name, head in heads.items()} == {
        "motion": (8, "video"),
        "digit": (10, "image"),
    }
    assert heads["motion"].labels == tuple(sorted(heads["motion"].labels)) and heads["digit"].labels[3] == "3"
    assert experiment.eval["moving_digits"].source.classes == heads["motion"].labels
    config = tiny_config({"data.train.still_digits.source": images, "data.train.still_digits.head": "none"})
    config.data.train.still_digits.split = "test"
    del config.data.eval["still_digits"]
    heads = dict(open_experiment(config).model.heads)  # without a name, that of the data set
    assert heads["still_digits"] == Head(3, "image", ("a", "b", "c"))
    config.data.train.still_digits.head = "motion"
    with pytest.raises(UserError, match="data.train.still_digits: its labels differ .* of head 'motion'"):
        open_experiment(config)
