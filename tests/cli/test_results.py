"""Results are not lost: what cannot be written is refused before the work, and scores are shown in any case."""

import csv
import json
import shutil

import numpy as np
import pytest

import tubevit
from tests import gcs
from tests.data.clips import write_clip
from tubevit import storage
from tubevit.cli import main
from tubevit.errors import UserError
from tubevit.models.tubevit import TubeViT
from tubevit.writable import check_file, check_folder
from tubevit.zoo import registry


@pytest.fixture(scope="module")
def data(digits_cache, tmp_path_factory):
    """A csv of the 8 test clips, and one in which the first is broken."""
    folder = tmp_path_factory.mktemp("data")
    rows = [row.split(",")[:3] for row in (digits_cache / "motion.csv").read_text().splitlines()[1:]]
    paths = [(digits_cache / path, label, split) for path, label, split in rows]
    (folder / "broken.mp4").write_bytes(b"damaged")
    test = [(path, label) for path, label, split in paths if split == "test"]
    train = "".join(f"{path},{label},train\n" for path, label, split in paths if split == "train")
    for name, first in (("good", test[0][0]), ("bad", folder / "broken.mp4")):
        clips = [(first, test[0][1]), *test[1:]]
        lines = "".join(f"{path},{label},test\n" for path, label in clips)
        (folder / f"{name}.csv").write_text("path,label,split\n" + train + lines)
    return folder


