"""What `export_safetensors` wrote: our own names and shapes, with the configuration of the model in config.json."""

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from tubevit.checkpoint.metadata import config_from_metadata
from tubevit.checkpoint.paths import differences, flatten
from tubevit.convert.files import read_folder
from tubevit.convert.foreign import Foreign, Options, with_options
from tubevit.convert.hugging_face_folder import CONFIG, licence
from tubevit.convert.layout import Layout
from tubevit.errors import TubeViTError, UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import ModelConfig

FORMAT = "safetensors"  # in config.json


class _Unchanged(Layout):
    """The table of our own names."""

    def to_ours(self, weights: Mapping[str, np.ndarray], config: ModelConfig, error: str) -> dict[str, np.ndarray]:
        """Check names, shapes and types; the arrays are returned as float32."""
        problems = differences(flatten(abstract_parameters(config)), weights)
        types = (np.float32, ml_dtypes.bfloat16)
        problems += [f"{name} has type {array.dtype}" for name, array in weights.items() if array.dtype not in types]
        if problems:
            raise UserError(f"{error}: {'; '.join(problems)}")
        return {name: array.astype(np.float32) for name, array in weights.items()}


def is_exported(values: Mapping) -> bool:
    """Whether an export wrote these values to config.json, in whatever format."""
    return {"format", "tubevit"} <= values.keys()


def read(folder: pathlib.Path, values: Mapping, options: Options) -> Foreign:
    """Read a model from its folder and the content of its config.json; raises UserError if that is damaged."""
    try:
        config = config_from_metadata(values["model"], f"{folder / CONFIG}, which tubevit {values['tubevit']} wrote,")
    except TubeViTError:
        raise
    except Exception as error:  # anything may stand there
        raise UserError(f"{folder / CONFIG} describes no model: {type(error).__name__}: {error}") from error
    weights, files = read_folder(folder)
    config, weights, notes = with_options(config, weights, options, "heads/")
    return Foreign(config, weights, _Unchanged(()), tuple(files), None, notes, licence(folder), is_own=True)
