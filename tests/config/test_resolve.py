"""Configurations are pure; what follows from data and checkpoints is filled in once, by `resolve`."""

import inspect

import pytest

from tests.scripts import script
from tubevit.config import default_config, experiments_folder, flatten, load_config
from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import Resolved, resolve
from tubevit.data.sources import held_out_split, open_source
from tubevit.errors import SplitError, UserError

# Arguments that name checkpoints and data; `eval_published` takes its protocol from the beginning of `data`.
ABSENT = {name: f"absent/{name}" for name in ("small", "large", "init", "videos", "images")}
ABSENT["data"] = "k400:absent/list.csv@absent/clips"


@pytest.fixture
def finetuned(digits_cache):
    """`finetuned({"train.steps": "7"})`: the fine-tuning configuration on the embedded data, resolved."""
    return lambda changes=(): resolve(load_config("finetune:data=moving_digits,init=none", dict(changes)))


def test_what_would_show_at_the_end_only(tiny_config):
    """Scores that do not exist, views that are too small, a schedule without a decay, scores that are never saved."""
    best = "checkpoint.keep_best"
    with pytest.raises(
        UserError, match=f"unknown metric of {best} 'eval/still_digits/top_1'; did you mean 'eval/still"
    ):
        resolve(tiny_config({best: "eval/still_digits/top_1"}))
    with pytest.raises(UserError, match="unknown metric of .*map'"):
        resolve(tiny_config({best: "eval/still_digits/map"}))
    with pytest.raises(UserError, match="short_side"):
        resolve(tiny_config({"eval.short_side": "16"}))
    kept = {best: "eval/still_digits/top1", "eval.every": "6"}
    for every, told in (("3", False), ("12", False), ("4", True)):
        notes = resolve(tiny_config(kept | {"checkpoint.every": every})).notes
        assert any("every 12 steps, and at the end" in note for note in notes) == told
    for warmup, told in (("8", False), ("9", True)):
        notes = resolve(tiny_config({"optimizer.warmup_steps": warmup})).notes
        assert any("the learning rate only rises" in note for note in notes) == told


@pytest.mark.parametrize("path", sorted(experiments_folder().glob("*.py")), ids=lambda path: path.stem)
def test_get_config_reads_and_prints_nothing(path, capfd):
    """With names of data and checkpoints of which none exists."""
    get_config = script(path).get_config
    absent = {name: ABSENT[name] for name in inspect.signature(get_config).parameters if name in ABSENT}
    get_config(**absent)
    load_config(":".join([str(path), ",".join(f"{name}={value}" for name, value in absent.items())]))
    assert capfd.readouterr() == ("", "")


def test_keys_that_are_set_stay(finetuned):
    """The derived keys do not depend on each other's overrides, but for parts of a schedule and a model's optimiser."""
    plain = flatten(finetuned().config)
    changes = {"train.steps": "50", "optimizer.learning_rate": "0.5", "input.fps": "none", "model.name": "tubevit_ti8"}
    changed = flatten(finetuned(changes).config)
    expected = {"train.steps": 50, "optimizer.learning_rate": 0.5, "input.fps": None, "model.name": "tubevit_ti8"}
    expected |= {"optimizer.warmup_steps": 5, "optimizer.ema_decay": 0.8, "log.every": 1}
    expected |= {"eval.every": 10, "checkpoint.every": 10}
    expected |= {"optimizer.name": "adamw", "optimizer.b2": 0.999, "optimizer.weight_decay": 0.05}
    assert plain["input.fps"] == 8.0 and plain["optimizer.warmup_steps"] == plain["train.steps"] // 10
    assert {key: value for key, value in changed.items() if value != plain[key]} == expected


@pytest.mark.parametrize("spec", ["quickstart", "finetune:data=moving_digits", "digits_bootstrap", "charades"])
def test_a_resolved_configuration_stays_the_same(spec, digits_cache):
    """When it is resolved again, and when it is sent to another process."""
    found = resolve(load_config(spec, {"model.mean": "0.4,0.5,0.5"}), assume_missing=True)
    assert "recipe" not in found.config and set(found.config) == set(default_config())
    assert None not in {dataset.head for dataset in found.config.data.eval.values()}
    again = resolve(found.config, assume_missing=True)
    assert (again.config, again.model) == (found.config, found.model)
    assert Resolved.from_json(found.to_json()) == found


def test_sources_are_opened_once(finetuned):
    found = finetuned()
    experiment = open_experiment(found)
    assert experiment.train["data"].source is found.open_source("moving_digits", "train", "motion", False)
    assert experiment.model is found.model and "training: " in found.notes[2]


def test_missing_data_is_refused_or_assumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, classes in (("k400", 400), ("k600", 600), ("k700", 700)):
        with pytest.raises(UserError, match="data/"):
            resolve(load_config(name))
        found = resolve(load_config(name), assume_missing=True)
        heads = {head: (each.classes, each.modality) for head, each in found.model.heads}
        assert heads == {"imagenet": (1000, "image"), name: (classes, "video")} and len(found.notes) == 2
    with pytest.raises(UserError, match="mine"):  # fine-tuning follows from the files
        resolve(load_config("finetune:data=mine.csv"), assume_missing=True)


def test_the_held_out_split(tmp_path):
    path = tmp_path / "clips.csv"
    for splits, expected in (("train val test", "val"), ("train test", "test")):
        rows = [f"{split}.mp4,a,{split}" for split in splits.split()]
        for split in splits.split():
            (tmp_path / f"{split}.mp4").touch()
        path.write_text("\n".join(["path,label,split", *rows]) + "\n")
        assert held_out_split(str(path)) == expected
    path.write_text("path,label,split\ntrain.mp4,a,train\n")
    with pytest.raises(SplitError, match="neither a split val nor a split test"):
        held_out_split(str(path))
    assert held_out_split("x", open_source=lambda *arguments: open_source) == "val"
