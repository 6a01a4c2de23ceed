import json
import shutil

import numpy as np
import pytest

import tubevit
from tests.conftest import TINY
from tubevit.cli.evaluate import compared


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run, to write eval.json into."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluate") / "run")


def test_a_workdir(run, done, digits_cache):
    records = json.loads(done(["evaluate", "--workdir", run, "--json"]))
    assert records == json.loads((run / "eval.json").read_text())
    motion, still = records
    assert (motion["dataset"], motion["head"], motion["decoder"]) == ("moving_digits", "motion", "pyav")
    assert (still["dataset"], still["head"], still["decoder"]) == ("still_digits", "digit", "opencv")
    assert (motion["clips_listed"], motion["clips_found"], motion["clips_used"]) == (8, 8, 8)
    for record in records:
        assert set(record) >= {
            "dataset", "head", "clips_listed", "clips_found", "clips_used", "views", "decoder", "crop", "label_hash",
            "top1", "top5", "map", "checkpoint", "step",
        }  # fmt: skip
        assert record["step"] == 9 and record["checkpoint"] == str(run / "checkpoints" / "9")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for record in records:  # as at the end of training
        for metric in ("top1", "top5", "loss"):
            assert record[metric] == pytest.approx(last[f"eval/{record['dataset']}/{metric}"], rel=1e-6)


def test_an_earlier_step_and_text(run, done):
    text = done(["evaluate", "--workdir", run, "--step", 6])
    assert "moving_digits (motion): top1 " in text and "8 of 8 clips, views 1x1" in text
    assert f"written to {run}/eval.json" in text
    assert {record["step"] for record in json.loads((run / "eval.json").read_text())} == {6}


def test_a_budget(run, done, refused, digits_cache):
    """The same by both input paths, and in predict; the record says which tokens were kept."""
    records = {}
    for budget, name in (("50%:motion", "eval_50_motion.json"), ("100%", "eval_100.json")):
        records[budget] = json.loads(done(["evaluate", "--workdir", run, "--budget", budget, "--json"]))
        assert records[budget] == json.loads((run / name).read_text())
        assert [record["budget"] for record in records[budget]] == [None if budget == "100%" else budget] * 2
    whole = json.loads(done(["evaluate", "--workdir", run, "--json"]))
    assert [each["loss"] for each in records["100%"]] == pytest.approx([each["loss"] for each in whole], rel=1e-6)
    assert records["50%:motion"][0]["loss"] != records["100%"][0]["loss"]
    sparse = ["--config", TINY, "--config.input.path=tubes", "--out", run / "sparse.json"]
    done(["evaluate", "--workdir", run, "--budget", "50%:motion", *sparse])
    for one, other in zip(records["50%:motion"], json.loads((run / "sparse.json").read_text())):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    clip = sorted((digits_cache / "videos" / "test").iterdir())[0]
    (line,) = done(["predict", "--checkpoint", run, "--budget", "50%:motion", "--top", 8, "--json", clip]).splitlines()
    model = tubevit.load_model(run, budget="50%:motion")
    logits = np.asarray(model(tubevit.read_video(clip, **model.input), head="motion"), np.float64)[0]
    shares = np.exp(logits) / np.exp(logits).sum()
    found = {entry["label"]: entry["probability"] for entry in json.loads(line)["top"]}
    assert [found[label] for label in model.labels["motion"]] == pytest.approx(shares, abs=2e-6)
    assert "budget 50%:motion" in done(["evaluate", "--workdir", run, "--budget", "50%:motion"])
    refused(["evaluate", "--workdir", run, "--budget", "half"], "a budget must be SHARE%[:RULE]", "'half'")
    refused(["predict", "--checkpoint", run, "--budget", "50%:moton", clip], "did you mean 'motion'")


def test_another_source(run, done, digits_cache, tmp_path):
    rows = (digits_cache / "motion.csv").read_text().splitlines()
    test = [line.split(",") for line in rows[1:] if ",test," in line]
    names = tubevit.load_model(run).labels["motion"]
    by_name, by_index = tmp_path / "names.csv", tmp_path / "indices.csv"
    by_name.write_text("path,label\n" + "".join(f"{digits_cache / row[0]},{row[1]}\n" for row in test))
    by_index.write_text(
        "path,label,split\n" + "".join(f"{digits_cache / r[0]},{names.index(r[1])},test\n" for r in test)
    )
    out = tmp_path / "out.json"
    flags = ["--head", "motion", "--batch-size", 3, "--json", "--out", out]
    (stored,) = json.loads(done(["evaluate", "--workdir", run, "--json"]))[:1]
    for source, split in ((by_name, "all"), (by_index, "Test")):
        (record,) = json.loads(done(["evaluate", "--checkpoint", run, "--data", source, "--split", split, *flags]))
        assert record["source"] == str(source) and record["dataset"] == "data" and record["clips_used"] == 8
        assert record["label_hash"] == stored["label_hash"]
        assert [record[key] for key in ("top1", "top5")] == [stored[key] for key in ("top1", "top5")]
        assert np.isclose(record["loss"], stored["loss"], rtol=1e-5)
        assert json.loads(out.read_text()) == [record]


def test_another_split(run, done, tmp_path):
    """Of every data set, whether the run or an experiment names them."""
    for flags in ([], ["--config", TINY]):
        command = ["evaluate", "--workdir", run, "--split", "train", "--json", "--out", tmp_path / "out.json", *flags]
        records = json.loads(done(command))
        assert [(each["dataset"], each["split"]) for each in records] == [
            ("moving_digits", "train"), ("still_digits", "train")
        ]  # fmt: skip


