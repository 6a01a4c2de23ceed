"""Video models to Hugging Face's folders and back, preprocessing and metadata; folders and files that are refused.

Parity with transformers stands in tests/extras/test_video_peers.py.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tubevit
from tests.convert.test_both_ways import refused
from tests.convert.test_torch_file import state_dict, tensor
from tests.convert.test_torch_file import write as write_torch
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.paths import flatten
from tubevit.cli import main
from tubevit.convert import convert, original_video
from tubevit.convert.architecture import video_vit
from tubevit.convert.files import read_arrays
from tubevit.convert.foreign import Options
from tubevit.convert.hugging_face_folder import licence, preprocessing
from tubevit.convert.video_families import TIMESFORMER, VIDEOMAE, VIVIT
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head
from tubevit.models.variants import model_config

LABELS = ("run", "jump", "sit")
CLIP = dict(frames=4, size=16)
CLASS_TOKEN = dict(class_token=True, pooling="cls", norm_epsilon=1e-6)
TIME = dict(tubes="1x8x8/1x8x8", position="learned_space_time", mean=(0.45,) * 3, std=(0.225,) * 3)
POOLED = dict(final_norm="pooled", pooled_norm_epsilon=1e-5, norm_epsilon=1e-12)
MODELS = {
    "vivit": dict(tubes="2x8x8/2x8x8", position="learned", gelu="tanh") | CLASS_TOKEN,
    "timesformer": TIME | CLASS_TOKEN | dict(pattern="divided"),
    "joint": TIME | CLASS_TOKEN | dict(qkv_bias=False),
    "videomae": dict(tubes="2x8x8/2x8x8", position="index", pooling="mean", mean=(0.4, 0.5, 0.6)) | POOLED,
}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Hugging Face's folders of a tiny model of each kind, and our checkpoints that they come from."""
    root = tmp_path_factory.mktemp("video")
    for name, fields in MODELS.items():
        model = tiny({"default": Head(3, "video", LABELS)}, **fields, **CLIP)
        if name == "videomae":  # their keys have no bias
            bias = model.encoder.blocks.attention.qkv.bias
            bias[...] = bias[...].at[:, 1].set(0)
        tubevit.save_model(model, root / f"our_{name}")
        convert(root / f"our_{name}", root / name, format="hugging-face")
    return root


@pytest.fixture
def changed(folders, tmp_path):
    """`changed("vivit", weights=function, num_frames=5)`: a copy of a folder with other values or arrays."""

    def change(name, weights=None, **values):
        target = shutil.copytree(folders / name, tmp_path / "theirs")
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | values))
        if weights:
            arrays = load_file(target / "model.safetensors")
            weights(arrays)
            save_file(arrays, target / "model.safetensors")
        return str(target)

    return change


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_exact(name, folders, tmp_path):
    done = convert(folders / name, tmp_path / "again")
    ours, theirs = (tubevit.load_model(path) for path in (folders / f"our_{name}", tmp_path / "again"))
    expected, found = flatten(parameters(ours)), flatten(parameters(theirs))
    assert expected.keys() == found.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert done.config == ours.config.replace(name="vit")
    assert done.notes == () or name == "videomae" and "the released models were trained with" in done.notes[0]


