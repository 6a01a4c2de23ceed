"""Hugging Face's ViTModel and ViTForImageClassification: a folder with config.json and model.safetensors."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import hugging_face_folder as their
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.models.config import Head, ModelConfig

_BLOCK = "encoder.layer.*"
_SELF = f"{_BLOCK}.attention.attention"
LAYOUT = Layout(
    (
        *patches("embeddings.patch_embeddings.projection"),
        Array("position/0", ("embeddings.position_embeddings",), "1 N D"),
        Array("class_token", ("embeddings.cls_token",), "1 1 D"),
        *norm("encoder/blocks/norm1", f"{_BLOCK}.layernorm_before"),
        *dense("encoder/blocks/attention/qkv", f"{_SELF}.query", f"{_SELF}.key", f"{_SELF}.value", shape="D D"),
        *dense("encoder/blocks/attention/out", f"{_BLOCK}.attention.output.dense", shape="D D"),
        *norm("encoder/blocks/norm2", f"{_BLOCK}.layernorm_after"),
        *dense("encoder/blocks/mlp/up", f"{_BLOCK}.intermediate.dense", shape="M D"),
        *dense("encoder/blocks/mlp/down", f"{_BLOCK}.output.dense", shape="D M"),
        *norm("encoder/norm", "layernorm"),
        *dense("heads/default", "classifier", shape="C D"),
    )
)
_DEFAULTS = {"intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_FOLDER = their.FolderFormat(LAYOUT, _DEFAULTS, prefix="vit.", left_out=("pooler.",))
_CLASSIFIER, _BARE = "ViTForImageClassification", "ViTModel"


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a ViT from a folder and the content of its config.json; raises UserError for other models."""
    head, source = None, str(folder / their.CONFIG)
    if their.architecture_of(values, (_CLASSIFIER, _BARE), source) == _CLASSIFIER and not options.headless:
        classes, names = their.labels(values, source)
        head = (
            Head(classes, labels=names, multi_label=values.get("problem_type") == their.MULTI_LABEL)
            if classes
            else None
        )
    return _FOLDER.read(folder, values, options, head=head, class_token=True, pooling="cls")


def write(folder: pathlib.Path, config: ModelConfig, params: Mapping[str, np.ndarray], interpolation: str | None):
    """Write a new folder that `from_pretrained` of the two models reads.

    `config` is a plain ViT without LayerScale, whose head, if any, is named `default`. An interpolation that is unknown
    to Hugging Face becomes bilinear.
    """
    head, patch = dict(config.heads).get("default"), config.tubes.tubes[0].kernel[1]
    values = their.config_values(config, head, _CLASSIFIER if head else _BARE)
    values |= {"model_type": "vit", "image_size": config.size, "patch_size": patch}
    preprocessor = their.preprocessor_values(config, "ViTImageProcessor", interpolation)
    their.write(folder, values, preprocessor, LAYOUT.to_theirs(params, config), "vit." if head else "")
