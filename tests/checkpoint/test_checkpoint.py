import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import tubevit
from tubevit.checkpoint.checkpoint import Checkpoint, steps
from tubevit.checkpoint.manifest import write_manifest
from tubevit.checkpoint.metadata import config_from_metadata, model_metadata
from tubevit.data.labels import label_hash
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head
from tubevit.models.position import resize_positions
from tubevit.zoo.names import open_checkpoint

HEADS = {"motion": Head(3, "video", ("left", "right", "up")), "tags": Head(4, "any", (), True)}


def flat(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): leaf
        for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(HEADS, depth=2, dropout=0.1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "my_model"
    tubevit.save_model(model, path)
    return path


def test_round_trip_is_exact(model, saved):
    loaded = tubevit.load_model(saved)
    assert loaded.config == model.config and loaded.labels == model.labels
    ours, theirs = flat(parameters(model)), flat(parameters(loaded))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert theirs[name].dtype == jnp.float32
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    forward = nnx.jit(lambda model: model(clip, head="motion"))
    np.testing.assert_array_equal(forward(model), forward(loaded))


def test_metadata_is_json_and_goes_back(model):
    values = json.loads(json.dumps(model_metadata(model.config)))
    assert config_from_metadata(values) == model.config
    same = dataclasses.replace(model.config, tubes="small", padding="same", heads=())
    assert config_from_metadata(json.loads(json.dumps(model_metadata(same)))) == same


def test_readable_by_orbax_alone(saved):
    """Nested dicts of arrays with the names of design.md."""
    tree = ocp.load_checkpointables(saved)["params"]
    names = {name: leaf.shape for name, leaf in flat(tree).items()}
    assert names["encoder/blocks/mlp/up/kernel"] == (2, 24, 40)
    assert names["encoder/blocks/mlp/down/kernel"] == (2, 40, 24)
    assert names["encoder/norm/scale"] == (24,) and names["heads/motion/kernel"] == (24, 3)
    assert names["tokenizer/tubes/3/kernel"] == (1, 8, 8, 3, 24)
    assert set(tree) == {"tokenizer", "encoder", "pooling", "heads"}
    assert type(tree["encoder"]["blocks"]["mlp"]) is dict


@pytest.mark.parametrize("fields", [{"scan": False}, {"remat": "full"}, {"scan": False, "dropout": 0.5}])
def test_names_do_not_depend_on_how_it_is_computed(tiny, model, fields):
    try:
        other = tiny(HEADS, depth=2, **fields)
    except UserError as error:
        pytest.fail(str(error))
    shapes = [{name: leaf.shape for name, leaf in flat(parameters(m)).items()} for m in (model, other)]
    assert shapes[0] == shapes[1]


def test_fields_can_be_replaced(saved):
    loaded = tubevit.load_model(saved, frames=32, dropout=0.0, scan=False)
    assert (loaded.config.frames, loaded.config.dropout, loaded.input["frames"]) == (32, 0.0, 32)
    with pytest.raises(UserError, match="unknown keyword 'frame'; did you mean 'frames'"):
        tubevit.load_model(saved, frame=3)


def test_the_attention_of_the_training_is_not_kept(tiny, tmp_path):
    """It may suit other devices than these, such as cuDNN's, and changes no output."""
    tubevit.save_model(tiny(attention="cudnn"), tmp_path / "of_a_gpu")
    assert tubevit.load_model(tmp_path / "of_a_gpu").config.attention == "auto"
    assert tubevit.load_model(tmp_path / "of_a_gpu", attention="xla").config.attention == "xla"


def test_new_head_rest_kept(model, saved):
    loaded = tubevit.load_model(saved, num_classes=5)
    assert [(name, head.classes) for name, head in loaded.config.heads] == [("default", 5)]
    ours, theirs = flat(parameters(model)), flat(parameters(loaded))
    assert theirs.pop("heads/default/kernel").shape == (24, 5) and theirs.pop("heads/default/bias").shape == (5,)
    assert theirs.keys() == {name for name in ours if not name.startswith("heads/")}
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    pooled = tubevit.load_model(saved, num_classes=0)
    assert pooled.config.heads == () and not any(name.startswith("heads") for name in flat(parameters(pooled)))
    assert list(dict(tubevit.load_model(saved, heads={"a": 2, "b": (3, "image")}).config.heads)) == ["a", "b"]


def problems(saved, change):
    """The error of loading with an expectation that was changed."""
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ocp.load_checkpointables(saved)["params"])
    change(expected)
    with pytest.raises(UserError) as error:
        Checkpoint(saved).read("params", expected)
    return str(error.value)


