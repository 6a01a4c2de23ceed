"""Hugging Face's ViViT, TimeSformer, VideoMAE and V-JEPA 2: folders as those of its image models."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from tubevit.convert import hugging_face_folder as their
from tubevit.convert.architecture import video_vit
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.errors import UserError
from tubevit.models.config import Head, ModelConfig

_BLOCK = "encoder.layer.*"
_SELF = f"{_BLOCK}.attention.attention"
_TIME = f"{_BLOCK}.temporal_attention"
_POSITIONS = (
    Array("position/0", ("embeddings.position_embeddings",), "1 N D"),
    Array("class_token", ("embeddings.cls_token",), "1 1 D"),
)
_SEPARATE = dense("encoder/blocks/attention/qkv", f"{_SELF}.query", f"{_SELF}.key", f"{_SELF}.value", shape="D D")
_HEAD = dense("heads/default", "classifier", shape="C D")


def _layout(*rows: Array, tubelets: bool = True, positions: bool = True) -> Layout:
    return Layout(
        (
            *patches("embeddings.patch_embeddings.projection", tubelets),
            *(_POSITIONS if positions else ()),
            *norm("encoder/blocks/norm1", f"{_BLOCK}.layernorm_before"),
            *dense("encoder/blocks/attention/out", f"{_BLOCK}.attention.output.dense", shape="D D"),
            *norm("encoder/blocks/norm2", f"{_BLOCK}.layernorm_after"),
            *dense("encoder/blocks/mlp/up", f"{_BLOCK}.intermediate.dense", shape="M D"),
            *dense("encoder/blocks/mlp/down", f"{_BLOCK}.output.dense", shape="D M"),
            *norm("encoder/norm", "layernorm"),
            *_HEAD,
            *rows,
        )
    )


def _with_key_bias(weights: dict) -> dict:
    """Name the biases of VideoMAE as those of the others; its keys have none, which is a bias of 0."""
    named = {}
    for name, array in weights.items():
        stem, _, last = name.rpartition(".")
        if last in ("q_bias", "v_bias"):
            name = f"{stem}.{'query' if last == 'q_bias' else 'value'}.bias"
        named[name] = array
        if name.endswith(".query.bias"):
            named.setdefault(name.replace(".query.", ".key."), np.zeros_like(array))
    return named


def _without_key_bias(weights: dict) -> dict:
    """Invert `_with_key_bias`. A bias of the keys changes no attention weight, so that it may be left out."""
    ending = {".query.bias": ".q_bias", ".value.bias": ".v_bias"}
    kept = {name: x for name, x in weights.items() if not name.endswith(".key.bias")}
    return {
        next((name.removesuffix(a) + b for a, b in ending.items() if name.endswith(a)), name): x
        for name, x in kept.items()
    }


def _fold_temporal_dense(weights: dict) -> dict:
    """Fold the layer after the attention over time into its output projection."""
    folded = dict(weights)
    for name in [name for name in weights if name.endswith(".temporal_dense.weight")]:
        stem = name.removesuffix(".temporal_dense.weight")
        after = [np.asarray(folded.pop(f"{stem}.temporal_dense.{leaf}", 0), np.float64) for leaf in ("weight", "bias")]
        paths = [f"{stem}.temporal_attention.output.dense.{leaf}" for leaf in ("weight", "bias")]
        if all(path in folded and folded[path].shape[0] == after[0].shape[-1] for path in paths):
            kernel, bias = (np.asarray(folded[path], np.float64) for path in paths)
            folded[paths[0]] = (after[0] @ kernel).astype(np.float32)
            folded[paths[1]] = (after[0] @ bias + after[1]).astype(np.float32)
    return folded


def _unfold_temporal_dense(weights: dict) -> dict:
    unfolded = dict(weights)
    for name, bias in weights.items():
        if name.endswith(".temporal_attention.output.dense.bias"):
            stem = name.removesuffix(".temporal_attention.output.dense.bias")
            unfolded[f"{stem}.temporal_dense.weight"] = np.eye(len(bias), dtype=np.float32)
            unfolded[f"{stem}.temporal_dense.bias"] = np.zeros_like(bias)
    return unfolded


def _fold_pooler(weights: dict) -> dict:
    """Make a pooling of V-JEPA 2 one of ours: the output projection is 1, its bias is the query of the residual."""
    query = weights.get("pooler.query_tokens")
    if query is None:
        return weights
    width = query.shape[-1]
    out = {"weight": np.eye(width, dtype=np.float32), "bias": np.asarray(query, np.float32).reshape(width)}
    return weights | {f"pooler.cross_attention_layer.out.{leaf}": array for leaf, array in out.items()}


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of video model.

    Attributes:
        name: model_type in config.json, and the prefix of the names of arrays.
        classifier, others: names of its classes, with and without a head.
        layout: the table of its arrays.
        defaults: values of the keys that its config.json may omit.
        fields: fields of `ModelConfig` that all its models have.
        statistics: the means and standard deviations that its released models were trained with.
        fps: frames per second of the clips that its released models were trained on, by the number of frames.
        left_out: prefixes of the names of arrays that are not converted.
        prepare, restore: bring the arrays to those of the table, and back.
    """

    name: str
    classifier: str
    others: tuple[str, ...]
    layout: Layout
    defaults: Mapping
    fields: dict
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    fps: Mapping[int, float]
    left_out: tuple[str, ...] = ()
    prepare: Callable[[dict], dict] = dict
    restore: Callable[[dict], dict] = dict


