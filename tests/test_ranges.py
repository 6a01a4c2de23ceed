"""Every number that a user may give has a range: each key, each flag, each field of a model."""

import argparse
import dataclasses
import math
import re
import sys

import pytest

from tests.scripts import script
from tubevit.cli.main import VERBS, main, make_parser
from tubevit.config import default_config, flatten, load_config
from tubevit.config.keys import find_key, keys_of
from tubevit.data.augment import Augment
from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.ranges import Range

KEYS = {
    **keys_of(), **{f"data.train.x.{path}": key for path, key in keys_of("data").items()},
    **{f"recipe.{path}": key for path, key in keys_of("recipe").items()},
}  # fmt: skip
NUMBERS = {path: key for path, key in KEYS.items() if key.kind in (int, float) or path in ("model.mean", "model.std")}


def outside(range):
    """Numbers that a range must refuse, whatever it is; and those just beyond its limits."""
    yield from (math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e39, 1e300, True, "1", None)
    for limit, beyond in ((range.least, -1), (range.above, 0), (range.most, 1), (range.below, 0)):
        if math.isfinite(limit):
            yield range.kind(limit) + beyond
    if range.kind is int:
        yield from (0.5, 1.0, 2**31)


@pytest.mark.parametrize("path", NUMBERS)
def test_every_key_has_a_range(path):
    key = NUMBERS[path]
    assert isinstance(key.range, Range), f"{path}: say which numbers are allowed"
    wrap = (lambda value: (0.5, value, 0.5)) if key.kind is tuple else (lambda value: value)
    for value in outside(key.range):
        if value is None:
            continue
        with pytest.raises(UserError) as error:
            key.check(path, wrap(value))
        assert str(error.value).startswith(f"{path} must be ")
    if key.default not in (None, dataclasses.MISSING):
        key.check(path, key.default)


def test_the_limits_of_what_trains():
    """Against the definitions: negative rates, counts of 0, moments that do not decay."""
    refused = {
        "input.fps": (0.0, -8.0), "input.frames": (0, -1), "input.size": (0, -8), "model.width": (0, -24),
        "model.dropout": (-0.1, 1.0), "model.std": ((0.0, 0.5, 0.5), (0.5, -1.0, 0.5)), "model.mean": ((0.0, 0, 1.1),),
        "optimizer.learning_rate": (-1e-3,), "optimizer.weight_decay": (-1.0,), "optimizer.b1": (1.0, -0.1),
        "optimizer.b2": (1.0,), "optimizer.grad_clip_norm": (0.0, -1.0), "data.train.x.loss_weight": (-1.0,),
        "data.eval.x.batch_size": (0,), "mesh.data": (0, -2), "mesh.fsdp": (0,), "mesh.slices": (-1, 0),
        "train.freeze_below": (-1,), "train.mixup": (-0.1,), "seed": (-1,), "recipe.train_last": (-1,),
        "loader.max_broken": (-0.01, 1.01),
    }  # fmt: skip
    allowed = {
        "optimizer.learning_rate": 0.0, "optimizer.b1": 0.0, "data.train.x.loss_weight": 0.0, "loader.max_broken": 0.0,
        "loader.workers": 0, "train.mixup": 0.0, "mesh.data": -1, "recipe.train_last": 0, "model.std": (1.0, 0.1, 1e-3),
        "input.fps": 0.1, "optimizer.warmup_steps": 0, "train.freeze_below": 0, "model.dropout": 0,
    }  # fmt: skip
    for path, values in refused.items():
        for value in values:
            with pytest.raises(UserError, match=f"{path} must be .*; found"):
                find_key(path).check(path, value)
    for path, value in allowed.items():
        find_key(path).check(path, value)


@pytest.mark.parametrize("path", [path for path in flatten(default_config()) if path in NUMBERS])
def test_no_bad_number_passes_the_command_line(path, capsys, tmp_path):
    """As text, before anything is read: the data of this experiment does not exist."""
    for text in ("nan", "inf", "-inf", "1e400", "-2.5", "-7"):
        if text in ("-2.5", "-7") and find_key(path).range.least == find_key(path).range.above:
            continue  # may be negative: layer_scale
        value = f"0.5,{text},0.5" if path in ("model.mean", "model.std") else text
        flags = ["--config", "finetune:data=/nowhere/list.csv", "--workdir", str(tmp_path / "run")]
        assert main(["train", *flags, f"--config.{path}={value}"]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"tubevit: {path} must be ") and line.count("\n") == 1, line
    assert not list(tmp_path.iterdir())


def parsers():
    yield from ((verb, make_parser(verb)) for verb in VERBS)


