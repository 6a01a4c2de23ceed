import dataclasses
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np
import pytest

from tubevit.config import dataset_config
from tubevit.config.experiment import open_eval, open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.moving_digits import write_video
from tubevit.data.pipeline import BatchShards, SampleLoader
from tubevit.data.views import ONE_VIEW, Views
from tubevit.errors import DecodeError, UserError
from tubevit.evaluation.evaluate import (
    EvalSettings,
    Evaluation,
    Predictions,
    broken_files,
    evaluate_source,
    evaluation_record,
    predict_source,
    sum_over_processes,
    write_tables,
)
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import parameters
from tubevit.models.config import Head


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
    heads = {"letters": Head(3, "image", ("a", "b", "c")), "other": Head(4, "image")}
    return tiny(heads, depth=1, tubes="1x8x8/16x8x8", size=16, frames=1)


VIDEO_FPS = 25


def flat(logits, axis=-1):
    """Softmax in float64."""
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_probabilities_of_every_file_in_order(model, images, batch_size):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    forward = make_forward(model.config, "letters")
    predictions = predict_source(forward, parameters(model), load, batch_size, EvalSettings(threads=2))
    pixels = np.stack([load.view(i, 0, ONE_VIEW, None)[0] for i in range(7)])
    logits = jax.jit(lambda x: model(x, head="letters"))(pixels)
    np.testing.assert_allclose(predictions.probabilities, flat(logits), atol=1e-6)
    assert predictions.used.all() and forward._cache_size() == 1  # the last batch is filled up


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """5 videos of 24 frames of 32x48, the fourth broken; returns the csv's path."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(folder / f"{i}.mp4", pixels, VIDEO_FPS)
    (folder / "3.mp4").write_bytes((folder / "2.mp4").read_bytes()[:400])
    (folder / "list.csv").write_text("path,label,split\n" + "".join(f"{i}.mp4,{i % 2},test\n" for i in range(5)))
    return str(folder / "list.csv")


@pytest.fixture(scope="module")
def video_model(tiny):
    heads = {"parity": Head(2, "video", ("0", "1"))}
    return tiny(heads, depth=1, tubes="2x8x8/2x16x16_1x16x16/4x16x16", size=32, frames=4, fps=8.0)


@pytest.fixture(scope="module")
def video_load(video_model, videos):
    return open_eval(video_model.config, "x", dataset_config(source=videos, split="test", head="parity"), "dense")


@pytest.fixture(scope="module")
def many_views(video_model, video_load):
    forward = make_forward(video_model.config, "parity")
    return forward, predict_source(forward, parameters(video_model), video_load, 4, EvalSettings(Views(2, 3)))


def test_views_are_averaged(video_model, videos, video_load, many_views):
    """Against decoding the whole file and cutting the views out by hand."""
    from tubevit import read_video

    _, predictions = many_views
    forward = jax.jit(lambda pixels: video_model(pixels, head="parity"))
    for i in (0, 1, 2, 4):
        clip = read_video(video_load.source.keys[i])[0]
        length = len(clip) / VIDEO_FPS
        views = []
        for start in (0.0, length - 4 / 8):
            frames = [min(int((start + k / 8 + 1e-3) * VIDEO_FPS), 23) for k in range(4)]
            views += [clip[frames][:, :, left : left + 32] for left in (0, 8, 16)]
        np.testing.assert_allclose(predictions.probabilities[i], flat(forward(np.stack(views))).mean(axis=0), atol=1e-6)
    assert predictions.views == Views(2, 3)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_what_is_averaged(model, images, average, multi_label):
    """The mean colours of three squares of each image are the logits; softmax and sigmoid in float64 beside them."""
    head = Head(3, "image", ("a", "b", "c"), multi_label)
    config = model.config.replace(heads=(("letters", head), model.config.heads[1]))
    load = open_eval(config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    assert load.source.multi_label == multi_label
    views = Views(4, 3, short_side=64, average=average)
    logits_of = lambda pixels: (pixels.mean(axis=(-3, -2)) / 5 - 25).astype(np.float32)  # noqa: E731
    to_shares = (lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))) if multi_label else flat

    def forward(params, pixels):
        return logits_of(pixels) if average == "logits" else to_shares(logits_of(pixels))

    found = predict_source(forward, {}, load, 3, EvalSettings(views)).probabilities
    logits = np.stack([logits_of(load.view(i, 0, views, None)) for i in range(7)]).astype(np.float64)
    means = {"logits": to_shares(logits.mean(axis=1)), "probabilities": to_shares(logits).mean(axis=1)}
    np.testing.assert_allclose(found, means[average], rtol=1e-12)
    assert np.abs(means["logits"] - means["probabilities"]).max() > 1e-3
    outputs = make_forward(config, "letters", average=average)(parameters(model), load.view(0, 0, views, None)[None])
    expected = jax.jit(lambda x: model(x, head="letters"))(load.view(0, 0, views, None))
    expected = expected if average == "logits" else to_shares(np.asarray(expected, np.float64))
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)


def test_broken_files_are_left_out_and_listed(video_load, many_views):
    _, predictions = many_views
    assert predictions.used.tolist() == [True, True, True, False, True]
    record = evaluation_record(predictions, video_load, name="x", head="parity", seconds=1.0)
    assert (record["clips_listed"], record["clips_found"], record["clips_used"]) == (5, 5, 4)
    ((path, reason),) = [tuple(entry.values()) for entry in broken_files(predictions, video_load)]
    assert path == video_load.source.keys[3] and path in reason and "cannot" in reason
    right = predictions.probabilities.argmax(axis=1) == np.arange(5) % 2
    assert record["top1"] == np.mean(right[[0, 1, 2, 4]])
    assert (record["views"], record["crop"], record["decoder"]) == ("2x3", "3 along the longer side", "pyav")
    nothing = dataclasses.replace(predictions, used=np.zeros(5, bool))
    with pytest.raises(UserError, match="none of the 5 files .* can be decoded"):
        evaluation_record(nothing, video_load, name="x", head="parity", seconds=1.0)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_every_clip_once(video_model, video_load, many_views, hosts):
    """10 views in batches of 4: uneven for 4 hosts."""
    forward, whole = many_views
    parts = [
        predict_source(
            forward, parameters(video_model), video_load, 4, EvalSettings(Views(2, 3), host=BatchShards((i,), hosts))
        )
        for i in range(hosts)
    ]
    np.testing.assert_allclose(sum(part.probabilities for part in parts), whole.probabilities, atol=1e-6)


def test_images_have_one_temporal_view(model, images):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    found = evaluate_source(
        make_forward(model.config, "letters"),
        parameters(model),
        load,
        3,
        name="photos",
        head="letters",
        settings=EvalSettings(Views(4, 3)),
    )
    assert str(found.predictions.views) == found.record["views"] == "1x3"


def test_record_has_the_keys_of_the_contract(model, images):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    forward = make_forward(model.config, "letters")
    evaluation = evaluate_source(forward, parameters(model), load, 3, name="photos", head="letters")
    record = evaluation.record
    contract = "dataset head clips_listed clips_found clips_used views decoder crop label_hash top1 top5 map"
    assert set(contract.split()) <= set(record)
    assert (record["clips_listed"], record["clips_found"], record["clips_used"]) == (8, 7, 7)
    where = tuple(record[key] for key in ("dataset", "head", "views", "crop", "decoder", "source"))
    assert where == ("photos", "letters", "1x1", "centre", "opencv", images) and record["top5"] is None
    probabilities = predict_source(forward, parameters(model), load, 7).probabilities
    assert record["top1"] == np.mean(probabilities.argmax(axis=1) == np.array([2, 1, 0, 2, 1, 0, 2]))
    assert record["label_hash"] == load.source.label_hash and broken_files(evaluation.predictions, load) == []


def test_class_tables(model, images, tmp_path):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    probabilities = np.eye(3)[[2, 1, 1, 2, 1, 0, 0]]
    predictions = Predictions(probabilities, np.array([1, 1, 1, 1, 1, 1, 0], bool), ONE_VIEW)
    classes, confusion = write_tables(Evaluation({}, predictions, load), str(tmp_path / "eval_x"))
    assert pathlib.Path(classes).read_text() == "class,clips,accuracy\na,2,0.5\nb,2,1.0\nc,2,1.0\n"
    assert pathlib.Path(confusion).read_text() == "label,a,b,c\na,1,1,0\nb,0,2,0\nc,0,0,2\n"
    several = dataclasses.replace(load.source, labels=np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 0, 0, 0]])
    several = dataclasses.replace(load, source=several)
    (table,) = write_tables(Evaluation({}, predictions, several), str(tmp_path / "several"))
    assert pathlib.Path(table).read_text().splitlines()[::3] == ["class,clips,average_precision", "c,0,"]


def test_tables_of_equal_class_names(model, images, tmp_path):
    load = open_eval(model.config, "x", dataset_config(source=images, split="test", head="letters"), "dense")
    load = dataclasses.replace(load, source=dataclasses.replace(load.source, classes=("crane", "ox", "crane")))
    predictions = Predictions(np.eye(3)[[2, 1, 0, 2, 1, 0, 0]], np.ones(7, bool), ONE_VIEW)
    classes, confusion = write_tables(Evaluation({}, predictions, load), str(tmp_path / "eval_x"))
    assert (
        pathlib.Path(classes).read_text() == "class,clips,accuracy\ncrane (0),2,1.0\nox,2,1.0\ncrane (2),3,0.666667\n"
    )
    assert pathlib.Path(confusion).read_text().splitlines()[::3] == ["label,crane (0),ox,crane (2)", "crane (2),1,0,2"]


def test_labels_follow_the_model(model, images):
    dataset = dataset_config(source=images, split="test", head="letters")
    assert open_eval(model.config, "x", dataset, "dense").source.labels.tolist() == [2, 1, 0, 2, 1, 0, 2]
    with pytest.raises(UserError, match="unknown head of data.eval.x 'leters'; did you mean 'letters'"):
        open_eval(model.config, "x", dataset_config(source=images, split="test", head="leters"), "dense")
    with pytest.raises(UserError, match="list.csv labels files by name, and head 'other' has no class names"):
        open_eval(model.config, "x", dataset_config(source=images, split="test", head="other"), "dense")
    for labels, found in ((("b", "c", "a"), [1, 0, 2, 1, 0, 2, 1]), (("d", "b", "c", "a"), [2, 1, 3, 2, 1, 3, 2])):
        other = model.config.replace(heads=(("letters", Head(len(labels), "image", labels)),))
        assert open_eval(other, "x", dataset, "dense").source.labels.tolist() == found  # by name, in any order
    other = model.config.replace(heads=(("letters", Head(3, "image", ("a", "b", "sea"))),))
    with pytest.raises(UserError, match="label out of range: unknown label 'c'"):
        open_eval(other, "x", dataset, "dense")


def test_an_experiment_derives_its_heads(tiny_config, images):
    experiment = open_experiment(resolve(tiny_config()))
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
    heads = dict(open_experiment(resolve(config)).model.heads)  # without a name, that of the data set
    assert heads["still_digits"] == Head(3, "image", ("a", "b", "c"))
    config.data.train.still_digits.head = "motion"
    with pytest.raises(
        UserError, match="data.train.still_digits: it holds images, unlike another data set of head 'motion'"
    ):
        open_experiment(resolve(config))


def test_a_file_counts_only_with_all_its_views(video_model, video_load):
    """A file whose end is damaged: its first view decodes, its last does not."""
    load = dataclasses.replace(
        video_load, source=dataclasses.replace(video_load.source, keys=video_load.source.keys[:1])
    )
    decode = SampleLoader.decode

    def fails_late(self, index, position, **options):
        if position > 0.5:
            raise DecodeError("damaged")
        return decode(self, index, position, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleLoader, "decode", fails_late)
        forward = make_forward(video_model.config, "parity")
        assert predict_source(forward, parameters(video_model), load, 4, EvalSettings(Views(2, 1))).used.tolist() == [
            False
        ]
    assert predict_source(forward, parameters(video_model), load, 4, EvalSettings(Views(2, 1))).used.tolist() == [True]


@pytest.mark.parametrize("limit", [1, 200, 10**9])
def test_processes_exchange_what_they_computed_in_small_parts(limit):
    """Two processes, here threads, that saw other views of the same files; none saw file 3."""
    rng, barrier, sent, sizes = np.random.default_rng(0), threading.Barrier(2, timeout=60), {}, []
    seen = np.array([[2, 1, 0, 0, 1], [0, 1, 2, 0, 0]])
    total = rng.normal(size=(2, 5, 3)) * (seen > 0)[..., None]

    def run(process):
        def gather(array):
            sent[process] = array
            barrier.wait()
            together = np.stack([sent[0], sent[1]])
            sizes.append(together.nbytes)
            barrier.wait()
            return together

        return sum_over_processes(total[process], seen[process], gather, limit)

    with ThreadPoolExecutor(2) as pool:
        for sums, times in pool.map(run, (0, 1)):
            np.testing.assert_array_equal(sums, total.sum(axis=0))
            assert times.tolist() == [2, 2, 2, 0, 1]
    assert max(sizes) <= max(limit, 2 * 5 * 8)  # at least a row of each: file, times and three classes
