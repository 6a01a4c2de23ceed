"""Hugging Face's Dinov2Model: a ViT with LayerScale, which becomes part of the projections before it."""

import pathlib
from collections.abc import Mapping

from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.hugging_face_folder import CONFIG, FolderFormat, architecture_of
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
_FOLDER = FolderFormat(LAYOUT, _DEFAULTS, prefix="dinov2.", left_out=("embeddings.mask_token",))
_CLASSIFIER, _BARE = "Dinov2ForImageClassification", "Dinov2Model"


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a DINOv2, see `hugging_face.read`; raises UserError if it has SwiGLU or a classifier."""
    source = folder / CONFIG
    architecture = architecture_of(values, (_BARE, _CLASSIFIER), str(source))
    if values.get("use_swiglu_ffn"):
        raise UserError(f"{source}: use_swiglu_ffn, as in dinov2-giant, is not supported; use small, base or large")
    if architecture == _CLASSIFIER and not options.headless:
        raise UserError(
            f"{source}: the classifier of {_CLASSIFIER} reads the class token and the mean of the patches, our heads "
            "read only one vector; --headless leaves it out"
        )
    # layer_scale is only an initial value: the weights replace it.
    return _FOLDER.read(folder, values, options, head=None, class_token=True, pooling="cls", layer_scale=1.0)
