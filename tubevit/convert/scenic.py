"""ViViT as scenic writes it: models 1 and 2 of the paper, in a file `checkpoint` of flax (msgpack)."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import flax_vit
from tubevit.convert.architecture import depth_of, video_vit
from tubevit.convert.foreign import Foreign, Options, clip_of, leave_out, shapes_of, statistics
from tubevit.convert.layout import Array, Layout
from tubevit.convert.video_families import VIVIT
from tubevit.errors import UserError
from tubevit.models.config import Head

_PARAMETERS = ("optimizer/target/params/", "optimizer/target/", "params/params/", "params/")  # where they may be
_POSITION = "posembed_input/pos_embedding"
_PATCHES = "embedding/kernel"
_CLIP = (32, 224)  # frames and size of the released files


def _layout(encoder: str, class_token: str) -> Layout:
    return Layout((
        Array("tokenizer/tubes/0/kernel", (_PATCHES,), "K P P 3 D"),
        Array("tokenizer/tubes/0/bias", ("embedding/bias",), "D"),
        Array("class_token", (class_token,), "1 1 D"),
        Array("position/0", (f"{encoder}/{_POSITION}",), "1 N D"),
        *_encoder("encoder", encoder),
        Array("encoder/temporal/class_token", ("cls_TemporalTransformer",), "1 1 D"),
        Array("encoder/temporal/position", (f"TemporalTransformer/{_POSITION}",), "1 T D"),
        *_encoder("encoder/temporal", "TemporalTransformer"),
        *flax_vit.dense("heads/default", "output_projection", "D C"),
    ))  # fmt: skip


def _encoder(ours: str, theirs: str) -> tuple[Array, ...]:
    return (
        *flax_vit.block(f"{ours}/blocks", f"{theirs}/encoderblock_*", flax_vit.BIG_VISION_NAMES),
        *flax_vit.norm(f"{ours}/norm", f"{theirs}/encoder_norm"),
    )


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """Read a ViViT; raises UserError if arrays are missing or have other shapes, or for other models."""
    source = str(path)
    prefix = next((each for each in _PARAMETERS if f"{each}{_PATCHES}" in weights), None)
    if prefix is None:
        roots = ", ".join(sorted({name.split("/")[0] for name in weights})) or "nothing"
        raise UserError(
            f"{source} must hold a ViViT of scenic, {_PATCHES} below {' or '.join(_PARAMETERS[1::2])}; it holds {roots}"
        )
    weights = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    notes: tuple[str, ...] = ()
    if options.headless:
        weights, notes = leave_out(weights, ("output_projection/", "pre_logits/"))
    if any(name.startswith("pre_logits/") for name in weights):
        raise UserError(f"{source} has a representation layer, pre_logits, before its head; --headless leaves both out")
    factorised = any(name.startswith("SpatialTransformer/") for name in weights)
    encoder = "SpatialTransformer" if factorised else "Transformer"
    class_token = "cls_SpatialTransformer" if factorised else "cls"
    block, (_, attention, _, mlp) = f"{encoder}/encoderblock_0", flax_vit.BIG_VISION_NAMES
    ranks = {_PATCHES: 5, f"{block}/{attention}/query/kernel": 3, f"{block}/{mlp}/Dense_0/kernel": 2}
    if factorised:
        ranks |= {f"TemporalTransformer/{_POSITION}": 3, "TemporalTransformer/encoderblock_0/LayerNorm_0/scale": 1}
    (tubelet, patch, *_), (width, num_heads, _), (_, mlp_dim), *times = shapes_of(weights, ranks, source)
    has_class, stored = class_token in weights, None
    fields: dict = dict(position="learned", class_token=has_class, pooling="cls" if has_class else "mean")
    if factorised:
        stored = tubelet * (times[0][1] - has_class)
        depth = depth_of(weights, "TemporalTransformer/encoderblock_*")
        fields |= dict(position="learned_space", pattern="factorised_encoder", temporal_depth=depth)
        fields["frame_pooling"] = "cls" if has_class else "mean"
    frames, size, assumed = clip_of(options, _CLIP, source, stored)
    pixels, _ = statistics(options, *VIVIT.trained, source)
    config = video_vit(
        tubelet=tubelet, patch=patch, width=width, depth=depth_of(weights, f"{encoder}/encoderblock_*"),
        num_heads=num_heads, mlp_dim=mlp_dim, frames=frames, size=size, fps=VIVIT.fps.get(frames), gelu="tanh",
        norm_epsilon=1e-6, head=_head(weights), **fields, **pixels,
    )  # fmt: skip
    return Foreign(config, weights, _layout(encoder, class_token), (path,), "bilinear", notes + assumed)


def _head(weights: Mapping[str, np.ndarray]) -> Head | None:
    bias = weights.get("output_projection/bias")
    return None if bias is None else Head(bias.size, "video")