def scripts(monkeypatch):
    """The parsers of the launch scripts, caught when they would read their flags."""
    found = []

    class Found(Exception):
        pass

    def parse(parser, arguments=None):
        found.append(parser)
        raise Found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", ["script"])
    for name, arguments in (("tpu", ([],)), ("quickstart", ()), ("restart", ())):
        module = script(f"launch/{name}.py")
        with pytest.raises(Found):
            (module.parse if name == "tpu" else module.main)(*arguments)
    return list(zip(("tpu", "quickstart", "restart"), found, strict=True))


def numeric(parser):
    return [action for action in parser._actions if isinstance(action.type, Range)]


def test_every_flag_has_a_range(monkeypatch):
    every = [*parsers(), *scripts(monkeypatch)]
    assert sum(len(numeric(parser)) for _, parser in every) > 40
    for name, parser in every:
        for action in parser._actions:
            assert action.type not in (int, float), f"{name} {action.dest}: say which numbers are allowed"
        for action in numeric(parser):
            if action.default is not None:
                assert action.default in action.type
            for value in outside(action.type):
                if value not in (True, "1", None, 1.0):
                    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"found '{value}'")):
                        action.type(str(value))


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("evaluate --checkpoint x --batch-size -3", ["--batch-size", "at least 1", "'-3'"]),
        ("evaluate --checkpoint x --batch-size 0", ["--batch-size", "at least 1", "'0'"]),
        ("evaluate --workdir x --step -1", ["--step", "at least 0", "'-1'"]),
        ("evaluate --checkpoint x --views 0x1", ["views", "'0x1'"]),
        ("predict --checkpoint x a.mp4 --every nan", ["--every", "above 0", "'nan'"]),
        ("predict --checkpoint x a.mp4 --top 0", ["--top", "at least 1", "'0'"]),
        ("convert a b --mean 0.5 0.5 nan", ["--mean", "at most 1", "'nan'"]),
        ("convert a b --std 0.5 0 0.5", ["--std", "above 0", "'0'"]),
        ("convert a b --heads 0", ["--heads", "'0'"]),
        ("shard-videos a b --shards 0", ["--shards", "'0'"]),
        ("make-moving-digits a --seed -1", ["--seed", "at least 0", "'-1'"]),
        ("inspect tubevit_b16 --size 99999999999", ["--size", "int32", "'99999999999'"]),
        ("train --config quickstart:steps=-1 --workdir w", ["train.steps", "at least 1", "-1"]),
        ("train --config quickstart:seed=-1 --workdir w", ["seed", "at least 0", "-1"]),
        ("train --config bootstrap:train_last=-1 --workdir w", ["recipe.train_last", "at least 0", "-1"]),
        ("train --config digits_bootstrap:stage=vit,steps=0 --workdir w", ["must be at least 1; found 0"]),
        ("train --config quickstart --workdir w --config.eval.views=0x1", ["views", "'0x1'"]),
        ("train --config quickstart --workdir w --config.train.freeze_below=9 --config.init.checkpoint=x",
         ["freeze_below", "0 to 3", "9"]),
        ("train --config quickstart --workdir w --profile steps=0:3", ["--profile", "1 <= FIRST", "0:3"]),
    ],
)  # fmt: skip
def test_flags_and_arguments_before_anything_is_read(arguments, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and not [part for part in parts if part not in line], line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, arguments", [("quickstart", "--steps 0"), ("restart", "--wait nan -- true")])
def test_launch_scripts(name, arguments, capsys, monkeypatch):
    module = script(f"launch/{name}.py")
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    with pytest.raises(SystemExit) as error:
        module.main()
    assert error.value.code == 2 and "must be " in capsys.readouterr().err


@pytest.mark.parametrize("home", [ModelConfig, Augment])
def test_every_field_has_a_range(home):
    for field in dataclasses.fields(home):
        if re.search(r"\b(int|float)\b", str(field.type)):
            assert isinstance(field.metadata.get("range"), Range), f"{field.name}: say which numbers are allowed"


def test_what_a_range_says():
    for range, value, text in (
        (Range(int, least=1), 0, "at least 1"),
        (Range(int, least=1), 1.5, "a whole number, at least 1"),
        (Range(float, least=0, below=1), 1, "at least 0 and below 1"),
        (Range(float, above=0), math.nan, "a finite number, above 0"),
        (Range(float), math.inf, "a finite number"),
        (Range(int, least=1, also=-1), -2, "at least 1, or -1"),
        (Range(int, least=1), 2**31, "at least 1, of a size that fits into int32"),
        (Range(float, above=0), 1e-300, "above 0, of a size that fits into float32"),
    ):
        with pytest.raises(UserError) as error:
            range.check("a.key", value)
        assert str(error.value) == f"a.key must be {text}; found {value!r}"


def test_experiments_are_in_range():
    load_config("quickstart")
    load_config("digits_bootstrap:stage=vit,steps=1")
