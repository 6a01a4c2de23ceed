import os
import pathlib
import re

import cv2
import numpy as np
import pytest
from flax import nnx

import tubevit
from tubevit.cli import main
from tubevit.config import load_config
from tubevit.config.config import set_key
from tubevit.config.derive import clip_decoding, closest_release, probe
from tubevit.config.resolve import resolve
from tubevit.data.decode import decode_media
from tubevit.data.moving_digits import write_video
from tubevit.data.sources import open_source
from tubevit.errors import DecodeError, UserError
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config
from tubevit.recipes.finetune import expected_time, finetune_config


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """`clips(count, size=(32, 48), frames=12, fps=6, splits)`: a csv of videos of noise in two classes."""

    def make(count, size=(32, 48), frames=12, fps=6, splits=("train", "train", "train", "val")):
        folder = tmp_path_factory.mktemp("clips")
        video = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
        write_video(folder / "a.mp4", video, fps)
        lines = [f"{i}.mp4,{'xy'[i % 2]},{splits[i % len(splits)]}" for i in range(count)]
        for i in range(count):  # files of their own to a list, at no cost
            os.link(folder / "a.mp4", folder / f"{i}.mp4")
        (folder / "list.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
        return str(folder / "list.csv")

    return make


def resolved(*arguments, **changes):
    found = resolve(finetune_config(*arguments, **changes))
    return found.config, found.notes


def test_small_clips_from_scratch(clips):
    data = clips(400)
    found = resolve(finetune_config(data, None))
    config, lines = found.config, found.notes
    assert config.model.name == "tubevit_nano8" and (config.input.frames, config.input.size) == (16, 64)
    assert config.input.fps == 8.0  # 16 frames over 2 seconds
    dataset = config.data.train.data
    assert (dataset.source, dataset.split, dataset.batch_size) == (data, "train", 32)
    assert (config.data.eval.data.source, config.data.eval.data.split) == (data, "val")
    assert config.train.steps == 30_000 // 32 and config.optimizer.warmup_steps == config.train.steps // 10
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == ("muon", 1e-2, 0.2)
    assert config.optimizer.ema_decay == 1 - 10 / config.train.steps and config.checkpoint.keep_best == "eval/data/top1"
    assert dataset.augment.random_crop and not dataset.augment.flip and dataset.copy_short_side is None
    text = "\n".join(lines)
    assert "300 files to train, 100 to evaluate (split val), 2 classes; median short side 32 pixels, 2.0 s" in text
    assert f"{config.train.steps} steps of 32 (100 epochs)" in text
    assert re.match(r"expected time: about (a minute|\d+ minutes), without evaluation", expected_time(found))


@pytest.mark.parametrize(
    "count, batch_size, steps", [(4, 2, 10_000), (40, 16, 20_000 // 16), (40_000, 32, 90_000 // 32)]
)
def test_few_clips_are_seen_more_often(clips, count, batch_size, steps):
    """Three quarters are for training; a batch has as many of them as a power of two goes."""
    config, _ = resolved(clips(count), None)
    assert config.train.steps == steps and config.data.train.data.batch_size == batch_size
    assert config.data.train.data.augment.area == (0.3 if count > 1000 else 0.5)


def test_large_files_are_copied(clips):
    """If they are twice as large as 1.5 times the input, unless the user says none."""
    small, large = (resolve(finetune_config(clips(8, size=(side, 260)), model="tubevit_nano8")) for side in (180, 200))
    assert small.config.data.train.data.copy_short_side is None
    assert large.config.data.train.data.copy_short_side == 96
    assert "copies with a short side of 96 pixels" in "\n".join(large.notes)
    config = finetune_config(clips(8, size=(200, 260)), model="tubevit_nano8")
    set_key(config, "data.train.data.copy_short_side", "none")
    found = resolve(config)
    assert found.config.data.train.data.copy_short_side is None and "copies" not in "\n".join(found.notes)


def test_the_learning_rate_follows_the_optimiser(clips):
    """Also where the user names it."""
    for name, expected in (("adamw", (1.2e-3, 0.05, 0.999)), ("muon", (1e-2, 0.2, 0.98))):
        config = finetune_config(clips(8), None)
        config.optimizer.name = name
        found = resolve(config).config.optimizer
        assert (found.learning_rate, found.weight_decay, found.b2) == expected


def test_large_frames_and_long_videos(clips):
    """Few of them get a small model, which learns them in minutes; many get a larger one."""
    few, many = (clips(count, size=(130, 100), frames=40, fps=1) for count in (8, 6_800))
    config, _ = resolved(few, None)
    assert config.model.name == "tubevit_nano8" and (config.input.frames, config.input.size) == (16, 64)
    config, _ = resolved(many, None, flip=True)
    assert config.model.name == "tubevit_ti16" and (config.input.frames, config.input.size) == (32, 224)
    assert config.input.fps == 3.2 and config.data.train.data.augment.flip  # 32 frames over 10 of the 40 seconds
    config, _ = resolved(clips(8), model="tubevit_s16")
    assert config.model.name == "tubevit_s16"
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adamw",
        3e-4,
        0.05,
    )


def test_images(tmp_path):
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / label / "x.png"), np.zeros((20, 30, 3), np.uint8))
    config, lines = resolved(str(tmp_path), None)
    assert config.input.fps is None and config.data.eval.data.split == "test" and "input 1x64x64" in lines[1]
    config, lines = resolved(str(tmp_path))
    assert config.init.checkpoint == closest_release(20) and "input 1x64x64" in lines[1]


