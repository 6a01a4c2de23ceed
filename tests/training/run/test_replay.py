import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import flips
from tubevit.checkpoint.checkpoint import steps
from tubevit.config import default_config
from tubevit.errors import RunError
from tubevit.sharding.mesh import AXES, global_batch, make_mesh
from tubevit.sharding.reassign import reassigned, shifted_mesh
from tubevit.sharding.rules import put
from tubevit.training.loop import Parts
from tubevit.training.run.replay import CorruptStep, Replay
from tubevit.training.step import make_step

ROWS = {"x": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)}
KINDS = ("activation", "cotangent", "summand", "gradient")


class Machine:
    """A small model on eight devices, of which one may flip a bit in one of the computations of a step, or in all.

    Attributes:
        flip: (kind, device, index, mask), or None.
        when: the computations that have it, counted from 0 within a replay; None for all.
        ordered: whether sums over devices depend on their order.
    """

    def __init__(self, mesh, ordered=False):
        self.ordered = ordered
        self.mesh, self.flip, self.when, self.calls = mesh, None, None, 0
        rng = np.random.default_rng(1)
        # The bias is small, and is replicated over fsdp too.
        params = {"kernel": rng.normal(size=(24, 1024)), "bias": rng.normal(size=1024)}
        params = jax.tree.map(lambda x: x.astype(np.float32), params)
        self.state = put({"step": np.int32(0), "params": params, "opt_state": jax.tree.map(np.abs, params)}, mesh)
        self.batch = global_batch(ROWS, mesh)
        self.replay = Replay(1, mesh, self.make_step, global_batch)

    def make_step(self, mesh):
        def loss(params, x, codes):
            kernel = flips.computed(params["kernel"], codes["gradient"], mesh, self.spec, backward=True)
            y = product(x, kernel, codes["summand"], mesh) + params["bias"]
            y = flips.computed(y, codes["activation"], mesh)
            y = jnp.tanh(flips.computed(y, codes["cotangent"], mesh, backward=True))
            return jnp.mean(y**2), y.mean(axis=1)

        def step(state, batch, codes):
            (gradient, of_rows), means = jax.grad(loss, (0, 1), has_aux=True)(state["params"], batch["x"], codes)
            rows = {"logits": means, "gradients": of_rows}
            if self.ordered and mesh.size > 1:
                rows["gradients"] *= np.float32(1 + 1e-6 * mesh.devices.flat[0].id)
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
            moment = jax.tree.map(lambda m, g: 0.5 * m + g / norm, state["opt_state"], gradient)
            if self.ordered and mesh.size > 1:
                moment["bias"] *= np.float32(1 + 1e-6 * mesh.devices.flat[0].id)
            params = jax.tree.map(lambda p, m: p - m, state["params"], moment)
            new = {"step": state["step"] + 1, "params": params, "opt_state": moment}
            placed = jax.tree.map(lambda leaf: NamedSharding(mesh, leaf.sharding.spec), self.state)
            new = jax.lax.with_sharding_constraint(new, placed)
            return (
                new,
                norm,
                jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))),
            )

        compiled = jax.jit(step)

        def run(state, batch):
            kind, device, *code = self.flip if self.flip and self.when in (None, self.calls) else ("", 0, 0, 0)
            self.calls += 1
            given = {each: flips.codes(mesh, device, code if each == kind else flips.CLEAN) for each in KINDS}
            new, norm, rows = compiled(state, batch, given)
            return new, types.SimpleNamespace(compute=lambda: {"gradient_norm": norm}), rows

        return run

    @property
    def spec(self):
        return self.state["params"]["kernel"].sharding.spec

    def __call__(self, state=None, batch=None, flip=None, when=None):
        """The text of the error of a replay, "" without one."""
        self.flip, self.when, self.calls = flip, when, 0
        try:
            self.replay(7, state or self.state, batch or self.batch, ROWS)
        except CorruptStep as error:
            return str(error)
        return ""


def product(x, kernel, code, mesh):
    """`x @ kernel`, where a device reads a flipped bit of x for its part of the gradient of the kernel alone."""

    @jax.custom_vjp
    def multiply(x, kernel):
        return x @ kernel

    def backward(saved, cotangent):
        x, kernel = saved
        return cotangent @ kernel.T, flips.computed(x, code, mesh).T @ cotangent

    multiply.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), backward)
    return multiply(x, kernel)


def mesh_of(shape):
    settings = default_config().mesh
    settings.update(dict(zip(AXES, shape)))
    return make_mesh(settings, jax.devices()[: math.prod(shape)])


@pytest.fixture(scope="module", params=[(8, 1, 1), (4, 2, 1)], ids=str)
def machine(request):
    machine = Machine(mesh_of(request.param))
    assert machine() == ""
    return machine


def culprit(device):
    return f"step 7 was computed twice with two results: cpu device {device} of process 0 (host "


