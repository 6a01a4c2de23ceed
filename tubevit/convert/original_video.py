"""The original .pth files of TimeSformer, VideoMAE and VideoMAE v2, whose names are those of timm."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import timm
from tubevit.convert.architecture import depth_of, heads_of, video_vit
from tubevit.convert.foreign import Foreign, Options, clip_of, leave_out, shapes_of, statistics
from tubevit.convert.layout import ZEROS, Array, Layout, dense, norm, patches
from tubevit.convert.video_families import TIMESFORMER, VIDEOMAE, Family
from tubevit.models.config import Head

_PREFIXES = ("model.", "encoder.", "backbone.")  # of all names of TimeSformer, and of some files of VideoMAE
_LAYOUTS: Mapping[str, Layout] = {
    "timesformer": timm.LAYOUT.with_rows(
        Array("position/0_time", ("time_embed",), "1 T D"),
        *norm("encoder/blocks/time_norm", "blocks.*.temporal_norm1"),
        *dense("encoder/blocks/time_attention/qkv", "blocks.*.temporal_attn.qkv", shape="3D D"),
        *dense("encoder/blocks/time_attention/out", "blocks.*.temporal_attn.proj", shape="D D"),
        folded=(("blocks.*.temporal_attn.proj", "blocks.*.temporal_fc"),),
    ),
    "videomae": timm.LAYOUT.with_rows(
        *patches("patch_embed.proj", tubelets=True),
        Array("encoder/blocks/attention/qkv/bias", ("blocks.*.attn.q_bias", ZEROS, "blocks.*.attn.v_bias"), "D"),
        *norm("pooled_norm", "fc_norm"),
    ),
}
_CLIP = (16, 224)  # frames and size of the released files, where they do not say it


def family_of(weights: Mapping[str, np.ndarray]) -> Family | None:
    """Return the family of a file, or None if it holds no video model."""
    names = _without_prefix(weights)
    if timm.MARK not in names:
        return None
    if "time_embed" in names or any(".temporal_" in name for name in names):
        return TIMESFORMER
    return VIDEOMAE if names[timm.MARK].ndim == 5 else None


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """Read a video model; raises UserError if arrays are missing or have other shapes.

    TimeSformer's tables say the number of frames. VideoMAE stores no positions, so that the clip is an option.
    """
    source, family = str(path), family_of(weights)
    assert family is not None
    weights, notes = leave_out(_without_prefix(weights), (*VIDEOMAE.left_out, "pos_embed_"))
    if options.headless:
        weights, dropped = leave_out(weights, ("head.",))
        notes += dropped
    ranks = {timm.MARK: 5 if family is VIDEOMAE else 4, "blocks.0.mlp.fc1.weight": 2}
    if family is TIMESFORMER:
        ranks["time_embed"] = 3
    (width, _, *kernel), (mlp_dim, _), *times = shapes_of(weights, ranks, source)
    fields, tubelet, stored = dict(family.fields), 1, None
    if family is TIMESFORMER:
        stored = times[0][1]
        fields["pattern"] = "divided" if any(".temporal_" in name for name in weights) else "joint"
    else:
        tubelet = kernel[0]
        final = "tokens" if "norm.weight" in weights and "fc_norm.weight" not in weights else "pooled"
        fields |= dict(final_norm=final, qkv_bias="blocks.0.attn.q_bias" in weights)
    frames, size, assumed = clip_of(options, _CLIP, source, stored)
    sizes = dict(width=width, depth=depth_of(weights, "blocks.*"), mlp_dim=mlp_dim)
    pixels, _ = statistics(options, *family.trained, source)
    config = video_vit(
        tubelet=tubelet, patch=kernel[-1], num_heads=heads_of(sizes, options.heads, source, family.name), frames=frames,
        size=size, fps=family.fps.get(frames), norm_epsilon=1e-6, gelu="exact",
        head=Head(weights["head.bias"].size, "video") if "head.bias" in weights else None, **sizes, **fields, **pixels,
    )  # fmt: skip
    return Foreign(config, weights, _LAYOUTS[family.name], (path,), None, notes + assumed)


def _without_prefix(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = next((each for each in _PREFIXES if f"{each}{timm.MARK}" in weights), "")
    return {name.removeprefix(prefix): array for name, array in weights.items()}