@pytest.fixture
def targets(tmp_path):
    """Places where no file can be written: {kind: path}."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    return {
        "folder": tmp_path / "folder", "below a file": tmp_path / "file/a/b", "no name": "", "slash": f"{tmp_path}/a/",
        "long": tmp_path / ("x" * 300), "kernel": "/proc/none/b",
    }  # fmt: skip


def test_what_cannot_be_written_is_refused(targets, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for path in targets.values():
        with pytest.raises(UserError, match="cannot write .*; name another"):
            check_file(path)
    for kind in ("below a file", "no name", "long", "kernel"):
        with pytest.raises(UserError, match="cannot write .*; name another folder"):
            check_folder(targets[kind])
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_and_nothing_is_changed(tmp_path):
    (tmp_path / "old.json").write_text("kept")
    before = (tmp_path / "old.json").stat().st_mtime_ns
    for path in ("old.json", "new.json", "a/b/c/new.json"):
        check_file(tmp_path / path)
        check_folder((tmp_path / path).parent)
    check_file("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "kept" and (tmp_path / "old.json").stat().st_mtime_ns == before


def test_in_a_bucket():
    with gcs.emulator("bucket"):
        storage.write_text("gs://bucket/folder/a.json", "kept")
        check_file("gs://bucket/folder/b.json")
        check_folder("gs://bucket/new/folder")
        assert storage.list_files("gs://bucket/folder") == ["a.json"]
        for path, reason in (
            ("gs://bucket/folder", "it is a folder"),
            ("gs://other/a.json", "there is no such bucket"),
        ):
            with pytest.raises(UserError, match=f"cannot write {path}: {reason}"):
                check_file(path)


@pytest.fixture
def no_computing(monkeypatch):
    """The test fails as soon as a model computes."""

    def compute(*args, **kwargs):
        raise AssertionError("computed")

    monkeypatch.setattr(TubeViT, "features", compute)
    monkeypatch.setattr(TubeViT, "__call__", compute)


def test_before_anything_is_computed(tiny_run, data, targets, refused, no_computing, tmp_path):
    clip = data / "broken.mp4"  # would be an error of another kind, once it is read
    evaluate = ["evaluate", "--checkpoint", tiny_run, "--head", "motion", "--data", data / "good.csv"]
    saved = tmp_path / "saved"
    shutil.copytree(tiny_run / "checkpoints/9", saved)
    before = sorted(tmp_path.rglob("*"))
    refused([*evaluate, "--out", targets.pop("no name")], "--out is empty")
    for path in targets.values():
        refused([*evaluate, "--out", path], f"cannot write {path}: ", "--out")
        refused([*evaluate, "--probe", "knn", "--out", path], f"cannot write {path}: ")
        refused(["predict", "--checkpoint", tiny_run, clip, "--csv", path], f"cannot write {path}: ")
        refused(["predict", "--checkpoint", tiny_run, clip, "--features", path], f"cannot write {path}: ")
    for path in (targets["below a file"], targets["long"], targets["kernel"]):
        refused(["report", tiny_run, "--out", path], f"cannot write {path}: ", "--out")
        for flags in (["safetensors"], ["jax", "--head", "motion"]):
            refused(["export", tiny_run, path, "--format", *flags], "cannot write ", str(path))
        refused(["convert", saved, path, "--format", "timm"], f"cannot write {path}: ")
        refused(["shard-videos", data / "good.csv", path], f"cannot write {path}: ")
        refused(["make-moving-digits", path], f"cannot write {path}")
        refused(["train", "--config", "finetune:data=nowhere.csv", "--workdir", path], f"cannot write {path}: ")
    refused(["predict", "--checkpoint", tiny_run, clip, "--csv", "gs://b/x.csv"], "local file; found gs://b/x.csv")
    assert sorted(tmp_path.rglob("*")) == before


def test_scores_are_shown_if_they_cannot_be_written(tiny_run, data, capsys, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_text", full)
    command = ["evaluate", "--checkpoint", str(tiny_run), "--head", "motion", "--data", str(data / "good.csv")]
    for flags in ([], ["--json"]):
        assert main([*command, "--out", str(tmp_path / "eval.json"), *flags]) == 1
        out, err = capsys.readouterr()
        assert "top1" in out and "No space left on device" in err and err.count("\n") == 1
    assert json.loads(out)[0]["clips_used"] == 8


def test_an_earlier_result_stays_if_the_computing_fails(tiny_run, data, refused, tmp_path):
    for name in ("eval.json", "labels.csv", "features.npz"):
        (tmp_path / name).write_text("of yesterday")
    bad = tmp_path / "all_bad.csv"
    bad.write_text(f"path,label,split\n{data / 'broken.mp4'},up,test\n")
    command = ["evaluate", "--checkpoint", tiny_run, "--head", "motion", "--data", bad, "--out", tmp_path / "eval.json"]
    refused(command, "none of the 1 files")
    refused(["predict", "--checkpoint", tiny_run, "--csv", tmp_path / "labels.csv", data / "broken.mp4"], "broken.mp4")
    command = ["predict", "--checkpoint", tiny_run, "--features", tmp_path / "features.npz", data / "broken.mp4"]
    refused(command, "broken.mp4")
    assert {(tmp_path / name).read_text() for name in ("eval.json", "labels.csv", "features.npz")} == {"of yesterday"}
    new = tmp_path / "new.npz"
    refused(["predict", "--checkpoint", tiny_run, "--features", new, data / "broken.mp4"], "broken.mp4")
    assert not new.exists()


def test_clips_of_a_single_damaged_video_are_kept(tiny_run, tmp_path, capsys):
    """As they are if there are other files."""
    cut = write_clip(tmp_path / "cut.mkv", range(0, 16000, 40), "mpeg4", stream={"g": "1"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 10])
    command = ["predict", "--checkpoint", tiny_run, "--every", 1, cut]
    for flags in (["--features", tmp_path / "x.npz"], ["--csv", tmp_path / "x.csv"]):
        assert main(list(map(str, [*command, *flags]))) == 2
        *_, error, last = capsys.readouterr().err.splitlines()
        assert "cut.mkv" in error and f"1 of 1 files are left out: {cut}" in last
    found, rows = np.load(tmp_path / "x.npz"), list(csv.DictReader(open(tmp_path / "x.csv")))
    assert len(found["features"]) > 0 and found["start"].tolist() == sorted({float(row["start"]) for row in rows})


def test_too_many_broken_files_are_a_failure(tiny_run, data, capsys, tmp_path):
    """1 of 8 files is broken: the score of the other 7 is written and marked, and the command fails."""
    out = tmp_path / "eval.json"
    command = ["evaluate", "--checkpoint", tiny_run, "--head", "motion", "--data", data / "bad.csv", "--out", out]
    for flags, code in (([], 1), (["--max-broken", 0.12], 1), (["--max-broken", 0.125], 0), (["--probe", "knn"], 1)):
        out.unlink(missing_ok=True)
        assert main([str(word) for word in [*command, *flags]]) == code
        shown, err = capsys.readouterr()
        (record,) = json.loads(out.read_text())
        assert record["clips_used"] == 7 and len(record["broken"]) == 1
        assert (record["failed"] is None) == (code == 0) and ("FAILED" in shown) == (code == 1)
        if code == 1:
            assert "1 of its 8 files are broken" in record["failed"] and record["failed"] in shown
            assert err.count("\n") == 1 and "loader.max_broken=" in err and "--max-broken" in err


def test_the_limit_is_that_of_the_configuration(tiny_run, data, tmp_path, capsys):
    out = tmp_path / "eval.json"
    source = f"--config.data.eval.data.source={data / 'bad.csv'}"
    command = ["evaluate", "--checkpoint", tiny_run, "--config", f"finetune:data={data / 'good.csv'}", source]
    command += ["--config.data.train.data.head=motion", "--config.data.eval.data.head=motion", "--out", out]
    for share, code in (("0.1", 1), ("0.2", 0)):
        assert main([str(word) for word in [*command, f"--config.loader.max_broken={share}"]]) == code
    capsys.readouterr()


def test_training_fails_after_saving(train_command, data, tmp_path, capsys, monkeypatch):
    """The scores of the evaluation and the state are kept, and the run can go on with a higher limit."""
    changes = {
        "data.eval.moving_digits.source": data / "bad.csv",
        "train.steps": 2,
        "eval.every": 2,
        "checkpoint.every": 2,
    }
    assert main(train_command(tmp_path / "run", **changes)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("tubevit: eval/moving_digits/broken is 0.125") and "loader.max_broken=0.01" in line
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/moving_digits/broken"] == 1 / 8 and last["eval/moving_digits/top1"] is not None
    assert tubevit.load_model(tmp_path / "run", step=2)
    assert main(["report", str(tmp_path / "run")]) == 1 and (tmp_path / "run/report/index.html").exists()
    assert "moving_digits: 1 of its 8 files are broken" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/index.json").write_text("[]\n")
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    assert main(["release", str(tmp_path / "run"), "tubevit_nano8@bad"]) == 1
    out, err = capsys.readouterr()
    assert "moving_digits (motion): top1" in out and "is not released: moving_digits: 1 of its 8" in err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["index.json"]
    changes |= {"train.steps": 3, "loader.max_broken": 0.2}
    assert main(train_command(tmp_path / "run", **changes)) == 0
    capsys.readouterr()
