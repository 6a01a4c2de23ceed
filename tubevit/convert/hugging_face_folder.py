"""config.json and preprocessor_config.json of a folder that Hugging Face's libraries wrote."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping

from tubevit.convert.files import read_json
from tubevit.convert.foreign import Options, statistics
from tubevit.errors import UserError, unknown

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
GELUS = {"gelu": "exact", "gelu_python": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# What a config.json leaves out is as in the base models.
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "qkv_bias": True,
}  # fmt: skip


def encoder_fields(values: Mapping, defaults: Mapping, where: str) -> dict:
    """Arguments of `plain_vit` from a config.json's values.

    Args:
        values: of the config.json, or of its part about images.
        defaults: of those that may be absent, beyond `DEFAULTS`.
        where: beginning of the error.

    Raises:
        UserError: all values that are wrong or not supported.
    """
    values, problems = {**DEFAULTS, **defaults, **values}, []

    def whole(key: str) -> int:
        value = values.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{key} must be a whole number above 0, found {value!r}")
            return 1
        return value

    sizes = dict(width="hidden_size", depth="num_hidden_layers", num_heads="num_attention_heads", patch="patch_size")
    fields = {ours: whole(theirs) for ours, theirs in sizes.items()}
    if "mlp_ratio" in values:
        ratio = values["mlp_ratio"]
        if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
            problems.append(f"mlp_ratio must be a number above 0, found {ratio!r}")
            ratio = 1
        fields["mlp_dim"] = int(fields["width"] * ratio)
    else:
        fields["mlp_dim"] = whole("intermediate_size")
    fields["size"] = whole("image_size") // fields["patch"] * fields["patch"]
    if not problems and not fields["size"]:
        problems.append(f"image_size {values['image_size']} is smaller than patch_size {fields['patch']}")
    if whole("num_channels") != 3:
        problems.append(f"num_channels must be 3, found {values['num_channels']}")
    activation = str(values["hidden_act"])
    if activation not in GELUS:
        problems.append(str(unknown("hidden_act", activation, GELUS)))
    epsilon = values["layer_norm_eps"]
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        problems.append(f"layer_norm_eps must be a number between 0 and 1, found {epsilon!r}")
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
    options = dict(gelu=GELUS[activation], norm_epsilon=float(epsilon), qkv_bias=bool(values["qkv_bias"]))
    return fields | options


def architecture_of(values: Mapping, choices: tuple[str, ...], where: str) -> str:
    """The class that wrote a config.json, the first choice where it does not say it; raises UserError for others."""
    names = values.get("architectures") or [choices[0]]
    if not isinstance(names, list) or names[0] not in choices:
        raise unknown(f"architecture in {where}", str(names[0] if isinstance(names, list) else names), choices)
    return names[0]


def labels(values: Mapping, where: str) -> tuple[int, tuple[str, ...]]:
    """Number of classes and their names, () where they are LABEL_0, LABEL_1, ...

    Raises:
        UserError: they are not numbered from 0 on.
    """
    names = values.get("id2label")
    if names is None and isinstance(count := values.get("num_labels", 2), int):
        names = {str(i): f"LABEL_{i}" for i in range(count)}
    if not isinstance(names, dict) or any(str(i) not in names for i in range(len(names))):
        raise UserError(f"{where}: id2label must name the classes from 0 on")
    ordered = tuple(str(names[str(i)]) for i in range(len(names)))
    dummies = all(re.fullmatch(r"LABEL_\d+", name) for name in ordered)
    return len(ordered), () if dummies else ordered


def preprocessing(folder: pathlib.Path, options: Options) -> tuple[dict, str | None, list[str]]:
    """Fields `mean` and `std`, the interpolation where it is said, and notes.

    Raises:
        UserError: the file is damaged, or pixels are not rescaled to 0..1.
    """
    path = folder / PREPROCESSOR
    values = read_json(path) if path.exists() else {}
    factor = values.get("rescale_factor", 1 / 255)
    scaled = values.get("do_rescale", True) and isinstance(factor, int | float) and abs(factor * 255 - 1) < 1e-6
    if not scaled:
        raise UserError(
            f"{path}: pixels must be rescaled by 1/255; found do_rescale={values.get('do_rescale', True)}, "
            f"rescale_factor={factor!r}"
        )
    found = [values.get("image_mean"), values.get("image_std")]
    if not values.get("do_normalize", True):
        found = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    fields, notes = statistics(options, *found, str(path))
    resample = values.get("resample")
    return fields, INTERPOLATIONS.get(resample) if isinstance(resample, int) else None, notes
