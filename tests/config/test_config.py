import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tubevit.config import (
    allow_overlap,
    changed_keys,
    check_config,
    dataset_config,
    default_config,
    experiments_folder,
    flatten,
    load_config,
    model_fields,
    set_key,
)
from tubevit.config.keys import InputPath
from tubevit.config.resolve import input_path, resolve
from tubevit.errors import UserError, closest, unknown
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config


@pytest.fixture
def config():
    return load_config("quickstart")


@pytest.fixture
def experiment(tmp_path):
    """`experiment(body)`: the path of an experiment whose get_config has that body."""

    def write(body, signature="seed: int = 0"):
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        path = tmp_path / "mine.py"
        path.write_text(
            f"from tubevit.config import dataset_config, default_config\ndef get_config({signature}):\n{lines}\n"
        )
        return str(path)

    return write


GOOD = 'c = default_config()\nc.data.train.a = dataset_config(source="x.csv")\n'


def test_the_quickstart_builds_its_model(digits_cache):
    config = load_config("quickstart")
    with pytest.raises(AttributeError):
        config.sed = 1
    model = resolve(config).model
    video = next(name for name, head in model.heads if head.modality == "video")
    clip = jax.ShapeDtypeStruct((2, model.frames, model.size, model.size, 3), "uint8")
    logits = jax.eval_shape(lambda clip: TubeViT(model, rngs=nnx.Rngs(0))(clip, head=video), clip)
    assert logits.shape == (2, dict(model.heads)[video].classes)


def test_contract(config):
    """Keys of design.md that exist so far; a renamed one breaks what users wrote."""
    assert {
        "seed",
        "mesh",
        "compilation_cache",
        "model",
        "input",
        "data",
        "optimizer",
        "train",
        "init",
        "eval",
        "checkpoint",
        "loader",
        "precision",
        "log",
    } == {*config}
    keys = {
        "model.name", "model.tubes", "input.frames", "input.fps", "input.size", "train.steps", "eval.every",
        "checkpoint.every", "checkpoint.keep", "loader.threads", "loader.workers", "log.every", "log.to", "precision",
        "eval.views", "init.checkpoint", "init.tubes", "init.skip",
    }  # fmt: skip
    data = ("source", "split", "head", "batch_size", "loss_weight", "augment.flip")
    keys |= {f"data.{group}.moving_digits.{key}" for group in ("train", "eval") for key in data}
    assert keys <= set(flatten(config))


def test_paths_bare_names_and_arguments(experiment):
    assert load_config("quickstart") == load_config(str(experiments_folder() / "quickstart.py"))
    assert load_config("quickstart.py") == load_config("quickstart")
    changed = load_config("quickstart:seed=7,steps=12")
    assert (changed.seed, changed.train.steps) == (7, 12)
    path = experiment(GOOD + "c.model.scan = scan\nc.optimizer.learning_rate = lr\nreturn c", "scan=True, lr=0.5")
    config = load_config(f"{path}:scan=false,lr=1e-3")
    assert config.model.scan is False and config.optimizer.learning_rate == 1e-3
    path = experiment(GOOD + "c.train.steps, c.seed = n or 5, seed\nreturn c", "seed: int, n: int | None = None")
    assert load_config(f"{path}:seed=3").train.steps == 5  # no default, and none: as annotated
    config = load_config(f"{path}:n=7,seed=3")
    assert (config.train.steps, config.seed) == (7, 3)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("train.steps", "12", 12),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.weight_decay", "1", 1.0),
        ("model.scan", "False", False),
        ("model.scan", "1", True),
        ("model.name", "tubevit_s16", "tubevit_s16"),
        ("input.fps", "7.5", 7.5),
        ("input.fps", "none", None),
        ("model.position", "none", "none"),  # a choice of its own
        ("model.remat", "none", "none"),
        ("model.width", "24", 24),
        ("model.mean", "0.485,0.456,0.406", (0.485, 0.456, 0.406)),
        ("model.std", "(1, 0.5, 0.25)", (1.0, 0.5, 0.25)),
        ("optimizer.grad_clip_norm", "None", None),
        ("data.train.moving_digits.augment.flip", "true", True),
        ("data.eval.still_digits.batch_size", "3", 3),
    ],
)
def test_values_are_read_by_type(key, text, value):
    flat = flatten(load_config("quickstart", {key: text}))
    assert flat[key] == value and type(flat[key]) is type(value)
    assert {k: v for k, v in flat.items() if k != key} == {
        k: v for k, v in flatten(load_config("quickstart")).items() if k != key
    }


