"""Parity of video models with transformers' (the extra `peers`): randomly initialised, converted, and back."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded


import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

import tubevit
from tests.peers import assert_same, randomised
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.paths import flatten
from tubevit.convert import convert
from tubevit.convert.foreign import Options
from tubevit.models.abstract import parameters

TINY = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, image_size=32)
BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, image_size=224)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF, TIMESFORMER = ((0.5,) * 3, (0.5,) * 3), ((0.45,) * 3, (0.225,) * 3)
LABELS = {i: f"kind {i}" for i in range(7)}


def vivit(frames=6, patch=8, tubelet=2, **fields):
    config = transformers.VivitConfig(**fields, num_frames=frames, tubelet_size=[tubelet, patch, patch])
    return transformers.VivitForVideoClassification, config


def timesformer(frames=5, patch=8, attention="divided", **fields):
    config = transformers.TimesformerConfig(
        **fields, num_frames=frames, patch_size=patch, attention_type=f"{attention}_space_time"
    )
    return transformers.TimesformerForVideoClassification, config


def videomae(frames=6, patch=8, tubelet=2, kind=transformers.VideoMAEForVideoClassification, **fields):
    config = transformers.VideoMAEConfig(**fields, num_frames=frames, patch_size=patch, tubelet_size=tubelet)
    return kind, config


def saved(made, folder, **options):
    """A random model in its own format; its labels are known."""
    kind, config = made
    config.id2label, config.label2id = LABELS, {name: i for i, name in LABELS.items()}
    peer = randomised(kind(config))
    peer.save_pretrained(folder, **options)
    return peer


def clips(frames, height, width, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, frames, height, width, 3), np.uint8)


def standardised(videos, statistics):
    """What the peers' own preprocessing makes of uint8 pixels: (B, T, 3, H, W)."""
    mean, std = map(np.array, statistics)
    return torch.tensor(((videos / 255 - mean) / std).transpose(0, 1, 4, 2, 3), dtype=torch.float32)


def converted(source, target, statistics):
    return convert(source, target, options=Options(mean=statistics[0], std=statistics[1]))


def ours(path, videos, method="__call__"):
    return nnx.jit(lambda model, videos: getattr(model, method)(videos))(tubevit.load_model(path), videos)


def same_parameters(one, other):
    one, other = (flatten(parameters(tubevit.load_model(path))) for path in (one, other))
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(other[name], leaf, err_msg=name)


TWO_WAY = {  # the model, its statistics and the tolerance
    "vivit": (vivit, dict(TINY), HALF, 1e-5),
    "vivit, tanh": (vivit, dict(TINY, hidden_act="gelu", tubelet=3, image_size=48), HALF, 1e-5),
    "vivit, 64 tokens": (vivit, dict(TINY, frames=8), HALF, 1e-5),  # a square number, but not of rows and columns
    "vivit, base": (vivit, dict(BASE, frames=8, patch=16), HALF, 1e-4),
    "timesformer": (timesformer, dict(TINY), TIMESFORMER, 1e-5),
    "timesformer, no bias": (timesformer, dict(TINY, qkv_bias=False, image_size=40), TIMESFORMER, 1e-5),
    "timesformer, joint": (timesformer, dict(TINY, attention="joint"), TIMESFORMER, 1e-5),
    "timesformer, base": (timesformer, dict(BASE, frames=4, patch=16), TIMESFORMER, 1e-4),
    "videomae": (videomae, dict(TINY), IMAGENET, 1e-5),
    "videomae, no bias": (videomae, dict(TINY, qv_bias=False, frames=9, tubelet=3), IMAGENET, 1e-5),
    "videomae, base": (videomae, dict(BASE, frames=4, patch=16), IMAGENET, 1e-4),
}


