"""VideoPrism's encoders for video: .npz files as its repository loads them, blocks stacked or apart."""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import flax_vit
from tubevit.convert.architecture import depth_of, video_vit
from tubevit.convert.foreign import Foreign, Options, clip_of, shapes_of, statistics
from tubevit.convert.layout import Array, Layout
from tubevit.convert.video_families import PRISM_FIELDS, VIDEOPRISM

MARK = "patch_projection/linear/kernel"
_STACK = "transformers_stack/x_layers"
_CLIP = (16, 288)  # frames and size of the released files


def _encoder(ours: str, theirs: str) -> tuple[Array, ...]:
    block, blocks = f"{theirs}_encoder/{_STACK}_*", f"{ours}/blocks"
    attention = f"{block}/self_attention"
    return (
        *_norm(f"{blocks}/norm1", f"{block}/layer_norm"),
        Array(f"{blocks}/attention/qkv/kernel", tuple(f"{attention}/{x}/w" for x in _QKV), "D h d"),
        Array(f"{blocks}/attention/qkv/bias", tuple(f"{attention}/{x}/b" for x in _QKV), "h d"),
        Array(f"{blocks}/attention/out/kernel", (f"{attention}/post/w",), "D h d", (1, 2, 0)),
        Array(f"{blocks}/attention/out/bias", (f"{attention}/post/b",), "D"),
        *_norm(f"{blocks}/norm2", f"{block}/ff_layer/layer_norm"),
        *flax_vit.dense(f"{blocks}/mlp/up", f"{block}/ff_layer/ffn_layer1/linear", "D M"),
        *flax_vit.dense(f"{blocks}/mlp/down", f"{block}/ff_layer/ffn_layer2/linear", "M D"),
        *_norm(f"{ours}/norm", f"{theirs}_ln"),
    )


def _norm(ours: str, theirs: str) -> tuple[Array, Array]:
    """Describe a normalisation whose scale is stored minus 1."""
    return Array(f"{ours}/scale", (f"{theirs}/scale",), "D", shift=1.0), Array(f"{ours}/bias", (f"{theirs}/bias",), "D")


_QKV = ("query", "key", "value")
_LAYOUT = Layout((
    Array("tokenizer/tubes/0/kernel", (MARK,), "3PP D"),
    Array("tokenizer/tubes/0/bias", ("patch_projection/linear/bias",), "D"),
    Array("position/0", ("spatial_pos_emb/emb_var",), "N D"),
    *_encoder("encoder", "spatial"),
    Array("encoder/temporal/position", ("temporal_pos_emb/emb_var",), "T D"),
    *_encoder("encoder/temporal", "temporal"),
))  # fmt: skip


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """Read the encoder; raises UserError if arrays are missing or have other shapes."""
    source = str(path)
    prefix = next(name.removesuffix(MARK) for name in weights if name.endswith(MARK))
    inside = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    others = sorted({"/".join(name.split("/")[:2]) for name in weights if not name.startswith(prefix)})
    for stage in ("spatial", "temporal"):
        inside = flax_vit.unstacked(inside, f"{stage}_encoder/{_STACK}")
    # The first block of each encoder tells its sizes, see `flax_vit.unstacked`.
    block = f"spatial_encoder/{_STACK}_0"
    ranks = {
        MARK: 2, "temporal_pos_emb/emb_var": 2, f"{block}/self_attention/query/w": 3,
        f"{block}/ff_layer/ffn_layer1/linear/kernel": 2, f"temporal_encoder/{_STACK}_0/layer_norm/scale": 1,
    }  # fmt: skip
    (pixels_read, width), (stored, _), (_, num_heads, _), (_, mlp_dim), _ = shapes_of(inside, ranks, source)
    notes = tuple(f"left out: {', '.join(others)}" for _ in others[:1])
    frames, size, assumed = clip_of(options, _CLIP, source, stored)
    pixels, _ = statistics(options, *VIDEOPRISM.trained, source)
    config = video_vit(
        tubelet=1, patch=math.isqrt(pixels_read // 3), width=width, num_heads=num_heads, mlp_dim=mlp_dim,
        depth=depth_of(inside, f"spatial_encoder/{_STACK}_*"), frames=frames, size=size, head=None,
        temporal_depth=depth_of(inside, f"temporal_encoder/{_STACK}_*"), gelu="exact", norm_epsilon=1e-6,
        **PRISM_FIELDS, **pixels,
    )  # fmt: skip
    return Foreign(config, inside, _LAYOUT, (path,), None, notes + assumed)
