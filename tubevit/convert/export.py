"""Export models for use without this package: safetensors and a JSON file, or a jax.export program for one head.

`export_safetensors` writes the parameters to `model.safetensors`, under the names of the checkpoint, and the
configuration to `config.json`. Neither jax nor this package is needed to read them:

    from safetensors.numpy import load_file

    kernel = load_file("DIR/model.safetensors")["encoder/blocks/mlp/up/kernel"]  # (L, D, 4D)

`export_jax` writes the program to `model.jaxexport`, its first argument to `params.safetensors` (as constants the
parameters could exceed the 2 GB limit of a program) and a description of input and output to `config.json`.
`load_exported` reads these files and checks its input. Without this package:

    import jax.export
    from safetensors.numpy import load_file

    program = jax.export.deserialize(open("DIR/model.jaxexport", "rb").read())
    params = jax.device_put(load_file("DIR/params.safetensors"))
    probabilities = jax.jit(program.call)(params, pixels)
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax.core
import jax.numpy as jnp
import numpy as np
from jax import export

from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.convert.export_folder import (
    CONFIG,
    MODEL,
    NEEDS,
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
from tubevit.errors import UserError, optional_import
from tubevit.models.abstract import abstract_parameters, model_of, parameters
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT

PLATFORMS = ("cpu", "tpu", "cuda")
_PROGRAM, _PARAMS = "model.jaxexport", "params.safetensors"


def export_safetensors(model: TubeViT, folder: str | os.PathLike) -> None:
    """Write `model.safetensors`, and `config.json` with model, input (shapes, dtype, range) and labels of each head.

    Args:
        model: the model; all heads are kept.
        folder: a local folder that does not exist or is empty; it appears when it is complete.

    Raises:
        UserError: the folder cannot be used, or safetensors is not installed.
    """
    with new_folder(folder) as inside:
        save_arrays(flatten(parameters(model)), inside / MODEL)
        write_config(inside, "safetensors", model.config, modalities(model.config))


def export_jax(
    model: TubeViT, folder: str | os.PathLike, head: str | None = None, platforms: Sequence[str] = PLATFORMS
) -> None:
    """Write `model.jaxexport`, `params.safetensors` and `config.json`; see `export_program`.

    Args:
        model: the model; only the parameters that the head needs are stored.
        folder: a local folder that does not exist or is empty; it appears when it is complete.
        head: name of the head; may be omitted if there is only one, or none (pooled features).
        platforms: platforms of `PLATFORMS` on which the program can run; this machine needs none of them.

    Raises:
        UserError: the folder cannot be used, the head or a platform does not exist, the head takes images but no tube
            does, or safetensors or flatbuffers is not installed.
    """
    check_new_folder(folder)
    config = with_head(model, head)
    exported = export_program(config, platforms)
    params, (needed, _) = flatten(parameters(model)), _inputs(exported)
    with new_folder(folder) as inside:
        (inside / _PROGRAM).write_bytes(exported.serialize())
        save_arrays({path: params[path] for path in needed}, inside / _PARAMS)
        write_program_config(inside, "jax", config, platforms=list(exported.platforms))


def export_program(config: ModelConfig, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
    """Export the forward pass as a program (params, pixels) -> output that contains no parameters.

    params is flat: {path: float32 array}. pixels is uint8 (b, T, H, W, 3) in the model's shape, or (b, H, W, 3) for an
    image head or a plain ViT with one frame; the batch size b, at least 1, may differ in each call. The output is
    float32 (b, classes), softmax or, for multi-label heads, sigmoid; without a head it is the pooled features (b, D).

    The field `attention` is ignored, because `auto` would depend on the machine that exports. The program contains
    both implementations: einsums on CPU, XLA's `jax.nn.dot_product_attention` elsewhere.

    Args:
        config: a configuration with at most one head.
        platforms: names from `PLATFORMS`.

    Raises:
        UserError: a platform is unknown, the head takes images but no tube does, or flatbuffers is not installed.
    """
    optional_import("flatbuffers", *NEEDS)
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"unknown platform {platform!r}; valid: cpu, tpu, cuda (NVIDIA GPUs)")
    einsum, xla = (_forward(dataclasses.replace(config, attention=kind)) for kind in ("einsum", "xla"))

    def forward(params, pixels):
        return jax.lax.platform_dependent(params, pixels, cpu=einsum, default=xla)

    params = flatten(abstract_parameters(config))
    params = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    (batch,) = export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((batch, *program_shape(config)), jnp.uint8)
    return export.export(jax.jit(forward), platforms=tuple(dict.fromkeys(platforms)))(params, pixels)


def _forward(config: ModelConfig):
    activation = {"features": lambda x: x, "softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[program_output(config)]
    return lambda params, pixels: activation(model_of(config, unflatten(params))(pixels))


class ExportedModel:
    """A program of `export_jax` with its parameters, on the default device.

    Attributes:
        config: the content of config.json.
        labels: names of the classes, () if unknown.
        shape: the shape of a clip (T, H, W, 3) or an image (H, W, 3).
    """

    def __init__(self, exported: export.Exported, params: Mapping[str, np.ndarray], config: dict):
        self.config = config
        self.labels = tuple(config["labels"].get(config["head"], ()))
        self.shape = tuple(exported.in_avals[-1].shape[1:])
        self._params, self._call = jax.device_put(dict(params)), jax.jit(exported.call)

    def __call__(self, pixels) -> jax.Array:
        """Map (b, *shape) uint8 pixels to (b, classes) probabilities or (b, D) pooled features, float32.

        Each new batch size b compiles once; pad to a few sizes where that matters.

        Raises:
            UserError: the pixels have another shape or dtype, or the batch is empty.
        """
        found = (tuple(np.shape(pixels)), getattr(pixels, "dtype", None))
        if found[0][1:] != self.shape or not found[0] or not found[0][0] or found[1] != np.uint8:
            expected = ", ".join(map(str, ("b", *self.shape)))
            raise UserError(f"expected uint8 ({expected}) with b of at least 1; found {found[1]} {found[0]}")
        return self._call(self._params, pixels)


def load_exported(folder: str | os.PathLike) -> ExportedModel:
    """Load what `export_jax` wrote; raises UserError if it is incomplete, or not for this platform."""
    load_file = optional_import("safetensors.numpy", *NEEDS).load_file
    optional_import("flatbuffers", *NEEDS)
    folder = pathlib.Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if config.get("format") != "jax":
            raise UserError(f"{folder} was exported with --format {config.get('format')}; expected jax")
        exported = export.deserialize(bytearray((folder / _PROGRAM).read_bytes()))
        params = load_file(folder / _PARAMS)
    except OSError as error:
        raise UserError(
            f"{folder} is not an export: cannot read {error.filename or _PARAMS}: {error.strerror}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # the parsers of three formats have errors of their own
        raise UserError(f"{folder} is not a complete export: {' '.join(str(error).split())[:300]}") from error
    expected = {path: (aval.shape, aval.dtype) for path, aval in _inputs(exported)[0].items()}
    found = {path: (array.shape, array.dtype) for path, array in params.items()}
    if found != expected:
        differing = sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path))
        raise UserError(f"{folder / _PARAMS} does not belong to {_PROGRAM}: they differ in {', '.join(differing[:5])}")
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise UserError(f"{folder} was exported for {', '.join(exported.platforms)}; this process runs on {platform}")
    return ExportedModel(exported, params, config)


def _inputs(exported: export.Exported) -> tuple[dict, jax.core.ShapedArray]:
    """Return the abstract arguments of the program: {path: parameter} and pixels."""
    arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return arguments
