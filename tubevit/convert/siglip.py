"""The image tower of Hugging Face's SiglipModel or SiglipVisionModel: attention pooling, no class token."""

import pathlib
from collections.abc import Mapping

from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.hugging_face_folder import CONFIG, FolderFormat, architecture_of
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.errors import UserError

_BLOCK, _QKV = "encoder.layers.*", "head.attention.in_proj"
_SELF = f"{_BLOCK}.self_attn"


def _part(ours: str, thirds: slice) -> tuple[Array, Array]:
    """Describe a part of the array that holds queries, keys and values of the attention pooling."""
    return (
        Array(f"{ours}/kernel", (f"{_QKV}_weight",), "3D D", (1, 0), thirds),
        Array(f"{ours}/bias", (f"{_QKV}_bias",), "3D", None, thirds),
    )


LAYOUT = Layout(
    (
        *patches("embeddings.patch_embedding"),
        Array("position/0", ("embeddings.position_embedding.weight",), "N D"),
        *norm("encoder/blocks/norm1", f"{_BLOCK}.layer_norm1"),
        *dense("encoder/blocks/attention/qkv", f"{_SELF}.q_proj", f"{_SELF}.k_proj", f"{_SELF}.v_proj", shape="D D"),
        *dense("encoder/blocks/attention/out", f"{_SELF}.out_proj", shape="D D"),
        *norm("encoder/blocks/norm2", f"{_BLOCK}.layer_norm2"),
        *dense("encoder/blocks/mlp/up", f"{_BLOCK}.mlp.fc1", shape="M D"),
        *dense("encoder/blocks/mlp/down", f"{_BLOCK}.mlp.fc2", shape="D M"),
        *norm("encoder/norm", "post_layernorm"),
        Array("pooling/probe", ("head.probe",), "1 1 D"),
        *_part("pooling/query", slice(0, 1)),
        *_part("pooling/key_value", slice(1, 3)),
        *dense("pooling/out", "head.attention.out_proj", shape="D D"),
        *norm("pooling/norm", "head.layernorm"),
        *dense("pooling/mlp/up", "head.mlp.fc1", shape="M D"),
        *dense("pooling/mlp/down", "head.mlp.fc2", shape="D M"),
    )
)
_DEFAULTS = {"intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_FOLDER = FolderFormat(
    LAYOUT, _DEFAULTS, prefix="vision_model.", left_out=("text_model.", "logit_scale", "logit_bias"),
    left_out_as="the text tower",
)  # fmt: skip
_BOTH, _TOWER = "SiglipModel", "SiglipVisionModel"


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read the image tower of a SigLIP, see `hugging_face.read`."""
    source = str(folder / CONFIG)
    architecture_of(values, (_BOTH, _TOWER), source)
    if values["model_type"] == "siglip":
        tower = values.get("vision_config")
        values = tower if isinstance(tower, dict) else {}  # every value as in the base model
    if not values.get("vision_use_head", True):
        raise UserError(f"{source}: expected a SigLIP with attention pooling; found vision_use_head false")
    return _FOLDER.read(folder, values, options, head=None, class_token=False, pooling="map")