def named(text):
    """The devices that a message names."""
    return [int(number) for number in re.findall(r"cpu device (\d+)", text)]


def parts_of_copy(machine, device):
    """The devices that share a copy of the state with one: a wrong norm of the gradients changes all of its parts."""
    size = machine.mesh.shape["fsdp"]
    return list(range(device // size * size, (device // size + 1) * size))


@pytest.mark.parametrize(
    "group, name, device", [("params", "kernel", 0), ("params", "bias", 5), ("opt_state", "kernel", 7)]
)
def test_memory_of_the_state(machine, device, group, name):
    leaf = flips.in_memory(machine.state[group][name], jax.devices()[device], 77, 30)
    text = machine(machine.state | {group: machine.state[group] | {name: leaf}})
    assert text.startswith(culprit(device)) and "had parameters or an optimizer state in memory" in text


@pytest.mark.parametrize("device", [0, 5])
def test_memory_of_the_batch(machine, device):
    batch = {"x": flips.in_memory(machine.batch["x"], jax.devices()[device], 3, 30)}
    text = machine(batch=batch)
    assert text.startswith(culprit(device)) and "had rows of the batch in memory" in text


@pytest.mark.parametrize("device, when", [(0, 0), (5, 1), (2, None)], ids=str)
def test_activations(machine, device, when):
    text = machine(flip=("activation", device, 5, 1 << 30), when=when)
    assert text.startswith(culprit(device)) and "computed other logits" in text


@pytest.mark.parametrize("when", [0, 1, None], ids=str)
def test_gradients_after_the_sum(machine, when):
    text = machine(flip=("gradient", 3, 5, 1 << 30), when=when)
    assert named(text) == parts_of_copy(machine, 3) and "another update" in text


@pytest.mark.parametrize("when", [0, 1, None], ids=str)
def test_gradients_of_rows(machine, when):
    text = machine(flip=("cotangent", 6, 5, 1 << 25), when=when)
    assert text.startswith(culprit(6)) and "computed other gradients of its rows" in text


@pytest.mark.parametrize("bit", [25, 30])
def test_summands_of_a_gradient_where_they_recur(machine, bit):
    """They are in the sum of all devices, and in no row. Bit 30 makes the norm infinite, and the update 0."""
    text = machine(flip=("summand", 6, 5, 1 << bit))
    results = "two results" if bit == 25 else "a result that is not finite"
    assert text.startswith(culprit(6).replace("two results", results)) and "when each device computed alone" in text


@pytest.mark.parametrize("when", [0, 1])
def test_summands_of_a_gradient_that_do_not_recur(machine, when):
    """They are found, but without a name."""
    text = machine(flip=("summand", 6, 5, 1 << 25), when=when)
    assert "which of the 8 devices was wrong is unknown" in text


def test_where_other_devices_add_up_in_another_order(machine, caplog):
    """The first replay notices it; then the same devices compute both times, and find what does not recur."""
    machine = Machine(machine.mesh, ordered=True)
    assert machine() == "" and "in another order" in caplog.text
    caplog.clear()
    assert machine() == "" and not caplog.text
    text = machine(flip=("activation", 5, 5, 1 << 30), when=1)
    assert text.startswith(culprit(5)) and "computed other logits" in text
    text = machine(flip=("gradient", 3, 5, 1 << 30), when=0)
    assert named(text) == parts_of_copy(machine, 3) and "another update" in text


@pytest.mark.parametrize("left", [2, 3])
def test_when_looking_fails(machine, left):
    """For example without memory for a further computation: the difference counts nevertheless."""
    limited = Machine(machine.mesh)

    def without_memory(mesh):
        compiled = limited.make_step(mesh)

        def run(state, batch):
            if limited.calls >= left:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return compiled(state, batch)

        return run

    limited.replay = Replay(1, machine.mesh, without_memory, global_batch)
    text = limited(flip=("summand", 6, 5, 1 << 25), when=0)
    unknown = "which of the 8 devices was wrong is unknown, as looking for it failed"
    assert f"{unknown} (RESOURCE_EXHAUSTED: out of memory)" in text


def test_another_order_where_none_can_compute_alone(machine, caplog):
    """Then a device that is always wrong in the same way cannot be told from another order."""
    ordered = Machine(machine.mesh, ordered=True)

    def make_step(mesh):
        if mesh.size == 1:
            raise RunError("the state does not fit")
        return ordered.make_step(mesh)

    ordered.replay = Replay(1, machine.mesh, make_step, global_batch)
    assert ordered() == "" and "one may be wrong already, as none could compute alone" in caplog.text


def test_what_is_kept_is_what_was_compared(machine):
    """Where the order of sums is accepted, the step is computed once more: a wrong bit in that is found as well."""
    ordered, whole = Machine(machine.mesh, ordered=True), []

    def make_step(mesh):
        compiled = ordered.make_step(mesh)

        def run(state, batch):
            whole.extend([mesh] * (mesh.size > 1))
            ordered.flip = ("activation", 5, 5, 1 << 30) if mesh.size > 1 and len(whole) == 6 else None
            return compiled(state, batch)

        return run

    ordered.replay = Replay(1, machine.mesh, make_step, global_batch)
    assert "is unknown, as it had yet another result when it was computed again" in ordered()
    assert len(whole) == 6 and ordered() == ""


def test_what_is_not_part_of_the_step_is_not_found(machine):
    """A flip that changes no bit of the result."""
    assert machine(flip=("activation", 2, 5, 0)) == ""


def test_new_state_is_that_of_one_computation(machine):
    machine.flip = None
    new, _ = machine.replay(1, machine.state, machine.batch, ROWS)
    expected, _, _ = machine.make_step(machine.mesh)(machine.state, machine.batch)
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(machine.state))


def test_the_same_values_on_other_devices(machine):
    for shift in (1, 2):
        moved = reassigned({"batch": machine.batch, "state": machine.state}, machine.mesh, shift)
        jax.tree.map(np.testing.assert_array_equal, moved, {"batch": machine.batch, "state": machine.state})
        owners = shifted_mesh(machine.mesh, shift).devices.reshape(-1)
        rows = {shard.index[0].start or 0: shard.device for shard in moved["batch"]["x"].addressable_shards}
        assert [rows[part * 2] for part in range(8)] == list(owners)
        assert not (owners == machine.mesh.devices.reshape(-1)).any()


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 8), (2, 1, 1), (3, 1, 1)], ids=str)
def test_what_moves_to_other_devices(shape):
    """What is split along the axis that is shifted is sent; of what is not, each device reads its own replica."""
    mesh = mesh_of(shape)
    axis, size = next((name, size) for name, size in zip(AXES, shape) if size > 1)
    values = np.arange(48).reshape(24, 2)
    split, whole = (jax.device_put(values, NamedSharding(mesh, PartitionSpec(part))) for part in (axis, None))
    for shift in range(1, size):
        moved = reassigned({"split": split, "whole": whole}, mesh, shift)
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, values), moved)
        for shard in moved["split"].addressable_shards:
            (place,) = np.argwhere(mesh.devices == shard.device)
            part = (place[AXES.index(axis)] + shift) % size
            assert shard.index[0] == slice(part * 24 // size, (part + 1) * 24 // size)
            np.testing.assert_array_equal(shard.data, values[shard.index])
        pointers = [{shard.device: shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}
                    for leaf in (whole, moved["whole"])]  # fmt: skip
        assert pointers[0] == pointers[1]


@pytest.mark.parametrize(
    "shape, when, found", [((1, 8, 1), None, [1]), ((2, 1, 1), 1, [1]), ((2, 1, 1), None, [0, 1])], ids=str
)
def test_culprits_of_other_meshes(shape, when, found):
    """Without `data`, parts of the state move too; of two devices, one that is always wrong cannot be told."""
    machine = Machine(mesh_of(shape))
    assert machine() == ""
    text = machine(flip=("activation", 1, 5, 1 << 30), when=when)
    assert named(text) == found and "computed other logits" in text


def wrong_once(step):
    """`make_step` for runs in which the first computation of a step reads a flipped bit of the parameters."""
    left = [step]

    def make(graph, optimizer, config, mesh, checked=False):
        compiled = make_step(graph, optimizer, config, mesh, checked=checked)

        def run(state, batch):
            if int(state["step"]) + 1 in left:
                left.clear()
                leaves, structure = jax.tree.flatten(state["params"])
                leaves[0] = flips.in_memory(leaves[0], jax.devices()[0], 0, 30)
                state = state | {"params": structure.unflatten(leaves)}
            return compiled(state, batch)

        return run if checked else compiled

    return make


def test_a_run_stops_and_resumes_from_the_last_good_checkpoint(tiny_run, train_tiny, read_arrays, capsys, tmp_path):
    """Of a single device, which computes both times."""
    parts = Parts(make_step=wrong_once(6), make_evaluation=lambda experiment, mesh: lambda state: {})
    settings = {"train.replay": 3, "checkpoint.every": 1, "checkpoint.keep": 1, "log.every": 9}
    message = r"step 6 was computed twice .* cpu device 0 of process 0 \(host .*the last good checkpoint is step 3,"
    with pytest.raises(RunError, match=message):
        train_tiny(tmp_path, parts, **settings)
    folder = tmp_path / "checkpoints"
    assert steps(folder) == [3, 5]  # 3 had a clean replay
    train_tiny(tmp_path, parts, **settings)
    lines = capsys.readouterr().err.splitlines()
    assert any("checkpoint 5" in line and "is suspect" in line and "resuming from step 3" in line for line in lines)
    assert {path.name for path in folder.iterdir()} == {"5.suspect", "9"}
    assert read_arrays(tmp_path, 9) == read_arrays(tiny_run, 9)  # which had no replays
