"""ViTs of flax.linen in .npz files, as vision_transformer (AugReg, "How to train your ViT?") and big_vision write."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert.architecture import depth_of, has_class_row, plain_vit, side_of
from tubevit.convert.foreign import Foreign, Options, leave_out, shapes_of, statistics
from tubevit.convert.layout import Array, Layout
from tubevit.errors import UserError
from tubevit.models.config import Head

_BLOCK = "Transformer/encoderblock_*"
_MAP = "MAPHead_0"


def _arrays(norm1: str, attention: str, norm2: str, mlp: str, position: str) -> tuple[Array, ...]:
    """Make the table for the names of a block's modules."""
    return (
        Array("tokenizer/tubes/0/kernel", ("embedding/kernel",), "P P 3 D"),
        Array("tokenizer/tubes/0/bias", ("embedding/bias",), "D"), Array("position/0", (position,), "1 N D"),
        Array("class_token", ("cls",), "1 1 D"), *_norm("encoder/blocks/norm1", f"{_BLOCK}/{norm1}"),
        *_to_heads("encoder/blocks/attention/qkv", f"{_BLOCK}/{attention}", "query", "key", "value"),
        *_dense("encoder/blocks/attention/out", f"{_BLOCK}/{attention}/out", "h d D"),
        *_norm("encoder/blocks/norm2", f"{_BLOCK}/{norm2}"),
        *_dense("encoder/blocks/mlp/up", f"{_BLOCK}/{mlp}/Dense_0", "D M"),
        *_dense("encoder/blocks/mlp/down", f"{_BLOCK}/{mlp}/Dense_1", "M D"),
        *_norm("encoder/norm", "Transformer/encoder_norm"), Array("pooling/probe", (f"{_MAP}/probe",), "1 1 D"),
        *_to_heads("pooling/query", f"{_MAP}/MultiHeadDotProductAttention_0", "query"),
        *_to_heads("pooling/key_value", f"{_MAP}/MultiHeadDotProductAttention_0", "key", "value"),
        *_dense("pooling/out", f"{_MAP}/MultiHeadDotProductAttention_0/out", "h d D"),
        *_norm("pooling/norm", f"{_MAP}/LayerNorm_0"),
        *_dense("pooling/mlp/up", f"{_MAP}/MlpBlock_0/Dense_0", "D M"),
        *_dense("pooling/mlp/down", f"{_MAP}/MlpBlock_0/Dense_1", "M D"),
        *_dense("heads/default", "head", "D C"),
    )  # fmt: skip


def _dense(ours: str, theirs: str, shape: str) -> tuple[Array, Array]:
    bias = shape.split()[-1]
    return Array(f"{ours}/kernel", (f"{theirs}/kernel",), shape), Array(f"{ours}/bias", (f"{theirs}/bias",), bias)


def _to_heads(ours: str, theirs: str, *names: str) -> tuple[Array, Array]:
    return (
        Array(f"{ours}/kernel", tuple(f"{theirs}/{name}/kernel" for name in names), "D h d"),
        Array(f"{ours}/bias", tuple(f"{theirs}/{name}/bias" for name in names), "h d"),
    )


def _norm(ours: str, theirs: str) -> tuple[Array, Array]:
    return Array(f"{ours}/scale", (f"{theirs}/scale",), "D"), Array(f"{ours}/bias", (f"{theirs}/bias",), "D")


# AugReg numbers all modules of a block together, big_vision the modules of each kind.
AUGREG_MLP = "MlpBlock_3"
AUGREG = _arrays(
    "LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", AUGREG_MLP,
    "Transformer/posembed_input/pos_embedding",
)  # fmt: skip
BIG_VISION = _arrays("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding")


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], table: tuple[Array, ...], options: Options) -> Foreign:
    """Read a ViT whose blocks are not stacked, by the table `AUGREG` or `BIG_VISION`."""
    theirs = {array.ours: array.theirs[0].replace("*", "0") for array in table}
    position, query = theirs["position/0"], theirs["encoder/blocks/attention/qkv/kernel"]
    notes: tuple[str, ...] = ()
    if options.headless:
        weights, notes = leave_out(weights, ("head/", "pre_logits/"))
    if any(name.startswith("pre_logits/") for name in weights):
        raise UserError(
            f"{path} has a representation layer, pre_logits, before its head, which our models do not have; --headless "
            "leaves both out"
        )
    if position not in weights and "embedding/kernel" in weights:
        raise UserError(f"{path} has no learned positions, {position}; fixed ones (sincos2d) are not supported")
    ranks = {"embedding/kernel": 4, position: 3, query: 3, theirs["encoder/blocks/mlp/up/kernel"]: 2}
    (patch, *_), (_, rows, width), (_, num_heads, _), (_, mlp_dim) = shapes_of(weights, ranks, str(path))
    # Older files add a position to the class token as well, newer ones to the patches only.
    class_position = has_class_row(rows)
    has_class = class_position or "cls" in weights
    pooling = "map" if f"{_MAP}/probe" in weights else "cls" if has_class else "mean"
    if pooling == "mean":
        notes += ("neither class token nor attention pooling: assumed to average the patches",)
    pixels, _ = statistics(options, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), str(path))
    config = plain_vit(
        width=width, depth=depth_of(weights, _BLOCK), num_heads=num_heads, mlp_dim=mlp_dim, patch=patch,
        size=patch * side_of(rows - class_position, str(path)), gelu="tanh", norm_epsilon=1e-6,
        class_token=has_class, pooling=pooling,
        head=Head(weights["head/bias"].size) if "head/bias" in weights else None, **pixels,
    )  # fmt: skip
    return Foreign(config, weights, Layout(table, class_position), (path,), "bilinear", notes)