def test_comparison_is_strict_and_two_sided(saved):
    def everything(tree):
        tree["encoder"]["norm"]["shift"] = tree["encoder"]["norm"].pop("bias")
        tree["heads"]["motion"]["kernel"] = jax.ShapeDtypeStruct((24, 7), jnp.float32)
        tree["tokenizer"]["tubes"]["0"]["bias"] = jax.ShapeDtypeStruct((12,), jnp.bfloat16)
        del tree["heads"]["tags"]

    text = problems(saved, everything)
    for part in (
        "missing encoder/norm/shift", "unexpected encoder/norm/bias",
        "heads/motion/kernel: expected ((24, 7), 'float32')",
        "found ((24, 3), 'float32')", "tokenizer/tubes/0/bias: expected ((12,), 'bfloat16')",
        "unexpected heads/tags/kernel", "unexpected heads/tags/bias",
    ):  # fmt: skip
        assert part in text
    assert text.count(";") == 5  # six problems and no more
    with pytest.raises(UserError, match="holds no 'optimizer'; it holds 'params'"):
        Checkpoint(saved).read("optimizer", {})


def test_a_model_that_does_not_fit(saved):
    with pytest.raises(UserError, match="does not fit the model in params: .*encoder/blocks/mlp/up/kernel"):
        tubevit.load_model(saved, mlp_dim=44)


def test_runs_and_steps(tiny_run):
    folder = tiny_run / "checkpoints"
    assert steps(folder) == [6, 9] and steps(tiny_run / "none") == []
    found = [open_checkpoint(name).folder for name in (tiny_run, folder, folder / "9")]
    assert found == [folder / "9"] * 3
    assert open_checkpoint(tiny_run, 6).folder == folder / "6"
    with pytest.raises(UserError, match=r"has no checkpoint of step 7; it has \[6, 9\]"):
        open_checkpoint(tiny_run, 7)
    metadata = open_checkpoint(tiny_run).metadata
    assert metadata["step"] == 9 and metadata["config"]["train"]["steps"] == 9
    assert metadata["versions"]["tubevit"] == tubevit.__version__
    one, two = (flat(parameters(tubevit.load_model(tiny_run, step=step))) for step in (6, 9))
    assert any((one[name] != two[name]).any() for name in one)
    assert tubevit.load_model(tiny_run).labels["digit"] == tuple("0123456789")


def test_an_unknown_name_gives_the_closest(saved, tiny_run):
    with pytest.raises(UserError, match=f"unknown checkpoint '.*my_modle'; did you mean '{saved}'"):
        tubevit.load_model(saved.parent / "my_modle")
    with pytest.raises(UserError, match=f"did you mean '{tiny_run}'"):
        tubevit.load_model(tiny_run.parent / "tinyy")
    with pytest.raises(UserError, match="unknown checkpoint 'no/such/place'"):
        tubevit.load_model("no/such/place")
    with pytest.raises(UserError, match="holds no checkpoint; expected a workdir"):
        tubevit.load_model(saved.parent)


def test_a_checkpoint_of_something_else(tmp_path):
    ocp.save_checkpointables(tmp_path / "other", {"params": {"a": jnp.zeros(3)}})
    with pytest.raises(UserError, match="not of a TubeViT"):
        tubevit.load_model(tmp_path / "other")


def test_a_half_copied_checkpoint_is_not_taken(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "checkpoints" / "9" / "_CHECKPOINT_METADATA").unlink()
    assert open_checkpoint(run).folder == run / "checkpoints" / "6"


