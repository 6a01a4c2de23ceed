"""Hugging Face's ViTModel and ViTForImageClassification: a folder with config.json and model.safetensors."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import hugging_face_folder as their
from tubevit.convert.files import write_safetensors
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.data.labels import distinct_names
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
_MULTI_LABEL = "multi_label_classification"
_CLASSIFIER, _BARE = "ViTForImageClassification", "ViTModel"


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a ViT from a folder and the content of its config.json; raises UserError for other models."""
    head, source = None, str(folder / their.CONFIG)
    if their.architecture_of(values, (_CLASSIFIER, _BARE), source) == _CLASSIFIER and not options.headless:
        classes, names = their.labels(values, source)
        head = Head(classes, labels=names, multi_label=values.get("problem_type") == _MULTI_LABEL) if classes else None
    return _FOLDER.read(folder, values, options, head=head, class_token=True, pooling="cls")


def write(folder: pathlib.Path, config: ModelConfig, params: Mapping[str, np.ndarray], interpolation: str | None):
    """Write a new folder that `from_pretrained` of the two models reads.

    `config` is a plain ViT without LayerScale, whose head, if any, is named `default`. An interpolation that is unknown
    to Hugging Face becomes bilinear.
    """
    head, patch = dict(config.heads).get("default"), config.tubes.tubes[0].kernel[1]
    values = {
        "architectures": [_CLASSIFIER if head else _BARE], "model_type": "vit", "dtype": "float32",
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim, "image_size": config.size, "patch_size": patch, "num_channels": 3,
        "hidden_act": next(theirs for theirs, ours in their.GELUS.items() if ours == config.gelu),
        "layer_norm_eps": config.norm_epsilon, "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if head:
        names = head.labels or [f"LABEL_{i}" for i in range(head.classes)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(distinct_names(names))}
        if head.multi_label:
            values["problem_type"] = _MULTI_LABEL
    numbers = {name: number for number, name in their.INTERPOLATIONS.items()}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": config.size, "width": config.size},
        "resample": numbers.get(interpolation or "", numbers["bilinear"]), "rescale_factor": 1 / 255,
        "image_mean": list(config.mean), "image_std": list(config.std),
    }  # fmt: skip
    prefix = "vit." if head else ""
    weights = LAYOUT.to_theirs(params, config)
    weights = {name if name.startswith("classifier.") else prefix + name: x for name, x in weights.items()}
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights)
    for name, content in ((their.CONFIG, values), (their.PREPROCESSOR, preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
