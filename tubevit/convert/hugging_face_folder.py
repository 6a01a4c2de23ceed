"""Folders that Hugging Face's libraries write: weights, config.json and preprocessor_config.json."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from tubevit.convert.architecture import plain_vit
from tubevit.convert.files import read_folder, read_json, write_safetensors
from tubevit.convert.foreign import Foreign, Options, leave_out, statistics
from tubevit.convert.layout import Layout
from tubevit.data.labels import distinct_names
from tubevit.errors import UserError, unknown
from tubevit.models.config import Head, ModelConfig

CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR = "config.json", "preprocessor_config.json", "video_preprocessor_config.json"
Statistics = tuple[float, ...]
GELUS = {
    "gelu": "exact", "gelu_python": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh",
}  # fmt: skip
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
MULTI_LABEL = "multi_label_classification"
DEFAULTS = {  # of the base models, for keys that config.json omits
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "qkv_bias": True,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FolderFormat:
    """A kind of ViT in such folders.

    Attributes:
        layout: the table of its arrays.
        defaults: values of the keys that its config.json may omit, beyond `DEFAULTS`.
        prefix: removed from the names of arrays where they have it.
        left_out: prefixes of the names of arrays that are not converted.
        left_out_as: what these arrays are, for the note; None lists their names.
        build: makes the configuration of our model.
        prepare: brings the arrays to those of the table.
        trained: the means and standard deviations of pixels in training, if they are known.
    """

    layout: Layout
    defaults: Mapping
    prefix: str
    left_out: tuple[str, ...] = ()
    left_out_as: str | None = None
    build: Callable[..., ModelConfig] = plain_vit
    prepare: Callable[[dict], dict] = dict
    trained: tuple[Statistics, Statistics] | None = None

    def read(self, folder: pathlib.Path, values: Mapping, options: Options, **fields) -> Foreign:
        """Read a model.

        Args:
            folder: the folder with the weights.
            values: the content of its config.json, or the part about images.
            options: see `Options`.
            **fields: arguments of `build` that do not follow from `values`.
        """
        fields |= encoder_fields(values, self.defaults, str(folder / CONFIG))
        pixels, interpolation, notes = preprocessing(folder, options, self.trained)
        weights, files = read_folder(folder)
        weights = {name.removeprefix(self.prefix): array for name, array in weights.items()}
        weights.pop("embeddings.position_ids", None)  # older versions stored the indices of the positions
        classifier = ("classifier.",) if options.headless else ()
        weights, dropped = leave_out(weights, (*self.left_out, *classifier), self.left_out_as)
        return Foreign(
            self.build(**fields, **pixels), self.prepare(weights), self.layout, tuple(files), interpolation,
            notes + dropped, licence(folder),
        )  # fmt: skip


def encoder_fields(values: Mapping, defaults: Mapping, source: str) -> dict:
    """Translate the values of a config.json to arguments of `plain_vit`, or of `video_vit` if `defaults` have frames.

    `defaults` add to `DEFAULTS`.

    Raises UserError if values are invalid or not supported; the message lists all of them.
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
    if "tubelet_size" in defaults:
        fields |= {"frames": whole("num_frames"), "tubelet": whole("tubelet_size")}
        if fields["frames"] % fields["tubelet"]:
            problems.append(
                f"num_frames {fields['frames']} must be a multiple of the {fields['tubelet']} frames of a tubelet"
            )
    if "num_temporal_layers" in defaults:
        fields["temporal_depth"] = whole("num_temporal_layers")
    if whole("num_channels") != 3:
        problems.append(f"num_channels must be 3, found {values['num_channels']}")
    activation, epsilon = str(values["hidden_act"]), values["layer_norm_eps"]
    if activation not in GELUS:
        problems.append(str(unknown("hidden_act", activation, GELUS)))
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        problems.append(f"layer_norm_eps must be a number between 0 and 1, found {epsilon!r}")
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    return fields | dict(gelu=GELUS[activation], norm_epsilon=float(epsilon), qkv_bias=bool(values["qkv_bias"]))


def architecture_of(values: Mapping, choices: tuple[str, ...], source: str) -> str:
    """Return the model class in a config.json, by default the first choice; raises UserError for other classes."""
    names = values.get("architectures") or [choices[0]]
    if not isinstance(names, list) or names[0] not in choices:
        raise unknown(f"architecture in {source}", str(names[0] if isinstance(names, list) else names), choices)
    return names[0]


def labels(values: Mapping, source: str) -> tuple[int, tuple[str, ...]]:
    """Return the number of classes and their names, () for the placeholders LABEL_0, LABEL_1, ..."""
    names, count = values.get("id2label"), values.get("num_labels", 2)
    if names is None and isinstance(count, int):
        return max(int(count), 0), ()
    if not isinstance(names, dict) or any(str(i) not in names for i in range(len(names))):
        raise UserError(f"{source}: id2label must name the classes 0, 1, 2, ...; found {str(names)[:100]}")
    ordered = tuple(str(names[str(i)]) for i in range(len(names)))
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in ordered)
    return len(ordered), () if placeholders else ordered


