"""Preflight with the real compilers for TPUs and GPUs, which `make test-extras` installs."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from tubevit.cli import main
from tubevit.preflight import devices
from tubevit.preflight.bundles import DUMP_FLAGS
from tubevit.preflight.run import preflight
from tubevit.preflight.topology import CHIPS, GIB, find_topology
from tubevit.tubes import PRESETS

NAMES = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from tubevit.preflight.devices import described_devices
from tubevit.preflight.topology import CHIPS, find_topology, topologies

counts, messages = {}, {}
for name in topologies():
    topology = find_topology(name)
    if not topology.is_gpu and topology.devices <= 1024:
        found = described_devices(topology, 1)
        counts[name] = [topology.devices, len(found)]
        if topology.devices == 4 or name == "tpu7x:2x2x1":
            one = SingleDeviceSharding(found[0])
            large = jax.ShapeDtypeStruct((2**36,), jnp.float32, sharding=one)
            try:
                jax.jit(lambda x: x * 2, out_shardings=one).lower(large).compile()
            except Exception as error:
                messages[topology.chip.name] = str(error)
json.dump([counts, messages], sys.stdout)
"""

KERNELS = """
import json, pathlib, sys
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding
from tubevit.preflight.bundles import kernel_bundles
from tubevit.preflight.costs import cycles
from tubevit.preflight.devices import described_devices
from tubevit.preflight.flops import flops
from tubevit.preflight.hlo import Program
from tubevit.preflight.topology import find_topology

one, found = SingleDeviceSharding(described_devices(find_topology(sys.argv[2]), 1)[0]), {}
for steps in (4, 6, 8):
    for loops in (2, 3, 5):
        def kernel(x, out):
            out[...] = jnp.zeros(out.shape, out.dtype)

            @pl.loop(0, loops)
            def _(i):
                out[...] += jnp.exp(x[...] * i)

        def call(x):
            block = pl.BlockSpec((64, 128), lambda i: (i, 0))
            cost = pl.CostEstimate(flops=10, transcendentals=0, bytes_accessed=0)
            return pl.pallas_call(kernel, out_shape=x, grid=(steps,), in_specs=[block], out_specs=block, cost_estimate=cost)(x)

        x = jax.ShapeDtypeStruct((64 * steps, 128), jnp.float32, sharding=one)
        step = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(call(x)), None), x, length=7)[0])
        for old in pathlib.Path(sys.argv[1]).iterdir():
            old.unlink()
        program = Program(step.lower(x).compile().as_text())
        (bundles,) = kernel_bundles(program, pathlib.Path(sys.argv[1])).values()
        _, of_kernels, uncounted = cycles(program, kernel_bundles(program, pathlib.Path(sys.argv[1])))
        found[f"{steps} {loops}"] = [bundles, of_kernels, uncounted, flops(program)]
json.dump(found, sys.stdout)
"""  # noqa: E501

SPLASH = """
import jax, jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tubevit.models.attention import attention
from tubevit.preflight.devices import described_devices
from tubevit.preflight.flops import flops
from tubevit.preflight.hlo import Program
from tubevit.preflight.topology import find_topology
from tubevit.sharding.mesh import using

device = described_devices(find_topology("v5e:2x2"), 1)[:1]
mesh = Mesh(np.array(device).reshape(1, 1, 1), ("data", "fsdp", "tensor"))

def loss(query, key, value):
    with using(mesh):
        return attention(query, key, value, "splash").astype(jnp.float32).sum()

x = jax.ShapeDtypeStruct((2, 3000, 4, 64), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
print(flops(Program(jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile().as_text())))
"""


def test_flops_of_splash_attention():
    """Its kernels declare none: 2 products forward, 7 backward, of 3,000 tokens padded to blocks of 512."""
    environment = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, "-c", SPLASH], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 9 * 2 * (2 * 4) * 3072**2 * 64


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_bundles_of_a_kernel(topology, tmp_path):
    """They grow linearly with the steps of the grid, those with the iterations of a loop, and scan repeats them."""
    flags = DUMP_FLAGS.format(folder=tmp_path)
    environment = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"LIBTPU_INIT_ARGS": flags}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", KERNELS, str(tmp_path), topology]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = {tuple(map(int, key.split())): value for key, value in json.loads(done.stdout).items()}
    assert all(row[1:] == [7 * row[0], 0, 7 * 10] for row in found.values())
    bundles = {key: row[0] for key, row in found.items()}
    for loops in (2, 3, 5):
        assert bundles[6, loops] - bundles[4, loops] == bundles[8, loops] - bundles[6, loops] > 0
    for steps in (4, 6, 8):
        one = bundles[steps, 3] - bundles[steps, 2]
        assert bundles[steps, 5] - bundles[steps, 3] == 2 * one > 0 and one % steps == 0


