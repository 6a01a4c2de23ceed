"""The mesh of devices, and the rows of a batch that each process loads."""

import contextlib
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from tubevit.data.pipeline import BatchShards
from tubevit.errors import UserError
from tubevit.models.placement import BATCH_AXES

AXES = (*BATCH_AXES, "tensor")
AnyMesh = Mesh | AbstractMesh  # with these axes, where only their sizes are read


def mesh_shape(settings: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Compute the sizes (data, fsdp, tensor) for a number of devices.

    Args:
        settings: `config.mesh`; one of the three sizes may be -1, which takes the remaining devices. An fsdp of none
            counts as 1; a training run replaces it before, see `tubevit.training.automatic_fsdp`.
        devices: number of devices in all slices.

    Raises:
        UserError: the sizes do not fit the devices or the slices.
    """
    sizes = {axis: settings[axis] for axis in AXES} | {"fsdp": 1 if settings.fsdp is None else settings.fsdp}
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
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def is_automatic(settings: ConfigDict) -> bool:
    """Whether the program chooses the size of fsdp: it is none, and data takes the remaining devices."""
    return settings.fsdp is None and settings.data == -1


def _fitting(devices: int) -> str:
    return f"sizes that fit: {', '.join(str(n) for n in range(1, devices + 1) if devices % n == 0)}"


def make_mesh(settings: ConfigDict, devices: Sequence | None = None) -> Mesh:
    """Make the mesh (data, fsdp, tensor) over all devices of all processes.

    A single process may use only its first devices. `data` goes over the slices, because the network between slices is
    slow and only gradients are exchanged along `data`. An axis may be a part of a physical axis, such as 4 of the 8
    chips in a row of v5e:8x8; these are a line, without the link that closes the ring.

    Args:
        settings: `config.mesh`.
        devices: devices of the job by default, or those of a topology.

    Raises:
        UserError: the sizes do not fit the devices or the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(settings, len(devices))
    processes = len({device.process_index for device in devices})
    used = math.prod(shape)
    if used < len(devices) and processes > 1:
        raise UserError(
            f"mesh {shape} uses {used} of the {len(devices)} devices of {processes} processes; set one size to -1"
        )
    if settings.slices > 1:
        found = len({getattr(device, "slice_index", 0) for device in devices})
        if found != settings.slices:
            raise UserError(f"mesh.slices={settings.slices}, but the devices are in {found} slices")
        inner = (shape[0] // settings.slices, *shape[1:])
        outer = (settings.slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices[:used], allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: AnyMesh) -> int:
    """Return the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: the first axis over `data` and `fsdp`, other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Use a mesh while a step is traced, so that `models.placement.place` splits activations; None uses none."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def local_rows(mesh: Mesh) -> BatchShards:
    """Return the parts of a batch on the devices of this process; raises UserError if processes share a part."""
    grid = np.asarray(mesh.devices).reshape(batch_shards(mesh), -1)
    owners = [{device.process_index for device in row} for row in grid]
    if any(len(owner) > 1 for owner in owners):
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']} spans several processes; it must divide the number of devices of a "
            f"process: {len(mesh.local_devices)}"
        )
    own = jax.process_index()
    return BatchShards(tuple(i for i, owner in enumerate(owners) if own in owner), len(owners))


def global_batch(batch, mesh: Mesh):
    """Assemble arrays (B, ...) over all devices from the rows (b, ...) of each process, see `local_rows`."""
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
    """Return the rows of this process of an array (B, ...) that is split over the batch axes, see `global_batch`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def check_batch(name: str, batch_size: int, grad_accum_steps: int, mesh: Mesh) -> None:
    """Raise UserError unless the batch size is a multiple of the parts over the mesh and the accumulation steps."""
    unit = batch_shards(mesh) * grad_accum_steps
    if batch_size % unit:
        below = batch_size // unit * unit
        near = f"{below} or {below + unit}" if below else str(unit)
        factors = f"{batch_shards(mesh)} devices along data and fsdp"
        if grad_accum_steps > 1:
            factors += f" x train.grad_accum_steps={grad_accum_steps}"
        raise UserError(
            f"data.train.{name}.batch_size must be a multiple of {unit} ({factors}); found {batch_size}; use {near}"
        )