@pytest.mark.parametrize(
    "spec, overrides, expected",
    [
        ("quickstrat", {}, "unknown config 'quickstrat'; did you mean 'quickstart'"),
        ("missing/file.py", {}, "unknown config 'missing/file.py'"),
        ("quickstart:sed=1", {}, "unknown argument 'sed=1'"),
        ("quickstart:sed=1", {}, "did you mean 'seed'"),
        ("quickstart:seed", {}, "unknown argument 'seed'"),
        ("finetune:data=a,b.csv", {}, """a value with a comma is quoted: 'data="...,b.csv"'"""),
        ('finetune:data="a,b.csv', {}, "unknown argument 'b.csv'"),
        ("quickstart:seed=one", {}, "seed must be of type int; found 'one'"),
        ("quickstart", {"train.stpes": "1"}, "unknown key 'train.stpes'; did you mean 'train.steps'"),
        ("quickstart", {"steps": "1"}, "unknown key 'steps'"),
        ("quickstart", {"model.mean": "red"}, "model.mean must be numbers joined by commas; found 'red'"),
        ("quickstart", {"init.tubes": "random"}, "init.tubes goes with init.checkpoint, which is not set"),
        ("quickstart", {"init.skip": "pooling"}, "init.skip goes with init.checkpoint"),
        ("quickstart", {"train.freeze_below": "1"}, "train.freeze_below=1 would freeze random parameters"),
        (
            "quickstart",
            {"train.adapter": "lora"},
            "train.adapter=lora would freeze random parameters: set init.checkpoint",
        ),
        ("quickstart", {"train.adapter": "lroa"}, "unknown train.adapter 'lroa'; did you mean 'lora'"),
        ("quickstart", {"train.lora.rank": "4"}, "train.lora.rank goes with train.adapter=lora"),
        (
            "quickstart",
            {"init.checkpoint": "x", "train.adapter": "lora", "train.freeze_below": "1"},
            "train.adapter=lora freezes all blocks: set train.freeze_below=0; found 1",
        ),
        (
            "quickstart",
            {"init.checkpoint": "x", "train.adapter": "lora", "train.lora.targets": "qkv,mpl"},
            "unknown train.lora.targets 'mpl'; did you mean 'mlp'",
        ),
        ("quickstart", {"init.checkpoint": "x", "init.rename": "a"}, "init.rename must be old=new,...; found 'a'"),
        ("quickstart", {"train.steps.more": "1"}, "unknown key 'train.steps.more'"),
        (
            "quickstart",
            {"data.train.moving_digit.batch_size": "1"},
            "did you mean 'data.train.moving_digits.batch_size'",
        ),
        ("quickstart", {"train": "1"}, "train is a group of keys: "),
        ("quickstart", {"train.steps": "1.5"}, "train.steps must be a whole number, at least 1; found '1.5'"),
        ("quickstart", {"train.steps": "none"}, "train.steps must"),
        ("quickstart", {"seed": "none"}, "seed must"),
        ("quickstart", {"input.path": "tube"}, "unknown input.path 'tube'; did you mean 'tubes'"),
        ("quickstart", {"loader.max_broken": "2"}, "loader.max_broken must be at least 0 and at most 1; found 2"),
        ("quickstart", {"train.accumulate": "2"}, "unknown key 'train.accumulate'; it was renamed to 'train.grad_acc"),
        ("quickstart", {"model.mlp_width": "2"}, "it was renamed to 'model.mlp_dim'"),
        ("quickstart", {"data.train.moving_digits.batch_size": "none"}, "data.train.moving_digits.batch_size must"),
        (
            "quickstart",
            {"data.train.moving_digits.augment.scale": "none"},
            "data.train.moving_digits.augment.scale must",
        ),
        ("quickstart", {"model.scan": "maybe"}, "model.scan must be true or false; found 'maybe'"),
        ("quickstart", {"train.steps": "0"}, "train.steps must be at least 1; found 0"),
        ("quickstart", {"optimizer.warmup_steps": "-1"}, "optimizer.warmup_steps must be at least 0; found -1"),
        ("quickstart", {"train.label_smoothing": "1"}, "train.label_smoothing must be at least 0 and below 1"),
        ("quickstart", {"optimizer.name": "adamW"}, "unknown optimizer.name 'adamW'; did you mean 'adam' or 'adamw'"),
        ("quickstart", {"data.eval.still_digits.source": ""}, "data.eval.still_digits.source is not set"),
        (
            "quickstart",
            {"data.eval.still_digits.batch_size": "0"},
            "data.eval.still_digits.batch_size must be at least 1",
        ),
    ],
)
def test_errors_name_the_key_and_the_closest(spec, overrides, expected):
    with pytest.raises(UserError) as error:
        load_config(spec, overrides)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("c = default_config()\nreturn c", "data.train is empty"),
        (GOOD + "c.train.stepz = 1\nreturn c", "mine.py is not a configuration: .*stepz"),
        (GOOD + "c.optimizer.clip_norm = 1.0\nreturn c", "optimizer.clip_norm was renamed to optimizer.grad_clip_norm"),
        (GOOD + "c.input.path = 'sparse'\nreturn c", "unknown input.path 'sparse'; valid: dense, tubes"),
        (GOOD + "c.model.layer_scale = 'x'\nreturn c", "mine.py is not a configuration"),
        (GOOD + "c.unlock()\nc.train.stepz = 1\nreturn c", "unknown key 'train.stepz'; did you mean 'train.steps'"),
        (GOOD + "c.train.steps = 'many'\nreturn c", "mine.py is not a configuration"),
        (GOOD + "c.data.train['a b'] = c.data.train.a\nreturn c", "data.train.a b: the name of a data set"),
        (GOOD + "c.data.eval.a = dict(source='x')\nreturn c", r"unknown key 'data.eval.a\.\w+'"),
        ("return dataset_config(sourc='x')", "unknown key .*sourc'; did you mean .*source'"),
        ("return dataset_config(augment={'flp': True})", "did you mean .*augment.flip'"),
        ("return dataset_config(batch_size='x')", "batch_size must be of type int; found 'x'"),
        (GOOD + "c.train.steps = stepz\nreturn c", r"mine.py is not a configuration: name 'stepz' .* \(line 5\)"),
        (GOOD + "c.train.steps = int('x')\nreturn c", r"mine.py is not a configuration: invalid literal .* \(line 5\)"),
        ("return 1", "mine.py is not a configuration: get_config returned 1"),
        ("return (", "mine.py is not a configuration"),
        ("import no_such_module", "mine.py is not a configuration: .*no_such_module"),
    ],
)
def test_errors_of_an_experiment_file(experiment, body, expected):
    path = experiment(body)
    with pytest.raises(UserError, match=expected):
        load_config(path)


