"""The twins of our models in PyTorch (`tubevit_torch.py`): what their files hold, and the way back."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tubevit.budget import numbered
from tubevit.checkpoint.metadata import config_from_metadata, model_metadata
from tubevit.checkpoint.paths import flatten
from tubevit.convert.files import read_json
from tubevit.convert.foreign import Foreign, Options, with_options
from tubevit.convert.layout import Array, Layout
from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters, parameters
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT
from tubevit.tubes import Tube, TubeSet

FORMAT = "torch"  # in config.json
_MARK = "tubes.0.bias"  # every twin has it, and no model of another library
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
_NAMES = (  # patterns of our paths, and the twin's names with `*` for the number of the layer
    (r"tokenizer/kernel", "shared_kernel"),
    (r"tokenizer/(tubes/.+)", r"\1"),
    (r"position/(\d+)_time", r"tubes/\1/time_position"),
    (r"position/(\d+)", r"tubes/\1/position"),
    (r"(.+/(?:blocks|added))/(.+)", r"\1/*/\2"),
)


def layout(config: ModelConfig) -> Layout:
    """Make the table of a twin's arrays."""
    numbers = {name: str(i) for i, (name, _) in enumerate(config.heads)}  # heads may have any names, modules may not
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_parameters(config)).items()}
    return Layout(tuple(_array(path, shape, numbers) for path, shape in shapes.items()), class_position=False)


def _array(path: str, shape: tuple[int, ...], heads: Mapping[str, str]) -> Array:
    parts, order = path.split("/"), None
    if parts[0] == "heads":
        name = f"heads/{heads['/'.join(parts[1:-1])]}/{parts[-1]}"
    else:
        name = next((re.sub(old, new, path) for old, new in _NAMES if re.fullmatch(old, path)), path)
    shape = shape[int("*" in name) :]
    if parts[-1] == "kernel" and len(shape) == 5:  # of a tube, (t, y, x, 3, C)
        order = (2, 3, 4, 1, 0)
        shape = tuple(shape[axis] for axis in np.argsort(order))
    elif parts[-1] == "kernel":
        inputs = len(shape) - 1 if parts[-2] == "out" else 1  # heads and their channels are two axes of ours
        order, shape = (1, 0), (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    elif parts[-1] == "bias":
        shape = (math.prod(shape),)
    name = re.sub("/(kernel|scale)$", "/weight", name).replace("/", ".")
    return Array(path, (name,), " ".join(map(str, shape)), order)


def state_dict(model: TubeViT, config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the arrays of a model's twin with the heads of `config`, which may be fewer than the model has."""
    params, table = flatten(parameters(model)), layout(config)
    return table.to_theirs({array.ours: np.asarray(params[array.ours]) for array in table.arrays}, config)


def description(config: ModelConfig) -> dict:
    """Return the `model` of config.json: as the metadata of a checkpoint, but with tubes in numbers.

    Labels have no hash, so that they can be changed with the number of classes. A budget is {"text", "tokens"}:
    {"TxHxW": the numbers of the tokens that it keeps} of clips and images of the model's own size.

    Raises UserError if these are not the same for all clips.
    """
    tubes = [dataclasses.asdict(tube) for tube in config.tubes.tubes]
    heads = {name: dataclasses.asdict(head) for name, head in config.heads}
    return model_metadata(config) | {"tubes": tubes, "heads": heads, "budget": _budget(config)}


def _budget(config: ModelConfig) -> dict | None:
    if config.budget is None:
        return None
    sets, found = {config.shape: config.tubes}, {}
    if any(tube.is_2d for tube in config.tubes.tubes):
        sets[1, *config.shape[1:]] = config.tubes.for_images()
    for shape, tubes in sets.items():
        if tubes.depends_on_clip(shape):
            expected = "the tokens are fixed when it is written: expected budget even, tube or random"
            raise UserError(f"--format {FORMAT} and onnx: {expected}; found {config.budget}")
        chosen = numbered(config.budget.choose(tubes.grid(shape)), tubes.grid(shape))
        found["x".join(map(str, shape))] = np.concatenate(chosen).tolist()
    return {"text": str(config.budget), "tokens": found}


def config_from_description(values: Mapping, source: str) -> ModelConfig:
    """Invert `description`; raises UserError, which begins with `source`, if values are missing or damaged."""
    try:
        budget = None if values.get("budget") is None else values["budget"]["text"]
        tubes = str(TubeSet(tuple(Tube(**tube) for tube in values["tubes"])))
        return config_from_metadata({**values, "tubes": tubes, "budget": budget}, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} does not describe a model of --format {FORMAT}: {error!r}") from error


def unwrapped(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return the arrays of a twin, without the prefixes that wrappers add to names; None for those of other models."""
    weights = {_WRAPPERS.sub("", name): array for name, array in weights.items()}
    return weights if _MARK in weights else None


def read(
    files: Sequence[pathlib.Path], weights: Mapping[str, np.ndarray], config: pathlib.Path, options: Options
) -> Foreign:
    """Read the state dict of a twin.

    Args:
        files: the files that were read.
        weights: their arrays, see `unwrapped`.
        config: the config.json of the export.
        options: the user's options.

    Raises:
        UserError: config.json is missing or damaged, or the state dict has no heads although the model has.
    """
    if not config.is_file():
        raise UserError(
            f"{files[0]} holds parameters of a model that was exported with --format {FORMAT}: put it beside the "
            f"{config.name} of that export"
        )
    model = config_from_description(read_json(config).get("model", {}), str(config))
    model, weights, notes = with_options(model, weights, options, "heads.")
    if model.heads and not any(name.startswith("heads.") for name in weights):
        names = ", ".join(name for name, _ in model.heads)
        raise UserError(f"{files[0]} has no heads; expected {names}. --headless makes a checkpoint without heads")
    return Foreign(model, weights, layout(model), tuple(files), None, notes, is_own=True)
