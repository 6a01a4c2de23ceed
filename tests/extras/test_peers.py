"""Parity with torch peers (the extra `peers`): randomly initialised, saved in their own format, converted, and back."""

import inspect
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded

import numpy as np
import pytest
import timm
import torch
import transformers
from flax import nnx

import tubevit
from tests.peers import assert_same, randomised
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.convert import convert
from tubevit.convert import timm as timm_format
from tubevit.convert.foreign import Options

TINY = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, image_size=32, patch_size=8
)
BASE = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, image_size=224, patch_size=16
)
SIZES = {"tiny": (TINY, 1e-5), "base": (BASE, 1e-4)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), np.uint8)


def standardised(images, mean, std):
    """What the peers' own preprocessing makes of uint8 pixels: (B, 3, H, W)."""
    values = (images / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(values.transpose(0, 3, 1, 2), dtype=torch.float32)


def run(path, images):
    return nnx.jit(lambda model, images: model(images))(tubevit.load_model(path), images)


def encoded(path, images):
    return nnx.jit(lambda model, images: model.encode(images))(tubevit.load_model(path), images)


def preprocessor(kind=transformers.ViTImageProcessor, **fields):
    return kind(image_mean=list(MEAN), image_std=list(STD), resample=3, **fields)


@pytest.mark.parametrize("size", SIZES)
def test_hugging_face_vit_both_ways(size, tmp_path):
    fields, tolerance = SIZES[size]
    names = {i: f"kind {i}" for i in range(7)}
    config = transformers.ViTConfig(**fields, id2label=names, label2id={name: i for i, name in names.items()})
    peer = randomised(transformers.ViTForImageClassification(config))
    peer.save_pretrained(tmp_path / "theirs")
    preprocessor(size={"height": config.image_size, "width": config.image_size}).save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.format == "hugging-face" and done.config.norm_epsilon == 1e-12 and done.notes == ()
    assert done.config.name == ("vit_b16" if size == "base" else "vit")
    images = pixels(config.image_size)
    inputs = standardised(images, MEAN, STD)
    assert_same(run(tmp_path / "ours", images), peer(inputs).logits, tolerance)
    assert_same(encoded(tmp_path / "ours", images), peer.vit(inputs).last_hidden_state, tolerance)
    assert tubevit.load_model(tmp_path / "ours").labels == {"default": tuple(names.values())}

    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again, report = transformers.ViTForImageClassification.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    again.eval()
    np.testing.assert_allclose(again(inputs).logits.detach(), peer(inputs).logits.detach(), rtol=0, atol=tolerance)
    assert again.config.id2label == names and again.config.label2id == config.label2id
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    ready = processor(list(images), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(ready, inputs, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["resample"] == 3


def test_hugging_face_vit_without_its_head(tmp_path):
    """ViTModel, other activation, no biases of queries, keys and values; in two files; its pooler is left out."""
    config = transformers.ViTConfig(**TINY, hidden_act="gelu_pytorch_tanh", qkv_bias=False, layer_norm_eps=1e-3)
    peer = randomised(transformers.ViTModel(config))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="150KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert [note.split(":")[0] for note in done.notes] == [
        f"{tmp_path}/theirs/preprocessor_config.json does not say mean and std", "left out"
    ]  # fmt: skip
    assert len(Checkpoint(tmp_path / "ours").metadata["source"]["sha256"]) > 1
    images = pixels(32)
    inputs = standardised(images, (0.5,) * 3, (0.5,) * 3)
    expected = peer(inputs).last_hidden_state
    assert_same(run(tmp_path / "ours", images), expected[:, 0], 1e-5)

    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again = transformers.ViTModel.from_pretrained(tmp_path / "back", add_pooling_layer=False).eval()
    np.testing.assert_allclose(again(inputs).last_hidden_state.detach(), expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("size", SIZES)
def test_timm_both_ways(size, suffix, tmp_path):
    tolerance = SIZES[size][1]
    name, image, changes = ("vit_base_patch16_224", 224, {})
    if size == "tiny":
        name, image, changes = ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 12})

    def make():
        return timm.create_model(name, pretrained=False, num_classes=7, **changes)

    peer, file = randomised(make()), tmp_path / f"theirs.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": peer.state_dict(), "epoch": 3}, file)
    else:
        from safetensors.torch import save_file

        save_file(peer.state_dict(), file)
    done = convert(file, tmp_path / "ours", options=Options(mean=MEAN, std=STD))
    assert done.format == "timm" and done.config.name == ("vit_b16" if size == "base" else "vit_ti16")
    images = pixels(image)
    inputs = standardised(images, MEAN, STD)
    assert_same(run(tmp_path / "ours", images), peer(inputs), tolerance)

    convert(tmp_path / "ours", tmp_path / "back.safetensors", format="timm")
    again = timm.create_model(name, num_classes=7, checkpoint_path=tmp_path / "back.safetensors", **changes).eval()
    np.testing.assert_allclose(again(inputs).detach(), peer(inputs).detach(), rtol=0, atol=tolerance)


