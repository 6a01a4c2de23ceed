"""The original .pth files of TimeSformer, VideoMAE and VideoMAE v2, whose names are those of timm."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from tubevit.convert.architecture import depth_of, side_of, video_vit
from tubevit.convert.foreign import Foreign, Options, leave_out, shapes_of, statistics
from tubevit.convert.hugging_face_video import TIMESFORMER, VIDEOMAE, Family
from tubevit.errors import UserError
from tubevit.models.config import Head

MARK = "patch_embed.proj.weight"
_PREFIXES = ("model.", "encoder.", "backbone.")  # before all names of TimeSformer, and of some files of VideoMAE
_BLOCK = "encoder.layer.*"
_NAMES = {  # ours of Hugging Face
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "pos_embed": "embeddings.position_embeddings", "time_embed": "embeddings.time_embeddings",
    "cls_token": "embeddings.cls_token", "norm": "layernorm", "fc_norm": "fc_norm", "head": "classifier",
}  # fmt: skip
_IN_BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "attn.qkv": "attention.attention.qkv", "attn": "attention.attention", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "temporal_norm1": "temporal_layernorm", "temporal_fc": "temporal_dense",
    "temporal_attn.qkv": "temporal_attention.attention.qkv", "temporal_attn.proj": "temporal_attention.output.dense",
}  # fmt: skip
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # by width; the files do not say it
_FRAMES, _SIZE = 16, 224  # of VideoMAE, whose files say neither


def family_of(weights: Mapping[str, np.ndarray]) -> Family | None:
    """Return the family of a file, or None if it holds no video model."""
    names = _without_prefix(weights)
    if MARK not in names:
        return None
    if "time_embed" in names or any(".temporal_attn." in name for name in names):
        return TIMESFORMER
    return VIDEOMAE if names[MARK].ndim == 5 else None


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """Read a video model; raises UserError if arrays are missing or have other shapes."""
    family, source = family_of(weights), str(path)
    assert family is not None
    weights, notes = leave_out(
        _without_prefix(weights), ("decoder.", "encoder_to_decoder.", "mask_token", "pos_embed_")
    )
    if options.headless:
        weights, dropped = leave_out(weights, ("head.",))
        notes += dropped
    fields = dict(family.fields)
    ranks = {MARK: 5 if family is VIDEOMAE else 4, "blocks.0.mlp.fc1.weight": 2}
    if family is TIMESFORMER:
        ranks |= {"pos_embed": 3, "time_embed": 3}
    (width, *kernel), (mlp_dim, _), *tables = shapes_of(weights, ranks, source)
    if family is TIMESFORMER:
        patch, tubelet, frames, size = kernel[-1], 1, tables[1][1], kernel[-1] * side_of(tables[0][1] - 1, source)
        fields["pattern"] = "divided" if any("temporal_attn" in name for name in weights) else "joint"
    else:
        patch, tubelet, frames, size = kernel[-1], kernel[1], _FRAMES, _SIZE
        notes += (f"{source} does not say the clip: assumed to be {_FRAMES} frames of {_SIZE} pixels",)
        pooled = "fc_norm.weight" in weights or "norm.weight" not in weights
        fields |= dict(final_norm="pooled", pooled_norm_epsilon=1e-6) if pooled else dict(final_norm="tokens")
    heads = options.heads or _HEADS.get(width)
    if heads is None:
        raise UserError(f"{source}: no released model has width {width}; the file does not say heads: pass --heads N")
    mean, std = family.statistics
    pixels, more = statistics(options, options.mean or mean, options.std or std, source)
    config = video_vit(
        tubelet=tubelet, patch=patch, width=width, depth=depth_of(weights, "blocks.*"), num_heads=heads,
        mlp_dim=mlp_dim, frames=frames, size=size, fps=family.fps.get(frames), norm_epsilon=1e-6, gelu="exact",
        qkv_bias=any(name.endswith(("qkv.bias", "q_bias")) for name in weights),
        head=Head(weights["head.bias"].size, "video") if "head.bias" in weights else None, **fields, **pixels,
    )  # fmt: skip
    named = family.prepare(_named(weights, family))
    if config.final_norm == "pooled" and "fc_norm.weight" not in named:
        named |= {"fc_norm.weight": np.ones(width, np.float32), "fc_norm.bias": np.zeros(width, np.float32)}
        more += ("the normalisation after pooling is new",)
    return Foreign(config, named, family.layout, (path,), None, notes + more)


def _without_prefix(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = next((each for each in _PREFIXES if f"{each}{MARK}" in weights), "")
    return {name.removeprefix(prefix): array for name, array in weights.items()}


def _named(weights: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Give arrays the names of Hugging Face; a fused kernel of VideoMAE is split."""
    named = {}
    for name, array in weights.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
        if match and match[2] in _IN_BLOCK:
            name = f"{_BLOCK.replace('*', match[1])}.{_IN_BLOCK[match[2]]}.{match[3]}"
        else:
            stem, dot, leaf = name.rpartition(".")
            name = f"{_NAMES[stem]}{dot}{leaf}" if stem in _NAMES else _NAMES.get(name, name)
        if family is VIDEOMAE and name.endswith(".qkv.weight") and len(array) % 3 == 0:
            for part, each in zip(("query", "key", "value"), np.split(array, 3)):
                named[name.replace(".qkv.", f".{part}.")] = each
        else:
            named[name] = array
    return named
