"""Twins in PyTorch as files: written without torch, and read back. tests/extras/test_twin.py has what they compute."""

import ast
import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tubevit
from tests.twins import CASES, HEADS, VIDEO
from tubevit import UserError
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.paths import flatten
from tubevit.convert import convert, export_torch, twin
from tubevit.convert.foreign import Options
from tubevit.models.abstract import abstract_parameters, parameters
from tubevit.models.config import CHOICES, ModelConfig
from tubevit.models.variants import model_config

# Fields that change no output, or none in float32.
WITHOUT_EFFECT = {"name", "fps", "freeze_below", "remat", "scan", "attention", "precision", "lora", "quantize"}
FIELDS = dict(position="learned_2d", layer_scale=0.1, gate_layer=0, stochastic_depth=0.1, precision="bfloat16", fps=8.0)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(HEADS, **FIELDS)


@pytest.fixture
def folder(model, tmp_path):
    export_torch.export_torch(model, tmp_path / "twin")
    return tmp_path / "twin"


def assert_same(path, model, heads=True):
    """The checkpoint at `path` has the configuration and the parameters of a model, bit for bit."""
    again = tubevit.load_model(path)
    assert again.config == (model.config if heads else model.config.replace(heads=()))
    expected, found = flatten(parameters(model)), flatten(parameters(again))
    expected = {name: leaf for name, leaf in expected.items() if heads or not name.startswith("heads/")}
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_the_file_needs_only_torch_and_safetensors_to_load():
    tree = ast.parse(export_torch.SOURCE.read_text())
    for nodes, needed in ((tree.body, {"torch"}), (list(ast.walk(tree)), {"torch", "safetensors"})):
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == needed


def test_the_twin_knows_every_field_and_every_choice():
    used = set(re.findall(r"\bc\.(\w+)", export_torch.SOURCE.read_text()))
    assert used | WITHOUT_EFFECT == {field.name for field in dataclasses.fields(ModelConfig)}
    assert not used & WITHOUT_EFFECT
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    for field in CHOICES.keys() - WITHOUT_EFFECT:
        assert {fields.get(field, defaults[field]) for fields, _ in CASES.values()} == set(CHOICES[field]), field


@pytest.mark.parametrize("case", CASES)
def test_parameters_come_back(case):
    config = model_config("tubevit_nano8", **{"heads": VIDEO, "depth": 2, "num_heads": 2, **CASES[case][0]})
    rng, shapes = np.random.default_rng(0), flatten(abstract_parameters(config))
    params = {path: np.asarray(rng.random(leaf.shape), np.float32) for path, leaf in shapes.items()}
    arrays = twin.layout(config).to_theirs(params, config)
    assert sum(array.size for array in arrays.values()) == sum(leaf.size for leaf in params.values())
    back = twin.layout(config).to_ours(arrays, config, "")
    assert back.keys() == params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
    described = json.loads(json.dumps(twin.description(config)))
    assert twin.config_from_description(described, "") == config


def test_a_folder_is_written_without_torch(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    export_torch.export_torch(tiny(HEADS), tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json", "model.safetensors", "tubevit_torch.py",
    ]  # fmt: skip
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["format"] == "torch" and config["input"]["video"] == ["b", 16, 64, 64, 3]
    assert config["model"]["tubes"][1] == {
        "kernel": [8, 2, 2], "stride": [3, 16, 16], "offset": [2, 4, 4], "space_to_depth": [1, 2, 2],
    }  # fmt: skip
    arrays = load_file(tmp_path / "a/model.safetensors")
    assert arrays["tubes.1.weight"].shape == (6, 3, 8, 2, 2) and arrays["heads.1.weight"].shape == (4, 24)
    assert arrays["encoder.blocks.1.attention.qkv.weight"].shape == (72, 24)
    with pytest.raises(UserError, match=r"needs torch, .*: pip install 'tubevit\[onnx\]'"):
        export_torch.export_onnx(tiny(), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_becomes_the_same_model(model, folder, tmp_path):
    done = convert(folder, tmp_path / "ours")
    assert done.format == "torch" and done.notes == ()
    assert_same(tmp_path / "ours", model)
    source = Checkpoint(tmp_path / "ours").metadata["source"]
    assert source["format"] == "torch" and list(source["sha256"]) == ["model.safetensors"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_torch(prefix, model, folder, tmp_path):
    arrays = load_file(folder / "model.safetensors")
    save_file({prefix + name: array for name, array in arrays.items()}, folder / "trained.safetensors")
    convert(folder / "trained.safetensors", tmp_path / "ours")
    assert_same(tmp_path / "ours", model)


def test_without_heads(model, folder, tmp_path):
    arrays = load_file(folder / "model.safetensors")
    save_file({name: leaf for name, leaf in arrays.items() if "heads" not in name}, folder / "backbone.safetensors")
    with pytest.raises(UserError, match=r"has no heads; expected a video, image, several\. --headless"):
        convert(folder / "backbone.safetensors", tmp_path / "a")
    convert(folder / "backbone.safetensors", tmp_path / "b", options=Options(headless=True))
    done = convert(folder, tmp_path / "c", options=Options(headless=True))
    assert done.notes == ("left out: heads.0-2.bias, heads.0-2.weight",)
    for name in ("b", "c"):
        assert_same(tmp_path / name, model, heads=False)


def test_other_classes(folder, tmp_path):
    """As docs/export.md says: they are changed in config.json, too."""
    arrays = load_file(folder / "model.safetensors")
    arrays |= {"heads.0.weight": np.ones((2, 24), np.float32), "heads.0.bias": np.ones(2, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"heads.0.weight: expected \(5, 24\), found \(2, 24\)"):
        convert(folder, tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["heads"]["a video"] |= {"classes": 2, "labels": ["no", "yes"]}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "a")
    assert tubevit.load_model(tmp_path / "a").labels["a video"] == ("no", "yes")


def test_what_does_not_fit(folder, tmp_path):
    arrays = load_file(folder / "model.safetensors")
    arrays["more"] = arrays.pop("encoder.gate")
    arrays["tubes.0.bias"] = arrays["tubes.0.bias"][1:].copy()
    save_file(arrays, folder / "other.safetensors")
    with pytest.raises(UserError) as error:
        convert(folder / "other.safetensors", tmp_path / "a")
    for part in ("missing encoder.gate", "unexpected more", "tubes.0.bias: expected (12,), found (11,)"):
        assert part in str(error.value)
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["tubes"][0]["stride"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json does not describe a model of --format torch: .*stride"):
        convert(folder, tmp_path / "a")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="was exported with --format torch: put it beside the config.json"):
        convert(folder / "other.safetensors", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]
