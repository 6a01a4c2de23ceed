"""Hugging Face's Dinov2Model: a ViT with LayerScale, which is folded into the projections before it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from tubevit.convert.architecture import plain_vit
from tubevit.convert.files import read_folder
from tubevit.convert.foreign import Foreign, Options, leave_out
from tubevit.convert.hugging_face_folder import CONFIG, architecture_of, encoder_fields, preprocessing
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.errors import UserError

_BLOCK = "encoder.layer.*"
_SELF = f"{_BLOCK}.attention.attention"
LAYOUT = Layout(
    (
        *patches("embeddings.patch_embeddings.projection"),
        Array("position/0", ("embeddings.position_embeddings",), "1 N D"),
        Array("class_token", ("embeddings.cls_token",), "1 1 D"),
        *norm("encoder/blocks/norm1", f"{_BLOCK}.norm1"),
        *dense("encoder/blocks/attention/qkv", f"{_SELF}.query", f"{_SELF}.key", f"{_SELF}.value", shape="D D"),
        *dense("encoder/blocks/attention/out", f"{_BLOCK}.attention.output.dense", shape="D D"),
        Array("encoder/blocks/scale1", (f"{_BLOCK}.layer_scale1.lambda1",), "D"),
        *norm("encoder/blocks/norm2", f"{_BLOCK}.norm2"),
        *dense("encoder/blocks/mlp/up", f"{_BLOCK}.mlp.fc1", shape="M D"),
        *dense("encoder/blocks/mlp/down", f"{_BLOCK}.mlp.fc2", shape="D M"),
        Array("encoder/blocks/scale2", (f"{_BLOCK}.layer_scale2.lambda1",), "D"),
        *norm("encoder/norm", "layernorm"),
    )
)
_DEFAULTS = {"mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_CLASSIFIER, _BARE = "Dinov2ForImageClassification", "Dinov2Model"


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """A DINOv2 from its folder; arguments as in `hugging_face.read`.

    Raises:
        UserError: it has registers, SwiGLU or a classifier, or does not fit its own configuration.
    """
    where = str(folder / CONFIG)
    architecture = architecture_of(values, (_BARE, _CLASSIFIER), where)
    if values.get("use_swiglu_ffn"):
        raise UserError(
            f"{where}: use_swiglu_ffn, the MLP of dinov2-giant, is not supported; small, base and large are"
        )
    if architecture == _CLASSIFIER and not options.headless:
        raise UserError(
            f"{folder}: the classifier of {_CLASSIFIER} reads the class token beside the mean over the patches, which "
            "our models do not; --headless leaves it out"
        )
    fields = encoder_fields(values, _DEFAULTS, where)
    statistics, interpolation, notes = preprocessing(folder, options)
    weights, files = read_folder(folder)
    weights = {name.removeprefix("dinov2."): array for name, array in weights.items()}
    weights, dropped = leave_out(weights, ("embeddings.mask_token", *(("classifier.",) if options.headless else ())))
    # Its initial value is of no concern: the weights bring theirs.
    config = plain_vit(head=None, class_token=True, pooling="cls", layer_scale=1.0, **fields, **statistics)
    return Foreign(config, weights, LAYOUT, tuple(files), interpolation, (*notes, *dropped))
