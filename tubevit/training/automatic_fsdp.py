"""The mesh of a training run. Where `mesh.fsdp` is none, it is the smallest size with which the step fits in memory."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import ModelConfig
from tubevit.models.elastic import elastic_models
from tubevit.models.flops import activation_bytes
from tubevit.sharding.hosts import run_on_main
from tubevit.sharding.mesh import AXES, AnyMesh, batch_shards, is_automatic, make_mesh, mesh_shape
from tubevit.sharding.rules import check_sharding, device_bytes
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state

SHARE = 0.8  # of the memory; the rest is for what the estimate leaves out: batches, gathered weights, temporary arrays
_PIXEL = 8  # bytes that a replayed step has of each value: float32, and its gradient
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a training step needs on each device, by arithmetic.

    Attributes:
        state: parameters and moments; with `train.replay`, also those that a replayed step keeps, see `Replay`.
        gradients: gradients of the trained parameters, their sum over the devices, and the update; one more sum if
            gradients are accumulated.
        activations: what the encoder keeps of the device's part of the batch, see `activation_bytes`; with
            `train.replay`, also the pixels and their gradients.
    """

    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.state + self.gradients + self.activations

    def __str__(self) -> str:
        parts = (f"{field.name} {getattr(self, field.name) / _GIB:.2f}" for field in dataclasses.fields(self))
        return f"{self.total / _GIB:.2f} GiB ({', '.join(parts)})"


def training_mesh(
    config: ConfigDict, model: ModelConfig, devices: Sequence | None = None, memory: int | None = None
) -> tuple[Mesh, tuple[str, ...]]:
    """Make the mesh of a training run, and lines for the user if `mesh.fsdp` was chosen; every process calls it.

    Args:
        config: a resolved configuration.
        model: the model that it trains.
        devices: devices of the job by default, or those of a topology.
        memory: bytes of a device; by default as the devices report them. CPUs report none, and then fsdp is 1.

    Raises:
        UserError: the sizes do not fit the devices or the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    settings, notes = config.mesh, ()
    if is_automatic(settings):
        memory = memory or _device_memory()
        if memory is not None:
            # In one process, because devices may report slightly different numbers.
            fsdp, note = run_on_main(lambda: choose_fsdp(config, model, len(devices), memory))
            settings, notes = ConfigDict(settings.to_dict() | {"fsdp": fsdp}), (note,)
    return make_mesh(settings, devices), notes


def choose_fsdp(config: ConfigDict, model: ModelConfig, devices: int, memory: int) -> tuple[int, str]:
    """Choose the smallest fsdp size with which the step fits in `SHARE` of the memory; return it and the reason.

    If none does, it is the largest size that `check_sharding` accepts.

    Args:
        config: a resolved configuration with `mesh.data` of -1 and `mesh.fsdp` of none.
        model: the model that it trains.
        devices: number of devices in all slices.
        memory: bytes of a device.
    """
    state = jax.eval_shape(functools.partial(initial_state, model, make_optimizer(config), config.seed))
    estimates: dict[int, Estimate] = {}
    limit = f"of {memory / _GIB:.2f} GiB per device"
    for mesh in meshes_of(config.mesh, devices, abstract_parameters(model)):
        fsdp = mesh.shape["fsdp"]
        estimates[fsdp] = estimate(config, model, state, mesh)
        if estimates[fsdp].total <= SHARE * memory:
            return fsdp, f"mesh.fsdp={fsdp}, the smallest that fits: about {estimates[fsdp]} {limit}"
    fsdp, found = max(estimates.items())
    missing = (found.total - SHARE * memory) / _GIB
    return fsdp, (
        f"mesh.fsdp={fsdp}, the largest that splits the parameters well, may not fit: about {found} {limit}, "
        f"{missing:.2f} GiB more than {SHARE:.0%} of it; model.remat, train.grad_accum_steps or more devices help"
    )


def estimate(config: ConfigDict, model: ModelConfig, state: dict, mesh: AnyMesh) -> Estimate:
    """Estimate the memory of a training step; `state` holds the shapes of the training state."""
    heads, activations, parts = dict(model.heads), 0, config.train.grad_accum_steps
    # The pass of a smaller budget comes after that of the largest and adds little: compiled for a v5e, 4 blocks of B
    # need 2.34 GiB for 16 clips of k600 with 50 % and 100 %, and 2.30 GiB without.
    model = elastic_models(model, config.train.elastic)[-1]
    for dataset in config.data.train.values():
        shape = (1, *model.shape[1:]) if heads[dataset.head].modality == "image" else model.shape
        rows = math.ceil(dataset.batch_size / (batch_shards(mesh) * parts))
        activations += rows * activation_bytes(model, shape)
        if config.train.replay:
            activations += rows * _PIXEL * 3 * math.prod(shape)
    copies = 4 if parts > 1 else 3
    states = 1 if not config.train.replay else 2 if mesh.shape["data"] > 1 or mesh.size == 1 else 3
    return Estimate(states * device_bytes(state, mesh), copies * device_bytes(state["params"], mesh), activations)


def meshes_of(settings: ConfigDict, devices: int, params) -> Iterator[AbstractMesh]:
    """Yield the meshes with any fsdp that split the parameters well, by rising fsdp.

    Args:
        settings: `config.mesh`, with `fsdp` of none or 1.
        devices: number of devices in all slices.
        params: parameters or their shapes.

    Raises:
        UserError: the other sizes do not fit the devices or the slices.
    """
    data, _, tensor = mesh_shape(settings, devices)
    for fsdp in range(1, data // settings.slices + 1):
        if data // settings.slices % fsdp:
            continue
        mesh = AbstractMesh((data // fsdp, fsdp, tensor), AXES)
        try:
            check_sharding(params, mesh)
        except UserError:
            continue
        yield mesh


def _device_memory() -> int | None:
    statistics = jax.local_devices()[0].memory_stats()
    return statistics.get("bytes_limit") if statistics else None