_HALF = (0.5, 0.5, 0.5)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LEARNED = dict(class_token=True, pooling="cls")
_DEFAULTS = {"intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
VIVIT = Family(
    "vivit", "VivitForVideoClassification", ("VivitModel",), _layout(*_SEPARATE),
    _DEFAULTS | {"hidden_act": "gelu_fast", "num_frames": 32, "tubelet_size": [2, 16, 16]},
    _LEARNED | {"position": "learned"}, (_HALF, _HALF), {32: 12.5}, ("pooler.",),
)  # fmt: skip
TIMESFORMER = Family(
    "timesformer", "TimesformerForVideoClassification", ("TimesformerModel",),
    _layout(
        *dense("encoder/blocks/attention/qkv", f"{_SELF}.qkv", shape="3D D"),
        Array("position/0_time", ("embeddings.time_embeddings",), "1 T D"),
        *norm("encoder/blocks/time_norm", f"{_BLOCK}.temporal_layernorm"),
        *dense("encoder/blocks/time_attention/qkv", f"{_TIME}.attention.qkv", shape="3D D"),
        *dense("encoder/blocks/time_attention/out", f"{_TIME}.output.dense", shape="D D"),
        tubelets=False,
    ),
    _DEFAULTS | {"num_frames": 8, "attention_type": "divided_space_time"},
    _LEARNED | {"position": "learned_space_time"}, ((0.45,) * 3, (0.225,) * 3), {8: 0.9375, 16: 1.875, 96: 7.5},
    prepare=_fold_temporal_dense, restore=_unfold_temporal_dense,
)  # fmt: skip
VIDEOMAE = Family(
    "videomae", "VideoMAEForVideoClassification", ("VideoMAEModel", "VideoMAEForPreTraining"),
    _layout(*_SEPARATE, *norm("pooled_norm", "fc_norm"), positions=False),
    _DEFAULTS | {"layer_norm_eps": 1e-12, "num_frames": 16, "tubelet_size": 2, "use_mean_pooling": True},
    dict(position="index", pooling="mean"), _IMAGENET, {16: 7.5},
    ("decoder.", "encoder_to_decoder.", "mask_token"), _with_key_bias, _without_key_bias,
)  # fmt: skip
_V_SELF, _POOL, _CROSS = f"{_BLOCK}.attention", "pooler.self_attention_layers.*", "pooler.cross_attention_layer"
VJEPA2 = Family(
    "vjepa2", "VJEPA2ForVideoClassification", ("VJEPA2Model",),
    Layout(
        (
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
            *dense("pooling/out", f"{_CROSS}.out", shape="D D"),
            *norm("pooling/norm", f"{_CROSS}.layer_norm2"),
            *dense("pooling/mlp/up", f"{_CROSS}.mlp.fc1", shape="4D D"),
            *dense("pooling/mlp/down", f"{_CROSS}.mlp.fc2", shape="D 4D"),
            *_HEAD,
        )
    ),
    {"mlp_ratio": 4.0, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "tubelet_size": 2, "num_pooler_layers": 3},
    dict(position="rope", pooling="attentive"), _IMAGENET, {}, ("predictor.",), _fold_pooler,
)  # fmt: skip
_LEFT_OUT_AS = {"vjepa2": "the predictor", "videomae": "the decoder", "vivit": "the pooler"}
_PATTERNS = {"divided_space_time": "divided", "joint_space_time": "joint"}
FAMILIES = {family.name: family for family in (VIVIT, TIMESFORMER, VIDEOMAE, VJEPA2)}


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a video model from a folder and the content of its config.json; raises UserError for other models."""
    family, source = FAMILIES[values["model_type"]], str(folder / their.CONFIG)
    architecture = their.architecture_of(values, (family.classifier, *family.others), source)
    values, head = {**their.DEFAULTS, **family.defaults, **values}, None
    if isinstance(values.get("tubelet_size"), list):  # (t, y, x) of ViViT
        values |= {"patch_size": values["tubelet_size"][1:]}
    if family is VJEPA2:
        renamed = {"image_size": "crop_size", "num_frames": "frames_per_clip", "num_channels": "in_chans"}
        values |= {ours: values.get(key, default) for (ours, key), default in zip(renamed.items(), (256, 64, 3))}
    fields = dict(family.fields) | _grid(values, source)
    if architecture == family.classifier and not options.headless:
        classes, names = their.labels(values, source)
        head = Head(classes, "video", names) if classes else None
    if family is VIDEOMAE:
        fields |= _final_norm(values, head, source)
    if family is TIMESFORMER:
        if values["attention_type"] not in _PATTERNS:
            raise UserError(
                f"{source}: attention_type must be one of {', '.join(_PATTERNS)}; found {values['attention_type']!r}"
            )
        fields["pattern"] = _PATTERNS[values["attention_type"]]
    if family is VJEPA2 and architecture != family.classifier:
        fields["pooling"] = "mean"
    fields["fps"] = family.fps.get(values["num_frames"])
    folder_format = their.FolderFormat(
        family.layout, family.defaults, f"{family.name}.", family.left_out, _LEFT_OUT_AS.get(family.name), video_vit,
        family.prepare, family.statistics,
    )  # fmt: skip
    return folder_format.read(folder, values, options, head=head, **fields)


def _grid(values: Mapping, source: str) -> dict:
    """Return the frames and the tubelet; raises UserError unless they are whole numbers that fit."""
    frames, tubelet = values["num_frames"], values.get("tubelet_size", 1)
    tubelet = tubelet[0] if isinstance(tubelet, list) and tubelet else tubelet
    for key, value in (("num_frames", frames), ("tubelet_size", tubelet)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{source}: {key} must be a whole number above 0; found {value!r}")
    if frames % tubelet:
        raise UserError(f"{source}: num_frames {frames} must be a multiple of the {tubelet} frames of a tubelet")
    return {"frames": frames, "tubelet": tubelet}


def _final_norm(values: Mapping, head: Head | None, source: str) -> dict:
    if values["use_mean_pooling"]:
        return dict(final_norm="pooled", pooled_norm_epsilon=1e-5)  # of torch, which config.json does not change
    if head is not None:
        raise UserError(
            f"{source}: use_mean_pooling=false classifies the first patch, which our heads do not; --headless leaves "
            "the classifier out"
        )
    return dict(final_norm="tokens")


def check(config: ModelConfig, format: str) -> Family:
    """Find the family of a model; raises UserError, with what differs from the closest one, if it belongs to none."""
    problems = {family.name: _differences(family, config) for family in (VIVIT, TIMESFORMER, VIDEOMAE)}
    closest = min(problems, key=lambda name: len(problems[name]))
    if problems[closest]:
        raise UserError(
            f"--format {format} holds plain ViTs, ViViT, TimeSformer and VideoMAE; the closest is {closest}, but the "
            f"model has {'; '.join(problems[closest])}"
        )
    return FAMILIES[closest]


def _differences(family: Family, config: ModelConfig) -> list[str]:
    tube, problems = config.tubes.tubes[0], []
    if len(config.tubes.tubes) > 1 or tube.kernel != tube.stride or any(tube.offset) or tube.sub_windows > 1:
        problems.append(f"tubes {config.tubes} instead of one without gaps")
    elif tube.kernel[1] != tube.kernel[2] or config.size % tube.kernel[1] or config.frames % tube.kernel[0]:
        problems.append(f"tube {tube}, which does not fill {config.frames} frames of {config.size} pixels in squares")
    elif tube.kernel[0] > 1 and family is TIMESFORMER:
        problems.append(f"tube {tube} instead of one that reads single frames")
    expected = dict(
        class_token=False, final_norm="tokens", pattern="joint", add_attention=0, gate_layer=None, softcap=None
    )
    expected |= family.fields | ({"final_norm": "pooled"} if family is VIDEOMAE else {})
    if family is TIMESFORMER and config.pattern == "divided":
        expected["pattern"] = "divided"
    problems += [
        f"{key}={getattr(config, key)!r} instead of {value!r}"
        for key, value in expected.items()
        if getattr(config, key) != value
    ]
    if family is VIDEOMAE and config.pooled_norm_epsilon != 1e-5:
        problems.append(f"pooled_norm_epsilon={config.pooled_norm_epsilon} instead of 1e-05")
    if len(config.heads) > 1:
        problems.append(f"several heads ({', '.join(name for name, _ in config.heads)}): --headless leaves them out")
    return problems


def write(
    folder: pathlib.Path,
    family: Family,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    interpolation: str | None,
) -> None:
    """Write a new folder that `from_pretrained` reads; see `hugging_face.write`."""
    head, (tubelet, patch, _) = dict(config.heads).get("default"), config.tubes.tubes[0].kernel
    values = their.config_values(config, head, family.classifier if head else family.others[0]) | {
        "model_type": family.name, "num_frames": config.frames, "image_size": config.size,
    }  # fmt: skip
    if family is VIVIT:
        values["tubelet_size"] = [tubelet, patch, patch]
    else:
        values["patch_size"] = patch
    if family is TIMESFORMER:
        values["attention_type"] = next(theirs for theirs, ours in _PATTERNS.items() if ours == config.pattern)
    if family is VIDEOMAE:
        values |= {"tubelet_size": tubelet, "qv_bias": values.pop("qkv_bias")}
    kind = "VivitImageProcessor" if family is VIVIT else "VideoMAEImageProcessor"
    preprocessor = their.preprocessor_values(config, kind, interpolation)
    if family is VIVIT:
        preprocessor["offset"] = False  # otherwise it would map pixels to -1..1 before it subtracts the mean
    weights = family.restore(family.layout.to_theirs(params, config))
    their.write(folder, values, preprocessor, weights, f"{family.name}." if head else "")