@pytest.mark.parametrize("name, text", [("mine.py", "x = 1"), ("notes.txt", "Some notes.")])
def test_a_file_without_get_config(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is not a configuration: "):
        load_config(str(tmp_path / name))


def test_defaults_are_locked():
    for config in (default_config(), default_config().model, default_config().optimizer, dataset_config()):
        with pytest.raises(AttributeError):
            config.new_key = 1
    config = default_config()
    config.data.train.clips = dataset_config(source="clips.csv")  # names of data sets are free
    check_config(config)
    with pytest.raises(UserError, match="unknown key"):
        set_key(config, "data.train.clips.sources", "x")


def test_model_fields_leaves_out_what_is_none(config):
    fields = model_fields(config)
    assert fields["name"] == "tubevit_nano8" and fields["precision"] == "float32" and fields["fps"] == 8.0
    assert "tubes" not in fields and "frames" not in fields and None not in fields.values()


def test_an_input_path_has_two_values():
    assert [InputPath("dense"), InputPath("tubes")] == list(InputPath)
    with pytest.raises(UserError, match="unknown input.path 'sparse'; valid: dense, tubes"):
        InputPath("sparse")


def test_windows_are_sent_where_they_are_smaller():
    sparse, dense = model_config("tubevit_nano8"), model_config("vivit_nano8")
    assert (input_path(sparse, None), input_path(dense, None)) == ("tubes", "dense")
    assert (
        input_path(sparse, "dense") == input_path(dense, "dense") == "dense" and input_path(sparse, "tubes") == "tubes"
    )
    with pytest.raises(UserError, match=r"input.path=tubes sends 1.00 times the clip for 4x8x8/4x8x8; use .*=dense"):
        input_path(dense, "tubes")


def test_flatten():
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [1]}
    flat = {"a.b": 1, "a.c.d": None, "e": [1]}
    assert flatten(nested) == flat == flatten(ConfigDict(nested))


