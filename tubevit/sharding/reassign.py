"""The same arrays on the same devices in another order, so that other devices compute the same rows."""

import functools

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding

from tubevit.sharding.checksum import spec_of, split_axes
from tubevit.sharding.mesh import AXES


def free_axis(mesh: Mesh) -> str | None:
    """Name the axis along which devices can change places: the first with several; None for a single device.

    Along `data` every device has a replica of the state, so that only the batch moves.
    """
    return next((axis for axis in AXES if mesh.shape[axis] > 1), None)


def shifts(mesh: Mesh) -> tuple[int, int, int]:
    """Choose three assignments, as the number of places by which devices move along `free_axis`.

    The first one is that of the mesh. By half of the axis, the rows come to another host where hosts have neighbouring
    parts. Of two devices, and of one, the third assignment is the first again.
    """
    axis = free_axis(mesh)
    size = 1 if axis is None else mesh.shape[axis]
    third = 0 if size < 3 else 1 if size > 3 else 2
    return 0, size // 2, third


def shifted_mesh(mesh: Mesh, shift: int) -> Mesh:
    """Return the mesh whose part i along `free_axis` is computed by the device that had part i - shift."""
    axis = free_axis(mesh)
    if axis is None or shift == 0:
        return mesh
    return Mesh(np.roll(mesh.devices, shift, axis=AXES.index(axis)), AXES, axis_types=mesh.axis_types)


def reassigned(tree, mesh: Mesh, shift: int):
    """Move a tree of arrays to `shifted_mesh`; its logical values stay the same. Every process calls it.

    What is replicated along `free_axis` stays where it is, without a copy: each device then reads its own replica.
    """
    axis, target = free_axis(mesh), shifted_mesh(mesh, shift)
    if target is mesh:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    moving = [i for i, leaf in enumerate(leaves) if axis in split_axes(leaf)]
    specs = tuple(spec_of(leaves[i]) for i in moving)
    moved = dict(zip(moving, _permuted([leaves[i] for i in moving], specs, mesh, axis, shift) if moving else ()))

    def rename(i: int, leaf: Array) -> Array:
        shards = [shard.data for shard in moved.get(i, leaf).addressable_shards]
        placement = NamedSharding(target, spec_of(leaf))
        return jax.make_array_from_single_device_arrays(leaf.shape, placement, shards)

    return structure.unflatten([rename(i, leaf) for i, leaf in enumerate(leaves)])


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _permuted(leaves: list[Array], specs: tuple, mesh: Mesh, axis: str, shift: int) -> list[Array]:
    size = mesh.shape[axis]
    pairs = [(part, (part - shift) % size) for part in range(size)]

    def send(leaves: list[Array]) -> list[Array]:
        return [lax.ppermute(leaf, axis, pairs) for leaf in leaves]

    shards = list(specs)
    return jax.shard_map(send, mesh=mesh, in_specs=(shards,), out_specs=shards, check_vma=False)(leaves)
