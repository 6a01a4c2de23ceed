"""Checksums of what each device holds, by which copies of one array on several devices are compared."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tubevit.sharding.hosts import run_on_main
from tubevit.sharding.mesh import AXES

# {axes that split an array: checksums (data, fsdp, tensor) of what each device has of all such arrays}
Checksums = dict[tuple[str, ...], np.ndarray]


def checksum(tree, mesh: Mesh) -> Checksums:
    """Compute a 32-bit checksum of the bytes that each device holds of a tree of sharded arrays.

    A changed element always changes the checksum of its device; other differences do with a probability of
    1 - 2^-32. Each device reads its own copy of what is replicated. Every process calls it, and all get what process 0
    has received.

    Args:
        tree: arrays with a NamedSharding of this mesh.
        mesh: its axes are data, fsdp and tensor.
    """
    found = local_checksum(tree, mesh)
    axes = list(found)
    values = run_on_main(lambda: [np.asarray(found[key]).tolist() for key in axes])
    return {key: np.asarray(value, np.uint32) for key, value in zip(axes, values, strict=True)}


def local_checksum(tree, mesh: Mesh) -> dict[tuple[str, ...], Array]:
    """Compute `checksum` on devices, for a mesh of which this process may have all devices."""
    groups: dict[tuple[str, ...], list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        groups.setdefault(split_axes(leaf), []).append(leaf)
    ordered = {axes: groups[axes] for axes in sorted(groups)}
    specs = tuple(tuple(spec_of(leaf) for leaf in leaves) for leaves in ordered.values())
    tables = _tables(list(ordered.values()), specs, mesh)
    return {axes: tables[..., i] for i, axes in enumerate(ordered)}


def spec_of(array: Array) -> PartitionSpec:
    """Return how an array with a NamedSharding is split."""
    assert isinstance(array.sharding, NamedSharding)
    return array.sharding.spec


def split_axes(array: Array) -> tuple[str, ...]:
    """List the axes of the mesh that split an array, in the order of the mesh."""
    named = [
        name
        for entry in spec_of(array)
        if entry is not None
        for name in (entry if isinstance(entry, tuple) else (entry,))
    ]
    return tuple(axis for axis in AXES if axis in named)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _tables(groups: list[list[Array]], specs: tuple, mesh: Mesh) -> Array:
    """Return (data, fsdp, tensor, groups) uint32, on every device."""

    def of_device(groups: list[list[Array]]) -> Array:
        values = [sum(_hash(leaf, i) for i, leaf in enumerate(leaves)) for leaves in groups]
        return jnp.stack(values).reshape(1, 1, 1, -1)

    # Nothing is exchanged before the hashes are there: replicas that differ are not made equal.
    hashed = jax.shard_map(
        of_device, mesh=mesh, in_specs=([list(each) for each in specs],), out_specs=PartitionSpec(*AXES),
        check_vma=False,
    )  # fmt: skip
    return lax.with_sharding_constraint(hashed(groups), NamedSharding(mesh, PartitionSpec()))


def _hash(leaf: Array, index: int) -> Array:
    """Sum the mixed elements modulo 2^32. Mixing is one to one, so that one changed element changes the sum."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    size = leaf.dtype.itemsize
    bits = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(size, 4)}")).astype(jnp.uint32).reshape(-1)
    positions = lax.iota(jnp.uint32, math.prod(bits.shape)) * np.uint32(0x9E3779B9)
    x = bits + positions + np.uint32(0x7F4A7C15 * (index + 1) % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finaliser of MurmurHash3
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return jnp.sum(x ^ (x >> np.uint32(16)), dtype=jnp.uint32)


def same(one: Checksums, other: Checksums) -> bool:
    """Whether two trees of the same shapes have the same bits in every part of their meshes."""
    return all(np.array_equal(one[axes], other[axes]) for axes in one)


def odd_copies(checksums: Checksums, devices: np.ndarray) -> set:
    """Find the devices whose copy of an array differs from the majority of its copies; all of them in a tie.

    Args:
        checksums: of a state, see `checksum`.
        devices: those of the mesh, (data, fsdp, tensor).
    """
    odd = set()
    for axes, table in checksums.items():
        split = [i for i, axis in enumerate(AXES) if axis in axes]
        others = [i for i in range(len(AXES)) if i not in split]
        count = math.prod(table.shape[i] for i in others)
        copies = table.transpose(split + others).reshape(-1, count)
        for values, holders in zip(copies, devices.transpose(split + others).reshape(-1, count), strict=True):
            odd |= minority([(holder, value) for holder, value in zip(holders, values)])
    return odd


def minority(found: Sequence[tuple]) -> set:
    """Find the devices that are wrong where several have computed or hold the same thing.

    A device that had two values is wrong; else those are whose value fewer devices have than another one; in a tie, all
    are suspect.

    Args:
        found: (device, value) of each computation.
    """
    by_value: dict = {}
    for device, value in found:
        by_value.setdefault(value, set()).add(device)
    if len(by_value) == 1:
        return set()
    holders = list(by_value.values())
    changing = {device for device, _ in found if sum(device in group for group in holders) > 1}
    if changing:
        return changing
    most = max(map(len, holders))
    if sum(len(group) == most for group in holders) > 1:
        return set().union(*holders)
    return set().union(*(group for group in holders if len(group) < most))
