"""Sharding of parameters, optimiser states and gradients over the mesh, by rules on their paths and shapes.

- `tensor` splits attention over heads and the MLP over its hidden width.
- `fsdp` splits the largest other axis that it divides. It never splits the axis of layers, which scans slice.
- Arrays with fewer than `SMALL` numbers (per layer in stacked blocks), or without such an axis, are replicated.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tubevit.errors import UserError
from tubevit.sharding.mesh import AnyMesh

SMALL = 2**14  # numbers; to gather smaller arrays costs more time than the memory is worth
# The axis that `tensor` splits, counted from the end; the first match holds. Adapters follow their kernels.
TENSOR_RULES = (
    (r"attention/qkv/(kernel|bias|lora_b)$", -2),  # ([L,] D, 3, heads, d), (L, 3, heads, d)
    (r"attention/out/(kernel|lora_a)$", -3),  # (L, heads, d, D)
    (r"mlp/up/(kernel|bias|lora_b)$", -1),  # (L, D, M), (L, M)
    (r"mlp/down/(kernel|lora_a)$", -2),  # (L, M, D)
)
STACKED = re.compile(r"(^|/)(encoder|encoder/temporal|pooling)/(blocks|added)/")  # the first axis is the layers
WIDE = 128  # numbers; narrower shards waste the registers of a TPU, and XLA stops sharding them
LARGE_BYTES, MAX_REPLICATED = 2**20, 0.02


def spec(path: str, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Return how an array is split.

    Args:
        path: path of the parameter, or of an array of the optimiser for it, which ends with the same names.
        shape: shape of the array.
        mesh: mesh with axes data, fsdp and tensor.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1 and STACKED.search(path):
        for pattern, axis in TENSOR_RULES:
            if re.search(pattern, path) and shape[axis] % tensor == 0:
                axes[axis] = "tensor"
                break
    first = 1 if STACKED.search(path) else 0
    if fsdp > 1 and math.prod(shape[first:]) >= SMALL:
        free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % fsdp == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:  # compiled functions return it so; otherwise the second step would compile again
        axes.pop()
    return PartitionSpec(*axes)


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def shardings(tree, mesh: Mesh):
    """Return the NamedShardings for a tree of arrays or their shapes, such as parameters or a training state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(_path(path), tuple(leaf.shape), mesh)), tree
    )


def put(tree, mesh: Mesh):
    """Split arrays over the mesh that every process holds as a whole.

    `jax.device_put` would first compare the values of all processes over the network.
    """

    def place(value, sharding):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree, shardings(tree, mesh))


def _rows(params, mesh: AnyMesh) -> list[tuple[str, tuple[int, ...], int, PartitionSpec]]:
    """Return (path, shape, bytes, spec) of each array."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    shapes = [(_path(path), tuple(leaf.shape), leaf.dtype.itemsize) for path, leaf in leaves]
    return [(path, shape, math.prod(shape) * size, spec(path, shape, mesh)) for path, shape, size in shapes]


def _split(spec: PartitionSpec, mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in spec if axis is not None)


def check_sharding(params, mesh: AnyMesh) -> None:
    """Reject meshes that save too little memory or split parameters into too narrow shards.

    Args:
        params: nested dicts of arrays or their shapes.
        mesh: mesh to check; with `fsdp` of 1 it is always accepted.

    Raises:
        UserError: more than 2 % of the bytes are in arrays over 1 MB that are replicated along `fsdp`, or more than
            half of the split bytes are in shards narrower than 128 and a smaller `fsdp` avoids that.
    """
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1:
        return
    rows = _rows(params, mesh)
    total = sum(size for _, _, size, _ in rows)
    whole = [(path, shape, size) for path, shape, size, spec in rows if size > LARGE_BYTES and "fsdp" not in spec]
    share = sum(size for _, _, size in whole) / total
    if share > MAX_REPLICATED:
        listed = ", ".join(f"{path} {shape}" for path, shape, _ in whole[:3])
        raise UserError(
            f"mesh.fsdp={fsdp} replicates {share:.0%} of the parameter bytes on every device (at most "
            f"{MAX_REPLICATED:.0%}), because it divides no axis of {listed}; use a divisor of the width: "
            f"{_candidates(params, fsdp)}"
        )
    if _narrow_share(rows, fsdp) > 0.5:
        wider = [n for n in range(fsdp - 1, 1, -1) if fsdp % n == 0 and _narrow_share(rows, n) <= 0.5]
        if wider:
            raise UserError(
                f"mesh.fsdp={fsdp} splits most parameters into shards narrower than {WIDE}, which turn into full "
                f"all-reduces; use mesh.fsdp={wider[0]}, and mesh.data for the remaining devices"
            )


def _narrow_share(rows, fsdp: int) -> float:
    """Return the share of the split bytes that would be in shards narrower than 128."""
    split = [(shape[list(spec).index("fsdp")] / fsdp, size) for _, shape, size, spec in rows if "fsdp" in spec]
    return sum(size for width, size in split if width < WIDE) / max(sum(size for _, size in split), 1)


def _candidates(params, fsdp: int) -> str:
    largest = max(jax.tree.leaves(params), key=lambda leaf: math.prod(leaf.shape)).shape
    sizes = sorted({n for size in largest[1:] for n in range(2, fsdp * 2) if size % n == 0})
    return ", ".join(map(str, sizes)) or "none"


def sharding_table(params, mesh: Mesh) -> str:
    """Format a text table of the parameters, how each is split, and its size per device."""
    rows = _rows(params, mesh)
    width = max(len(path) for path, *_ in rows)
    lines = ["mesh: " + ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())]
    lines.append(f"{'parameter':{width}s}  {'shape':>22s}  {'split':22s} {'per device':>12s}")
    for path, shape, size, spec in rows:
        split = ", ".join("-" if axis is None else axis for axis in spec) or "replicated"
        mib = size / _split(spec, mesh) / 2**20
        lines.append(f"{path:{width}s}  {'x'.join(map(str, shape)) or 'scalar':>22s}  {split:22s} {mib:8.2f} MiB")
    total = sum(size for _, _, size, _ in rows)
    local = device_bytes(params, mesh)
    whole = sum(size for _, _, size, spec in rows if _split(spec, mesh) == 1)
    lines.append(
        f"{total / 2**20:.1f} MiB in total, {local / 2**20:.1f} MiB per device, "
        f"{whole / total:.1%} of the bytes replicated on every device"
    )
    return "\n".join(lines)


def device_bytes(tree, mesh: AnyMesh) -> int:
    """Return the bytes of a tree on each device."""
    return int(np.ceil(sum(size / _split(spec, mesh) for _, _, size, spec in _rows(tree, mesh))))
