import json
import shutil

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import tubevit
from tubevit.checkpoint.checkpoint import steps
from tubevit.cli import main
from tubevit.data.sources.embedded import embedded_folder
from tubevit.models.abstract import parameters
from tubevit.training.loop import Parts


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"train.stpes": 1}, ["unknown key 'train.stpes'; did you mean 'train.steps'"]),
        ({"train.steps": "many"}, ["train.steps must be a whole number, at least 1; found 'many'"]),
        ({"model.name": "tubevit_nano"}, ["unknown model 'tubevit_nano'; did you mean", "'tubevit_nano8'"]),
        ({"model.tubes": "papr"}, ["papr", "did you mean 'paper'"]),
        ({"model.tubes": "4x8x8/8x16"}, ["8x16"]),
        ({"model.width": 25}, ["width 25 must be divisible by num_heads 2"]),
        ({"model.remat": "ful"}, ["'ful'; did you mean 'full'"]),
        ({"precision": "float16"}, ["unknown precision 'float16'"]),
        ({"input.size": 4}, ["a clip of 16x4x4", "too small for tube 4x8x8/8x16x16"]),
        ({"data.train.moving_digits.source": "none.csv"}, ["csv file none.csv does not exist"]),
        ({"data.train.moving_digits.source": "moving"}, ["unknown source 'moving'"]),
        ({"data.train.moving_digits.split": "tran"}, ["unknown split", "did you mean 'train'"]),
        ({"data.eval.moving_digits.head": "digit_motion"}, ["unknown head of data.eval.moving_digits"]),
        ({"data.train.moving_digits.augment.scale": 0.5}, ["augment.scale must be at least 1; found 0.5"]),
        ({"optimizer.name": "sgd"}, ["unknown optimizer.name 'sgd'"]),
    ],
)
def test_bad_configuration(refused, train_command, tmp_path, changes, parts):
    refused(train_command(tmp_path / "run", **changes), *parts)
    assert not (tmp_path / "run").exists()  # the same command, mended, is not refused


def test_bad_files(refused, train_command, tmp_path, digits_cache):
    listing = tmp_path / "clips.csv"
    clip = next((digits_cache / "videos").rglob("*.mp4"))
    train = {"data.train.moving_digits.source": listing}
    listing.write_text(f"path,label,split\n{clip},up,train\n{clip}\n")
    refused(train_command(tmp_path / "a", **train), f"{listing} line 3: expected 3 columns")
    listing.write_text("")
    refused(train_command(tmp_path / "a", **train), f"{listing} line 1: expected the header path,label[,split]")
    clip, other = sorted((digits_cache / "videos").rglob("*.mp4"))[:2]
    listing.write_text(f"path,label,split\n{clip},up,test\n{other},sideways,test\n")
    evaluation = {"data.eval.moving_digits.source": listing}
    refused(train_command(tmp_path / "a", **evaluation), f"{listing} line 3: label out of range", "'sideways'")
    listing.write_text(f"path,label,split\n{clip},3,test\n{other},8,test\n")
    refused(train_command(tmp_path / "a", **evaluation), f"{listing} line 3: label out of range", "'8'")


def test_bad_names(refused, tmp_path, train_command):
    command = train_command(tmp_path)
    command[2] = "quickstrat"
    refused(command, "unknown config 'quickstrat'; did you mean 'quickstart'")
    command[2] = "quickstart:sed=1"
    refused(command, "unknown argument 'sed=1'", "did you mean 'seed'")


def test_a_clip_that_cannot_be_decoded(train_command, tmp_path, monkeypatch, capsys):
    """Found while training, below what a run shows at its start: the file is named."""
    folder = tmp_path / "cache" / embedded_folder().name
    shutil.copytree(embedded_folder(), folder)
    for path in folder.rglob("videos/train/*.mp4"):
        path.write_bytes(b"damaged")
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    assert main(train_command(tmp_path / "run")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tubevit: ") and f"{folder}/videos/train/0" in last and "as a video" in last


def test_bad_workdirs(refused, train_command, tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    refused(train_command(tmp_path / "file" / "run"), f"cannot write {tmp_path}/file/run: ", "name another workdir")
    before = (tiny_run / "metrics.jsonl").read_bytes(), (tiny_run / "config.json").read_bytes()
    for key, there, now in (("optimizer.b1", 0.9, 0.5), ("seed", 0, 3)):
        message = f"{key}: {there} there, {now} now", f"--allow-change {key}"
        refused(train_command(tiny_run, **{key: now}), f"{tiny_run} holds a run of another configuration", *message)
    assert before == ((tiny_run / "metrics.jsonl").read_bytes(), (tiny_run / "config.json").read_bytes())


def test_allow_change_and_both_forms_of_values(done, train_command, tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    command = train_command(workdir, **{"optimizer.b1": 0.5})
    done([*command, "--allow-change", "optimizer.b1", "--config.train.steps", "10"])
    config = json.loads((workdir / "config.json").read_text())
    assert config["optimizer"]["b1"] == 0.5 and config["train"]["steps"] == 10
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 10


def test_print_sharding_trains_nothing(done, refused, train_command, tiny_run, tmp_path):
    sharded = {"mesh.data": 2, "mesh.fsdp": 2}
    lines = done([*train_command(tmp_path / "run", **sharded), "--print-sharding"]).splitlines()
    assert lines[0] == "mesh: data=2, fsdp=2, tensor=1" and lines[-1].endswith("bytes replicated on every device")
    params = jax.tree_util.tree_flatten_with_path(parameters(tubevit.load_model(tiny_run)))[0]
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in params}
    table = {row[0]: row[1] for row in map(str.split, lines[2:-1])}
    assert table == {name: "x".join(map(str, shape)) or "scalar" for name, shape in names.items()}
    bad = train_command(tmp_path / "run", **sharded | {"data.train.moving_digits.batch_size": 6})
    refused([*bad, "--print-sharding"], "batch_size must be a multiple of 4", "found 6; use 4 or 8")
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_is_kept(train_tiny, tmp_path, said):
    """It is one that was evaluated itself, not one that was saved between evaluations; the last line names it."""
    metric, values = "eval/moving_digits/top1", {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.7, 9: 0.1}
    parts = Parts(make_evaluation=lambda experiment, mesh: lambda state: {metric: values[int(state["step"])]})
    changes = {"eval.every": 2, "checkpoint.every": 1, "checkpoint.keep": 1, "checkpoint.keep_best": metric}
    train_tiny(tmp_path, parts, **changes)
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 4, "metric": metric, "value": 0.9}
    assert steps(tmp_path / "checkpoints") == [4, 9]
    name = f"{tmp_path}/checkpoints/4"
    assert said[-1] == f"the best checkpoint is {name}, with {metric} 0.900; {tmp_path} stands for the last one"
    assert tubevit.load_model(name).labels == tubevit.load_model(tmp_path).labels


def test_a_second_run_finds_its_programs(train_tiny, tmp_path):
    folder, before, found = tmp_path / "cache", jax.config.jax_compilation_cache_dir, []
    jax.config.update("jax_disable_most_optimizations", True)  # half the time
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # by default quick ones are left out
    try:
        for name in ("first", "second"):
            reset_cache()  # as in a new process
            train_tiny(tmp_path / name, **{"train.steps": 1, "compilation_cache": folder})
            found.append(sorted(path.name for path in folder.iterdir()))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
        jax.config.update("jax_compilation_cache_dir", before)
        reset_cache()
    assert {"jit_step", "jit_initial_state"} <= {name.split("-")[0] for name in found[0]}
    assert found[1] == found[0]
