"""Sparse models from a dense one: any tubes from the kernel and the positions of its only tube, without training."""

import dataclasses
import math

import numpy as np

from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.models.position import index_embedding
from tubevit.tubes import Tube, TubeSet, as_tube_set

_COMPUTED = ("fixed", "fixed_literal", "none")  # positions that follow from the centres of any tubes
_READ = ("learned", "learned_space", "learned_space_time", "index")  # tables over the grid of the tube


def check_dense(config: ModelConfig, name: str) -> None:
    """Check that the tubes of a model can become other tubes; raises UserError with all reasons why they cannot.

    The model has one tube, and its tokens attend jointly, so that a subset of them is an input as well.
    """
    problems, tubes = [], list(config.tubes.tubes)
    if config.is_plain_vit:
        problems.append("it is an image ViT, whose kernel init.tubes=inflate takes")
    if len(tubes) > 1 or tubes[0].sub_windows > 1:
        problems.append(f"it needs one tube without space-to-depth; found {config.tubes}")
    if config.pattern != "joint":
        problems.append(f"pattern {config.pattern!r} attends along the grid of its tube; expected 'joint'")
    if config.position not in (*_READ, *_COMPUTED):
        expected = ", ".join((*_READ, *_COMPUTED))
        problems.append(f"position {config.position!r} belongs to the grid of its tube; expected one of {expected}")
    if problems:
        raise UserError(f"{name} cannot give its kernel to other tubes: {'; '.join(problems)}")


def sparse_config(dense: ModelConfig, tubes: str | Tube | TubeSet, name: str | None = None) -> ModelConfig:
    """Return the configuration of a dense video model with other tubes; everything else but a budget stays as it is.

    Space-to-depth is left out, since no kernel of a part of the channels computes what the dense kernel does. Positions
    that the dense model reads from a table, or computes from the number of a token, become learned ones.

    Args:
        dense: a model with one tube and joint attention.
        tubes: a preset's name, text, a tube or a tube set.
        name: what the user calls the dense model, for errors.

    Raises:
        UserError: the model is not such a model, or its clip is too small for a tube.
    """
    check_dense(dense, name or dense.name)
    tubes = as_tube_set(tubes, interpolated=False)
    tubes = dataclasses.replace(tubes, tubes=tuple(tube.plain for tube in tubes.tubes))
    tubes.grid(dense.shape)
    return dense.replace(tubes=tubes, budget=None, position="learned" if dense.position in _READ else dense.position)


def dense_positions(config: ModelConfig, params: dict[str, np.ndarray]) -> np.ndarray:
    """Return the position embedding of each token of a dense model: (n_t, n_y, n_x, D) float32.

    Args:
        config: a model with one tube, whose positions are read from a table or follow from the number of a token.
        params: its parameters, {path: array}.

    Raises:
        UserError: the positions are neither.
    """
    grid = config.tubes.grid(config.shape)[0]
    if config.position == "index":
        return index_embedding(math.prod(grid), config.width).reshape(*grid, config.width)
    if config.position not in _READ:
        raise UserError(
            f"no table of positions to read: they are {config.position}; pass model.position={config.position}"
        )
    table = np.asarray(params["position/0"])
    time = params.get("position/0_time")
    table = table if time is None else table + np.asarray(time)[:, None, None]
    return np.broadcast_to(table, (*grid, config.width))


def read_positions(table: np.ndarray, dense: ModelConfig, model: ModelConfig, tube: Tube) -> np.ndarray:
    """Read a table of positions trilinearly at the centres of a tube; beyond the outermost centres it is constant.

    Args:
        table: (n_t, n_y, n_x, D) of the tokens of `dense`.
        dense: the model with one tube that the table belongs to.
        model: another model. If its clip has another shape, the centres are scaled to that of `dense`.
        tube: a tube of `model`.

    Returns:
        (n'_t, n'_y, n'_x, D) float32, for the grid of the tube.
    """
    have = _axes(dense.tubes.tubes[0], dense)
    want = [(at + 0.5) * old / new - 0.5 for at, old, new in zip(_axes(tube, model), dense.shape, model.shape)]
    weights = [np.stack([np.interp(new, old, row) for row in np.eye(len(old))]) for old, new in zip(have, want)]
    read = np.einsum("ta,yb,xc,tyxd->abcd", *weights, np.asarray(table, np.float64), optimize=True)
    return read.astype(np.float32)


def _axes(tube: Tube, model: ModelConfig) -> list[np.ndarray]:
    """Return the centres of a tube along t, y and x."""
    padding = model.tubes.padding
    grid, centres = tube.grid(model.shape, padding), tube.centres(model.shape, padding)
    centres = centres.reshape(*grid, 3)
    return [centres[:, 0, 0, 0], centres[0, :, 0, 1], centres[0, 0, :, 2]]
