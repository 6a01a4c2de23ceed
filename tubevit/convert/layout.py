"""What arrays are called and how they lie elsewhere: one table for each format, read in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from tubevit.checkpoint.paths import BLOCKS, flatten, grouped
from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Array:
    """One of our parameters and the arrays elsewhere that it is made of.

    Attributes:
        ours: its path, blocks stacked.
        theirs: names, `*` standing for the number of the block; several are stacked: kernels along axis 1, others
            along axis 0.
        shape: of each of theirs: `D` width, `M` MLP, `C` classes, `P` patch, `N` patches, `h` heads, `d` = D / h, `3D`,
            or a number.
        order: of their axes, that which after a reshape is ours.
        thirds: the part of their first axis, counted in thirds, that belongs to it.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: str
    order: tuple[int, ...] | None = None
    thirds: slice | None = None

    @property
    def in_block(self) -> bool:
        """Whether each block has one."""
        return self.ours.startswith(f"{BLOCKS}/")

    def names(self, depth: int) -> list[list[str]]:
        """Their names, for each block, or once."""
        return [[name.replace("*", str(i)) for name in self.theirs] for i in range(depth if self.in_block else 1)]

    def to_ours(self, parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
        """Theirs -> ours, float32, of one block."""
        if self.thirds is not None:
            parts = [x.reshape(3, -1, *x.shape[1:])[self.thirds].reshape(-1, *x.shape[1:]) for x in parts]
        parts = [x if self.order is None else x.transpose(self.order) for x in parts]
        whole = parts[0] if len(parts) == 1 else np.stack(parts, self._axis)
        return np.ascontiguousarray(whole.reshape(shape), np.float32)

    def to_theirs(self, leaf: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
        """The inverse of `to_ours`; `shape` is that of each of theirs."""
        parts = [leaf] if len(self.theirs) == 1 else np.moveaxis(leaf, self._axis, 0)
        order = tuple(range(len(shape))) if self.order is None else self.order
        parts = [x.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)) for x in parts]
        return [np.ascontiguousarray(x) for x in parts]

    @property
    def _axis(self) -> int:
        return int(self.ours.endswith("kernel"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a format. What a model does not have, such as a head, is left out of it.

    Attributes:
        arrays: all of them.
        class_position: whether the first row of their positions is that of the class token. Ours is part of the token.
    """

    arrays: tuple[Array, ...]
    class_position: bool = True

    def to_ours(self, weights: Mapping[str, np.ndarray], config: ModelConfig, title: str) -> dict[str, np.ndarray]:
        """Our parameters, {path: float32 array}, blocks stacked.

        Args:
            weights: theirs by name.
            config: of the model that they belong to.
            title: beginning of the error.

        Raises:
            UserError: all that is missing, unexpected or of another shape.
        """
        ours, arrays = _shapes(config), self._of(config)
        self._check(weights, config, arrays, title)
        weights, params = self._split_class(dict(weights), config), {}
        for array in arrays:
            shape = ours[array.ours][int(array.in_block) :]
            layers = [array.to_ours([weights[n] for n in names], shape) for names in array.names(config.depth)]
            params[array.ours] = np.stack(layers) if array.in_block else layers[0]
        return params

    def to_theirs(self, params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        """The inverse of `to_ours`; the class token's position is 0."""
        weights, sizes = {}, _sizes(config)
        for array in self._of(config):
            leaf, shape = np.asarray(params[array.ours]), [_size(symbol, sizes) for symbol in array.shape.split()]
            for names, layer in zip(array.names(config.depth), leaf if array.in_block else [leaf]):
                weights |= dict(zip(names, array.to_theirs(layer, shape)))
        if config.class_token and self.class_position:
            table = weights[self._name("position/0")]
            weights[self._name("position/0")] = np.pad(table, [(0, 0)] * (table.ndim - 2) + [(1, 0), (0, 0)])
        return weights

    def _of(self, config: ModelConfig) -> list[Array]:
        ours = _shapes(config)
        return [array for array in self.arrays if array.ours in ours]

    def _name(self, ours: str) -> str:
        return next(array.theirs[0] for array in self.arrays if array.ours == ours)

    def _split_class(self, weights: dict, config: ModelConfig) -> dict:
        if config.class_token and self.class_position:
            token, position = self._name("class_token"), self._name("position/0")
            table = weights[position]
            weights[token] = np.asarray(weights[token], np.float32) + np.asarray(table[..., 0, :], np.float32)
            weights[position] = table[..., 1:, :]
        return weights

    def _check(self, weights: Mapping, config: ModelConfig, arrays: list[Array], title: str) -> None:
        sizes, expected = _sizes(config), {}
        for array in arrays:
            shape = [_size(symbol, sizes) for symbol in array.shape.split()]
            if array.ours == "position/0":
                shape[-2] += int(config.class_token and self.class_position)
            expected |= {name: tuple(shape) for names in array.names(config.depth) for name in names}
        shapes = {
            name: f": expected {shape}, found {weights[name].shape}"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        }
        dtypes = {
            name: f": expected floating point, found {weights[name].dtype}"
            for name in expected
            if name in weights and not jnp.issubdtype(weights[name].dtype, jnp.floating)
        }
        problems = [f"missing {text}" for text in grouped(dict.fromkeys(expected.keys() - weights.keys(), ""))]
        problems += [f"unexpected {text}" for text in grouped(dict.fromkeys(weights.keys() - expected.keys(), ""))]
        problems += grouped(shapes) + grouped(dtypes)
        if problems:
            raise UserError(f"{title}: {'; '.join(problems)}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    abstract = abstract_parameters(config)
    return {path: leaf.shape for path, leaf in flatten(abstract).items()}


def _sizes(config: ModelConfig) -> dict[str, int]:
    patch, width, heads = config.tubes.tubes[0].kernel[1], config.width, dict(config.heads)
    return {
        "D": width, "3D": 3 * width, "M": config.mlp_dim, "P": patch, "N": (config.size // patch) ** 2,
        "C": next(iter(heads.values())).classes if heads else 0, "h": config.num_heads, "d": width // config.num_heads,
    }  # fmt: skip


def _size(symbol: str, sizes: dict[str, int]) -> int:
    return int(symbol) if symbol.isdecimal() else sizes[symbol]


def dense(ours: str, *theirs: str, shape: str) -> tuple[Array, Array]:
    """A linear layer of torch, or several stacked: `weight` (out, in) and `bias` (out)."""
    return (
        Array(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), shape, (1, 0)),
        Array(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs), shape.split()[0]),
    )


def norm(ours: str, theirs: str) -> tuple[Array, Array]:
    """A layer normalisation of torch: `weight` and `bias`."""
    return Array(f"{ours}/scale", (f"{theirs}.weight",), "D"), Array(f"{ours}/bias", (f"{theirs}.bias",), "D")


def patches(theirs: str) -> tuple[Array, Array]:
    """The patch convolution of torch: `weight` (D, 3, P, P) and `bias` (D)."""
    return (
        Array("tokenizer/tubes/0/kernel", (f"{theirs}.weight",), "D 3 P P", (2, 3, 1, 0)),
        Array("tokenizer/tubes/0/bias", (f"{theirs}.bias",), "D"),
    )