@pytest.mark.parametrize("case", TWO_WAY)
def test_both_ways(case, tmp_path):
    make, fields, statistics, tolerance = TWO_WAY[case]
    peer = saved(make(**fields), tmp_path / "theirs")
    done = converted(tmp_path / "theirs", tmp_path / "ours", statistics)
    assert done.notes == ()
    assert tubevit.load_model(tmp_path / "ours").labels == {"default": tuple(LABELS.values())}
    config = peer.config
    videos = clips(config.num_frames, config.image_size, config.image_size, 1 if "base" in case else 2)
    inputs = standardised(videos, statistics)
    with torch.no_grad():
        expected = peer(inputs).logits
        spread = 1 if len(videos) > 1 else 0
        assert 0.1 < expected.abs().mean() < 10 and expected.std(dim=1 - spread).min() > 0
    np.testing.assert_allclose(ours(tmp_path / "ours", videos), expected, rtol=0, atol=tolerance)

    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again, report = type(peer).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()) and again.config.id2label == LABELS
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(inputs).logits, expected, rtol=0, atol=tolerance)
    assert converted(tmp_path / "back", tmp_path / "again", statistics).config == done.config
    same_parameters(tmp_path / "ours", tmp_path / "again")
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "back"))
    assert first.keys() == second.keys()
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    # The class token includes its position, and the layer after TimeSformer's attention over time is folded into it.
    exact = () if "videomae" in case else ("cls_token", "position_embeddings")
    exact += ("temporal_dense.weight", "temporal_dense.bias", "temporal_attention.output.dense.weight")
    exact += ("temporal_attention.output.dense.bias",)
    assert all(name.endswith(exact) for name in changed) and bool(changed) == ("videomae" not in case)


def test_the_folder_that_we_write_comes_back_bit_for_bit(tmp_path):
    """Also where a first conversion folds two layers: the second one writes the same file."""
    saved(timesformer(**TINY), tmp_path / "theirs")
    source = tmp_path / "theirs"
    for number in range(2):
        converted(source, tmp_path / f"ours{number}", TIMESFORMER)
        source = tmp_path / f"back{number}"
        convert(tmp_path / f"ours{number}", source, format="hugging-face")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "back0" / name).read_bytes() == (tmp_path / "back1" / name).read_bytes()


@pytest.mark.parametrize("frames, height, width", [(6, 24, 40), (12, 32, 32), (2, 16, 8)])
def test_videomae_of_other_clips(frames, height, width, tmp_path):
    """The positions follow from the number of the token: the same weights, loaded for another clip."""
    saved(videomae(**TINY), tmp_path / "theirs")
    converted(tmp_path / "theirs", tmp_path / "ours", IMAGENET)
    kind, config = videomae(**TINY | dict(frames=frames, image_size=[height, width]))
    other = kind.from_pretrained(
        tmp_path / "theirs", num_frames=frames, image_size=[height, width], id2label=LABELS
    ).eval()
    videos = clips(frames, height, width)
    expected = other(standardised(videos, IMAGENET)).logits
    assert_same(ours(tmp_path / "ours", videos), expected, 1e-5)


