"""The mesh of devices, and which rows of a batch each process loads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from tubevit.data.pipeline import BatchShards
from tubevit.errors import UserError
from tubevit.models.placement import BATCH_AXES

AXES = (*BATCH_AXES, "tensor")


def mesh_shape(settings: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Sizes (data, fsdp, tensor) for a number of devices.

    Args:
        settings: `config.mesh`; one of the three may be -1, what is left.
        devices: in all slices.

    Raises:
        UserError: the sizes do not fit the devices or the slices.
    """
    sizes = {axis: settings[axis] for axis in AXES}
    given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad or settings.slices < 1:
        raise UserError(f"mesh.{bad[0] if bad else 'slices'} must be at least 1 (one of data, fsdp, tensor: -1)")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"only one size of the mesh may be -1; found {given}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if devices % fixed:
            raise UserError(f"mesh {given}: {fixed} does not divide the {devices} devices; {_fitting(devices)}")
        sizes[free[0]] = devices // fixed
    elif fixed > devices:
        raise UserError(f"mesh {given} needs {fixed} devices; found {devices}; {_fitting(devices)}")
    if sizes["data"] % settings.slices:
        raise UserError(f"mesh.data={sizes['data']} must be a multiple of mesh.slices={settings.slices}")
    return tuple(sizes[axis] for axis in AXES)


def _fitting(devices: int) -> str:
    return f"sizes that fit: {', '.join(str(n) for n in range(1, devices + 1) if devices % n == 0)}"


def make_mesh(settings: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) of `config.mesh`, of all devices of all processes.

    A single process may use the first of its devices only. With slices, data goes over them, as the network between
    slices is slow and gradients are all that is exchanged along `data`.

    Args:
        settings: `config.mesh`.
        devices: None takes those of this job; or those of a described topology.

    Raises:
        UserError: sizes do not fit the devices, or a row of the batch would be shared by processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(settings, len(devices))
    processes = len({device.process_index for device in devices})
    used = math.prod(shape)
    if used < len(devices) and processes > 1:
        raise UserError(
            f"mesh {shape} uses {used} of {len(devices)} devices, those of {processes} processes: set one to -1"
        )
    if settings.slices > 1:
        found = len({getattr(device, "slice_index", 0) for device in devices})
        if found != settings.slices:
            raise UserError(f"mesh.slices={settings.slices}, but the devices are in {found} slices")
        inner = (shape[0] // settings.slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inner, (settings.slices, 1, 1), devices)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices[:used])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over `data` and `fsdp`, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Use a mesh while a step is traced, so that `models.placement.place` splits activations; None uses none."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def local_rows(mesh: Mesh) -> BatchShards:
    """The parts of a batch that lie on this process's devices.

    Raises:
        UserError: a part lies on several processes, because `tensor` is larger than the devices of one.
    """
    grid = np.asarray(mesh.devices).reshape(batch_shards(mesh), -1)
    owners = [{device.process_index for device in row} for row in grid]
    if any(len(owner) > 1 for owner in owners):
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']} goes over several processes; it must divide the devices of one: "
            f"{len(mesh.local_devices)}"
        )
    own = jax.process_index()
    return BatchShards(tuple(i for i, owner in enumerate(owners) if own in owner), len(owners))


def global_batch(batch, mesh: Mesh):
    """This process's rows of a batch (arrays (b, ...), see `local_rows`) -> arrays (B, ...) over all devices."""
    sharding, rows = batch_sharding(mesh), local_rows(mesh)

    def place(local: np.ndarray):
        size = len(local) // len(rows.shards)
        start = {first: i * size for i, first in enumerate(shard * size for shard in rows.shards)}

        def part(index):
            first = start[index[0].start or 0]
            return local[first : first + size]

        return jax.make_array_from_callback((size * rows.count, *local.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def local_part(array: jax.Array) -> np.ndarray:
    """The inverse of `global_batch`: this process's rows of an array (B, ...) that is split over the batch axes."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def check_batch(name: str, batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError unless a batch divides over the mesh and into the parts that are accumulated."""
    unit = batch_shards(mesh) * accumulate
    if batch_size % unit:
        above = -(-batch_size // unit) * unit
        near = " or ".join(str(size) for size in (above - unit, above) if size)
        of = f"{batch_shards(mesh)} devices along data and fsdp" + (
            f" x train.grad_accum_steps={accumulate}" * (accumulate > 1)
        )
        raise UserError(f"data.train.{name}.batch_size={batch_size} must be a multiple of {unit} ({of}): {near}")
