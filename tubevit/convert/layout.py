"""Names and layouts of arrays in other libraries: one table per format, used in both directions."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tubevit.checkpoint.paths import differences, flatten, grouped
from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Array:
    """One of our parameters and the foreign arrays that it consists of.

    Attributes:
        ours: our path, blocks stacked.
        theirs: their names, with `*` for the number of the block. Several arrays are stacked, kernels along axis 1 and
            others along axis 0.
        shape: the shape of each of their arrays: `D` width, `M` MLP, `C` classes, `K` frames of a tubelet, `P` patch,
            `N` patches of T frames of S, `h` heads, `d` = D / h, `3D`, `4D`, or a number.
        order: the permutation of their axes that gives ours after a reshape.
        thirds: the thirds of their first axis that belong to this parameter.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: str
    order: tuple[int, ...] | None = None
    thirds: slice | None = None

    @property
    def in_block(self) -> bool:
        """Whether each block has its own."""
        return "blocks" in self.ours.split("/")

    def names(self, depth: int) -> list[list[str]]:
        """List their names for each block, or once."""
        return [[name.replace("*", str(i)) for name in self.theirs] for i in range(depth if self.in_block else 1)]

    def to_ours(self, parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
        """Convert their arrays of one block to ours, float32."""
        if self.thirds is not None:
            parts = [x.reshape(3, -1, *x.shape[1:])[self.thirds].reshape(-1, *x.shape[1:]) for x in parts]
        parts = [x if self.order is None else x.transpose(self.order) for x in parts]
        whole = parts[0] if len(parts) == 1 else np.stack(parts, self._axis)
        return np.ascontiguousarray(whole.reshape(shape), np.float32)

    def to_theirs(self, leaf: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
        """Invert `to_ours`; `shape` is the shape of each of their arrays."""
        parts = [leaf] if len(self.theirs) == 1 else np.moveaxis(leaf, self._axis, 0)
        order = tuple(range(len(shape))) if self.order is None else self.order
        parts = [x.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)) for x in parts]
        return [np.ascontiguousarray(x) for x in parts]

    @property
    def _axis(self) -> int:
        return int(self.ours.endswith("kernel"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a format. Rows that a model does not have, such as the head, are ignored.

    Attributes:
        arrays: the rows of the table.
        class_position: whether the first row of their positions belongs to the class token. Ours is part of the token.
    """

    arrays: tuple[Array, ...]
    class_position: bool = True

    def to_ours(self, weights: Mapping[str, np.ndarray], config: ModelConfig, error: str) -> dict[str, np.ndarray]:
        """Convert their arrays to our parameters, {path: float32 array}, blocks stacked.

        Raises UserError if arrays are missing, unexpected or of another shape or type; the text starts with `error`.
        """
        self._check(weights, config, error)
        ours, weights, params = _shapes(config), self._split_class(dict(weights), config), {}
        for array in self._rows(config):
            shape = ours[array.ours][int(array.in_block) :]
            depth = ours[array.ours][0]
            layers = [array.to_ours([weights[n] for n in names], shape) for names in array.names(depth)]
            params[array.ours] = np.stack(layers) if array.in_block else layers[0]
        return params

    def to_theirs(self, params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        """Invert `to_ours`; the class token's position becomes 0."""
        weights, sizes = {}, _sizes(config)
        for array in self._rows(config):
            leaf, shape = np.asarray(params[array.ours]), [_size(symbol, sizes) for symbol in array.shape.split()]
            for names, layer in zip(array.names(len(leaf)), leaf if array.in_block else [leaf]):
                weights |= dict(zip(names, array.to_theirs(layer, shape)))
        if config.class_token and self.class_position:
            table = weights[self._name("position/0")]
            weights[self._name("position/0")] = np.pad(table, [(0, 0)] * (table.ndim - 2) + [(1, 0), (0, 0)])
        return weights

    def _rows(self, config: ModelConfig) -> list[Array]:
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

    def _check(self, weights: Mapping, config: ModelConfig, error: str) -> None:
        sizes, expected, ours = _sizes(config), {}, _shapes(config)
        for array in self._rows(config):
            shape = [_size(symbol, sizes) for symbol in array.shape.split()]
            if array.ours == "position/0":
                shape[-2] += int(config.class_token and self.class_position)
            abstract = jax.ShapeDtypeStruct(shape, jnp.float32)
            expected |= {name: abstract for names in array.names(ours[array.ours][0]) for name in names}
        dtypes = {
            name: f": expected floating point, found {weights[name].dtype}"
            for name in expected
            if name in weights and not jnp.issubdtype(weights[name].dtype, jnp.floating)
        }
        problems = differences(expected, weights) + grouped(dtypes)
        if problems:
            raise UserError(f"{error}: {'; '.join(problems)}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(abstract_parameters(config)).items()}


def _sizes(config: ModelConfig) -> dict[str, int]:
    tube, width, heads = config.tubes.tubes[0], config.width, dict(config.heads)
    times, rows, columns = tube.grid(config.shape, config.tubes.padding)
    frames = 1 if config.position.startswith("learned_space") else times
    return {
        "D": width, "3D": 3 * width, "4D": 4 * width, "M": config.mlp_dim, "K": tube.kernel[0], "P": tube.kernel[1],
        "T": times, "N": frames * rows * columns,
        "C": next(iter(heads.values())).classes if heads else 0, "h": config.num_heads, "d": width // config.num_heads,
    }  # fmt: skip


def _size(symbol: str, sizes: dict[str, int]) -> int:
    return int(symbol) if symbol.isdecimal() else sizes[symbol]


def dense(ours: str, *theirs: str, shape: str) -> tuple[Array, Array]:
    """Describe a linear layer of torch, or several stacked: `weight` (out, in) and `bias` (out)."""
    return (
        Array(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), shape, (1, 0)),
        Array(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs), shape.split()[0]),
    )


def norm(ours: str, theirs: str) -> tuple[Array, Array]:
    """Describe a layer normalisation of torch: `weight` and `bias`."""
    return Array(f"{ours}/scale", (f"{theirs}.weight",), "D"), Array(f"{ours}/bias", (f"{theirs}.bias",), "D")


def patches(theirs: str, tubelets: bool = False) -> tuple[Array, Array]:
    """Describe the patch convolution of torch: `weight` (D, 3, P, P), of tubelets (D, 3, K, P, P), and `bias` (D)."""
    shape, order = ("D 3 K P P", (2, 3, 4, 1, 0)) if tubelets else ("D 3 P P", (2, 3, 1, 0))
    return (
        Array("tokenizer/tubes/0/kernel", (f"{theirs}.weight",), shape, order),
        Array("tokenizer/tubes/0/bias", (f"{theirs}.bias",), "D"),
    )
