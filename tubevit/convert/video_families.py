"""The families of Hugging Face's video models: names of arrays, defaults of config.json, and how they were trained."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tubevit.convert import hugging_face
from tubevit.convert.layout import ZEROS, Array, Layout, dense, norm, patches
from tubevit.models.variants import model_config

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of video model.

    Attributes:
        name: model_type in config.json.
        prefix: prefix of the names of arrays in models with a head.
        classifier, others: names of its classes, with a head (empty if none is converted) and without.
        layout: the table of its arrays.
        defaults: values of the keys that its config.json may omit.
        fields: fields of `ModelConfig` that all its models have.
        trained: the means and standard deviations of pixels that its released models were trained with.
        fps: frames per second of the clips that its released models were trained on, by the number of frames.
        keys: keys of its config.json, by what most families call them.
        left_out: prefixes of the names of arrays that are not converted.
        left_out_as: what these arrays are.
        prepare: brings the arrays to those of the table.
    """

    name: str
    prefix: str
    classifier: str
    others: tuple[str, ...]
    layout: Layout
    defaults: Mapping
    fields: Mapping
    trained: Statistics
    fps: Mapping[int, float] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    left_out_as: str | None = None
    prepare: Callable[[dict], dict] = dict


_BLOCK = "encoder.layer.*"
_SELF, _TIME = f"{_BLOCK}.attention.attention", f"{_BLOCK}.temporal_attention"
_HEAD = dense("heads/default", "classifier", shape="C D")
_DEFAULTS = {"intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_CLASS_TOKEN = dict(class_token=True, pooling="cls")


def _trained(architecture: str) -> Statistics:
    """Return the means and standard deviations of pixels of an architecture."""
    model = model_config(architecture)
    return model.mean, model.std


def _rates(*architectures: str) -> dict[int, float]:
    """Return the frames per second of architectures by their number of frames."""
    models = map(model_config, architectures)
    return {model.frames: model.fps for model in models if model.fps is not None}


VIVIT = Family(
    name="vivit", prefix="vivit.", classifier="VivitForVideoClassification", others=("VivitModel",),
    layout=hugging_face.LAYOUT.with_rows(*patches("embeddings.patch_embeddings.projection", tubelets=True)),
    defaults=_DEFAULTS | {"hidden_act": "gelu_fast", "num_frames": 32, "tubelet_size": [2, 16, 16]},
    fields=_CLASS_TOKEN | dict(position="learned"), trained=_trained("vivit_b16x2"), fps=_rates("vivit_b16x2"),
    left_out=("pooler.",), left_out_as="the pooler",
)  # fmt: skip

TIMESFORMER = Family(
    name="timesformer", prefix="timesformer.",
    classifier="TimesformerForVideoClassification", others=("TimesformerModel",),
    layout=hugging_face.LAYOUT.with_rows(
        *dense("encoder/blocks/attention/qkv", f"{_SELF}.qkv", shape="3D D"),
        Array("position/0_time", ("embeddings.time_embeddings",), "1 T D"),
        *norm("encoder/blocks/time_norm", f"{_BLOCK}.temporal_layernorm"),
        *dense("encoder/blocks/time_attention/qkv", f"{_TIME}.attention.qkv", shape="3D D"),
        *dense("encoder/blocks/time_attention/out", f"{_TIME}.output.dense", shape="D D"),
        folded=((f"{_TIME}.output.dense", f"{_BLOCK}.temporal_dense"),),
    ),
    defaults=_DEFAULTS | {"num_frames": 8, "tubelet_size": 1, "attention_type": "divided_space_time"},
    fields=_CLASS_TOKEN | dict(position="learned_space_time"), trained=_trained("timesformer_b16"),
    fps=_rates("timesformer_b16", "timesformer_hr_b16", "timesformer_l_b16"),
)  # fmt: skip


def with_named_biases(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give VideoMAE's biases their usual names.

    transformers 5 has saved `query.bias` for `q_bias`. A bias of the keys is left out: it adds the same to all scores
    of a query.
    """
    endings = {".query.bias": ".q_bias", ".value.bias": ".v_bias"}
    named = {name: array for name, array in weights.items() if not name.endswith(".attention.key.bias")}
    return {
        next((name.removesuffix(old) + new for old, new in endings.items() if name.endswith(old)), name): array
        for name, array in named.items()
    }


VIDEOMAE = Family(
    name="videomae", prefix="videomae.", classifier="VideoMAEForVideoClassification",
    others=("VideoMAEModel", "VideoMAEForPreTraining"),
    layout=hugging_face.LAYOUT.with_rows(
        *patches("embeddings.patch_embeddings.projection", tubelets=True),
        Array("encoder/blocks/attention/qkv/bias", (f"{_SELF}.q_bias", ZEROS, f"{_SELF}.v_bias"), "D"),
        *norm("pooled_norm", "fc_norm"),
    ),
    defaults=_DEFAULTS | {"layer_norm_eps": 1e-12, "num_frames": 16, "tubelet_size": 2, "use_mean_pooling": True},
    fields=dict(position="index", pooling="mean"), trained=_trained("videomae_b16"),
    fps=_rates("videomae_b16"), keys={"qkv_bias": "qv_bias"},
    left_out=("decoder.", "encoder_to_decoder.", "mask_token"), left_out_as="the decoder", prepare=with_named_biases,
)  # fmt: skip


def _with_output(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give V-JEPA 2's attention pooling an output projection, the identity."""
    query = weights.get("pooler.query_tokens")
    identity = {} if query is None else {"pooler.identity": np.eye(query.shape[-1], dtype=np.float32)}
    return {**weights, **identity}


_V_SELF, _POOL, _CROSS = f"{_BLOCK}.attention", "pooler.self_attention_layers.*", "pooler.cross_attention_layer"
VJEPA2 = Family(
    name="vjepa2", prefix="vjepa2.", classifier="VJEPA2ForVideoClassification", others=("VJEPA2Model",),
    layout=Layout((
        *patches("encoder.embeddings.patch_embeddings.proj", tubelets=True),
        *norm("encoder/blocks/norm1", f"{_BLOCK}.norm1"),
        *dense("encoder/blocks/attention/qkv", *(f"{_V_SELF}.{x}" for x in ("query", "key", "value")), shape="D D"),
        *dense("encoder/blocks/attention/out", f"{_V_SELF}.proj", shape="D D"),
        *norm("encoder/blocks/norm2", f"{_BLOCK}.norm2"),
        *dense("encoder/blocks/mlp/up", f"{_BLOCK}.mlp.fc1", shape="M D"),
        *dense("encoder/blocks/mlp/down", f"{_BLOCK}.mlp.fc2", shape="D M"),
        *norm("encoder/norm", "encoder.layernorm"),
        *norm("pooling/blocks/norm1", f"{_POOL}.layer_norm1"),
        *dense("pooling/blocks/attention/qkv", *(f"{_POOL}.self_attn.{x}_proj" for x in "qkv"), shape="D D"),
        *dense("pooling/blocks/attention/out", f"{_POOL}.self_attn.out_proj", shape="D D"),
        *norm("pooling/blocks/norm2", f"{_POOL}.layer_norm2"),
        *dense("pooling/blocks/mlp/up", f"{_POOL}.mlp.fc1", shape="4D D"),
        *dense("pooling/blocks/mlp/down", f"{_POOL}.mlp.fc2", shape="D 4D"),
        *norm("pooling/token_norm", f"{_CROSS}.layer_norm1"),
        Array("pooling/probe", ("pooler.query_tokens",), "1 1 D"),
        *dense("pooling/query", f"{_CROSS}.cross_attn.q_proj", shape="D D"),
        *dense("pooling/key_value", *(f"{_CROSS}.cross_attn.{x}_proj" for x in "kv"), shape="D D"),
        Array("pooling/out/kernel", ("pooler.identity",), "D D"),
        Array("pooling/out/bias", ("pooler.query_tokens",), "1 1 D"),  # the residual around the attention
        *norm("pooling/norm", f"{_CROSS}.layer_norm2"),
        *dense("pooling/mlp/up", f"{_CROSS}.mlp.fc1", shape="4D D"),
        *dense("pooling/mlp/down", f"{_CROSS}.mlp.fc2", shape="D 4D"),
        *_HEAD,
    )),
    defaults={
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4.0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "tubelet_size": 2, "crop_size": 256, "frames_per_clip": 64, "in_chans": 3,
    },
    fields=dict(position="rope", pooling="attentive"), trained=_trained("vjepa2_l16"),
    keys={"image_size": "crop_size", "num_frames": "frames_per_clip", "num_channels": "in_chans"},
    left_out=("predictor.",), left_out_as="the predictor", prepare=_with_output,
)  # fmt: skip


def _prism_blocks(ours: str, theirs: str) -> tuple[Array, ...]:
    block = f"{theirs}.*"
    return (
        *norm(f"{ours}/norm1", f"{block}.layernorm_before", shift=1.0),
        *dense(f"{ours}/attention/qkv", *(f"{block}.attention.{x}_proj" for x in "qkv"), shape="D D"),
        *dense(f"{ours}/attention/out", f"{block}.attention.o_proj", shape="D D"),
        *norm(f"{ours}/norm2", f"{block}.layernorm_after", shift=1.0),
        *dense(f"{ours}/mlp/up", f"{block}.mlp.fc1", shape="M D"),
        *dense(f"{ours}/mlp/down", f"{block}.mlp.fc2", shape="D M"),
    )


PRISM_FIELDS = dict(
    position="learned_space", pattern="factorised_encoder", frame_pooling="none", pooling="mean", softcap=50.0
)
VIDEOPRISM = Family(
    name="videoprism_vision_model", prefix="vision_model.", classifier="",
    others=("VideoPrismVisionModel", "VideoPrismVideoModel"),
    layout=Layout((
        *patches("spatial_embeddings.patch_embeddings.projection", tubelets=True),
        Array("position/0", ("spatial_embeddings.position_embeddings",), "1 N D"),
        *_prism_blocks("encoder/blocks", "spatial_layers"),
        *norm("encoder/norm", "layernorm1", shift=1.0),
        Array("encoder/temporal/position", ("temporal_embeddings.position_embeddings",), "1 T D"),
        *_prism_blocks("encoder/temporal/blocks", "temporal_layers"),
        *norm("encoder/temporal/norm", "layernorm2", shift=1.0),
    )),
    defaults=_DEFAULTS | {
        "hidden_act": "gelu_python", "image_size": 288, "num_frames": 16, "tubelet_size": [1, 18, 18],
        "num_spatial_layers": 12, "num_temporal_layers": 4, "attn_logit_softcapping": 50.0,
    },
    fields=PRISM_FIELDS, trained=((0.0,) * 3, (1.0,) * 3), keys={"num_hidden_layers": "num_spatial_layers"},
    left_out=("auxiliary_layers.", "head.", "head_layernorm."), left_out_as="the auxiliary layers and the pooling head",
)  # fmt: skip
FAMILIES = {family.name: family for family in (VIVIT, TIMESFORMER, VIDEOMAE, VJEPA2, VIDEOPRISM)}
