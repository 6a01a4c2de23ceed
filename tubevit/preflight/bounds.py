"""What a training step needs at least on each device, by arithmetic. It tells which steps need no compile."""

import dataclasses

import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.models.elastic import models_of_largest_step
from tubevit.models.flops import activation_bytes, recomputed_flops, training_flops
from tubevit.preflight.topology import Chip
from tubevit.sharding.mesh import AXES
from tubevit.sharding.rules import device_bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """What a batch takes, on all devices together.

    Attributes:
        flops: FLOPs of the matrix products, with those of recomputation.
        kept: bytes of activations that the encoder keeps for the backward pass.
        itemsize: bytes of a number in the exchanges.
    """

    flops: int
    kept: int
    itemsize: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of the training state on each device, all in float32 but for moments.

    Attributes:
        state: all of it.
        trained: parameters that are trained, as large as their gradients.
        updated: all but the frozen parameters.
        remote: the part of the trained parameters that a device must gather.
        frozen: the same of the frozen ones.
    """

    state: int
    trained: int
    updated: int
    remote: int
    frozen: int


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Lower bounds of a training step on each device.

    Attributes:
        state: bytes of parameters and moments.
        gradients: bytes of the gradients of the trained parameters.
        activations: bytes that the encoder keeps for the backward pass of one part of the batch.
        accumulates: whether the sum of the gradients is there during the passes.
        compute: seconds of the matrix products at the peak.
        update: seconds in which the optimiser reads and writes at the bandwidth of the memory.
        network: seconds of the exchanges of parameters and gradients within a slice.
    """

    state: int
    gradients: int
    activations: int
    accumulates: bool
    compute: float
    update: float
    network: float

    @property
    def memory(self) -> int:
        """Bytes: activations are freed as gradients are made, but not before the sum of earlier gradients."""
        both = self.gradients + self.activations
        return self.state + (both if self.accumulates else max(self.gradients, self.activations))

    @property
    def seconds(self) -> float:
        """Exchanges may hide behind the products, but the optimiser follows them."""
        return max(self.compute + self.update, self.network)

    @property
    def in_turn(self) -> float:
        """Seconds if nothing overlaps; between steps with like bounds, it prefers those with fewer exchanges."""
        return self.compute + self.update + self.network

    def needs_no_less(self, other: "Bounds") -> bool:
        """Whether every part of the memory is as large as another step's."""
        parts = ("state", "gradients", "activations", "accumulates")
        return all(getattr(self, part) >= getattr(other, part) for part in parts)


def work_of(config: ConfigDict, model: ModelConfig) -> Work:
    """Count the work of a batch of a resolved configuration.

    With `train.elastic`, it is that of the step with the two largest budgets; what it keeps for their backward passes
    is at least what the largest one needs.
    """
    models = models_of_largest_step(model, config.train.elastic)
    heads, flops, kept = dict(model.heads), 0, 0
    # Other settings keep at least what `names` does; what is counted for them need not be kept.
    keeps = models[-1] if model.remat == "full" else models[-1].replace(remat="names")
    for dataset in config.data.train.values():
        shape = (1, *model.shape[1:]) if heads[dataset.head].modality == "image" else model.shape
        for each in models:
            flops += dataset.batch_size * (training_flops(each, shape, dataset.head) + recomputed_flops(each, shape))
        kept += dataset.batch_size * activation_bytes(keeps, shape)
    return Work(flops, kept, jnp.dtype(PRECISIONS[model.precision]).itemsize)


def sizes_of(state: dict, mesh: AbstractMesh) -> Sizes:
    """Count the bytes of a training state, given by its shapes, on a mesh."""
    data, _, tensor = (mesh.shape[axis] for axis in AXES)
    whole = AbstractMesh((data, 1, tensor), AXES)
    everything, frozen, trained = (device_bytes(tree, mesh) for tree in (state, state["frozen"], state["params"]))
    return Sizes(
        everything, trained, everything - frozen, device_bytes(state["params"], whole) - trained,
        device_bytes(state["frozen"], whole) - frozen,
    )  # fmt: skip


def bounds(work: Work, sizes: Sizes, mesh: AbstractMesh, parts: int, chip: Chip) -> Bounds:
    """Compute the bounds of a training step on a mesh; `parts` is the number of gradient accumulation steps."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    # The optimiser reads and writes its state and reads the gradients; each part adds to their sum.
    moved = 2 * sizes.updated + sizes.trained * (1 if parts == 1 else 1 + 2 * parts)
    # Each device gathers the parameters at least once, keeps its part of the gradients, and sums that over `data`.
    sent = 2 * sizes.remote + sizes.frozen + 2 * (data - 1) / data * sizes.trained
    return Bounds(
        state=sizes.state,
        gradients=sizes.trained,
        activations=work.kept // (data * fsdp * tensor * parts),
        accumulates=parts > 1,
        compute=work.flops / mesh.size / chip.flops,
        update=moved / chip.bandwidth,
        network=parts * sent * work.itemsize / 4 / chip.network,
    )
