import json
import re

import pytest

from tubevit.errors import UserError
from tubevit.training.run.workdir import MetricsWriter, prepare_workdir

HEADS = {"motion": {"classes": 8, "labels": ("a", "b")}}


def pretend_checkpoint(workdir):
    (workdir / "checkpoints/3").mkdir(parents=True)
    (workdir / "checkpoints/3/_CHECKPOINT_METADATA").touch()


def test_without_a_checkpoint_there_is_nothing_to_resume(tiny_config, tmp_path):
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    prepare_workdir(tmp_path, tiny_config({"seed": "1"}), HEADS)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"loader.threads": "7", "loader.workers": "2"},
        {"log.every": "2"},
        {"checkpoint.every": "1", "checkpoint.keep": "9"},
        {"eval.every": "1", "data.eval.still_digits.batch_size": "1"},
        {"data.train.moving_digits.source": "elsewhere.csv"},
        {"train.steps": "99"},
        {"mesh.data": "2", "mesh.fsdp": "2"},
        {"compilation_cache": "/tmp/cache", "checkpoint.keep_best": "eval/still_digits/top1"},
    ],
)
def test_what_may_differ(tiny_config, tmp_path, changes):
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    pretend_checkpoint(tmp_path)
    prepare_workdir(tmp_path, tiny_config(changes), HEADS)
    stored = json.loads((tmp_path / "config.json").read_text())
    key, value = next(iter(changes.items()))
    for part in key.split("."):
        stored = stored[part]
    assert str(stored) == value  # config.json tells what is run now


def test_the_flags_in_the_error_are_enough(tiny_config, tmp_path):
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    pretend_checkpoint(tmp_path)
    other = tiny_config({"seed": "1", "train.mixup": "0.5", "optimizer.b1": "0.5"})
    with pytest.raises(UserError) as error:
        prepare_workdir(tmp_path, other, HEADS)
    flags = re.findall(r"--allow-change (\S+)", str(error.value))
    assert sorted(flags) == ["optimizer.b1", "seed", "train.mixup"]
    prepare_workdir(tmp_path, other, HEADS, flags)


@pytest.mark.parametrize(
    "key, there, now",
    [
        ("seed", "0", "1"),
        ("model.width", "24", "48"),
        ("model.tubes", "'4x8x8/8x16x16_1x8x8/16x16x16'", "'small'"),
        ("optimizer.learning_rate", "0.002", "0.1"),
        ("train.mixup", "0.2", "0.5"),
        ("data.train.moving_digits.batch_size", "4", "2"),
        ("data.train.still_digits.augment.flip", "False", "True"),
        ("input.fps", "8.0", "None"),
    ],
)
def test_what_is_refused(tiny_config, tmp_path, key, there, now):
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    pretend_checkpoint(tmp_path)
    before = (tmp_path / "config.json").read_text()
    other = tiny_config({key: now.strip("'")})
    with pytest.raises(UserError) as error:
        prepare_workdir(tmp_path, other, HEADS)
    assert f"{key}: {there} there, {now} now" in str(error.value)
    assert f"--allow-change {key}" in str(error.value) and str(tmp_path) in str(error.value)
    assert (tmp_path / "config.json").read_text() == before
    with pytest.raises(UserError):
        prepare_workdir(tmp_path, other, HEADS, ["train.label_smoothing"])
    prepare_workdir(tmp_path, other, HEADS, [key])
    assert (tmp_path / "config.json").read_text() != before


def test_other_labels_are_refused(tiny_config, tmp_path):
    """The same source may hold other files now; its classes are part of the run."""
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    pretend_checkpoint(tmp_path)
    with pytest.raises(UserError, match="heads.motion.labels"):
        prepare_workdir(tmp_path, tiny_config(), {"motion": {"classes": 8, "labels": ("b", "a")}})


def test_many_differences_are_counted(tiny_config, tmp_path):
    prepare_workdir(tmp_path, tiny_config(), HEADS)
    pretend_checkpoint(tmp_path)
    names = ("seed", "model.width", "model.depth", "model.num_heads", "model.mlp_dim", "optimizer.warmup_steps")
    with pytest.raises(UserError, match="and 1 more"):
        prepare_workdir(tmp_path, tiny_config({name: "64" for name in names}), HEADS)


def test_workdirs_that_cannot_be_used(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot write workdir {path}"):
            prepare_workdir(path, tiny_config(), HEADS)
    (tmp_path / "config.json").write_text('{"seed":')
    pretend_checkpoint(tmp_path)
    with pytest.raises(UserError, match="config.json is not JSON"):
        prepare_workdir(tmp_path, tiny_config(), HEADS)


@pytest.mark.parametrize("tail", ["", '{"step": 6, "train/lo', "{}\n", "null\n"])
def test_metrics_are_cut_back(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "x": {step / 7}}}\n' for step in (1, 2, 3, 3, 4, 5)) + tail)
    before = path.read_text().splitlines()
    writer = MetricsWriter(tmp_path, 3)
    assert path.read_text().splitlines() == before[:4]  # byte by byte
    writer.write(4, {"x": 0.5, "y": None})
    writer.close()
    assert path.read_text().splitlines() == [*before[:4], '{"step": 4, "x": 0.5, "y": null}']
    assert MetricsWriter(tmp_path, 0).close() is None and path.read_text() == ""


def test_metrics_go_to_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"train/loss": 0.5, "eval/clips/map": None})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"eval/clips/map" not in events.read_bytes()
