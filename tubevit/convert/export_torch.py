"""Export models for PyTorch: a folder that needs only torch and safetensors, or an ONNX program for one head."""

import os
import pathlib
import shutil
import sys

import numpy as np

from tubevit.convert import twin
from tubevit.convert.export_folder import (
    MODEL,
    check_new_folder,
    modalities,
    new_folder,
    program_output,
    program_shape,
    save_arrays,
    with_head,
    write_config,
    write_program_config,
)
from tubevit.errors import optional_import
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT

OPSET = 23  # the newest that torch writes
SOURCE = pathlib.Path(__file__).parent / "tubevit_torch.py"
_NEEDS = ("export to ONNX", "onnx")  # purpose and extra of the packages
_PROGRAM = "model.onnx"
_MOST = 2**30  # bytes of parameters that are kept in the program, a file of less than 2 GB


def export_torch(model: TubeViT, folder: str | os.PathLike) -> None:
    """Write `tubevit_torch.py` with the `model.safetensors` and the `config.json` that it reads. Torch is not needed.

    Args:
        model: the model; all heads are kept.
        folder: a local folder that does not exist or is empty; it appears when it is complete.

    Raises:
        UserError: the folder cannot be used, or safetensors is not installed.
    """
    config = model.config
    with new_folder(folder) as inside:
        save_arrays(twin.state_dict(model, config), inside / MODEL)
        write_config(inside, twin.FORMAT, config, modalities(config), model=twin.description(config))
        shutil.copyfile(SOURCE, inside / SOURCE.name)


def export_onnx(model: TubeViT, folder: str | os.PathLike, head: str | None = None) -> None:
    """Write `model.onnx` and `config.json`; models of more than 1 GiB have their parameters in `model.onnx.data`.

    The program maps `pixels`, uint8 (b, T, H, W, 3) in the model's shape, or (b, H, W, 3) for an image head or a plain
    ViT with one frame, to `output`, float32 (b, classes): softmax or, for multi-label heads, sigmoid; without a head it
    is the pooled features (b, D).

    Args:
        model: the model; only the parameters that the head needs are stored.
        folder: a local folder that does not exist or is empty; it appears when it is complete.
        head: name of the head; may be omitted if there is only one, or none (pooled features).

    Raises:
        UserError: the folder cannot be used, the head does not exist, it takes images but no tube does, or torch or
            onnxscript is not installed.
    """
    check_new_folder(folder)
    torch, optimizer = (optional_import(module, *_NEEDS) for module in ("torch", "onnxscript.optimizer"))
    config = with_head(model, head)
    pixels = torch.zeros((2, *program_shape(config)), dtype=torch.uint8)
    activations = {"features": torch.nn.Identity(), "softmax": torch.nn.Softmax(-1), "sigmoid": torch.nn.Sigmoid()}
    module = torch.nn.Sequential(torch_model(model, config), activations[program_output(config)]).eval()
    program = torch.onnx.export(
        module, (pixels,), dynamo=True, opset_version=OPSET, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("b", min=1)},), input_names=["pixels"], output_names=["output"],
    )  # fmt: skip
    # Torch computes only small constants now; the program would compute the positions of most models in each call.
    optimizer.optimize(program.model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    size = sum(parameter.nbytes for parameter in module.parameters())
    with new_folder(folder) as inside:
        program.save(inside / _PROGRAM, external_data=size > _MOST)
        write_program_config(inside, "onnx", config)


def torch_model(model: TubeViT, config: ModelConfig):
    """Build the twin of a model in torch, with the heads of `config`; raises UserError if torch is not installed."""
    torch = optional_import("torch", *_NEEDS)
    from tubevit.convert import tubevit_torch

    with torch.device("meta"):
        module = tubevit_torch.TubeViT(twin.description(config))
    arrays = {
        name: torch.from_numpy(np.require(array, requirements="W"))
        for name, array in twin.state_dict(model, config).items()
    }
    module.load_state_dict(arrays, assign=True)
    return module