def test_metadata_and_report(folders, tmp_path, capsys):
    theirs = shutil.copytree(folders / "timesformer", tmp_path / "theirs")
    (theirs / "README.md").write_text('---\nlicense: "cc-by-nc-4.0"\ntags:\n- vision\n---\n\nlicense: other\n')
    assert main(["convert", str(theirs), str(tmp_path / "ours"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    found = {key: values[key] for key in ("frames", "size", "tubes", "pattern", "classes")}
    assert found == dict(frames=4, size=16, tubes="1x8x8/1x8x8", pattern="divided", classes=3)
    source = Checkpoint(tmp_path / "ours").metadata["source"]
    assert source["licence"] == "cc-by-nc-4.0" and set(source["sha256"]) == {"model.safetensors"}
    assert tubevit.load_model(tmp_path / "ours").labels == {"default": LABELS}
    assert main(["convert", str(theirs), str(tmp_path / "text"), "--headless"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "divided attention, tubes 1x8x8/1x8x8 at 4x16x16, pooling cls, 0 classes" in line


@pytest.mark.parametrize("text, expected", [
    ("---\nlicense: mit\n---\n", "mit"), ("---\r\nlicense:  apache-2.0 \r\n---", "apache-2.0"), ("license: mit", None),
    ("---\nlicense:\n- mit\n---\n", None), ("---\ntags: x\n---\nlicense: mit\n", None), ("", None),
])  # fmt: skip
def test_licence_of_the_model_card(text, expected, tmp_path):
    assert licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licence(tmp_path) == expected


HALF, QUARTERS = [0.5] * 3, [0.25] * 3
PROCESSORS = {  # family, content of preprocessor_config.json, mean and std that result, and what the note says
    "no file": (VIDEOMAE, None, VIDEOMAE.trained, "does not say mean and std: assumed (0.485"),
    "vivit": (
        VIVIT, dict(image_processor_type="VivitImageProcessor", rescale_factor=1 / 127.5, offset=True, image_mean=HALF,
                    image_std=HALF), (HALF, HALF), "trained on -1..1, which is used here: --mean .75",
    ),
    "vivit, nothing said": (
        VIVIT, dict(image_processor_type="VivitImageProcessor", image_mean=HALF, image_std=HALF), (HALF, HALF), "-1..1",
    ),
    "vivit, no offset": (
        VIVIT, dict(image_processor_type="VivitImageProcessor", rescale_factor=1 / 255, offset=False, image_mean=HALF,
                    image_std=HALF), (HALF, HALF), None,
    ),
    "vivit, not standardised": (
        VIVIT, dict(rescale_factor=1 / 127.5, offset=True, do_normalize=False), (HALF, HALF), None,
    ),
    "timesformer, as trained": (
        TIMESFORMER, dict(image_mean=[0.45] * 3, image_std=[0.225] * 3), TIMESFORMER.trained, None,
    ),
    "timesformer, converted": (TIMESFORMER, dict(image_mean=HALF, image_std=HALF), (HALF, HALF), "trained with [0.45"),
    "videomae, converted": (VIDEOMAE, dict(image_mean=HALF, image_std=HALF), (HALF, HALF), "trained with [0.485"),
    "videomae, not standardised": (VIDEOMAE, dict(do_normalize=False), ([0.0] * 3, [1.0] * 3), "trained with [0.485"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_preprocessing_is_that_of_the_file(case, tmp_path):
    """A note says where the released models were trained with other statistics, or which of two is used."""
    family, values, (mean, std), text = PROCESSORS[case]
    if values is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    fields, _, notes = preprocessing(tmp_path, Options(), family.trained)
    assert fields == {"mean": tuple(mean), "std": tuple(std)}
    assert (text is None and notes == ()) or (len(notes) == 1 and text in notes[0])
    given = Options(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert preprocessing(tmp_path, given, family.trained)[::2] == ({"mean": given.mean, "std": given.std}, ())


@pytest.mark.parametrize("values", [dict(rescale_factor=1 / 127.5), dict(rescale_factor=1 / 255, offset=True)])
def test_pixels_of_another_range(values, tmp_path):
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="video_preprocessor_config.json: pixels must be rescaled by 1/255, or by"):
        preprocessing(tmp_path, Options(), VIVIT.trained)


def without(ending):
    return lambda arrays: [arrays.pop(name) for name in list(arrays) if name.endswith(ending)]


BLOCK = "timesformer.encoder.layer.1"
REFUSED = {  # the folder, what changes, and what is said
    "space_only": ("timesformer", dict(attention_type="space_only"), "unknown attention_type .*'space_only'"),
    "frames": ("vivit", dict(num_frames=5), "num_frames 5 must be a multiple of the 2 frames of a tubelet"),
    "several": (
        "videomae", dict(num_frames=[4], tubelet_size="x", hidden_size=-1),
        r"hidden_size must be .*; num_frames must be .* found \[4\]; tubelet_size must be .* found 'x'",
    ),
    "tubelet": ("vivit", dict(tubelet_size=[2, 8]), r"tubelet_size must be a whole number above 0, found \[2, 8\]"),
    "lists": ("timesformer", dict(attention_type=["x"], num_frames=[4, 4]), "unknown attention_type"),
    "oblong": ("vivit", dict(image_size=[16, 24]), r"image_size must be a whole number above 0, found \[16, 24\]"),
    "size": (
        "vivit", dict(image_size=24),
        r"clips of 4x24x24 .*position_embeddings: expected \(1, 19, 24\), found \(1, 9, 24\)",
    ),
    "clip": ("timesformer", dict(num_frames=6), r"time_embeddings: expected \(1, 6, 24\), found \(1, 4, 24\)"),
    "family": (
        "timesformer", dict(model_type="vivit", architectures=["VivitForVideoClassification"], tubelet_size=[2, 8, 8]),
        "missing embeddings.cls_token; .*unexpected timesformer.embeddings.cls_token",
    ),
    "image model": ("vivit", dict(model_type="vit", architectures=["ViTModel"]), "missing .*; unexpected vivit.embedd"),
    "class": ("vivit", dict(architectures=["VivitForX"]), "unknown architecture .*'VivitForX'; did you mean"),
    "first patch": ("videomae", dict(use_mean_pooling=False), "classifies the first patch, .* --headless"),
    "no norm": ("videomae", dict(architectures=["VideoMAEModel"]), "has no last normalisation; expected VideoMAEFor"),
    "joint": ("timesformer", dict(attention_type="joint_space_time"), "unexpected .*temporal_layernorm.weight"),
    "blocks": ("timesformer", dict(num_hidden_layers=3), "missing encoder.layer.2.attention.attention.qkv.bias; .*"),
    "no fold": (
        "timesformer", dict(weights=without("1.temporal_dense.bias")),
        "missing encoder.layer.1.temporal_dense.bias$",
    ),
    "all of them": (
        "timesformer", dict(weights=lambda arrays: arrays.update({
            f"{BLOCK}.temporal_dense.weight": np.ones((24, 23), np.float32), "timesformer.x": np.ones(2, np.float32),
            f"{BLOCK}.temporal_attention.output.dense.weight": np.ones((24, 24), np.int32),
        }) or without(".temporal_layernorm.weight")(arrays)),
        r"missing encoder.layer.0-1.temporal_layernorm.weight; unexpected x; encoder.layer.1.temporal_dense.weight: "
        r"expected \(24, 24\), found \(24, 23\); .*output.dense.weight: expected floating point, found int32$",
    ),
    "biases": (
        "videomae", dict(weights=without(".q_bias")), "missing encoder.layer.0-1.attention.attention.q_bias$",
    ),
    "prism": ("vivit", dict(model_type="videoprism"), "unknown model_type .*'videoprism'; .*'videoprism_vision_model'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_do_not_fit(case, changed, tmp_path, capsys):
    name, changes, text = REFUSED[case]
    refused([changed(name, **changes), str(tmp_path / "ours")], text, tmp_path, capsys)


def test_options_that_a_folder_answers_itself(folders, tmp_path, capsys):
    for flag in ("--frames", "--size", "--heads"):
        refused([str(folders / "vivit"), str(tmp_path / "ours"), flag, "4"], f"pass no {flag}", tmp_path, capsys)


def test_lists_in_config_json(folders, tmp_path, capsys):
    target = shutil.copytree(folders / "vivit", tmp_path / "theirs")
    (target / "config.json").write_text("[1, 2]")
    refused([str(target), str(tmp_path / "ours")], "must hold a JSON object; found list", tmp_path, capsys)


NAMES = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.cls_token": "cls_token"}
NAMES |= {"embeddings.position_embeddings": "pos_embed", "embeddings.time_embeddings": "time_embed"}
NAMES |= {"encoder.layer": "blocks", "intermediate.dense": "mlp.fc1"}


def test_original_files_that_are_refused(folders, tmp_path, capsys):
    """The frames are those of the table over time; the size and the heads are options."""
    arrays, file = {}, tmp_path / "x.safetensors"
    for name, array in load_file(folders / "timesformer" / "model.safetensors").items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        arrays["model." + name.removeprefix("timesformer.")] = array
    save_file(arrays, file)
    target, heads = str(tmp_path / "ours"), ["--heads", "2"]
    refused([str(file), target], "no known timesformer has width 24 .*--heads N", tmp_path, capsys)
    text = (
        r"clips of 4x224x224 .*missing blocks.0-1.attn.proj.bias; .*unexpected .*; pos_embed: expected \(1, 785, 24\)"
    )
    refused([str(file), target, *heads], text, tmp_path, capsys)
    (note,) = original_video.read(file, read_arrays(file), Options(heads=2)).notes
    assert note.endswith("does not say all of the clip: assumed to be 224 pixels, see --size")
    refused([str(file), target, *heads, "--frames", "4"], "--frames is for files of format videomae", tmp_path, capsys)
    part = {"a": np.ones(1, np.float32)}
    inner = state_dict(a=tensor("0", "FloatStorage", 1, (1,), (1,)))[2:-1]
    text_of = lambda value: b"X" + len(value).to_bytes(4, "little") + value  # noqa: E731
    data = b"\x80\x02}(" + text_of(b"encoder") + inner + text_of(b"predictor") + inner + b"u."
    write_torch(tmp_path / "vjepa2.pt", data, {"0": part["a"]})
    refused([str(tmp_path / "vjepa2.pt"), target], "original file of V-JEPA 2, .* pass Hugging Face", tmp_path, capsys)


def test_a_videoprism_without_temporal_blocks(tmp_path, capsys):
    arrays = {"params/patch_projection/linear/kernel": np.ones((12, 8), np.float32)}
    arrays |= {"params/temporal_pos_emb/emb_var": np.ones((4, 8), np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    text = "missing spatial_encoder/.*; missing temporal_encoder/transformers_stack/x_layers_0/layer_norm/scale"
    refused([str(tmp_path / "x.npz"), str(tmp_path / "ours")], text, tmp_path, capsys)


def test_what_a_folder_of_videomae_does_not_hold(tiny, tmp_path):
    model = tiny(3, **MODELS["videomae"] | {"pooled_norm_epsilon": None, "norm_epsilon": 1e-6}, **CLIP, fps=5.0)
    tubevit.save_model(model, tmp_path / "ours")
    notes = convert(tmp_path / "ours", tmp_path / "theirs", format="hugging-face").notes
    assert (
        len(notes) == 3
        and "frames per second, 5.0" in notes[2]
        and "biases of the keys" in notes[0]
        and "epsilon 1e-05" in notes[1]
    )


RELEASED = ("vivit_b16x2", "vivit_fe_b16x2", "vivit_fe_l16x2", "timesformer_l_b16", "videomae_h16", "vjepa2_g16")


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_get_their_name(name):
    config = model_config(name, num_classes=3)
    tubelet, patch, _ = config.tubes.tubes[0].kernel
    fields = {key: getattr(config, key) for key in ("width", "depth", "num_heads", "mlp_dim", "frames", "position")}
    others = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    others = {key: value for key, value in others.items() if key not in (*fields, "name", "tubes", "heads", "padding")}
    head = dict(config.heads)["default"]
    assert video_vit(tubelet=tubelet, patch=patch, head=head, **fields, **others) == config
