"""Silent corruption: now and then a step is computed twice, on other devices, and both results must be the same bits.

TPUs and hosts compute wrongly now and then without an error, or a bit in memory flips. The run would go on from it.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable

import clu.metrics
import jax
import numpy as np
from jax.sharding import Mesh

from tubevit.errors import RunError
from tubevit.sharding.checksum import checksum, odd_copies
from tubevit.sharding.hosts import run_on_main
from tubevit.sharding.reassign import reassigned, shifted_mesh, shifts
from tubevit.training.run.culprit import Computation, compute_alone, device_names, vote

logger = logging.getLogger(__name__)


class CorruptStep(RunError):
    """A step that was computed twice had two results. The message names the step, the device and its host."""


@dataclasses.dataclass
class Replay:
    """Compute every `every`-th step twice and compare the bits of the logits and of the new state.

    The second time, the rows are computed by other devices, half of the mesh's first axis away, from a batch that is
    sent again; state that is replicated over that axis is read from another replica. A single device computes
    everything itself. A replayed step keeps the old state until both results are there.

    Not every machine adds up gradients in the same order on other devices. This shows at the first replay, whose
    results then differ whenever they are computed, while no device differs from others when each computes alone. From
    then on, the same devices compute both times, which still finds errors that do not recur. A device that is wrong at
    random is found either way.

    Attributes:
        every: steps from one replay to the next; 0 disables them.
        mesh: the mesh of state and batch.
        make_step: mesh -> the checked step, see `tubevit.training.step.make_step`.
        place: sends a batch from the host to the devices of a mesh, see `global_batch`.
    """

    every: int
    mesh: Mesh
    make_step: Callable[[Mesh], Callable]
    place: Callable

    def __post_init__(self):
        self._shifts, self._proved = shifts(self.mesh), False
        self._steps: dict[Mesh, Callable] = {}

    def due(self, step: int) -> bool:
        """Whether a step, from 1, is to be computed twice."""
        return self.every > 0 and step % self.every == 0

    def __call__(self, step: int, state: dict, batch: dict, inputs: dict) -> tuple[dict, clu.metrics.Collection]:
        """Compute a step twice; return the new state and the metrics. Every process calls it.

        Args:
            step: the number of the step, from 1.
            state: the state before it.
            batch: its batch on the devices.
            inputs: the rows of this process on the host, from which the batch is placed again.

        Raises:
            CorruptStep: the results differ. In every process the text is the same.
        """
        _, shift, _ = self._shifts
        other = self._compute(shift, state, self._placed(shift, inputs))[2]
        new, metrics, first = self._compute(0, state, batch)
        ours = _is_finite(metrics)  # all processes compute it
        same, finite = first.agrees(other), run_on_main(lambda: ours)
        if same and finite:
            if not self._proved:
                devices = "other devices" if shift else "the same device"
                logger.info(f"step {step} was computed twice, the second time by {devices}: the same bits")
            self._proved = True
            return new, metrics
        found = "had another result" if not same else "is not finite"  # which hides differences
        logger.warning(f"step {step}: a replay {found}; looking for a device that computes wrongly")
        new = None  # looking needs its memory
        suspects, reason = self._look(state, inputs, [first, other], same)
        if not suspects and not reason:
            new, metrics, last = self._compute(0, state, batch)
            if last.agrees(first):
                return new, metrics
            same, reason = False, f"{self._unknown()}, as it had yet another result when it was computed again"
        found = f"{device_names(suspects)} {reason}" if suspects else reason
        results = "two results" if not same else "a result that is not finite"
        text = f"step {step} was computed twice with {results}: {found}; nothing of the step is saved"
        logger.warning(text)  # the run may end with another error, if its workdir is out of reach
        raise CorruptStep(text)

    def _look(self, state: dict, inputs: dict, runs: list[Computation], same: bool) -> tuple[set, str]:
        """Find the devices that may be wrong, and say why. The reason is "" if none of them has to be.

        What is not finite, but the same both times, is reported by the guard against it.
        """
        alone = functools.cache(lambda: compute_alone(state, runs, self.mesh, self._step))
        try:
            suspects, reason = self._blame(state, inputs, runs, alone)
            accepted = not suspects and (same or self._in_another_order(state, inputs, runs, alone))
            return suspects, "" if accepted else reason
        except (RunError, jax.errors.JaxRuntimeError) as error:  # the kind and the text differ between processes
            text = " ".join(str(error).split())[:200]
            failed = f"looking for it failed ({run_on_main(lambda: text)})"
        if same:
            logger.warning(f"whether a device computed wrongly is unknown, as {failed}")
        return set(), "" if same else f"{self._unknown()}, as {failed}"

    def _placed(self, shift: int, inputs: dict):
        return reassigned(self.place(inputs, self.mesh), self.mesh, shift)

    def _step(self, mesh: Mesh) -> Callable:
        if mesh not in self._steps:
            self._steps[mesh] = self.make_step(mesh)
        return self._steps[mesh]

    def _compute(self, shift: int, state: dict, batch) -> tuple[dict, clu.metrics.Collection, Computation]:
        """Compute a step on `shifted_mesh` from a batch that is there and a state that is on the mesh."""
        mesh = shifted_mesh(self.mesh, shift)
        new, metrics, rows = self._step(mesh)(reassigned(state, self.mesh, shift), batch)
        checksums = {name: checksum(tree, mesh) for name, tree in (rows | {"state": new}).items()}
        return new, metrics, Computation(mesh, batch, checksums)

    def _blame(
        self, state: dict, inputs: dict, runs: list[Computation], alone: Callable[[], set | None]
    ) -> tuple[set, str]:
        """Find the devices that may be wrong, and say why; they are none if the error left no trace on a device."""
        odd = odd_copies(checksum(state, self.mesh), self.mesh.devices)
        if odd:
            return odd, "had parameters or an optimizer state in memory that differ from those of the other devices"
        shift = self._shifts[2]
        runs.append(self._compute(shift, state, self._placed(shift, inputs))[2])
        for run in runs:
            run.checksums["batch"] = checksum(run.batch, run.mesh)
        odd = vote(runs, "batch")
        if odd:
            return odd, "had rows of the batch in memory that are not those of the host"
        odd = vote(runs, "logits")
        if odd:
            return odd, "computed other logits than the other devices"
        odd = vote(runs, "gradients") if "gradients" in runs[0].checksums else set()
        if len(odd) > 1:
            # Devices that share parameters may compute the gradients of their rows together; and in another order, as
            # long as it is not proved that other devices get the same bits.
            odd = alone() or (odd if self._proved or not self._shifts[1] else set())
        if odd:
            return odd, "computed other gradients of its rows than the other devices"
        odd = vote(runs, "state")
        # An error before the sum over devices is in all copies of the new state. One after it is in one copy, whose
        # devices share a place along `data`.
        places = {int(np.argwhere(self.mesh.devices == device)[0, 0]) for device in odd}
        if len(places) == 1 and (self.mesh.shape["data"] > 1 or self.mesh.size == 1):
            return odd, "had another update in memory than the other devices"
        if odd := alone():
            return odd, "computed another update than the others when each device computed alone"
        return set(), f"{self._unknown()}, as the error did not recur and its trace is in the sum over all of them"

    def _unknown(self) -> str:
        return f"which of the {self.mesh.size} devices was wrong is unknown"

    def _in_another_order(
        self, state: dict, inputs: dict, runs: list[Computation], alone: Callable[[], set | None]
    ) -> bool:
        """Whether other devices seem to add up in another order: both results recur. Then leave the rows in place."""
        if self._proved or not self._shifts[1]:
            return False
        again = (self._compute(shift, state, self._placed(shift, inputs))[2] for shift in self._shifts[:2])
        if not all(one.agrees(other) for one, other in zip(runs, again)):
            return False
        logger.warning(
            "train.replay: other devices add up gradients in another order on this machine; from now on the same "
            "devices compute a replay, which does not find a device that is always wrong in the same way"
            + ("; one may be wrong already, as none could compute alone" if alone() is None else "")
        )
        self._shifts, self._proved = (0, 0, 0), True
        return True


def _is_finite(metrics: clu.metrics.Collection) -> bool:
    return all(math.isfinite(value) for value in metrics.compute().values())