@pytest.mark.parametrize("make, frames, statistics", [(vivit, 6, HALF), (timesformer, 5, TIMESFORMER)])
def test_models_without_a_head(make, frames, statistics, tmp_path):
    """Bare models, whose pooler is left out, in two files; and the same without its head."""
    kind, config = make(**TINY)
    bare = {"vivit": transformers.VivitModel, "timesformer": transformers.TimesformerModel}[config.model_type]
    peer = randomised(bare(config))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="150KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    done = converted(tmp_path / "theirs", tmp_path / "ours", statistics)
    assert done.notes == (("left out: the pooler",) if make is vivit else ())
    assert len(Checkpoint(tmp_path / "ours").metadata["source"]["sha256"]) > 1
    videos = clips(frames, 32, 32)
    inputs = standardised(videos, statistics)
    expected = peer(inputs).last_hidden_state
    assert_same(ours(tmp_path / "ours", videos), expected[:, 0], 1e-5)
    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again = bare.from_pretrained(tmp_path / "back", **({"add_pooling_layer": False} if make is vivit else {})).eval()
    np.testing.assert_allclose(again(inputs).last_hidden_state.detach(), expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("renamed", [False, True])
def test_both_spellings_of_the_biases(renamed, tmp_path):
    """transformers 5 has saved `query.bias`, `value.bias` and `key.bias` for a while."""
    peer = saved(videomae(**TINY), tmp_path / "theirs")
    arrays = load_file(tmp_path / "theirs" / "model.safetensors")
    assert any(name.endswith("attention.attention.q_bias") for name in arrays)
    if renamed:
        for old, new in ((".q_bias", ".query.bias"), (".v_bias", ".value.bias")):
            arrays = {name.replace(old, new): array for name, array in arrays.items()}
        keys = [name.replace("query.bias", "key.bias") for name in arrays if name.endswith("query.bias")]
        arrays |= {name: np.ones(48, np.float32) for name in keys}
    save_file(arrays, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    converted(tmp_path / "theirs", tmp_path / "ours", IMAGENET)
    videos = clips(6, 32, 32)
    assert_same(ours(tmp_path / "ours", videos), peer(standardised(videos, IMAGENET)).logits, 1e-5)


def test_videomae_before_fine_tuning(tmp_path):
    """A pretraining checkpoint: its decoder is left out, its last normalisation takes the tokens."""
    fields = dict(TINY, use_mean_pooling=False, decoder_num_attention_heads=2, decoder_hidden_size=24)
    kind, config = videomae(**fields, kind=transformers.VideoMAEForPreTraining)
    peer = randomised(kind(config))
    peer.save_pretrained(tmp_path / "theirs")
    done = converted(tmp_path / "theirs", tmp_path / "ours", IMAGENET)
    assert done.notes == ("left out: the decoder",)
    videos = clips(6, 32, 32)
    inputs = standardised(videos, IMAGENET)
    expected = peer.videomae(inputs).last_hidden_state
    assert_same(ours(tmp_path / "ours", videos, "encode"), expected, 1e-5)
    assert_same(ours(tmp_path / "ours", videos), expected.mean(dim=1), 1e-5)
    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again, report = transformers.VideoMAEModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_allclose(again.eval()(inputs).last_hidden_state.detach(), expected.detach(), rtol=0, atol=1e-5)


def test_videomae_without_its_classifier(tmp_path):
    """The normalisation after pooling stays, there and back."""
    peer = saved(videomae(**TINY), tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", options=Options(headless=True, mean=IMAGENET[0], std=IMAGENET[1]))
    videos = clips(6, 32, 32)
    inputs = standardised(videos, IMAGENET)
    expected = peer.fc_norm(peer.videomae(inputs).last_hidden_state.mean(1))
    assert_same(ours(tmp_path / "ours", videos), expected, 1e-5)
    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again, report = type(peer).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()) and again.config.num_labels == 0
    np.testing.assert_allclose(again.eval()(inputs).logits.detach(), expected.detach(), rtol=0, atol=1e-5)


VJEPA2 = dict(patch_size=8, crop_size=32, frames_per_clip=6, hidden_size=48, num_hidden_layers=3, num_attention_heads=2)
VJEPA2 |= dict(mlp_ratio=2.0, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_labels=5)
VJEPA2_BASE = VJEPA2 | dict(
    patch_size=16, crop_size=256, frames_per_clip=4, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    mlp_ratio=4.0,
)  # fmt: skip


@pytest.mark.parametrize("fields, tolerance", [(VJEPA2, 1e-5), (VJEPA2_BASE, 1e-4)])
def test_vjepa2(fields, tolerance, tmp_path):
    """With the attention pooling and the classifier."""
    peer = randomised(transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**fields)))
    peer.save_pretrained(tmp_path / "theirs")
    assert converted(tmp_path / "theirs", tmp_path / "ours", IMAGENET).notes == ("left out: the predictor",)
    videos = clips(fields["frames_per_clip"], fields["crop_size"], fields["crop_size"])
    with torch.no_grad():
        assert_same(ours(tmp_path / "ours", videos), peer(standardised(videos, IMAGENET)).logits, tolerance)