def test_timm_with_layer_scale_and_without_class_token(tmp_path):
    shape = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2, num_classes=5)
    variants = {"scaled": {"init_values": 0.1}, "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False}}
    images = pixels(32)
    for name, options in variants.items():
        peer = randomised(timm.models.VisionTransformer(**shape, **options))
        torch.save(peer.state_dict(), tmp_path / f"{name}.pth")
        convert(tmp_path / f"{name}.pth", tmp_path / name, options=Options(heads=4))
        assert_same(run(tmp_path / name, images), peer(standardised(images, (0.5,) * 3, (0.5,) * 3)), 1e-5)


def test_a_folder_of_timm(tmp_path):
    """As its hub has them: mean, std and interpolation stand in config.json."""
    peer = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32))
    cfg = {"mean": MEAN, "std": STD, "interpolation": "bicubic"}
    (tmp_path / "theirs").mkdir()
    torch.save(peer.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": cfg})
    )
    convert(tmp_path / "theirs", tmp_path / "ours")
    images = pixels(32)
    assert_same(run(tmp_path / "ours", images), peer(standardised(images, MEAN, STD)), 1e-5)
    assert Checkpoint(tmp_path / "ours").metadata["source"]["preprocessing"]["interpolation"] == "bicubic"


def test_activations_that_only_the_code_of_timm_says():
    """Those of all its plain ViTs that pool their patches; the arrays of the others show that they are not plain."""
    names = timm.list_models("vit_*_gap_*", module="vision_transformer")
    codes = {name: inspect.getsource(timm.models.model_entrypoint(name)) for name in names}
    plain = {name: code for name, code in codes.items() if "reg_tokens" not in code and "fc_norm=False" in code}
    assert {name for name, code in plain.items() if "act_layer='gelu_tanh'" in code} == timm_format.TANH
    assert all("act_layer" not in code for name, code in plain.items() if name not in timm_format.TANH)
    of_classes = [name for name in timm.list_models(module="vision_transformer") if "quickgelu" in name]
    assert of_classes and all(
        "pre_norm=True" in inspect.getsource(timm.models.model_entrypoint(name)) for name in of_classes
    )


@pytest.mark.parametrize("size", SIZES)
def test_dinov2(size, tmp_path):
    fields, tolerance = SIZES[size]
    fields = {key: value for key, value in fields.items() if key != "intermediate_size"}
    fields |= {"patch_size": 14, "image_size": 518 if size == "base" else 42}
    peer = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**fields, mlp_ratio=4)))
    peer.save_pretrained(tmp_path / "theirs")
    preprocessor(transformers.BitImageProcessor, size={"shortest_edge": 256}).save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.format == "dinov2" and done.config.layer_scale is None
    assert done.config.size == fields["image_size"] and (size == "tiny" or done.config.name == "vit_b14")
    images = pixels(fields["image_size"])
    expected = peer(standardised(images, MEAN, STD))
    assert_same(run(tmp_path / "ours", images), expected.pooler_output, tolerance)


@pytest.mark.parametrize("size, both", [("tiny", False), ("tiny", True), ("base", False)])
def test_siglip(size, both, tmp_path):
    fields, tolerance = SIZES[size]
    text = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80, vocab_size=50)
    text |= dict(bos_token_id=1, eos_token_id=2)
    if both:
        peer = transformers.SiglipModel(transformers.SiglipConfig(vision_config=fields, text_config=text))
    else:
        peer = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**fields))
    randomised(peer).save_pretrained(tmp_path / "theirs")
    preprocessor(transformers.SiglipImageProcessor).save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.format == "siglip" and done.notes == (("left out: the text tower",) if both else ())
    images = pixels(fields["image_size"])
    tower = peer.vision_model if both else peer
    expected = tower(pixel_values=standardised(images, MEAN, STD))
    assert_same(run(tmp_path / "ours", images), expected.pooler_output, tolerance)
    assert_same(encoded(tmp_path / "ours", images), expected.last_hidden_state, tolerance)
