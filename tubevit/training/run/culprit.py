"""The device that computed wrongly, found from computations of one step by different devices."""

import dataclasses
import logging
import socket
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tubevit.errors import RunError
from tubevit.sharding.checksum import Checksums, local_checksum, minority, same, split_axes
from tubevit.sharding.hosts import gather, run_on_all, run_on_main
from tubevit.sharding.mesh import AXES

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A step as it was computed by one assignment of its rows to devices.

    Attributes:
        mesh: the devices in the order of the rows.
        batch: the batch on them.
        checksums: {"logits", "gradients" (see `make_step`), "state": the checksums of what each device got}, and of
            "batch" if it is asked for.
    """

    mesh: Mesh
    batch: dict
    checksums: dict[str, Checksums]

    def agrees(self, other: "Computation") -> bool:
        """Whether both have the same bits, part by part, whichever devices computed them."""
        return all(same(self.checksums[name], other.checksums[name]) for name in ("logits", "state"))


def vote(runs: Sequence[Computation], name: str) -> set:
    """Find the devices that differ from others which computed the same part, see `minority`."""
    odd = set()
    for axes in runs[0].checksums[name]:
        for part in np.ndindex(runs[0].mesh.devices.shape):
            odd |= minority([(run.mesh.devices[part], int(run.checksums[name][axes][part])) for run in runs])
    return odd


def compute_alone(
    state: dict, runs: Sequence[Computation], mesh: Mesh, make_step: Callable[[Mesh], Callable]
) -> set | None:
    """Let each device compute alone the rows that it had in each of the runs; return those that differ from others.

    Nothing is added up over devices, so that an error that recurs is seen on its device alone. Every process calls it.
    It needs memory for the whole state on each device; without it the result is None.

    Args:
        state: the state before the step, on `mesh`.
        runs: the computations, with their batches.
        mesh: the mesh of the state.
        make_step: mesh -> the checked step, which is compiled once; called for meshes of one device.
    """
    try:
        if any(split_axes(leaf) for leaf in jax.tree.leaves(state)):
            state = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
        found = gather(run_on_all(lambda: _local_results(state, runs, make_step)))
    except (RunError, jax.errors.JaxRuntimeError) as error:
        logger.warning(f"no device could compute alone: {error}")
        return None
    devices = {device.id: device for device in mesh.devices.flat}
    parts: dict[tuple, list] = {}
    for part, device, values in run_on_main(lambda: [result for results in found for result in results]):
        parts.setdefault(tuple(part), []).append((devices[device], tuple(values)))
    return set().union(*map(minority, parts.values()))


def _local_results(state: dict, runs: Sequence[Computation], make_step: Callable[[Mesh], Callable]) -> list:
    """Compute with each device of this process; return [part, id of the device, checksums] of each computation."""
    results = []
    for run in runs:
        for part, device in np.ndenumerate(run.mesh.devices):
            if device.process_index == jax.process_index():
                alone = Mesh(np.reshape(device, (1,) * len(AXES)), AXES, axis_types=run.mesh.axis_types)
                new, _, rows = make_step(alone)(_on(device, state, alone), _on(device, run.batch, alone))
                checksums = local_checksum({"state": new, "rows": rows}, alone)
                results.append([part, device.id, [int(table[0, 0, 0]) for table in checksums.values()]])
    return results


def _on(device, tree, alone: Mesh):
    """Return what a device holds of each array, as whole arrays of a mesh of that device."""

    def own(leaf):
        (data,) = [shard.data for shard in leaf.addressable_shards if shard.device == device]
        return jax.make_array_from_single_device_arrays(data.shape, NamedSharding(alone, PartitionSpec()), [data])

    return jax.tree.map(own, tree)


def device_names(devices: set) -> str:
    """Name one or more devices with their processes and hosts. Every process calls it."""
    gathered = gather(socket.gethostname())
    hosts = run_on_main(lambda: gathered)
    ordered = sorted(devices, key=lambda device: device.id)
    names = [
        f"{device.platform} device {device.id} of process {device.process_index} (host {hosts[device.process_index]})"
        for device in ordered
    ]
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
