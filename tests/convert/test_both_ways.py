"""Our plain ViTs to Hugging Face's and timm's files and back; folders and files that are refused."""

import json
import pathlib
import re
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import tubevit
from tests.convert.test_torch_file import state_dict, tensor
from tests.convert.test_torch_file import write as write_torch
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.cli import main
from tubevit.convert import convert
from tubevit.convert.architecture import fold_layer_scale, heads_of, plain_vit
from tubevit.convert.files import read_arrays
from tubevit.convert.foreign import Options
from tubevit.errors import UserError
from tubevit.models.abstract import graph_of, parameters
from tubevit.models.config import Head
from tubevit.models.variants import model_config
from tubevit.storage import replacing

PLAIN = dict(
    tubes="1x8x8/32x8x8", frames=1, size=24, position="learned", class_token=True, pooling="cls",
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip
LABELS = ("cat", "dog", "cow", "hen", "bee")


@pytest.fixture(scope="module")
def model(tiny):
    return tiny({"kind": Head(5, "image", LABELS)}, **PLAIN, norm_epsilon=1e-5)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "ours"
    tubevit.save_model(model, path)
    return path


@pytest.fixture(scope="module")
def folder(saved):
    path = saved.parent / "hugging_face"
    convert(saved, path, format="hugging-face")
    return path


def same_parameters(model, path):
    ours, theirs = flatten(parameters(model)), flatten(parameters(tubevit.load_model(path)))
    theirs = {name.replace("heads/default", "heads/kind"): leaf for name, leaf in theirs.items()}
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(theirs[name], leaf, err_msg=name)


def test_hugging_face_and_back_is_exact(model, folder, tmp_path):
    done = convert(folder, tmp_path / "again")
    same_parameters(model, tmp_path / "again")
    ours, theirs = model.config, done.config
    for key in ("width", "depth", "num_heads", "mlp_dim", "mean", "std", "size", "norm_epsilon", "gelu", "qkv_bias"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert theirs.heads == (("default", Head(5, "any", LABELS)),) and done.notes == ()
    assert (load_file(folder / "model.safetensors")["vit.embeddings.position_embeddings"][0, 0] == 0).all()


def test_heads_of_several_labels(tiny, tmp_path):
    tubevit.save_model(tiny({"default": Head(3, "any", (), True)}, **PLAIN), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", format="hugging-face")
    assert convert(tmp_path / "theirs", tmp_path / "again").config.heads == (("default", Head(3, "any", (), True)),)


def test_timm_and_back_is_exact(model, saved, tmp_path):
    done = convert(saved, tmp_path / "x.safetensors", format="timm")
    assert len(done.notes) == 3 and "num_heads 2" in done.notes[0] and "epsilon 1e-05" in done.notes[1]
    again = convert(tmp_path / "x.safetensors", tmp_path / "again", options=Options(heads=2))
    same_parameters(model, tmp_path / "again")
    file = f"{tmp_path}/x.safetensors"
    assert again.notes == (
        f"{file} does not say pooling and activation: assumed to be the class token and the exact GELU",
        f"{file} does not say mean and std: assumed to be 0.5, see --mean and --std",
    )


def test_what_a_file_of_timm_cannot_say(saved, tmp_path):
    """Pooling and activation leave no array behind; config.json says the one and names the architecture."""
    convert(saved, tmp_path / "x.safetensors", format="timm")
    arrays, options = load_file(tmp_path / "x.safetensors"), Options(heads=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    notes = lambda path: " ".join(convert(path, tmp_path / f"{len(list(tmp_path.iterdir()))}", options=options).notes)  # noqa: E731
    without = {name: array for name, array in arrays.items() if name != "cls_token"}
    without["pos_embed"] = arrays["pos_embed"][:, 1:]
    save_file(without, tmp_path / "mean.safetensors")
    assert "pooling and activation: assumed to be the mean of all patches" in notes(tmp_path / "mean.safetensors")
    for number, (values, expected) in enumerate((({}, "does not say pooling: "), ({"global_pool": "token"}, ""))):
        folder = tmp_path / f"hub{number}"
        folder.mkdir()
        shutil.copyfile(tmp_path / "x.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **values}))
        assert (expected in notes(folder)) if expected else notes(folder) == ""


TIMM_GELUS = {  # values of config.json, and the GELU of the model or what is said
    "by name": ({"architecture": "vit_base_patch32_siglip_gap_256.v2_webli"}, "tanh"),
    "by name, exact": ({"architecture": "vit_base_patch16_siglip_gap_256"}, "exact"),
    "argument": ({"architecture": "vit_tiny_patch16_224", "model_args": {"act_layer": "gelu_tanh"}}, "tanh"),
    "argument, exact": ({"architecture": "vit_large_patch16_siglip_gap_512", "act_layer": "gelu"}, "exact"),
    "other": ({"architecture": "vit_tiny_patch16_224", "act_layer": "quick_gelu"}, "act_layer 'quick_gelu' instead of"),
    "list": ({"architecture": "vit_tiny_patch16_224", "act_layer": ["gelu"]}, r"act_layer \['gelu'\] instead of"),
}


@pytest.mark.parametrize("case", TIMM_GELUS)
def test_the_gelu_of_a_folder_of_timm(case, saved, tmp_path):
    values, expected = TIMM_GELUS[case]
    (tmp_path / "hub").mkdir()
    convert(saved, tmp_path / "x.safetensors", format="timm")
    (tmp_path / "x.safetensors").rename(tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/config.json").write_text(json.dumps({"global_pool": "token", **values}))
    if expected in ("exact", "tanh"):
        assert convert(tmp_path / "hub", tmp_path / "ours", options=Options(heads=2)).config.gelu == expected
    else:
        with pytest.raises(UserError, match=expected):
            convert(tmp_path / "hub", tmp_path / "ours", options=Options(heads=2))


def test_formats_of_the_stored_numbers(folder, tmp_path):
    """float16 and bfloat16 are widened."""
    arrays = load_file(folder / "model.safetensors")
    for dtype, name in ((np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")):
        half = {key: array.astype(dtype) for key, array in arrays.items()}
        target = shutil.copytree(folder, tmp_path / name)
        blobs = {key: array.tobytes() for key, array in half.items()}
        header, start = {}, 0
        for key, blob in blobs.items():
            header[key] = {"dtype": name, "shape": half[key].shape, "data_offsets": [start, start + len(blob)]}
            start += len(blob)
        text = json.dumps(header).encode()
        (target / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs.values()))
        convert(target, tmp_path / f"ours_{name}")
        found = flatten(parameters(tubevit.load_model(tmp_path / f"ours_{name}")))["heads/default/kernel"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, half["classifier.weight"].astype(np.float32).T)


def test_layer_scale_is_folded(tiny):
    model = tiny(**PLAIN, layer_scale=0.1)
    images = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), np.uint8)
    config, params = fold_layer_scale(model.config, flatten(parameters(model)))
    graph = graph_of(config)
    np.testing.assert_allclose(nnx.merge(graph, unflatten(params))(images), model(images), rtol=0, atol=2e-5)


def test_the_command_prints_what_it_made(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["format"] == "hugging-face" and values["classes"] == 5 and values["patch"] == 8
    assert main(["convert", str(folder), str(tmp_path / "bare"), "--headless", "--mean", "0", "0", "0"]) == 0
    out = capsys.readouterr().out
    assert "0 classes" in out and "note: left out: classifier.bias, classifier.weight" in out
    assert tubevit.load_model(tmp_path / "bare").config.mean == (0, 0, 0)


def test_sizes_that_do_not_say_the_heads():
    assert heads_of(dict(width=768, depth=12, mlp_dim=3072), None, "x") == 12
    with pytest.raises(UserError, match="width 760 depth 12 mlp_dim 3072; the closest is vit_b14 .*--heads N"):
        heads_of(dict(width=760, depth=12, mlp_dim=3072), None, "x")


REFUSED = {  # changes of config.json, and what is said
    "model_type": ({"model_type": "vitt"}, "unknown model_type .*'vitt'; did you mean 'vit'"),
    "registers": ({"model_type": "dinov2_with_registers"}, "registers are not supported"),
    "swiglu": ({"model_type": "dinov2", "architectures": ["Dinov2Model"], "use_swiglu_ffn": True}, "use_swiglu_ffn"),
    "dinov2": ({"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"]}, "--headless leaves it out"),
    "siglip": (
        {"model_type": "siglip", "architectures": ["SiglipForImageClassification"]},
        "valid: SiglipModel, SiglipVisionModel",
    ),
    "architecture": ({"architectures": ["ViTForMaskedImageModeling"]}, "unknown architecture .*ViTForMasked"),
    "activation": ({"hidden_act": "gelu_tan"}, "unknown hidden_act 'gelu_tan'; did you mean"),
    "several": ({"num_channels": 1, "hidden_size": "x"}, "hidden_size must be a whole .* num_channels must be 3"),
    "blocks": ({"num_hidden_layers": 10**9}, "at most 1000 blocks, found 1000000000"),
    "labels": ({"id2label": {"1": "a"}}, "id2label must name the classes 0, 1"),
    "width": ({"hidden_size": 32}, r"; layernorm.bias: expected \(32,\), found \(24,\)"),
    "depth": ({"num_hidden_layers": 3}, r"missing encoder.layer.2.attention.attention.key.bias; .*"),
    "heads": ({"num_attention_heads": 5}, "width 24 must be divisible by num_heads 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_do_not_fit(case, folder, tmp_path, capsys):
    changes, text = REFUSED[case]
    target = shutil.copytree(folder, tmp_path / "theirs")
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | changes))
    refused([str(target), str(tmp_path / "ours")], text, tmp_path, capsys)


def refused(arguments, text, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", *arguments]) == 2
    line = capsys.readouterr().err
    assert re.search(text, line) and line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_cannot_be_read(saved, folder, tmp_path, capsys):
    whole = (folder / "model.safetensors").read_bytes()
    np.savez(tmp_path / "whole.npz", a=np.ones((50, 50)))

    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    np.savez(tmp_path / "code.npz", a=np.array([Code()], object))
    files = {
        "short.safetensors": (whole[:2000], "damaged or incomplete"),
        "shorter.safetensors": (whole[:9], "its header reaches beyond its end"),
        "cut.npz": ((tmp_path / "whole.npz").read_bytes()[:900], "damaged or incomplete"),
        "text.npz": (b"not at all", "not a .npz, .safetensors or .*; it begins with b'not at al'"),
        "empty.pth": (b"", "not a .npz, .safetensors or"),
        "legacy.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch before 1.6"),
        "folder.safetensors": (whole, "Hugging Face: pass its folder"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    for name, (_, text) in files.items():
        refused([str(tmp_path / name), str(tmp_path / "ours")], text, tmp_path, capsys)
    refused([str(tmp_path / "code.npz"), str(tmp_path / "ours")], "holds Python objects", tmp_path, capsys)
    assert not (tmp_path / "was_run").exists()
    refused(
        [str(tmp_path / "absent"), str(tmp_path / "ours")], "absent does not exist; expected a file", tmp_path, capsys
    )
    refused(
        [str(folder), str(tmp_path / "text.npz/ours")],
        "cannot write .*text.npz/ours: Not a directory",
        tmp_path,
        capsys,
    )
    refused([str(folder), str(saved)], "exists already; name a new one", tmp_path, capsys)
    refused([str(folder), str(tmp_path / "ours"), "--heads", "3"], "pass no --heads", tmp_path, capsys)
    refused([str(folder), str(tmp_path / "ours"), "--prefix", "a"], "pass no --prefix", tmp_path, capsys)
    refused([str(folder), str(tmp_path / "ours"), "--format", "timm"], "without --format timm", tmp_path, capsys)


def test_bytes_that_were_changed(folder, tmp_path):
    """Anywhere in a file: its arrays are read, or one error says that they cannot be."""
    np.savez(tmp_path / "x.npz", a=np.ones((3, 4), np.float32), b=np.ones(5))
    ones = {"0": np.ones(24, np.float32)}
    write_torch(tmp_path / "x.pth", state_dict(a=tensor("0", "FloatStorage", 24, (2, 3, 4), (12, 4, 1))), ones)
    shutil.copy(folder / "model.safetensors", tmp_path / "x.safetensors")
    random, outcomes = np.random.default_rng(0), set()
    for name in ("x.npz", "x.pth", "x.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(300):
            content = bytearray(whole)
            for position in random.integers(0, min(len(whole), 4000), random.integers(1, 6)):
                content[position] = random.integers(0, 256)
            (tmp_path / "changed").write_bytes(content[: random.integers(1, 2 * len(whole))])
            try:
                assert isinstance(read_arrays(tmp_path / "changed"), dict)
                outcomes.add("read")
            except UserError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_folders_that_are_not_whole(folder, tmp_path, capsys):
    def broken(name, file, content):
        target = shutil.copytree(folder, tmp_path / name)
        (target / file).unlink(missing_ok=True)
        if content is not None:
            (target / file).write_text(content)
        return str(target)

    cases = [
        (broken("a", "model.safetensors", None), "holds no weights: expected one of model.safetensors"),
        (broken("b", "config.json", '{"model_type": '), "config.json is damaged or incomplete"),
        (broken("c", "preprocessor_config.json", '{"rescale_factor": 0.5}'), "must be rescaled by 1/255"),
        (broken("d", "preprocessor_config.json", '{"image_mean": 3}'), "expected 3 numbers, found mean 3"),
        (broken("e", "preprocessor_config.json", '{"image_std": [1, 0, 1]}'), "std must be above 0"),
    ]
    shards = pathlib.Path(broken("f", "model.safetensors", None))
    for name, text in (
        ("x.safetensors", "lacks x.safetensors"),
        ("../x.safetensors", "weight_map from names of arrays to files"),
    ):
        (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        refused([str(shards), str(tmp_path / "ours")], text, tmp_path, capsys)
    for target, text in cases:
        refused([target, str(tmp_path / "ours")], text, tmp_path, capsys)


def test_timm_files_that_are_refused(saved, tmp_path, capsys):
    convert(saved, tmp_path / "x.safetensors", format="timm")
    arrays = load_file(tmp_path / "x.safetensors")
    for name, text in (
        ("fc_norm.weight", "fc_norm, a normalisation after pooling"),
        ("pre_logits.fc.weight", "--headless leaves both out"),
        ("reg_token", "reg_token, registers"),
        ("blocks.1.mlp.fc3.weight", "unexpected blocks.1.mlp.fc3.weight"),
    ):
        save_file(arrays | {name: np.ones(3, np.float32)}, tmp_path / "y.safetensors")
        refused([str(tmp_path / "y.safetensors"), str(tmp_path / "ours"), "--heads", "2"], text, tmp_path, capsys)
    save_file(arrays, tmp_path / "y.safetensors")
    for flags, text in (([], "--heads N"), (["--heads", "7"], "must be divisible by num_heads 7")):
        refused([str(tmp_path / "y.safetensors"), str(tmp_path / "ours"), *flags], text, tmp_path, capsys)


def test_models_that_the_formats_cannot_hold(saved, tiny, tmp_path, capsys):
    tubevit.save_model(tiny(**{**PLAIN, "pooling": "map", "class_token": False}, gelu="tanh"), tmp_path / "map")
    tubevit.save_model(tiny({"a": Head(2, "image"), "b": Head(3, "image")}, **PLAIN), tmp_path / "heads")
    tubevit.save_model(tiny(**PLAIN, gelu="tanh"), tmp_path / "tanh")
    tubevit.save_model(tiny(), tmp_path / "tubes")
    tubevit.save_model(tiny(**PLAIN, softcap=50.0, budget="50%"), tmp_path / "fast")
    video = dict(tubes="2x8x8/2x8x8", position="index", pooling="mean", final_norm="pooled", frames=4, size=16)
    tubevit.save_model(tiny(**video, softcap=50.0, budget="50%:motion"), tmp_path / "video")
    target, timm = str(tmp_path / "theirs"), str(tmp_path / "x.safetensors")
    for name, flags, text in (
        (
            "map",
            [target, "--format", "hugging-face"],
            "class_token=False instead of True; pooling='map' instead of 'cls'",
        ),
        ("heads", [target, "--format", "hugging-face"], r"several heads \(a, b\): --headless leaves them out"),
        (
            "tubes",
            [target, "--format", "hugging-face"],
            "closest is vivit, but the model has tubes .* instead of one without gaps; .*position='fixed' instead",
        ),
        (
            "fast",
            [target, "--format", "hugging-face"],
            "softcap=50.0 instead of None; budget 50%: load it with .*budget='100%'",
        ),
        ("fast", [timm, "--format", "timm"], "softcap=50.0 instead of None; budget 50%: "),
        ("video", [target, "--format", "hugging-face"], "videomae, .*softcap=50.0 .*; budget 50%:motion: "),
        ("tanh", [timm, "--format", "timm"], "exact GELU, this model the tanh"),
        ("heads", [target, "--format", "timm", "--headless"], "files that end in .safetensors; found theirs"),
        ("tanh", [target], "pass --format, one of hugging-face, timm"),
        ("tanh", [target, "--format", "tim"], "unknown format 'tim'; did you mean 'timm'"),
        ("tanh", [target, "--format", "timm", "--mean", "0", "0", "0"], "pass no --mean"),
    ):
        refused([str(tmp_path / name), *flags], text, tmp_path, capsys)
    assert main(["convert", str(tmp_path / "heads"), timm, "--format", "timm", "--headless"]) == 0
    assert "head.weight" not in load_file(timm)


@pytest.mark.parametrize("is_folder", [True, False])
def test_nothing_is_left_where_writing_fails(tmp_path, is_folder):
    with pytest.raises(OSError, match="no space"), replacing(tmp_path / "theirs") as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "half" if is_folder else temporary).write_bytes(b"half")
        assert not (tmp_path / "theirs").exists()
        raise OSError("no space")
    assert list(tmp_path.iterdir()) == []


def test_without_safetensors(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused([str(folder), str(tmp_path / "ours")], r"pip install 'tubevit\[convert\]'", tmp_path, capsys)


def test_known_sizes_get_their_name():
    sizes = dict(width=1024, depth=24, num_heads=16, mlp_dim=4096, size=224, class_token=True, pooling="cls")
    config = plain_vit(patch=14, head=Head(3), **sizes)
    assert config == model_config("vit_l14", num_classes=3)
    assert plain_vit(patch=15, head=None, **sizes | {"size": 225}).name == "vit"


def test_what_is_no_checkpoint_and_no_folder_of_others(folder, saved, tmp_path, capsys):
    (tmp_path / "no_config").mkdir()
    (tmp_path / "empty_config").mkdir()
    (tmp_path / "empty_config/config.json").write_text("{}")
    for name in ("no_config", "empty_config"):
        text = (
            f"{name} is neither a checkpoint nor a folder of another library, which has a config.json with a model_type"
        )
        refused([str(tmp_path / name), str(tmp_path / "ours"), "--format", "timm"], text, tmp_path, capsys)
    for name in ("no_config", "empty_config"):  # from Python as well
        with pytest.raises(UserError, match=f"{name} is neither a checkpoint nor a folder of another library"):
            convert(tmp_path / name, tmp_path / "ours")
    with pytest.raises(UserError, match="missing.pth does not exist; expected a file or folder of weights"):
        convert(tmp_path / "missing.pth", tmp_path / "ours")
    for given, text in (
        (folder, "holds no checkpoint; .*tubevit convert"),
        (folder / "model.safetensors", "is a file"),
    ):
        with pytest.raises(UserError, match=text):
            tubevit.load_model(given)
