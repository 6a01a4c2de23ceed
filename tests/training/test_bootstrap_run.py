"""From a small run and an image ViT to a large video model, by the command line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import tubevit
from tubevit.checkpoint.paths import flatten
from tubevit.cli import main
from tubevit.config import load_config
from tubevit.config.derive import apply_recipe
from tubevit.models.abstract import parameters

TRAIN = {
    "loader.threads": 1, "mesh.data": 1, "log.every": 1, "checkpoint.every": 2, "eval.every": 4, "precision": "float32",
    "optimizer.warmup_steps": 1, "optimizer.learning_rate": 1e-2, "data.train.videos.batch_size": 4,
    "eval.views": "1x1",
}  # fmt: skip


@pytest.fixture(scope="module")
def vit(tiny, tmp_path_factory):
    """A plain ViT 48 wide for images of 32 pixels."""
    path = tmp_path_factory.mktemp("vit") / "vit"
    fields = dict(tubes="1x8x8/16x8x8", frames=1, size=32, position="learned", class_token=True, pooling="cls")
    model = tiny(5, width=48, num_heads=4, depth=3, mlp_dim=64, **fields)
    model.config = dataclasses.replace(model.config, name="vit_nano8")
    tubevit.save_model(model, path)
    return path


@pytest.fixture(scope="module")
def clips(digits_cache, tmp_path_factory):
    """The embedded training clips as a csv with a split `val`."""
    rows = [row.split(",")[:2] for row in (digits_cache / "motion.csv").read_text().splitlines()[1:] if ",train" in row]
    lines = [f"{digits_cache / path},{label},{'val' if i < 4 else 'train'}" for i, (path, label) in enumerate(rows)]
    path = tmp_path_factory.mktemp("clips") / "clips.csv"
    path.write_text("\n".join(["path,label,split", *lines]) + "\n")
    return path


def train(spec, workdir, steps, **changes):
    flags = [f"--config.{key}={value}" for key, value in {**TRAIN, "train.steps": steps, **changes}.items()]
    assert main(["train", "--config", spec, "--workdir", str(workdir), *flags]) == 0
    return flatten(parameters(tubevit.load_model(workdir)))


@pytest.fixture(scope="module")
def spec(tiny_run, vit, clips):
    return f"bootstrap:small={tiny_run},large={vit},videos={clips},train_last=2"


@pytest.fixture(scope="module")
def run(spec, tmp_path_factory):
    """The workdir and parameters of a bootstrapped run of 4 steps."""
    workdir = tmp_path_factory.mktemp("bootstrapped") / "run"
    return workdir, train(spec, workdir, 4)


def test_what_is_frozen_stays_and_the_rest_is_trained(run, tiny_run, vit):
    workdir, params = run
    small, large = (flatten(parameters(tubevit.load_model(path))) for path in (tiny_run, vit))
    np.testing.assert_array_equal(params["tokenizer/tubes/0/kernel"], small["tokenizer/tubes/0/kernel"])
    np.testing.assert_array_equal(params["tokenizer/tubes/1/kernel"], large["tokenizer/tubes/0/kernel"])
    for name in ("class_token", "position"):
        (path,) = (path for path in params if path.startswith(name))
        np.testing.assert_array_equal(params[path], large[path.replace("position/1", "position/0")])
    for path in (path for path in params if path.startswith("encoder/blocks/")):
        np.testing.assert_array_equal(params[path][:1], large[path][:1])
        assert (np.asarray(params[path][1:]) != large[path][1:]).any(), path
    assert float(params["encoder/gate"]) != 0
    model = tubevit.load_model(workdir).config
    assert (model.gate_layer, model.freeze_below, model.width, model.position) == (1, 1, 48, "learned_2d")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/videos/top1" in line for line in lines)


def test_resumed_it_ends_the_same(run, spec, tmp_path):
    workdir, params = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    for path, leaf in train(spec, tmp_path / "run", 4).items():
        np.testing.assert_array_equal(leaf, params[path])


def test_a_plain_vit_becomes_a_video_model(vit, clips, tmp_path, capsys):
    spec = f"finetune:data={clips},init={vit}"
    changes = {"data.train.data.batch_size": 4, "input.frames": 16}
    flags = {key: value for key, value in TRAIN.items() if "videos" not in key}
    arguments = [f"--config.{key}={value}" for key, value in {**flags, "train.steps": 1, **changes}.items()]
    assert main(["train", "--config", spec, "--workdir", str(tmp_path / "run"), *arguments]) == 0
    text = capsys.readouterr().err
    assert "tube 4x4x4/8x16x16 starts from the 2D kernel" in text and "left out: class_token" in text
    model = tubevit.load_model(tmp_path / "run")
    assert len(model.config.tubes.tubes) == 4 and model.config.position == "fixed" and model.config.width == 48


def test_evaluates_on_test_where_there_is_no_val(tiny_run, vit, clips, tmp_path):
    (tmp_path / "clips.csv").write_text(clips.read_text().replace(",val", ",test"))
    spec = f"bootstrap:small={tiny_run},large={vit},train_last=1,videos="
    config = lambda where: apply_recipe(load_config(f"{spec}{where}"))[0]  # noqa: E731
    splits = [config(where).data.eval.videos.split for where in (clips, tmp_path / "clips.csv")]
    assert splits == ["val", "test"]
    assert config("absent.csv").data.eval.videos.split == "val"
    assert config(f"{clips},steps=7,batch_size=3").data.train.videos.batch_size == 3


def test_unknown_checkpoints_and_blocks(refused_training, tiny_run, vit, clips):
    refused_training(f"bootstrap:small={tiny_run},large={vit},train_last=4", "train_last must be 0 to 3", "found 4")
    refused_training(f"bootstrap:small={tiny_run},large={vit},train_last=0", "gate=True needs a trained block")
    refused_training(f"bootstrap:small={vit},large={vit}", "has no 3D tubes")
    refused_training(f"bootstrap:small={tiny_run},large=vit_b61", "unknown model 'vit_b61'; did you mean 'vit_b16'")
    refused_training(
        f"bootstrap:small={tiny_run},large=vit_b16,videos={clips}", "vit_b16 is an architecture without parameters"
    )


@pytest.fixture
def refused_training(capsys, tmp_path):
    def refuse(spec, *words):
        assert (
            main(["train", "--config", spec, "--workdir", str(tmp_path / "refused"), "--config.precision=float32"]) == 2
        )
        error = capsys.readouterr().err.splitlines()[-1]
        assert not [word for word in words if word not in error], error
        assert not (tmp_path / "refused/checkpoints").exists() or not list((tmp_path / "refused/checkpoints").iterdir())

    return refuse