def test_a_saved_model(run, done, refused, tmp_path, digits_cache):
    saved = tmp_path / "saved"
    tubevit.save_model(tubevit.load_model(run), saved)
    command = ["evaluate", "--checkpoint", saved]
    refused(command, "names no evaluation data: pass --data SOURCE or --config FILE")
    done([*command, "--data", "still_digits", "--head", "digit"])
    (record,) = json.loads((saved / "eval.json").read_text())
    assert record["clips_used"] == 4 and record["step"] is None
    tubevit.load_model(saved)


def test_what_is_known_is_kept_when_a_later_data_set_fails(run, refused, tmp_path):
    """Shown and written as if it had been the only one."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "bad.csv").write_text("path,label,split\nbad.png,3,test\n")
    out = tmp_path / "out.json"
    command = ["evaluate", "--workdir", run, "--config", TINY, "--out", out]
    command.append(f"--config.data.eval.still_digits.source={tmp_path / 'bad.csv'}")
    text = refused(command, "none of the 1 files", "bad.png")
    assert text.startswith("moving_digits (motion): top1 ") and f"written to {out}" in text
    (record,) = json.loads(out.read_text())
    assert (record["dataset"], record["clips_used"]) == ("moving_digits", 8)
    out.unlink()
    (shown,) = json.loads(refused([*command, "--json"], "none of the 1 files"))
    assert json.loads(out.read_text()) == [shown] and shown["top1"] == record["top1"]


def test_an_experiment_without_evaluation_data(run, refused, tmp_path):
    """The results of an earlier evaluation stay."""
    (tmp_path / "eval.json").write_text("earlier")
    (tmp_path / "empty.py").write_text(
        "from tubevit.config import dataset_config, default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n"
        "    config.data.train.a = dataset_config(source='moving_digits', head='motion')\n"
        "    return config\n"
    )
    command = ["evaluate", "--workdir", run, "--config", tmp_path / "empty.py", "--out", tmp_path / "eval.json"]
    refused(command, "names no evaluation data: add data.eval, or pass --data SOURCE")
    assert (tmp_path / "eval.json").read_text() == "earlier"


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--data", "moving_digits"], ["pass --head, one of motion, digit"]),
        (["--data", "moving_digits", "--head", "moton"], ["unknown head", "did you mean 'motion'"]),
        (["--data", "none.csv", "--head", "motion"], ["csv file none.csv does not exist"]),
        (["--data", "moving_digits", "--head", "motion", "--split", "tets"], ["unknown split", "'test'"]),
        (["--data", "x.csv", "--config", "quickstart"], ["pass --data or --config, not both"]),
        (["--config", "quickstrat"], ["did you mean 'quickstart'"]),
        (["--step", "7"], ["has no checkpoint of step 7; it has [6, 9]"]),
        (["--out", "/dev/null/x.json"], ["cannot write /dev/null/x.json"]),
    ],
)
def test_errors(run, refused, flags, parts):
    refused(["evaluate", "--workdir", run, *flags], *parts)


def test_errors_of_names_and_labels(run, refused, tmp_path, digits_cache):
    refused(["evaluate", "--checkpoint", run.parent / "runn"], "unknown checkpoint", f"did you mean '{run}'")
    refused(["evaluate", "--workdir", tmp_path], f"{tmp_path} holds no checkpoint")
    refused(["evaluate", "--checkpoint", run, "--step", 6], "--step goes with --workdir")
    clip = next((digits_cache / "videos").rglob("*.mp4"))
    for label in ("8", "sideways"):
        (tmp_path / "clips.csv").write_text(f"path,label,split\n{clip},{label},test\n")
        command = ["evaluate", "--workdir", run, "--data", tmp_path / "clips.csv", "--head", "motion"]
        refused(command, "clips.csv line 2: label out of range", repr(label))
    (tmp_path / "clips.csv").write_text("path,label\n")
    refused(command, "clips.csv lists no files")
    (tmp_path / "bad.mp4").write_bytes(b"damaged")
    (tmp_path / "clips.csv").write_text("path,label,split\nbad.mp4,up,test\n")
    refused(command, "bad.mp4", "as a video")


def test_a_model_is_compared_with_a_linear_one_of_pixels(tmp_path):
    """Only if it was evaluated on the same files: a line tells what to do otherwise, or that the model is worse."""
    path = tmp_path / "eval.json"
    probe = {"dataset": "a", "source": "clips.csv", "split": "val", "checkpoint": "run/checkpoints/9", "top1": 0.5}
    probe |= {"label_hash": "0a"}
    assert "a: not compared" in compared(probe, str(path))
    for change, expected in (
        ({"top1": 0.5}, None), ({"top1": 0.4}, "the model has top1 0.400, less than the 0.500 of a linear model"),
        ({"split": "test"}, "not compared"), ({"label_hash": "0b"}, "is over other classes"),
        ({"top1": None}, "has no top1"),
        ({"checkpoint": "run/checkpoints/6"}, "not compared"),
    ):  # fmt: skip
        path.write_text(json.dumps([probe | {"dataset": "b", "top1": 0.1}, probe | change]))
        line = compared(probe, str(path))
        assert line is None if expected is None else expected in line
        if change.keys() <= {"top1", "label_hash"}:  # evaluating once more would change nothing
            assert "evaluate without --probe first" not in str(line)
