"""One process of a job that flips a bit in 200 replays of one step; run by tests/extras/test_replay_hosts.py.

    python -m tests.replayed ADDRESS PROCESS OUT [COUNT]

It writes [{"kind", "device", "bit", "altered", "text"}] to OUT: what was flipped, whether the bits of the step's result
were other ones on any device of any process, by NumPy and without checksums, and the text of the error.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from flax import nnx

from tests import flips
from tests.tiny import get_config
from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.joint import joint_batches
from tubevit.models.tubevit import TubeViT
from tubevit.sharding import hosts
from tubevit.sharding.mesh import global_batch, local_rows, make_mesh
from tubevit.sharding.rules import shardings
from tubevit.training.optimizer import make_optimizer
from tubevit.training.run.replay import CorruptStep, Replay
from tubevit.training.step import initial_state, joint_loss, make_step

# Where a bit flips, and in which computations of a replayed step: 0 is the replay, 1 the step itself, None all of them,
# as on a device that is always wrong.
KINDS = (
    ("params", None), ("opt_state", None), ("batch", None), ("activation", 0), ("activation", 1), ("activation", None),
    ("gradient", 0), ("gradient", 1), ("cotangent", None), ("cotangent", 1),
)  # fmt: skip
IN_STEP = ("activation", "cotangent", "gradient")
LEAVES = ("encoder/blocks/mlp/up/kernel", "encoder/norm/scale", "heads/motion/kernel")  # sharded, and replicated


class FlippingModel(TubeViT):
    """The model, whose tokens, or their cotangents, flip a bit on one device."""

    mesh, codes = None, {}  # those of the step that is traced

    def tokenize(self, video, key=None):
        tokens, centres = super().tokenize(video, key)
        tokens = flips.computed(tokens, self.codes["activation"], self.mesh)
        return flips.computed(tokens, self.codes["cotangent"], self.mesh, backward=True), centres


class Job:
    """The step of a small model on all devices, its clean results, and the flip of the replay that runs."""

    def __init__(self):
        config = get_config()
        config.model.update(width=32, mlp_dim=512)
        config.mesh.update(data=4, fsdp=2)
        for dataset in config.data.train.values():
            dataset.batch_size = 8
        experiment = open_experiment(resolve(config))
        self.config, self.model, self.mesh = experiment.config, experiment.model, make_mesh(experiment.config.mesh)
        loads = {name: (load, 8) for name, load in experiment.train.items()}
        batches = joint_batches(loads, 0, shards=local_rows(self.mesh))
        part = next(batches)
        batches.close()
        self.inputs = {name: {key: rows[key] for key in ("pixels", "label")} for name, rows in part.items()}
        self.optimizer = make_optimizer(self.config)

        def make():
            state = initial_state(self.model, self.optimizer, 0)
            return state | {"step": state["step"] + 5}  # past the warm-up

        self.state = jax.jit(make, out_shardings=shardings(jax.eval_shape(make), self.mesh))()
        self.batch = global_batch(self.inputs, self.mesh)
        self.replay = Replay(1, self.mesh, self.make_step, global_batch)
        self.flip, self.when, self.results = None, None, []

    def make_step(self, mesh):
        graph = nnx.graphdef(nnx.eval_shape(lambda: FlippingModel(self.model, rngs=nnx.Rngs(0))))

        def loss(graph, params, frozen, batch, config, key):
            batch = dict(batch)
            codes = batch.pop("codes")
            FlippingModel.mesh, FlippingModel.codes = mesh, codes

            def flipped(path, leaf):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                if name not in LEAVES:
                    return leaf
                spec = shardings(params, mesh)
                for key in path:
                    spec = spec[key.key]
                code = codes["gradient"] * (codes["leaf"] == LEAVES.index(name))
                return flips.computed(leaf, code, mesh, spec.spec, backward=True)

            return joint_loss(graph, jax.tree_util.tree_map_with_path(flipped, params), frozen, batch, config, key)

        step = make_step(graph, self.optimizer, self.config, mesh, loss, checked=True)

        def run(state, batch):
            kind, device, leaf, *code = ("", 0, 0, 0, 0)
            if self.flip and self.when in (None, len(self.results)):
                kind, device, leaf, *code = self.flip
            given = {each: flips.codes(mesh, device, code if each == kind else flips.CLEAN) for each in IN_STEP}
            given["leaf"] = flips.codes(mesh, device, (leaf, leaf))
            new, metrics, rows = step(state, batch | {"codes": given})
            if mesh.size > 1:
                leaves = jax.tree.leaves((new, rows["logits"]))
                shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.device.id) for leaf in leaves]
                self.results.append([np.asarray(shard.data).tobytes() for leaf in shards for shard in leaf])
            return new, metrics, rows

        return run

    def try_one(self, state, batch, flip=None, when=None) -> str:
        """Replay the step; return the text of the error, "" without one."""
        self.flip, self.when, self.results = flip, when, []
        try:
            self.replay(7, state, batch, self.inputs)
        except CorruptStep as error:
            return str(error)
        return ""

    def flipped_memory(self, tree, device, number, bit):
        """A tree with a bit of one of its arrays flipped in the memory of one device."""
        leaves, structure = jax.tree.flatten(tree)
        place = number % len(leaves)
        leaves[place] = flips.in_memory(leaves[place], device, number, bit)
        return structure.unflatten(leaves)


def main(address: str, process: str, out: str, count: str = "200") -> None:
    hosts.start(address, 2, int(process))
    job, rng, found = Job(), np.random.default_rng(0), []
    job.state, _ = job.replay(6, job.state, job.batch, job.inputs)  # whose moments are not zero
    assert job.try_one(job.state, job.batch) == ""
    clean = job.results
    for number in range(int(count)):
        kind, when = KINDS[number % len(KINDS)]
        device, place, bit = jax.devices()[rng.integers(8)], int(rng.integers(2**20)), int(rng.integers(32))
        state, batch, flip = job.state, job.batch, None
        if kind in IN_STEP:
            flip = (kind, device.id, place % len(LEAVES), place, 1 << bit)
        elif kind == "batch":
            batch = job.flipped_memory(batch, device, place, bit)
        else:
            state = state | {kind: job.flipped_memory(state[kind], device, place, bit)}
        text = job.try_one(state, batch, flip, when)
        gathered = hosts.gather(job.results[:2] != clean)
        altered = hosts.run_on_main(lambda: any(gathered))  # noqa: B023 (called at once)
        found.append({"kind": kind, "when": when, "device": device.id, "process": device.process_index, "bit": bit,
                      "altered": altered, "text": text})  # fmt: skip
        print(found[-1], flush=True)
    pathlib.Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
