"""Hugging Face's ViViT, TimeSformer, VideoMAE, V-JEPA 2 and VideoPrism: folders as those of its image models."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import hugging_face_folder as their
from tubevit.convert.architecture import unlike, video_vit
from tubevit.convert.foreign import Foreign, Options
from tubevit.convert.video_families import FAMILIES, TIMESFORMER, VIDEOMAE, VIDEOPRISM, VIVIT, VJEPA2, Family
from tubevit.errors import UserError, unknown
from tubevit.models.config import Head, ModelConfig

_PATTERNS = {"divided_space_time": "divided", "joint_space_time": "joint"}
_FC_NORM_EPSILON = 1e-5  # of torch, which config.json does not change


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a video model from a folder and the content of its config.json; raises UserError for other models."""
    family, source = FAMILIES[values["model_type"]], str(folder / their.CONFIG)
    architecture = their.architecture_of(values, tuple(filter(None, (family.classifier, *family.others))), source)
    values = _usual(family, values)
    head = None
    if architecture == family.classifier and not options.headless:
        classes, names = their.labels(values, source)
        head = Head(classes, "video", names, values.get("problem_type") == their.MULTI_LABEL) if classes else None
    fields: dict = dict(family.fields)
    if family is TIMESFORMER:
        attention = str(values["attention_type"])
        if attention not in _PATTERNS:
            raise unknown(f"attention_type in {source}", attention, _PATTERNS)
        fields["pattern"] = _PATTERNS[attention]
    if family is VIDEOMAE:
        fields |= _final_norm(values, architecture, head, source)
    if family is VJEPA2 and architecture != family.classifier:
        fields["pooling"] = "mean"
    if family is VIDEOPRISM:
        fields["softcap"] = values["attn_logit_softcapping"]
    fields["fps"] = next((fps for frames, fps in family.fps.items() if frames == values["num_frames"]), None)
    folder_format = their.FolderFormat(
        family.layout, family.defaults, family.prefix, family.left_out, family.left_out_as, video_vit, family.prepare,
        family.trained,
    )  # fmt: skip
    return folder_format.read(folder, values, options, head=head, **fields)


def _usual(family: Family, values: Mapping) -> dict:
    """Return the values of a config.json under the keys of most families, with defaults for what it omits."""
    usual = {**their.DEFAULTS, **family.defaults, **values}
    usual |= {key: usual[own] for key, own in family.keys.items() if own in usual}
    tubelet = usual["tubelet_size"]
    if isinstance(tubelet, list) and len(tubelet) == 3:  # (t, y, x)
        usual |= {"tubelet_size": tubelet[0], "patch_size": tubelet[1:]}
    return usual


def _final_norm(values: Mapping, architecture: str, head: Head | None, source: str) -> dict:
    pooled = bool(values["use_mean_pooling"])
    if pooled and architecture != VIDEOMAE.classifier:
        raise UserError(
            f"{source}: {architecture} with use_mean_pooling=true has no last normalisation; expected "
            f"{VIDEOMAE.classifier}, or use_mean_pooling=false as in pretraining"
        )
    if not pooled and head is not None:
        raise UserError(
            f"{source}: use_mean_pooling=false classifies the first patch, which our heads do not; --headless leaves "
            "the classifier out"
        )
    return dict(final_norm="pooled", pooled_norm_epsilon=_FC_NORM_EPSILON) if pooled else dict(final_norm="tokens")


def family_of(config: ModelConfig, format: str) -> Family:
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
    expected = dict(class_token=False, pattern="joint", final_norm="tokens", interpolated=False)
    expected |= dict(tube_linear=False, tube_width=None) | dict(family.fields)
    if family is TIMESFORMER and config.pattern == "divided":
        expected["pattern"] = "divided"
    if family is VIDEOMAE and (config.heads or config.final_norm == "pooled"):
        expected["final_norm"] = "pooled"
    return problems + unlike(config, **expected)


def lost(family: Family, config: ModelConfig, params: Mapping[str, np.ndarray]) -> list[str]:
    """Return notes on what a folder of the family will not hold."""
    notes, epsilon = [], config.pooled_norm_epsilon or config.norm_epsilon
    if family is VIDEOMAE and config.qkv_bias and params["encoder/blocks/attention/qkv/bias"][:, 1].any():
        notes.append("left out: the biases of the keys, which change no output")
    if config.final_norm == "pooled" and epsilon != _FC_NORM_EPSILON:
        notes.append(
            f"the last normalisation gets the epsilon {_FC_NORM_EPSILON} of {family.classifier}, not {epsilon}"
        )
    if config.fps != family.fps.get(config.frames):
        notes.append(f"the folder does not hold the frames per second, {config.fps}")
    return notes


def write(
    folder: pathlib.Path,
    family: Family,
    config: ModelConfig,
    params: Mapping[str, np.ndarray],
    interpolation: str | None,
) -> None:
    """Write a new folder that `from_pretrained` reads; see `hugging_face.write`."""
    head, (tubelet, patch, _) = dict(config.heads).get("default"), config.tubes.tubes[0].kernel
    pooled = config.final_norm == "pooled"  # only their classifier has this normalisation, maybe with 0 classes
    values = their.config_values(config, head, family.classifier if head or pooled else family.others[0]) | {
        "model_type": family.name, "num_frames": config.frames, "image_size": config.size,
    }  # fmt: skip
    if pooled and not head:
        values |= {"id2label": {}, "label2id": {}}
    if family is VIVIT:
        values["tubelet_size"] = [tubelet, patch, patch]
    else:
        values["patch_size"] = patch
    if family is TIMESFORMER:
        values["attention_type"] = next(theirs for theirs, ours in _PATTERNS.items() if ours == config.pattern)
    if family is VIDEOMAE:
        values |= {"tubelet_size": tubelet, "qv_bias": values.pop("qkv_bias"), "use_mean_pooling": pooled}
    kind = "VivitImageProcessor" if family is VIVIT else "VideoMAEImageProcessor"
    preprocessor = their.preprocessor_values(config, kind, interpolation)
    if family is VIVIT:
        preprocessor["offset"] = False  # otherwise it would map pixels to -1..1 before it subtracts the mean
    weights = family.layout.to_theirs(params, config)
    their.write(folder, values, preprocessor, weights, family.prefix if head or pooled else "")
