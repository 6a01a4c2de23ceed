"""ViTs of flax.linen in .npz files, as vision_transformer (AugReg) and big_vision write them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert.architecture import plain_vit, side_of, with_class_row
from tubevit.convert.foreign import Foreign, Options, leave_out, shapes_of, statistics
from tubevit.convert.layout import Array, Layout
from tubevit.errors import UserError
from tubevit.models.config import Head

_BLOCK = "Transformer/encoderblock_*"
_MAP = "MAPHead_0"


def arrays(norm1: str, attention: str, norm2: str, mlp: str, position: str) -> tuple[Array, ...]:
    """The table, for the names that a block's modules have."""
    return (
        Array("tokenizer/tubes/0/kernel", ("embedding/kernel",), "P P 3 D"),
        Array("tokenizer/tubes/0/bias", ("embedding/bias",), "D"),
        Array("position/0", (position,), "1 N D"),
        Array("class_token", ("cls",), "1 1 D"),
        *_norm("encoder/blocks/norm1", f"{_BLOCK}/{norm1}"),
        *_split("encoder/blocks/attention/qkv", f"{_BLOCK}/{attention}", "query", "key", "value"),
        *_dense("encoder/blocks/attention/out", f"{_BLOCK}/{attention}/out", "h d D"),
        *_norm("encoder/blocks/norm2", f"{_BLOCK}/{norm2}"),
        *_dense("encoder/blocks/mlp/up", f"{_BLOCK}/{mlp}/Dense_0", "D M"),
        *_dense("encoder/blocks/mlp/down", f"{_BLOCK}/{mlp}/Dense_1", "M D"),
        *_norm("encoder/norm", "Transformer/encoder_norm"),
        Array("pooling/probe", (f"{_MAP}/probe",), "1 1 D"),
        *_split("pooling/query", f"{_MAP}/MultiHeadDotProductAttention_0", "query"),
        *_split("pooling/key_value", f"{_MAP}/MultiHeadDotProductAttention_0", "key", "value"),
        *_dense("pooling/out", f"{_MAP}/MultiHeadDotProductAttention_0/out", "h d D"),
        *_norm("pooling/norm", f"{_MAP}/LayerNorm_0"),
        *_dense("pooling/mlp/up", f"{_MAP}/MlpBlock_0/Dense_0", "D M"),
        *_dense("pooling/mlp/down", f"{_MAP}/MlpBlock_0/Dense_1", "M D"),
        *_dense("heads/default", "head", "D C"),
    )


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], table: tuple[Array, ...], options: Options) -> Foreign:
    """A ViT from its arrays, blocks unrolled.

    Raises:
        UserError: it is no plain ViT.
    """
    position = next(array.theirs[0] for array in table if array.ours == "position/0")
    notes: list[str] = []
    if options.headless:
        weights, notes = leave_out(weights, ("head/", "pre_logits/"))
    if any(name.startswith("pre_logits/") for name in weights):
        raise UserError(
            f"{path} has a representation layer, pre_logits, before its head, which our models do not have; --headless "
            "leaves both out"
        )
    if position not in weights and "embedding/kernel" in weights:
        raise UserError(f"{path} has no learned positions, {position}; fixed ones (sincos2d) are not read")
    up = next(array.theirs[0] for array in table if array.ours == "encoder/blocks/mlp/up/kernel").replace("*", "0")
    query = next(array.theirs[0] for array in table if array.ours.endswith("attention/qkv/kernel")).replace("*", "0")
    ranks = {"embedding/kernel": 4, position: 3, query: 3, up: 2}
    (patch, *_), (_, rows, width), (_, num_heads, _), (_, mlp_dim) = shapes_of(weights, ranks, str(path))
    # Older files add a position to the class token as well, newer ones to the patches only.
    class_position = with_class_row(rows)
    has_class, pools = class_position or "cls" in weights, f"{_MAP}/probe" in weights
    if not has_class and not pools:
        notes.append("neither class token nor attention pooling: the mean over the patches is taken")
    fields, _ = statistics(options, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), str(path))
    classes = weights["head/bias"].size if "head/bias" in weights else 0
    config = plain_vit(
        width=width, depth=_depth(weights), num_heads=num_heads, mlp_dim=mlp_dim, patch=patch,
        size=patch * side_of(rows - class_position, str(path)), gelu="tanh", norm_epsilon=1e-6,
        class_token=has_class, pooling="map" if pools else "cls" if has_class else "mean",
        head=Head(classes) if classes else None, **fields,
    )  # fmt: skip
    return Foreign(config, weights, Layout(table, class_position), (path,), "bilinear", tuple(notes))


def _depth(weights: Mapping) -> int:
    beginning = _BLOCK.removesuffix("*")
    numbers = [name.removeprefix(beginning).split("/")[0] for name in weights if name.startswith(beginning)]
    return 1 + max(int(number) for number in numbers if number.isdecimal())


def _dense(ours: str, theirs: str, shape: str) -> tuple[Array, Array]:
    bias = shape.split()[-1]
    return Array(f"{ours}/kernel", (f"{theirs}/kernel",), shape), Array(f"{ours}/bias", (f"{theirs}/bias",), bias)


def _split(ours: str, theirs: str, *names: str) -> tuple[Array, Array]:
    """Projections to the heads."""
    return (
        Array(f"{ours}/kernel", tuple(f"{theirs}/{name}/kernel" for name in names), "D h d"),
        Array(f"{ours}/bias", tuple(f"{theirs}/{name}/bias" for name in names), "h d"),
    )


def _norm(ours: str, theirs: str) -> tuple[Array, Array]:
    return Array(f"{ours}/scale", (f"{theirs}/scale",), "D"), Array(f"{ours}/bias", (f"{theirs}/bias",), "D")
