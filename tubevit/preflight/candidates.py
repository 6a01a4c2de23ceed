"""The ways to run an experiment that leave its result as it is: slices, meshes, accumulation, remat and attention."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from tubevit.config.resolve import Resolved
from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.preflight.bounds import Bounds, Sizes, bounds, sizes_of, work_of
from tubevit.preflight.topology import CHIPS, SHAPES, Topology, accelerator_types, find_topology
from tubevit.sharding.mesh import AXES, batch_shards, mesh_shape
from tubevit.sharding.rules import check_sharding
from tubevit.training.automatic_fsdp import meshes_of
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state

PARTS, REMAT, ATTENTION = "train.grad_accum_steps", "model.remat", "model.attention"
SEARCHED = {REMAT: ("names", "full"), ATTENTION: ("auto", "einsum")}  # beside the experiment's own value


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run an experiment.

    Attributes:
        topology: name of the slice.
        chip: generation of the chip.
        devices: number of devices in all slices.
        mesh: sizes (data, fsdp, tensor).
        grad_accum_steps: parts of a batch.
        remat: see `ModelConfig`.
        attention: see `ModelConfig`.
        rows: clips and images of a device in each part of a batch.
        bounds: what a step needs at least.
    """

    topology: str
    chip: str
    devices: int
    mesh: tuple[int, int, int]
    grad_accum_steps: int
    remat: str
    attention: str
    rows: int
    bounds: Bounds

    def __str__(self) -> str:
        changed = " ".join(f"{key}={value}" for key, value in self.overrides.items())
        return f"{self.topology} {changed}"

    @property
    def only_fsdp(self) -> bool:
        """Whether FSDP takes all devices: XLA then computes gradients in small pieces, which takes longer."""
        return self.mesh[1] > 1 and self.mesh[0] == self.mesh[2] == 1

    @property
    def overrides(self) -> dict[str, str]:
        """The keys that make an experiment this candidate."""
        values = {"mesh.fsdp": self.mesh[1], PARTS: self.grad_accum_steps, REMAT: self.remat, ATTENTION: self.attention}
        return {key: str(value) for key, value in values.items()}


def slices_of(names: str, chips: int) -> list[Topology]:
    """List the slices that `v5e,v6e:4x4` names: of a generation of TPUs, all with up to `chips` chips.

    Raises UserError for an unknown name, for GPUs, and for TPU7x, whose clock is not published.
    """
    planned = [name for name, chip in CHIPS.items() if chip.clock]
    found: dict[str, Topology] = {}
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        shapes = [f"{name}:{shape}" for shape in SHAPES.get(name, ())] or [name]
        for topology in map(find_topology, shapes):
            if topology.chip.name not in planned:
                raise UserError(
                    f"--plan compares cycles, which are known for {', '.join(planned)}; found {topology.name}"
                )
            if topology.devices <= chips or name not in SHAPES:
                found[topology.name] = topology
    if not found:
        raise UserError(f"--topology {names!r} with --chips {chips} has no slice; expected for example v5e,v6e")
    return list(found.values())


def accelerator_type(topology: str) -> str:
    """Return gcloud's accelerator type of a topology."""
    return next(kind for kind, name in accelerator_types().items() if name == topology)


def candidates(
    plan: Resolved, slices: Sequence[Topology], fixed: Mapping[str, str]
) -> tuple[list[Candidate], dict[str, str]]:
    """List all candidates of a resolved experiment.

    Args:
        plan: the experiment.
        slices: the slices that may be used.
        fixed: keys that keep their values, those that the user set.

    Returns:
        The candidates, and {name of a slice that has none: the reason}.
    """
    state = jax.eval_shape(lambda: initial_state(plan.model, make_optimizer(plan.config), plan.config.seed))
    models = [
        plan.model.replace(remat=remat, attention=attention)
        for remat in _values(REMAT, plan.model.remat, fixed)
        for attention in _values(ATTENTION, plan.model.attention, fixed)
    ]
    work = {model: work_of(plan.config, model) for model in models}
    batches = {name: dataset.batch_size for name, dataset in plan.config.data.train.items()}
    sizes: dict[AbstractMesh, Sizes] = {}
    found, without = [], {}
    for topology in slices:
        devices, before = topology.devices * plan.config.mesh.slices, len(found)
        try:
            meshes = list(_meshes(plan, devices, fixed))
        except UserError as error:
            without[topology.name] = str(error)
            continue
        for mesh in meshes:
            sizes[mesh] = sizes.get(mesh) or sizes_of(state, mesh)
            most, rest = divmod(math.gcd(*batches.values()), batch_shards(mesh))
            parts_of = [n for n in range(1, most + 1) if most % n == 0 and not rest]
            if PARTS in fixed:
                parts_of = [n for n in parts_of if n == plan.config.train.grad_accum_steps]
            found += [
                Candidate(
                    topology.name, topology.chip.name, devices, tuple(mesh.shape[axis] for axis in AXES), parts,
                    model.remat, model.attention, sum(batches.values()) // (batch_shards(mesh) * parts),
                    bounds(work[model], sizes[mesh], mesh, parts, topology.chip),
                )
                for parts in parts_of for model in models
            ]  # fmt: skip
        if len(found) == before:
            listed = " and ".join(f"{size} of {name}" for name, size in batches.items())
            parts = f" in {plan.config.train.grad_accum_steps} parts" if PARTS in fixed else ""
            without[topology.name] = f"the batches, {listed}, do not divide over its {devices} devices{parts}"
    return found, without


def _values(key: str, own: str, fixed: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys([own, *(() if key in fixed else SEARCHED[key])]))


def _meshes(plan: Resolved, devices: int, fixed: Mapping[str, str]) -> Iterator[AbstractMesh]:
    """Yield the meshes of a number of devices: with any fsdp, or with the sizes that the user set.

    Raises UserError if the sizes that the user set do not fit so many devices.
    """
    settings, params = plan.config.mesh, abstract_parameters(plan.model)
    if not {"mesh.fsdp", "mesh.data"} & set(fixed):
        yield from meshes_of(ConfigDict(settings.to_dict() | {"data": -1, "fsdp": None}), devices, params)
        return
    mesh = AbstractMesh(mesh_shape(settings, devices), AXES)
    check_sharding(params, mesh)
    if mesh.size != devices:
        raise UserError(f"mesh.data, mesh.fsdp and mesh.tensor make a mesh of {mesh.size} of its {devices} devices")
    yield mesh