def test_from_a_checkpoint(clips, tiny_run):
    config, lines = resolved(clips(8), str(tiny_run))
    stored = tubevit.load_model(tiny_run).config
    assert config.init.checkpoint == str(tiny_run) and config.model.tubes == str(stored.tubes)
    assert (config.model.width, config.model.depth, config.input.fps) == (stored.width, stored.depth, 8.0)
    assert config.optimizer.learning_rate == 0.013 and f"from {tiny_run}" in lines[1]  # 1e-2 * 96 / 24 / 3
    with pytest.raises(UserError, match="model= goes without init="):
        resolved(clips(8), str(tiny_run), "tubevit_b16")


def test_an_adapter(clips, tiny_run):
    config, lines = resolved(clips(8), str(tiny_run), adapter="lora")
    assert (config.train.adapter, config.train.freeze_below, config.optimizer.name) == ("lora", 0, "adamw")
    assert config.optimizer.learning_rate == 0.016 and f"from {tiny_run}, adapters of rank 8," in lines[1]
    with pytest.raises(UserError, match="unknown train.adapter 'lroa'; did you mean 'lora'"):
        load_config(f"finetune:data=x.csv,init={tiny_run},adapter=lroa")
    with pytest.raises(UserError, match="train.adapter=lora would freeze random parameters: set init.checkpoint"):
        load_config("finetune:data=x.csv,init=none,adapter=lora")


def test_few_clips_begin_from_the_closest_release(clips):
    """Unless the user wants another model, or none."""
    data, released = clips(8, size=(200, 260)), "tubevit_nano8@moving_digits"
    config, lines = resolved(data)
    assert config.init.checkpoint == closest_release(200) == released
    assert (config.model.name, config.input.size, config.input.frames) == ("tubevit_nano8", 64, 16)
    assert f"from {released} (init={released} keeps this choice, init=none begins from scratch), " in lines[1]
    assert resolved(data, "")[0] == config and resolved(data, released)[0] == config
    assert config.train.steps == 20_000 // 4  # as many as from scratch, unlike wide models
    assert resolved(clips(6_800))[0].init.checkpoint is None
    for arguments, changes in (
        ((None,), {}), ((), {"init.checkpoint": "none"}), ((), {"model.name": "tubevit_ti8"}),
        ((), {"model.depth": "2"}), (("closest", "tubevit_ti8"), {}), ((None, "tubevit_ti8"), {}),
    ):  # fmt: skip
        config = finetune_config(data, *arguments)
        for key, value in changes.items():
            set_key(config, key, value)
        found = resolve(config)
        assert found.config.init.checkpoint is None and "from scratch, " in found.notes[1]


def test_rates_and_input_follow_from_the_model_that_the_user_set(clips):
    """Whether `model=` or a key names it."""
    data = clips(8)

    def with_keys(model=None, **keys):
        config = finetune_config(data, None, model)
        for key, value in keys.items():
            set_key(config, key.replace("__", "."), value)
        return resolve(config).config

    named = with_keys("tubevit_ti8")
    assert named.optimizer.name == "adamw" and named.optimizer.learning_rate == 6e-4
    assert with_keys(model__name="tubevit_ti8") == named
    wide = with_keys(model__width="192")
    assert wide.optimizer == named.optimizer
    assert with_keys(model__name="tubevit_s16").input.size == 224
    longer = with_keys(input__frames="24")
    assert longer.input.fps == 24 / 2  # the clips last two seconds
    assert with_keys(optimizer__name="adam").optimizer.weight_decay == 0.0