def test_the_encoder_of_vjepa2(tmp_path):
    """Without classifier; the pooled features are the mean of the tokens. Any number of frames will do."""
    peer = randomised(transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA2)))
    peer.save_pretrained(tmp_path / "theirs")
    converted(tmp_path / "theirs", tmp_path / "ours", IMAGENET)
    for frames in (6, 10):
        videos = clips(frames, 32, 32)
        with torch.no_grad():
            expected = peer(standardised(videos, IMAGENET), skip_predictor=True).last_hidden_state
        assert_same(ours(tmp_path / "ours", videos, "encode"), expected, 1e-5)
        assert_same(ours(tmp_path / "ours", videos), expected.mean(dim=1), 1e-5)


def prism(**fields):
    """A random VideoPrism; its softcap is low enough to matter."""
    config = transformers.VideoPrismVisionConfig(**fields)
    config._attn_implementation = "eager"
    peer, generator = transformers.VideoPrismVisionModel(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, leaf in peer.named_parameters():
            noise = torch.randn(leaf.shape, generator=generator)
            scale = 0.2 if "layernorm" in name else (1.4 / leaf.shape[1] ** 0.5 if leaf.ndim == 2 else 0.1)
            leaf.copy_(scale * noise)
    return peer


PRISM = dict(image_size=54, num_frames=4, hidden_size=48, num_attention_heads=4, intermediate_size=80)
PRISM |= dict(num_spatial_layers=3, num_temporal_layers=2)
PRISM_BASE = dict(image_size=144, num_frames=4)  # and all other sizes as released


@pytest.mark.parametrize("fields, tolerance", [(PRISM | {"attn_logit_softcapping": 2.0}, 1e-5), (PRISM_BASE, 1e-4)])
def test_videoprism(fields, tolerance, tmp_path):
    peer = prism(**fields)
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    size = fields["image_size"]
    videos = clips(fields["num_frames"], size, size)
    with torch.no_grad():
        expected = peer(standardised(videos, ((0.0,) * 3, (1.0,) * 3))).last_hidden_state
    assert_same(ours(tmp_path / "ours", videos, "encode"), expected, tolerance)


def test_videoprism_below_its_pooling_head(tmp_path):
    """The encoder of a larger model; what follows it is left out."""
    peer = prism(**PRISM)
    peer.save_pretrained(tmp_path / "theirs")
    larger = transformers.VideoPrismVideoModel(peer.config)
    larger.vision_model.load_state_dict(peer.state_dict())
    larger.save_pretrained(tmp_path / "larger")
    convert(tmp_path / "theirs", tmp_path / "ours")
    done = convert(tmp_path / "larger", tmp_path / "again")
    assert done.notes[-1] == "left out: the auxiliary layers and the pooling head"
    same_parameters(tmp_path / "ours", tmp_path / "again")


@pytest.mark.parametrize("stacked", [True, False])
def test_videoprism_in_its_own_file(stacked, tmp_path):
    """The same weights as .npz: (D, h, d) kernels, blocks stacked by a scan or apart, other towers beside them."""
    peer = prism(**PRISM)
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    arrays, root = prism_arrays(load_file(tmp_path / "theirs" / "model.safetensors"), stacked), "params/vision_encoder"
    text = {"params/text_encoder/token_emb/emb_var": np.ones((5, 4), np.float32)}
    np.savez(tmp_path / "x.npz", **{f"{root}/{name}": array for name, array in arrays.items()}, **text)
    done = convert(tmp_path / "x.npz", tmp_path / "again", options=Options(size=54))
    assert done.format == "videoprism" and done.notes == ("left out: params/text_encoder",)
    assert done.config == convert(tmp_path / "theirs", tmp_path / "third").config
    same_parameters(tmp_path / "ours", tmp_path / "again")


def prism_arrays(theirs, stacked):
    """Hugging Face's arrays under the names of VideoPrism."""
    kernel = theirs["spatial_embeddings.patch_embeddings.projection.weight"]
    arrays = {
        "patch_projection/linear/kernel": kernel[:, :, 0].transpose(2, 3, 1, 0).reshape(-1, 48),
        "patch_projection/linear/bias": theirs["spatial_embeddings.patch_embeddings.projection.bias"],
    }
    for stage, norm, depth in (("spatial", "layernorm1", 3), ("temporal", "layernorm2", 2)):
        arrays[f"{stage}_pos_emb/emb_var"] = theirs[f"{stage}_embeddings.position_embeddings"][0]
        arrays |= {f"{stage}_ln/{a}": theirs[f"{norm}.{b}"] for a, b in (("scale", "weight"), ("bias", "bias"))}
        blocks = []
        for i in range(depth):
            get = lambda name, i=i, stage=stage: theirs[f"{stage}_layers.{i}.{name}"]  # noqa: E731
            block = {}
            for a, b in (("layer_norm", "layernorm_before"), ("ff_layer/layer_norm", "layernorm_after")):
                block |= {f"{a}/scale": get(f"{b}.weight"), f"{a}/bias": get(f"{b}.bias")}
            for a, b in (("query", "q"), ("key", "k"), ("value", "v")):
                block[f"self_attention/{a}/w"] = get(f"attention.{b}_proj.weight").T.reshape(48, 4, 12)
                block[f"self_attention/{a}/b"] = get(f"attention.{b}_proj.bias").reshape(4, 12)
            block["self_attention/post/w"] = get("attention.o_proj.weight").reshape(48, 4, 12)
            block["self_attention/post/b"] = get("attention.o_proj.bias")
            for n in (1, 2):
                block[f"ff_layer/ffn_layer{n}/linear/kernel"] = get(f"mlp.fc{n}.weight").T
                block[f"ff_layer/ffn_layer{n}/linear/bias"] = get(f"mlp.fc{n}.bias")
            blocks.append(block)
        stem = f"{stage}_encoder/transformers_stack/x_layers"
        for name in blocks[0]:
            layers = [block[name] for block in blocks]
            named = {f"{stem}/{name}": np.stack(layers)} if stacked else {}
            arrays |= named or {f"{stem}_{i}/{name}": layer for i, layer in enumerate(layers)}
    return arrays


ORIGINAL = {  # names of Hugging Face, and those of the original repositories
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed", "embeddings.time_embeddings": "time_embed",
    "encoder.layer": "blocks", "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1",
    "temporal_attention.attention.qkv": "temporal_attn.qkv", "temporal_attention.output.dense": "temporal_attn.proj",
    "temporal_layernorm": "temporal_norm1", "temporal_dense": "temporal_fc", "attention.output.dense": "attn.proj",
    "attention.attention": "attn", "output.dense": "mlp.fc2", "layernorm": "norm", "classifier": "head",
}  # fmt: skip


def original(theirs):
    """A state dict under the original names; queries, keys and values are one kernel."""
    named = {}
    for name, array in theirs.items():
        for old, new in ORIGINAL.items():
            name = name.replace(old, new)
        named[name.removeprefix("timesformer.").removeprefix("videomae.")] = torch.tensor(array)
    for name in [name for name in named if name.endswith("attn.query.weight")]:
        parts = [named.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        named[name.replace("query", "qkv")] = torch.cat(parts)
    return named


ORIGINALS = {  # the model, how its file wraps the state dict, options
    "timesformer": (timesformer, {}, "model_state", "model.", dict(heads=4, size=32)),
    "timesformer, joint": (timesformer, dict(attention="joint"), "model_state", "model.", dict(heads=4, size=32)),
    "videomae": (videomae, {}, "module", "", dict(heads=4, frames=6, size=32)),
    "videomae in model": (videomae, {}, "model", "", dict(heads=4, frames=6, size=32)),
    "videomae v2, 14": (videomae, dict(patch=14, image_size=28), "module", "", dict(heads=4, frames=6, size=28)),
}


@pytest.mark.parametrize("case", ORIGINALS)
def test_original_files(case, tmp_path):
    """The same weights from the original file and from Hugging Face's folder: the same arrays, bit for bit."""
    make, fields, key, prefix, options = ORIGINALS[case]
    kind, config = make(**TINY | fields)
    saved((kind, config), tmp_path / "theirs")
    state = {f"{prefix}{name}": x for name, x in original(load_file(tmp_path / "theirs" / "model.safetensors")).items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "x.pth")
    folder = convert(tmp_path / "theirs", tmp_path / "ours")
    file = convert(tmp_path / "x.pth", tmp_path / "again", options=Options(**options))
    assert file.format == make.__name__ and file.notes == ()
    same_parameters(tmp_path / "ours", tmp_path / "again")
    # The originals have one epsilon, 1e-6; Hugging Face's VideoMAE has others. They name no labels.
    known = {"norm_epsilon": folder.config.norm_epsilon, "pooled_norm_epsilon": folder.config.pooled_norm_epsilon}
    assert file.config.norm_epsilon == 1e-6 and file.config.pooled_norm_epsilon is None
    assert file.config.replace(**known, heads=folder.config.heads) == folder.config


def test_the_original_pretraining_file(tmp_path):
    """Names below `encoder.`; the decoder and the mask are left out."""
    fields = dict(TINY, use_mean_pooling=False, decoder_num_attention_heads=2, decoder_hidden_size=24)
    kind, config = videomae(**fields, kind=transformers.VideoMAEForPreTraining)
    randomised(kind(config)).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    encoder = {name: x for name, x in theirs.items() if name.startswith("videomae.")}
    state = {f"encoder.{name}": array for name, array in original(encoder).items()}
    state |= {"decoder.norm.weight": torch.ones(24), "encoder_to_decoder.weight": torch.ones(24, 48)}
    torch.save({"model": state | {"mask_token": torch.ones(1, 1, 24)}}, tmp_path / "x.pth")
    convert(tmp_path / "theirs", tmp_path / "ours")
    done = convert(tmp_path / "x.pth", tmp_path / "again", options=Options(heads=4, frames=6, size=32))
    assert done.notes == ("left out: decoder.norm.weight, encoder_to_decoder.weight, mask_token",)
    same_parameters(tmp_path / "ours", tmp_path / "again")


def test_what_the_processors_of_transformers_write(tmp_path):
    """ViViT's maps pixels to -1..1 and then subtracts 0.5; the folder that we write makes it do what we compute."""
    peer = saved(vivit(**TINY), tmp_path / "theirs")
    processor = transformers.VivitImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert "maps pixels to -1..1 and then subtracts" in done.notes[0] and (done.config.mean, done.config.std) == HALF
    videos = clips(6, 32, 32, batch=1)
    ready = processor(list(videos[0]), return_tensors="pt")["pixel_values"]
    quarters = ((0.75,) * 3, (0.25,) * 3)
    np.testing.assert_allclose(ready, standardised(videos, quarters), rtol=0, atol=1e-6)
    converted(tmp_path / "theirs", tmp_path / "exactly", quarters)
    with torch.no_grad():
        np.testing.assert_allclose(ours(tmp_path / "exactly", videos), peer(ready).logits, rtol=0, atol=1e-5)

    convert(tmp_path / "ours", tmp_path / "back", format="hugging-face")
    again = transformers.VivitImageProcessor.from_pretrained(tmp_path / "back", do_center_crop=False)
    found = again(list(videos[0]), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(found, standardised(videos, HALF), rtol=0, atol=1e-6)