def test_closest():
    assert closest("papr", ["core", "paper"]) == "did you mean 'paper'?"
    assert closest("x", ["core", "paper"]) == "valid: core, paper"
    assert closest("x", []) == "none is available"
    assert closest("#", map(str, range(100, 140))).endswith("(40 in all)")
    assert str(unknown("tube preset", "cor", ["core"])) == "unknown tube preset 'cor'; did you mean 'core'?"


@pytest.mark.parametrize(
    "text, source",
    [
        ("data=a=b:c.csv", "a=b:c.csv"),
        ('data="a,b=1.csv"', "a,b=1.csv"),
        ("flip=true,data=\"a,flip=false, 'b'.csv\",init=x", "a,flip=false, 'b'.csv"),
        ('data="say ""a"", b"', 'say "a", b'),
        ('data=6".csv', '6".csv'),
        ("data=it's.csv,", "it's.csv"),
        ("data=k400:a.csv@b", "k400:a.csv@b"),
    ],
)
def test_arguments_may_hold_any_sign(text, source):
    assert load_config(f"finetune:{text}").data.train.data.source == source


def test_overlapping_splits_change_no_result():
    config = load_config("quickstart")
    allowed = allow_overlap(config)
    assert {d.allow_overlap for d in (*allowed.data.train.values(), *allowed.data.eval.values())} == {True}
    assert not any(d.allow_overlap for d in config.data.train.values())
    older = config.to_dict()  # of a run before the key was there
    for dataset in older["data"]["train"].values():
        del dataset["allow_overlap"]
    assert changed_keys(older, allowed.to_dict()) == {}


def test_what_the_architecture_sets_is_no_change():
    """Older runs lack the keys of later versions, and may name what the architecture sets."""
    config = load_config("quickstart").to_dict()
    older = load_config("quickstart").to_dict()
    older["model"]["gelu"] = "exact"
    older["model"]["tubes"] = "small"
    del older["model"]["frame_pooling"], older["model"]["softcap"], older["input"]["frames"]
    assert changed_keys(older, config) == changed_keys(config, older) == {}
    older["model"]["gelu"] = "tanh"
    assert changed_keys(older, config) == {"model.gelu": ("tanh", "exact")}