def test_the_closest_release_with_keys_of_the_user(clips, tiny_run):
    """What needs a checkpoint is allowed, another input size or checkpoint is taken, another model is refused."""
    data = clips(8, size=(300, 360))

    def with_keys(arguments=(), **keys):
        config = finetune_config(data, *arguments)
        for key, value in keys.items():
            set_key(config, key.replace("__", "."), value)
        return resolve(config)

    frozen = with_keys(train__freeze_below="2")
    assert frozen.model.freeze_below == 2 and frozen.config.init.checkpoint == closest_release(300)
    larger = with_keys(input__size="96").config
    assert (larger.input.size, larger.model.width) == (96, 96)
    assert larger.data.train.data.copy_short_side == 144  # 1.5 times the input
    named = with_keys(init__checkpoint=str(tiny_run))
    assert named.model.width == 24 and f"from {tiny_run}, " in named.notes[1]
    with pytest.raises(UserError, match="model= goes without init="):
        with_keys(("closest", "tubevit_ti8"), init__checkpoint=str(tiny_run))
    with pytest.raises(UserError, match="would freeze random parameters"):
        with_keys((None,), train__freeze_below="2")


def test_other_tubes_from_a_dense_model(clips, randomised, tiny_run, tmp_path):
    fields = dict(depth=1, tubes="2x8x8/2x8x8", frames=8, size=32, gelu="tanh", pooled_norm_epsilon=1e-5)
    dense = randomised(lambda: TubeViT(model_config("videomae_nano8", **fields), rngs=nnx.Rngs(0)))
    tubevit.save_model(dense, tmp_path / "dense")
    config, _ = resolved(clips(8), str(tmp_path / "dense"), tubes="4x4x4/8x16x16%2x1x1_1x8x8/4x8x8")
    assert config.init.tubes == "dense" and config.model.tubes == "4x4x4/8x16x16_1x8x8/4x8x8"
    kept = ("pooling", "final_norm", "pooled_norm_epsilon", "gelu", "mean", "width")
    assert {key: config.model[key] for key in kept} == {key: getattr(dense.config, key) for key in kept}
    assert config.model.position == "learned" and config.input.frames == 8
    with pytest.raises(UserError, match="needs one tube without space-to-depth"):
        resolved(clips(8), str(tiny_run), tubes="4x8x8/8x8x8")
    with pytest.raises(UserError, match="tubes= goes with init="):
        finetune_config(clips(8), tubes="paper")


def test_probe_takes_the_median(tmp_path):
    sizes = [(32, 40), (64, 48), (80, 90)]
    for i, (height, width) in enumerate(sizes):
        write_video(tmp_path / f"{i}.mp4", np.zeros((4 * (i + 1), height, width, 3), np.uint8), 4)
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    rows = ["path,label,split", *(f"{name}.mp4,a,train" for name in (0, 1, 2, "broken"))]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    source = open_source(str(tmp_path / "list.csv"), "train")
    looks = probe(source)
    assert (looks.short_side, looks.seconds) == (48, 2.0)
    assert 0 < clip_decoding(source, 2, 8.0) < 5


def test_long_videos_are_not_read_to_their_end(tmp_path):
    """Neither to look at them nor to time a clip: this one has damaged frames outside of its middle."""
    path = tmp_path / "0.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (400, 32, 48, 3), np.uint8), 4)
    content = bytearray(path.read_bytes())
    damaged = slice(int(0.6 * len(content)), int(0.9 * len(content)))
    content[damaged] = bytes(len(content[damaged]))
    path.write_bytes(content)
    (tmp_path / "list.csv").write_text("path,label,split\n0.mp4,a,train\n")
    source = open_source(str(tmp_path / "list.csv"), "train")
    with pytest.raises(DecodeError):
        decode_media(path, 16)
    assert probe(source).seconds == 100.0 and clip_decoding(source, 16, 8.0) > 0


