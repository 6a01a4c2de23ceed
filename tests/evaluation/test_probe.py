import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression

import tubevit
from tubevit.cli import main
from tubevit.config import dataset_config
from tubevit.data.sources import open_source
from tubevit.errors import UserError
from tubevit.evaluation import pixels
from tubevit.evaluation.probe import open_probe, probe_probabilities


@pytest.fixture(scope="module")
def lists(digits_cache, tmp_path_factory):
    """Clips with labels of their own, 24 to learn from and 8 held out, whose classes no head has."""
    lines = (digits_cache / "motion.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    text = "".join(
        f"{digits_cache / path},{'xyz'[len(label) % 3]},{split}\n"
        for path, label, split, *_ in rows if split != "val"
    )  # fmt: skip
    path = tmp_path_factory.mktemp("probe") / "clips.csv"
    path.write_text("path,label,split\n" + text)
    return path


@pytest.fixture(scope="module")
def by_hand(tiny_run, lists):
    """Features and labels of both splits, from all pixels of each file."""
    model = tubevit.load_model(tiny_run)
    features = nnx.jit(type(model).features)
    found = []
    for source in (open_source(str(lists), split) for split in ("train", "test")):
        clips = np.concatenate([tubevit.read_video(path, **model.input) for path in source.keys])
        found += [np.asarray(features(model, clips), np.float64), np.array(source.labels)]
    return found