def test_the_compiler_knows_the_names_and_has_the_memory_of_the_table():
    environment = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, "-c", NAMES], env=environment, capture_output=True, text=True, check=True)
    counts, messages = json.loads(done.stdout)
    assert len(counts) > 40 and all(expected == found for expected, found in counts.values())
    assert set(messages) == {name for name, chip in CHIPS.items() if chip.platform == "tpu"}
    for name, message in messages.items():
        assert f"exceeds available HBM ({CHIPS[name].hbm / GIB:.2f}".rstrip("0") in message


ADAMW = {"optimizer.name": "adamw"}  # Muon has matrix products of its own, which the model's FLOPs do not count


def test_figures_of_a_small_model():
    """State over shards, FLOPs of the model, exchanges; the tokenizer and the encoder are parts of the step."""
    changes = ADAMW | {
        "mesh.fsdp": "2",
        "data.train.moving_digits.batch_size": "64",
        "data.train.still_digits.batch_size": "64",
    }
    found = preflight("quickstart", changes, find_topology("v5litepod-4"), effort="low")
    train = found["parts"]["train"]
    assert found["fits"] and found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and found["devices"] == 4
    assert train["flops"] == pytest.approx(found["model_flops"], rel=0.02)
    tubes = PRESETS["small"]
    pixels = 16 * (tubes.values_read((16, 64, 64)) + tubes.for_images().values_read((1, 64, 64)))  # of each device
    assert 1.0 < (train["arguments"] - pixels) / (3 * 4 * 700e3 / 2) < 2.0  # parameters and both moments, split by 2
    assert train["collectives"]["all-gather"]["bytes"] > 0 and train["unknown_loops"] == 0
    parts = found["parts"]
    assert 0 < parts["tokenizer"]["hbm_bytes"] < parts["encoder"]["hbm_bytes"] < train["hbm_bytes"]


MESHES = """
import json, sys
import jax
import numpy as np
from tubevit.config import default_config
from tubevit.preflight.devices import described_devices
from tubevit.preflight.topology import find_topology
from tubevit.sharding.mesh import make_mesh

rows = {}
for name in sys.argv[1:]:
    devices = described_devices(find_topology(name), 1)
    for fsdp in (2, 4, 8, 16):
        settings = default_config().mesh
        settings.fsdp = fsdp
        grid = make_mesh(settings, devices).devices
        rows[f"{name} {fsdp}"] = [list(grid.shape), [[d.coords for d in row] for row in grid[:, :, 0]]]
json.dump(rows, sys.stdout)
"""


def test_fsdp_may_be_a_part_of_a_physical_axis():
    """Every device once, and the devices that share parameters are in a line or a block of neighbours."""
    environment = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    names = ("v5e:4x4", "v5e:8x8", "v6e:16x16", "v5p:4x4x4")
    command = [sys.executable, "-c", MESHES, *names]
    rows = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(rows) == 4 * len(names)
    for case, (shape, groups) in rows.items():
        name, fsdp = case.split()
        assert shape == [find_topology(name).devices // int(fsdp), int(fsdp), 1]
        places = [tuple(place) for group in groups for place in group]
        assert len(set(places)) == find_topology(name).devices
        for group in groups:
            sides = [max(axis) - min(axis) + 1 for axis in zip(*group)]
            assert math.prod(sides) == int(fsdp), case


def test_the_size_of_fsdp_that_is_chosen_fits():
    """As README.md has it, without `mesh.fsdp`; the estimate is that of the compiler, or somewhat more."""
    found = preflight("k600:model=tubevit_h16", {}, find_topology("v5litepod-256"), ("train",), effort="low")
    fsdp = found["mesh"]["fsdp"]
    (note,) = (note for note in found["notes"] if note.startswith(f"mesh.fsdp={fsdp}, "))
    estimate = float(re.search(r"about ([\d.]+) GiB", note).group(1)) * GIB
    assert found["fits"] and fsdp > 1 and 0.9 < estimate / found["parts"]["train"]["peak"] < 1.5


def test_two_slices():
    changes = {"mesh.slices": "2", "data.train.moving_digits.batch_size": "64"}
    train = preflight("quickstart", changes, find_topology("v5e:2x2"), ("train",), effort="low")["parts"]["train"]
    between = train["collectives"]["all-reduce between slices"]
    assert 0 < between["bytes"] < 4 * 2e6 and train["estimate"]["slices"] > 0


def test_what_does_not_fit(capsys):
    assert main(["preflight", "--config", "k600:model=tubevit_l16", "--topology", "v5e:2x2", "--effort", "low"]) == 1
    out, err = capsys.readouterr()
    assert "DOES NOT FIT: train needs " in out and " of 15.75 GiB, " in out
    assert err.startswith("tubevit: k600:model=tubevit_l16 does not fit v5e:2x2: train needs ") and err.count("\n") == 1


def test_described_gpus():
    found = preflight("quickstart", ADAMW, find_topology("cuda:h100x8"))
    train = found["parts"]["train"]
    assert found["fits"] and found["devices"] == 8
    assert train["flops"] == pytest.approx(found["model_flops"], rel=0.02)
    assert train["collectives"]["all-reduce"]["bytes"] > 0
