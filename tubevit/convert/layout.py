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

ZEROS = ""


@dataclasses.dataclass(frozen=True)
class Array:
    """One of our parameters and the foreign arrays that it consists of.

    Attributes:
        ours: our path, blocks stacked.
        theirs: their names, with `*` for the number of the layer. Several arrays are stacked, kernels along axis 1 and
            others along axis 0. `ZEROS` stands for an array of zeros that the file does not hold.
        shape: the shape of each of their arrays: `D` width, `M` MLP, `C` classes, `K` frames of a tubelet, `P` patch,
            `3PP` values of a patch, `T` times, `N` positions of patches, `h` heads, `d` = D / h, `3D`, `4D`, or a
            number.
        order: the permutation of their axes that gives ours after a reshape.
        thirds: the thirds of their first axis that belong to this parameter.
        shift: what is added to their values to give ours.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: str
    order: tuple[int, ...] | None = None
    thirds: slice | None = None
    shift: float = 0.0

    @property
    def is_stacked(self) -> bool:
        """Whether each block, or each added layer, has its own."""
        parts = self.ours.split("/")
        return parts[0] != "heads" and not {"blocks", "added"}.isdisjoint(parts)

    def names(self, shape: Sequence[int]) -> list[list[str]]:
        """List their names for each layer, or once; `shape` is that of our parameter."""
        layers = range(shape[0] if self.is_stacked else 1)
        return [[name.replace("*", str(i)) for name in self.theirs] for i in layers]

    def to_ours(self, parts: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
        """Convert their arrays of one layer to ours, float32."""
        if self.thirds is not None:
            parts = [x.reshape(3, -1, *x.shape[1:])[self.thirds].reshape(-1, *x.shape[1:]) for x in parts]
        parts = [x if self.order is None else x.transpose(self.order) for x in parts]
        whole = parts[0] if len(parts) == 1 else np.stack(parts, self._axis)
        whole = np.asarray(whole.reshape(shape), np.float32, order="C")
        return whole + np.float32(self.shift) if self.shift else whole

    def to_theirs(self, leaf: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
        """Invert `to_ours`; `shape` is the shape of each of their arrays."""
        leaf = leaf - np.float32(self.shift) if self.shift else leaf
        parts = [leaf] if len(self.theirs) == 1 else np.moveaxis(leaf, self._axis, 0)
        order = tuple(range(len(shape))) if self.order is None else self.order
        parts = [x.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)) for x in parts]
        return [np.asarray(x, order="C") for x in parts]

    @property
    def _axis(self) -> int:
        return int(self.ours.endswith("kernel"))


# Tables of positions, and the class tokens that may own their first row.
_CLASS_TOKENS = {"position/0": "class_token", "encoder/temporal/position": "encoder/temporal/class_token"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a format. Rows that a model does not have, such as the head, are ignored.

    Attributes:
        arrays: the rows of the table.
        class_position: whether the first row of their positions belongs to the class token. Ours is part of the token.
        folded: pairs of linear layers of torch, of which theirs apply one after the other; ours has their product.
    """

    arrays: tuple[Array, ...]
    class_position: bool = True
    folded: tuple[tuple[str, str], ...] = ()

    def with_rows(self, *arrays: Array, **fields) -> "Layout":
        """Return the table with these rows added, instead of those for the same parameters; and with other fields."""
        rows = {array.ours: array for array in (*self.arrays, *arrays)}
        return dataclasses.replace(self, arrays=tuple(rows.values()), **fields)

    def to_ours(self, weights: Mapping[str, np.ndarray], config: ModelConfig, error: str) -> dict[str, np.ndarray]:
        """Convert their arrays to our parameters, {path: float32 array}, blocks stacked.

        Raises UserError if arrays are missing, unexpected or of another shape or type; the text starts with `error`.
        """
        self._check(weights, config, error)
        ours, sizes, params = _shapes(config), _sizes(config), {}
        weights = self._fold(self._split_class(dict(weights), config), config)
        for array in self._rows(config):
            shape, absent = ours[array.ours][int(array.is_stacked) :], np.zeros(_shape(array, sizes), np.float32)
            layers = [
                array.to_ours([weights[name] if name else absent for name in names], shape)
                for names in array.names(ours[array.ours])
            ]
            params[array.ours] = np.stack(layers) if array.is_stacked else layers[0]
        return params

    def to_theirs(self, params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
        """Invert `to_ours`; the class token's position becomes 0, and the second of two folded layers the identity.

        Raises UserError if the table has no place for a parameter.
        """
        rows, weights, sizes = self._rows(config), {}, _sizes(config)
        without_place = params.keys() - {array.ours for array in rows}
        if without_place:
            raise UserError(f"the format has no place for {', '.join(grouped(without_place))}")
        for array in rows:
            leaf, shape = np.asarray(params[array.ours]), _shape(array, sizes)
            for names, layer in zip(array.names(leaf.shape), leaf if array.is_stacked else [leaf]):
                weights |= {name: part for name, part in zip(names, array.to_theirs(layer, shape)) if name}
        for _, position in self._class_rows(config):
            table = weights[position]
            weights[position] = np.pad(table, [(0, 0)] * (table.ndim - 2) + [(1, 0), (0, 0)])
        for _, second in self._pairs(config):
            weights[f"{second}.weight"] = np.eye(config.width, dtype=np.float32)
            weights[f"{second}.bias"] = np.zeros(config.width, np.float32)
        return weights

    def _rows(self, config: ModelConfig) -> list[Array]:
        ours = _shapes(config)
        return [array for array in self.arrays if array.ours in ours]

    def _class_rows(self, config: ModelConfig) -> list[tuple[str, str]]:
        """List their class tokens and the tables whose first rows belong to them."""
        theirs = {array.ours: array.theirs[0] for array in self._rows(config)} if self.class_position else {}
        return [(theirs[b], theirs[a]) for a, b in _CLASS_TOKENS.items() if a in theirs and b in theirs]

    def _pairs(self, config: ModelConfig) -> list[tuple[str, str]]:
        """List the pairs of folded layers of each block."""
        theirs = {array.theirs[0] for array in self._rows(config)}
        pairs = [pair for pair in self.folded if f"{pair[0]}.weight" in theirs]
        return [(a.replace("*", str(i)), b.replace("*", str(i))) for a, b in pairs for i in range(config.depth)]

    def _split_class(self, weights: dict, config: ModelConfig) -> dict:
        for token, position in self._class_rows(config):
            table = weights[position]
            weights[token] = np.asarray(weights[token], np.float32) + np.asarray(table[..., 0, :], np.float32)
            weights[position] = table[..., 1:, :]
        return weights

    def _fold(self, weights: dict, config: ModelConfig) -> dict:
        for first, second in self._pairs(config):
            (kernel, bias), (next_kernel, next_bias) = (
                [np.asarray(weights[f"{name}.{leaf}"], np.float64) for leaf in ("weight", "bias")]
                for name in (first, second)
            )
            weights |= {f"{first}.weight": next_kernel @ kernel, f"{first}.bias": next_kernel @ bias + next_bias}
        return weights

    def _check(self, weights: Mapping, config: ModelConfig, error: str) -> None:
        sizes, expected, ours = _sizes(config), {}, _shapes(config)
        with_class = [position for _, position in self._class_rows(config)]
        for array in self._rows(config):
            shape = _shape(array, sizes)
            shape[-2:-1] = [shape[-2] + 1] if array.theirs[0] in with_class else shape[-2:-1]
            names = [name for names in array.names(ours[array.ours]) for name in names if name]
            expected |= dict.fromkeys(names, jax.ShapeDtypeStruct(shape, jnp.float32))
        for _, second in self._pairs(config):
            expected[f"{second}.weight"] = jax.ShapeDtypeStruct((config.width, config.width), jnp.float32)
            expected[f"{second}.bias"] = jax.ShapeDtypeStruct((config.width,), jnp.float32)
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
        "D": width, "3D": 3 * width, "4D": 4 * width, "M": config.mlp_dim,
        "K": tube.kernel[0], "P": tube.kernel[1], "3PP": 3 * tube.kernel[1] ** 2,
        "T": times, "N": frames * rows * columns,
        "C": next(iter(heads.values())).classes if heads else 0, "h": config.num_heads, "d": width // config.num_heads,
    }  # fmt: skip