def linear(x, y, z):
    """Probabilities of the classes 0, 1, 2."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / deviation, y)
    return fitted.predict_proba((z - mean) / deviation)


def knn(x, y, z):
    """The same."""
    x, z = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, z))
    cosine = z @ x.T
    near = np.argsort(-cosine, axis=1)[:, :20]
    votes = np.exp(np.take_along_axis(cosine, near, axis=1) / 0.07)
    shares = np.stack([(votes * (y[near] == label)).sum(axis=1) for label in range(3)], axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind, batch_size", [(linear, 3), (knn, 8)])
def test_as_scikit_learn_on_features_computed_by_hand(tiny_run, lists, by_hand, tmp_path, capsys, kind, batch_size):
    x, y, z, labels = by_hand
    shares = kind(x, y, z)
    command = ["evaluate", "--checkpoint", tiny_run, "--data", lists, "--probe", kind.__name__, "--json"]
    command += ["--out", tmp_path / "out.json", "--batch-size", batch_size]
    assert main(list(map(str, command))) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out.json").read_text()) == [record]
    assert record["top1"] == (shares.argmax(axis=1) == labels).mean()
    if kind is knn:  # a label that no neighbour has would make it infinite
        assert record["loss"] is None
    else:
        assert record["loss"] == pytest.approx(-np.log(shares[range(8), labels]).mean(), rel=1e-3)
    assert (record["probe"], record["train_clips_used"], record["clips_used"]) == (kind.__name__, 24, 8)
    assert record["split"] == "test" and record["source"] == str(lists)


def test_the_datasets_of_the_checkpoint(tiny_run, capsys, tmp_path):
    """Both kinds of input; settings are printed; eval.json stays as it is."""
    before = (tiny_run / "eval.json").exists()
    out = tmp_path / "probe.json"
    assert main(["evaluate", "--workdir", str(tiny_run), "--probe", "knn", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "moving_digits (knn probe): top1 " in text and "still_digits (knn probe): top1 " in text
    assert "loss" not in text and "20 nearest files" in text and "learned from 24 clips" in text
    still = json.loads(out.read_text())[1]
    assert (still["head"], still["clips_used"], still["train_clips_used"]) == ("digit", 4, 80)
    assert (tmp_path / "probe_still_digits_confusion.csv").exists() and (tiny_run / "eval.json").exists() == before


def test_classes_that_are_not_there_get_nothing():
    features = np.random.default_rng(0).normal(size=(6, 4))
    for kind in ("linear", "knn"):  # fewer files than neighbours
        shares = probe_probabilities(kind, features, np.array([0, 0, 2, 2, 4, 4]), features[:2], 6)
        assert (shares[:, [1, 3, 5]] == 0).all() and shares.sum(axis=1) == pytest.approx(np.ones(2))
        again = probe_probabilities(kind, features, np.array([0, 0, 2, 2, 4, 4]), features[:2], 6)
        np.testing.assert_array_equal(shares, again)


def test_splits_and_labels_that_are_refused(tiny, lists, tmp_path):
    config = tiny().config

    def refused(text, part, split="test", tmp=tmp_path / "a.csv"):
        tmp.write_text("path,label,split\n" + text)
        with pytest.raises(UserError, match=part):
            open_probe("linear", config, "data", dataset_config(source=str(tmp), split=split), "tubes")

    clips = iter(open_source(str(lists), "all").keys)
    row = lambda *labels, split: "".join(f"{next(clips)},{label},{split}\n" for label in labels)  # noqa: E731
    both = row("a", "b", split="train")
    refused(both + row("a", split="test"), "held-out split, val or test; found 'train'", "train")
    refused(both + row("a", split="test"), "held-out split, val or test; found 'all'", "all")
    refused(row("a", "b", split="test"), "unknown split")
    refused(row("a", split="train") + row("a", split="test"), "two classes or more")
    refused(row("a", "b|c", split="train") + row("a", split="test"), "one label per file")


def test_labels_without_training_files(tiny, lists, tmp_path, tiny_run, capsys):
    """Labels that no training file has are refused; if the files that have one are broken, there is no loss."""
    clips = open_source(str(lists), "all").keys
    rows = [(clips[0], "a", "train"), (clips[1], "b", "train"), (clips[2], "a", "test"), (clips[3], "c", "test")]

    def csv(rows):
        (tmp_path / "clips.csv").write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
        return str(tmp_path / "clips.csv")

    dataset = dataset_config(source=csv(rows), split="test")
    with pytest.raises(UserError, match="not there, but in its test split: 'c'; add files"):
        open_probe("linear", tiny().config, "data", dataset, "tubes")
    (tmp_path / "bad.mp4").write_bytes(b"damaged")
    source = csv([*rows, ("bad.mp4", "c", "train")])
    command = ["evaluate", "--checkpoint", tiny_run, "--data", source, "--probe", "linear", "--json"]
    command += ["--out", "/dev/null", "--max-broken", "0.5"]
    assert main(list(map(str, command))) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["loss"] is None and record["top1"] <= 0.5 and record["train_clips_used"] == 2


def test_pixels_as_numpy(tiny_run, lists, capsys):
    """Ridge regression by its normal equations, in float64, on grey clips that are computed here."""
    command = f"evaluate --checkpoint {tiny_run} --data {lists} --probe pixels --json --out /dev/null"
    for flag in (["--int8"], ["--budget", "25%"]):
        assert main([*command.split(), *flag]) == 2
        assert f"leave out {flag[0]}" in capsys.readouterr().err
    assert main(command.split()) == 0
    (record,) = json.loads(capsys.readouterr().out)
    model, grey = tubevit.load_model(tiny_run), []
    for source in (open_source(str(lists), split) for split in ("train", "test")):
        clips = [tubevit.read_video(path, **{**model.input, "size": pixels.SIDE}) for path in source.keys]
        grey += [np.stack(clips).astype(float).mean(axis=-1).reshape(len(clips), -1) / 127.5 - 1, source.labels]
    x, y, z, labels = grey
    x, z = x - x.mean(axis=0), z - x.mean(axis=0)
    targets = 2.0 * np.eye(3)[y] - 1
    centred, gram, errors = targets - targets.mean(axis=0), x @ x.T, {}
    for penalty in pixels.PENALTIES:
        hat = np.linalg.solve(gram + penalty * np.eye(len(x)), gram) + 1 / len(x)  # with the intercept
        residuals = (targets - targets.mean(axis=0) - (hat - 1 / len(x)) @ centred) / (1 - np.diag(hat))[:, None]
        errors[penalty] = (residuals**2).mean()
    best = min(errors, key=errors.get)
    outputs = z @ x.T @ np.linalg.solve(gram + best * np.eye(len(x)), centred) + targets.mean(axis=0)
    assert record["top1"] == (outputs.argmax(axis=1) == labels).mean()
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert record["loss"] == pytest.approx(-np.log(shares[range(8), labels]).mean(), rel=1e-4)
    assert (record["probe"], record["train_clips_used"], record["clips_used"]) == ("pixels", 24, 8)


def test_pixels_of_some_files(lists):
    source = open_source(str(lists), "train")
    some = pixels.some_files(source, 5)
    assert some.keys == [source.keys[i] for i in (0, 5, 11, 17, 23)] and len(some.labels) == 5
    assert pixels.some_files(source, 24) is source
    read = dataclasses.replace(source, read=lambda index: index)
    assert [pixels.some_files(read, 5).media(i) for i in range(5)] == [0, 5, 11, 17, 23]
