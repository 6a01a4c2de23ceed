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
# The modules of a block. AugReg numbers all of them together, big_vision those of each kind.
AUGREG_MLP = "MlpBlock_3"
AUGREG_NAMES = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", AUGREG_MLP)
BIG_VISION_NAMES = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def dense(ours: str, theirs: str, shape: str) -> tuple[Array, Array]:
    """Describe a linear layer: `kernel` of this shape and `bias`."""
    bias = shape.split()[-1]
    return Array(f"{ours}/kernel", (f"{theirs}/kernel",), shape), Array(f"{ours}/bias", (f"{theirs}/bias",), bias)


def norm(ours: str, theirs: str) -> tuple[Array, Array]:
    """Describe a layer normalisation: `scale` and `bias`."""
    return Array(f"{ours}/scale", (f"{theirs}/scale",), "D"), Array(f"{ours}/bias", (f"{theirs}/bias",), "D")


def _to_heads(ours: str, theirs: str, *names: str) -> tuple[Array, Array]:
    return (
        Array(f"{ours}/kernel", tuple(f"{theirs}/{name}/kernel" for name in names), "D h d"),
        Array(f"{ours}/bias", tuple(f"{theirs}/{name}/bias" for name in names), "h d"),
    )


def block(ours: str, theirs: str, names: tuple[str, str, str, str]) -> tuple[Array, ...]:
    """Describe the blocks of an encoder; `names` are those of its modules."""
    norm1, attention, norm2, mlp = names
    return (
        *norm(f"{ours}/norm1", f"{theirs}/{norm1}"),
        *_to_heads(f"{ours}/attention/qkv", f"{theirs}/{attention}", "query", "key", "value"),
        *dense(f"{ours}/attention/out", f"{theirs}/{attention}/out", "h d D"),
        *norm(f"{ours}/norm2", f"{theirs}/{norm2}"),
        *dense(f"{ours}/mlp/up", f"{theirs}/{mlp}/Dense_0", "D M"),
        *dense(f"{ours}/mlp/down", f"{theirs}/{mlp}/Dense_1", "M D"),
    )


def _arrays(names: tuple[str, str, str, str], position: str) -> tuple[Array, ...]:
    return (
        Array("tokenizer/tubes/0/kernel", ("embedding/kernel",), "P P 3 D"),
        Array("tokenizer/tubes/0/bias", ("embedding/bias",), "D"), Array("position/0", (position,), "1 N D"),
        Array("class_token", ("cls",), "1 1 D"), *block("encoder/blocks", _BLOCK, names),
        *norm("encoder/norm", "Transformer/encoder_norm"), Array("pooling/probe", (f"{_MAP}/probe",), "1 1 D"),
        *_to_heads("pooling/query", f"{_MAP}/MultiHeadDotProductAttention_0", "query"),
        *_to_heads("pooling/key_value", f"{_MAP}/MultiHeadDotProductAttention_0", "key", "value"),
        *dense("pooling/out", f"{_MAP}/MultiHeadDotProductAttention_0/out", "h d D"),
        *norm("pooling/norm", f"{_MAP}/LayerNorm_0"),
        *dense("pooling/mlp/up", f"{_MAP}/MlpBlock_0/Dense_0", "D M"),
        *dense("pooling/mlp/down", f"{_MAP}/MlpBlock_0/Dense_1", "M D"),
        *dense("heads/default", "head", "D C"),
    )  # fmt: skip


AUGREG = _arrays(AUGREG_NAMES, "Transformer/posembed_input/pos_embedding")
BIG_VISION = _arrays(BIG_VISION_NAMES, "pos_embedding")


def unstacked(weights: Mapping[str, np.ndarray], blocks: str) -> dict[str, np.ndarray]:
    """Split the stacked arrays `<blocks>/...` into one per block, `<blocks>_0/...`; others stay as they are."""
    split = {}
    for name, array in weights.items():
        if name.startswith(f"{blocks}/") and array.ndim:
            inner = name.removeprefix(f"{blocks}/")
            split |= {f"{blocks}_{i}/{inner}": layer for i, layer in enumerate(array)}
        else:
            split[name] = array
    return split


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