def test_damaged_files_are_named(saved, tmp_path):
    """Orbax loads them without a word."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    assert tubevit.load_model(copy).config
    file = max(copy.glob("params/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    name = file.relative_to(copy)
    with pytest.raises(UserError, match=f"{copy} is damaged: {name}: its content has changed; use a good copy"):
        tubevit.load_model(copy)
    (copy / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="params/_METADATA: missing"):
        tubevit.load_model(copy)


def test_what_it_was_saved_with(saved):
    versions = Checkpoint(saved).metadata["versions"]
    assert versions["jax"] == jax.__version__ and set(versions) >= {"tubevit", "flax", "orbax-checkpoint", "numpy"}


def test_existing_folders_are_not_overwritten(model, saved):
    with pytest.raises(UserError, match=f"{saved} exists already"):
        tubevit.save_model(model, saved)
    assert nnx.state(tubevit.load_model(saved))


def test_labels_are_checked_against_their_hash(model):
    """A list that was sorted or edited by hand would give every class another name."""
    values = json.loads(json.dumps(model_metadata(model.config)))
    assert values["heads"]["motion"]["label_hash"] == label_hash(("left", "right", "up"))
    assert "label_hash" not in values["heads"]["tags"]  # its labels are not known
    values["heads"]["motion"]["labels"] = ["left", "up", "right"]
    with pytest.raises(UserError, match="labels of head 'motion' were changed: expected those of label_hash .*, found"):
        config_from_metadata(values)
    del values["heads"]["motion"]["label_hash"]  # older checkpoints have none
    assert dict(config_from_metadata(values).heads)["motion"].labels == ("left", "up", "right")


@pytest.mark.parametrize("change, field", [
    (lambda values: values.update(sinks=4), "ModelConfig.sinks"),
    (lambda values: values["heads"]["tags"].update(scale=2.0), "Head.scale"),
    (lambda values: values.update(lora={"rank": 8, "dora": True}), "Lora.dora"),
])  # fmt: skip
def test_fields_of_a_later_version(saved, tmp_path, change, field):
    copy = shutil.copytree(saved, tmp_path / "copy")
    file = copy / "_CHECKPOINT_METADATA"
    stored = json.loads(file.read_text())
    change(stored["custom_metadata"]["model"])
    stored["custom_metadata"]["versions"]["tubevit"] = "9.1.0"
    file.write_text(json.dumps(stored))
    write_manifest(copy)
    text = f"{copy}, which tubevit 9.1.0 wrote, has {field}, unknown to tubevit {tubevit.__version__}: upgrade"
    with pytest.raises(UserError, match=re.escape(text)):
        open_checkpoint(copy).model  # noqa: B018
    with pytest.raises(UserError, match=re.escape(text)):
        tubevit.load_model(copy)


@pytest.mark.parametrize("change", [lambda text: text[:500], lambda text: text.replace('"width"', '"widht"')])
def test_damaged_metadata_is_not_taken_for_that_of_others(saved, tmp_path, change):
    """Whoever reads it first: `load_model` verifies all files before, others do not."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    file = copy / "_CHECKPOINT_METADATA"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=f"{copy} is damaged: _CHECKPOINT_METADATA: "):
        open_checkpoint(copy).model  # noqa: B018


def test_changed_labels_are_not_loaded(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    file = copy / "_CHECKPOINT_METADATA"
    text = file.read_text()
    file.write_text(text.replace('"right", "up"', '"up", "right"'))
    assert file.read_text() != text
    with pytest.raises(UserError, match=f"{copy} is damaged: _CHECKPOINT_METADATA: its content has changed"):
        tubevit.load_model(copy)
    (copy / "manifest.json").unlink()  # as of an older version
    with pytest.raises(UserError, match="labels of head 'motion' were changed"):
        tubevit.load_model(copy)


DENSE = dict(tubes="2x8x8/2x8x8", frames=8, size=32, class_token=True, pooling="cls")


@pytest.mark.parametrize(
    "fields",
    [
        dict(pattern="divided", position="learned_space_time"),
        dict(pattern="factorised_encoder", temporal_depth=1, position="learned_space"),
    ],
)
def test_positions_over_time_are_not_resized(tiny, tmp_path, fields):
    tubevit.save_model(tiny(**DENSE, **fields), tmp_path / "video")
    loaded = tubevit.load_model(tmp_path / "video", size=48)
    assert loaded(np.zeros((1, 8, 48, 48, 3), np.uint8)).shape == (1, 5)
    with pytest.raises(UserError, match="over time fit 4 times, and frames=12 gives 6: keep the frames"):
        tubevit.load_model(tmp_path / "video", frames=12)


def test_positions_by_number_of_another_size_are_warned_of(tiny, tmp_path, said):
    """The second row of 14 tokens begins with number 14, and that of 18 with 18."""
    tubevit.save_model(tiny(tubes="2x8x8/2x8x8", frames=8, size=32, position="index", depth=1), tmp_path / "video")
    for fields in ({}, {"frames": 12}):
        tubevit.load_model(tmp_path / "video", **fields)
    assert said == []
    tubevit.load_model(tmp_path / "video", size=48)
    assert "size=32: with size=48, its positions 'index' give the tokens other numbers" in said[0] and len(said) == 1


def test_another_size_resizes_learned_positions(tiny, tmp_path):
    fields = dict(tubes="1x8x8/16x8x8", frames=1, size=32, position="learned", class_token=True, pooling="cls")
    model = tiny(5, depth=1, **fields)
    tubevit.save_model(model, tmp_path / "vit")
    larger = tubevit.load_model(tmp_path / "vit", size=48)
    stored, table = (np.asarray(getattr(m.position, "0")[...]) for m in (model, larger))
    assert table.shape == (1, 6, 6, 24) and larger.config.size == 48
    np.testing.assert_allclose(table, resize_positions(stored, (1, 6, 6)))
    assert larger(np.zeros((1, 48, 48, 3), np.uint8)).shape == (1, 5)
    same = tubevit.load_model(tmp_path / "vit")
    np.testing.assert_array_equal(getattr(same.position, "0")[...], stored)