def licence(folder: pathlib.Path) -> str | None:
    """Return the licence in the front matter of the model card, README.md, or None if there is none."""
    try:
        text = (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        return None
    matter = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    found = matter and re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", matter[1], re.MULTILINE)
    return found[1] if found else None


def preprocessing(
    folder: pathlib.Path, options: Options, trained: tuple[Statistics, Statistics] | None = None
) -> tuple[dict, str | None, tuple[str, ...]]:
    """Return the fields `mean` and `std`, the interpolation or None, and notes.

    Video models were `trained` with known statistics. These are used where the files say nothing, and where they say
    that pixels become -1..1 before 0.5 is subtracted: ViViT's processor does this twice since 2023.
    """
    path = next((folder / name for name in (VIDEO_PREPROCESSOR, PREPROCESSOR) if (folder / name).exists()), None)
    values, path = read_json(path) if path else {}, path or folder / PREPROCESSOR
    is_vivit = "Vivit" in str(values.get("video_processor_type", values.get("image_processor_type")))
    rescale, factor = values.get("do_rescale", True), values.get("rescale_factor", 1 / (127.5 if is_vivit else 255))
    offset = trained is not None and bool(values.get("offset", is_vivit))
    scale = round(factor * 255, 6) if isinstance(factor, int | float) else None
    if not rescale or (scale, offset) not in ((1, False), (2, True)):
        raise UserError(
            f"{path}: pixels must be rescaled by 1/255, or by 1/127.5 with an offset; found do_rescale={rescale}, "
            f"rescale_factor={factor!r}, offset={offset}"
        )
    mean, std, notes = values.get("image_mean"), values.get("image_std"), ()
    if not values.get("do_normalize", True):
        mean, std = ([0.5] * 3, [0.5] * 3) if offset else ([0.0] * 3, [1.0] * 3)
        offset = False
    if trained is not None and (options.mean is None or options.std is None):
        mean, std, notes = _as_trained(mean, std, trained, offset, path)
    fields, more = statistics(options, mean, std, str(path))
    resample = values.get("resample")
    return fields, INTERPOLATIONS.get(resample) if isinstance(resample, int) else None, notes + more


def _as_trained(mean, std, trained: tuple[Statistics, Statistics], offset: bool, path: pathlib.Path):
    """Return mean, std and notes where the statistics of the training are known; see `preprocessing`."""
    if offset:
        note = (
            f"{path} maps pixels to -1..1 and then subtracts {mean}; such models were trained on -1..1, which is used "
            "here: --mean .75 .75 .75 --std .25 .25 .25 gives what the processor of Hugging Face does"
        )
        return *trained, (note,)
    if mean is None or std is None:
        note = f"{path} does not say mean and std: assumed {trained[0]} and {trained[1]}, as in training"
        return mean or trained[0], std or trained[1], (note,)
    if [mean, std] != [list(values) for values in trained]:
        note = (
            f"{path} has mean {mean} and std {std}, which are used; the released models were trained with "
            f"{list(trained[0])} and {list(trained[1])}: see --mean and --std"
        )
        return mean, std, (note,)
    return mean, std, ()


def config_values(config: ModelConfig, head: Head | None, architecture: str) -> dict:
    """Return what the config.json of every kind of model holds."""
    values = {
        "architectures": [architecture], "dtype": "float32",
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim, "num_channels": 3,
        "hidden_act": next(theirs for theirs, ours in GELUS.items() if ours == config.gelu),
        "layer_norm_eps": config.norm_epsilon, "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if head:
        names = head.labels or [f"LABEL_{i}" for i in range(head.classes)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(distinct_names(names))}
        if head.multi_label:
            values["problem_type"] = MULTI_LABEL
    return values


def preprocessor_values(config: ModelConfig, kind: str, interpolation: str | None) -> dict:
    """Return the content of preprocessor_config.json; an interpolation that is unknown to them becomes bilinear."""
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    return {
        "image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": config.size, "width": config.size},
        "resample": numbers.get(interpolation or "", numbers["bilinear"]), "rescale_factor": 1 / 255,
        "image_mean": list(config.mean), "image_std": list(config.std),
    }  # fmt: skip


def write(folder: pathlib.Path, values: dict, preprocessor: dict, weights: dict[str, np.ndarray], prefix: str) -> None:
    """Write a new folder; the `prefix` stands before the names of all arrays but those that follow the encoder."""
    folder.mkdir()
    kept = ("classifier.", "fc_norm.")
    weights = {name if name.startswith(kept) else prefix + name: array for name, array in weights.items()}
    write_safetensors(folder / "model.safetensors", weights)
    for name, content in ((CONFIG, values), (PREPROCESSOR, preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
