"""Export models for PyTorch: a folder that needs only torch and safetensors, and ONNX for one head."""

import os
import pathlib
import shutil

import numpy as np

from tubevit.checkpoint.paths import flatten
from tubevit.convert import twin
from tubevit.convert.export_folder import (
    MODEL, modalities, new_folder, program_output, program_shape, save_arrays, with_head, write_config,
    write_program_config,
)  # fmt: skip
from tubevit.errors import optional_import
from tubevit.models.abstract import parameters
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT

OPSET = 23  # of ONNX
_SOURCE = pathlib.Path(__file__).parent / "tubevit_torch.py"
_PROGRAM = "model.onnx"
_LARGEST = 2**31 - 2**20  # bytes of a file of ONNX; larger ones have their parameters in a file beside


def export_torch(model: TubeViT, folder: str | os.PathLike) -> None:
    """Write `tubevit_torch.py` with `model.safetensors` and `config.json`, which it reads. Needs no torch.

    Args:
        model: the model; all heads are kept.
        folder: a local folder that does not exist or is empty; it appears when it is complete.

    Raises:
        UserError: the folder cannot be used, or safetensors is not installed.
    """
    config = model.config
    with new_folder(folder) as inside:
        save_arrays(_state_dict(model, config), inside / MODEL)
        write_config(inside, twin.FORMAT, config, modalities(config), model=twin.description(config))
        shutil.copyfile(_SOURCE, inside / _SOURCE.name)


def _state_dict(model: TubeViT, config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the twin's arrays; `config` may have fewer heads than the model."""
    params, table = flatten(parameters(model)), twin.layout(config)
    return table.to_theirs({array.ours: np.asarray(params[array.ours]) for array in table.arrays}, config)