def test_what_may_surprise_is_said(tmp_path, clips):
    """Classes without files, a best checkpoint that is chosen on test, clips much shorter or longer than the files."""

    def said(data, *arguments, **keys):
        config = finetune_config(data, *arguments)
        for key, value in keys.items():
            set_key(config, key.replace("__", "."), value)
        return "\n".join(resolve(config).notes)

    whole = said(clips(10, splits=("train", "train", "train", "val", "val")), None)
    assert not any(word in whole for word in ("classes without", "split: ", "time: "))
    folder = pathlib.Path(clips(8, splits=("train", "train", "train", "test")))
    assert "without a split val, the best checkpoint is chosen on test" in said(str(folder), None)
    rows = ["path,label,split", "0.mp4,a,train", "1.mp4,b,train", "2.mp4,c,val", "3.mp4,b,val"]
    folder.write_text("\n".join(rows) + "\n")
    text = "classes without a training file: 1 of 3, without a held-out file: 1"
    assert text in said(str(folder), None)
    long, short = clips(8, frames=40, fps=1), clips(8, frames=3, fps=6)
    assert "a clip covers 2.0 s, the median file lasts 40.0 s: evaluation sees the middle" in said(long)
    assert "covers 2.0 s, the median file lasts 0.5 s: the last frame is repeated" in said(short)
    assert "time: " not in said(long, input__fps="0.4") and "time: " not in said(short, input__fps="32")


def test_one_file_may_be_broken(clips):
    """A twelfth of the files that are held out is one; of hundreds, or of a handful, it is 5 %."""
    few, many, handful = (resolved(clips(count), None)[0].loader.max_broken for count in (48, 400, 12))
    assert few * 12 >= 1 > (few - 1e-3) * 12 and many == handful == 0.05


def test_the_schedule_follows_steps_and_batch_size(clips):
    def with_keys(**keys):
        config = finetune_config(clips(400), None)
        for key, value in keys.items():
            set_key(config, key.replace("__", "."), value)
        return resolve(config).config

    short, small = with_keys(train__steps="100"), with_keys(data__train__data__batch_size="8")
    assert (short.optimizer.warmup_steps, short.optimizer.ema_decay, short.eval.every) == (10, 0.9, 20)
    assert (short.checkpoint.every, short.log.every, short.data.train.data.batch_size) == (20, 2, 32)
    assert small.train.steps == 30_000 // 8 and small.optimizer.warmup_steps == 375
    assert small.data.eval.data.batch_size == 8
    usual, longer = with_keys(), with_keys(train__steps="2000")  # a run that has ended may go on
    assert longer.train.steps == 2000 and longer.eval.every == 400
    assert {key: longer.optimizer[key] for key in longer.optimizer} == {
        key: usual.optimizer[key] for key in usual.optimizer
    }


def test_errors(clips, tmp_path):
    with pytest.raises(UserError, match="has neither a split val nor a split test to evaluate on"):
        resolved(clips(4, splits=("train",)))
    with pytest.raises(UserError, match="unknown split of .* 'train'"):
        resolved(clips(4, splits=("val",)))
    for name in "xy":
        (tmp_path / f"{name}.mp4").write_bytes(b"broken")
    (tmp_path / "list.csv").write_text("path,label,split\nx.mp4,a,train\ny.mp4,a,val\n")
    with pytest.raises(UserError, match="none of .* files .* can be decoded"):
        resolved(str(tmp_path / "list.csv"))
    path = pathlib.Path(clips(4))
    path.write_text(re.sub(",[xy],", ",videos,", path.read_text()))
    with pytest.raises(UserError, match="has a single class, videos: expected two or more"):
        resolved(str(path))


def test_the_experiment_runs_from_a_checkpoint(clips, tiny_run, tmp_path, capsys):
    spec = f"finetune:data={clips(12)},init={tiny_run}"
    changes = [
        "--config.train.steps=2",
        "--config.data.train.data.batch_size=3",
        "--config.loader.threads=1",
        "--config.mesh.data=1",
    ]
    assert main(["train", "--config", spec, "--workdir", str(tmp_path / "run"), *changes]) == 0
    text = capsys.readouterr().err
    assert "data: 9 files to train, 3 to evaluate" in text and "new heads: data" in text
    model = tubevit.load_model(tmp_path / "run")
    assert model.labels["data"] == ("x", "y") and resolve(load_config(spec)).model.depth == model.config.depth
    assert pathlib.Path(tmp_path / "run" / "metrics.jsonl").read_text().count("eval/data/top1") == 2