def _shape(array: Array, sizes: dict[str, int]) -> list[int]:
    """Return the shape of each of their arrays, without the row of a class token."""
    return [int(symbol) if symbol.isdecimal() else sizes[symbol] for symbol in array.shape.split()]


def dense(ours: str, *theirs: str, shape: str) -> tuple[Array, Array]:
    """Describe a linear layer of torch, or several stacked: `weight` (out, in) and `bias` (out)."""
    return (
        Array(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), shape, (1, 0)),
        Array(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs), shape.split()[0]),
    )


def norm(ours: str, theirs: str, shift: float = 0.0) -> tuple[Array, Array]:
    """Describe a layer normalisation of torch: `weight`, without the `shift`, and `bias`."""
    scale = Array(f"{ours}/scale", (f"{theirs}.weight",), "D", shift=shift)
    return scale, Array(f"{ours}/bias", (f"{theirs}.bias",), "D")


def patches(theirs: str, tubelets: bool = False) -> tuple[Array, Array]:
    """Describe the patch convolution of torch: `weight` (D, 3, P, P), of tubelets (D, 3, K, P, P), and `bias` (D)."""
    shape, order = ("D 3 K P P", (2, 3, 4, 1, 0)) if tubelets else ("D 3 P P", (2, 3, 1, 0))
    return (
        Array("tokenizer/tubes/0/kernel", (f"{theirs}.weight",), shape, order),
        Array("tokenizer/tubes/0/bias", (f"{theirs}.bias",), "D"),
    )
