"""Preflight with the real compilers for TPUs and GPUs, which `make test-extras` installs."""

import json
import os
import subprocess
import sys

import pytest

from tubevit.cli import main
from tubevit.preflight import devices
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


def test_the_compiler_knows_the_names_and_has_the_memory_of_the_table():
    environment = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, "-c", NAMES], env=environment, capture_output=True, text=True, check=True)
    counts, messages = json.loads(done.stdout)
    assert len(counts) > 40 and all(expected == found for expected, found in counts.values())
    assert set(messages) == {name for name, chip in CHIPS.items() if chip.platform == "tpu"}
    for name, message in messages.items():
        assert f"exceeds available HBM ({CHIPS[name].hbm / GIB:.2f}".rstrip("0") in message


def test_figures_of_a_small_model():
    """State over shards, FLOPs of the model, exchanges; the tokenizer and the encoder are parts of the step."""
    changes = {
        "mesh.fsdp": "2",
        "data.train.moving_digits.batch_size": "64",
        "data.train.still_digits.batch_size": "64",
    }
    found = preflight("quickstart", changes, find_topology("v5litepod-4"))
    train = found["parts"]["train"]
    assert found["fits"] and found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and found["devices"] == 4
    assert train["flops"] == pytest.approx(found["model_flops"], rel=0.02)
    tubes = PRESETS["small"]
    pixels = 16 * (tubes.values_read((16, 64, 64)) + tubes.for_images().values_read((1, 64, 64)))  # of each device
    assert 1.0 < (train["arguments"] - pixels) / (3 * 4 * 700e3 / 2) < 2.0  # parameters and both moments, split by 2
    assert train["collectives"]["all-gather"]["bytes"] > 0 and train["unknown_loops"] == 0
    parts = found["parts"]
    assert 0 < parts["tokenizer"]["hbm_bytes"] < parts["encoder"]["hbm_bytes"] < train["hbm_bytes"]


def test_huge_joint_training_on_256_chips():
    found = preflight("k600:model=tubevit_h16", {"mesh.fsdp": "16"}, find_topology("v5e:16x16"), ("train",))
    train = found["parts"]["train"]
    # 15 to 25 s on 2 cores that nothing else uses.
    assert found["fits"] and train["seconds"] < 120 and found["memory_of_compiler"] < 3e9
    assert train["flops"] == pytest.approx(found["model_flops"], rel=1e-3)
    state = 3 * 4 * 636e6 / 16  # a TPU pads the 80 numbers of a head to 128
    assert state < train["arguments"] < 1.3 * state
    gathered = train["collectives"]["all-gather"]["bytes"]
    assert gathered > 2 * 2 * 600e6  # bfloat16, forward and backward
    assert train["collectives"]["reduce-scatter"]["bytes"] > 2 * 600e6


def test_two_slices():
    changes = {"mesh.slices": "2", "data.train.moving_digits.batch_size": "64"}
    train = preflight("quickstart", changes, find_topology("v5e:2x2"), ("train",))["parts"]["train"]
    between = train["collectives"]["all-reduce between slices"]
    assert 0 < between["bytes"] < 4 * 2e6 and train["estimate"]["slices"] > 0


def test_what_does_not_fit(capsys):
    assert main(["preflight", "--config", "k600", "--topology", "v5e:2x2"]) == 1
    out, err = capsys.readouterr()
    assert "DOES NOT FIT: train needs " in out and " of 15.75 GiB, " in out
    assert err.startswith("tubevit: k600 does not fit v5e:2x2: train needs ") and err.count("\n") == 1


def test_described_gpus():
    found = preflight("quickstart", {}, find_topology("cuda:h100x8"))
    train = found["parts"]["train"]
    assert found["fits"] and found["devices"] == 8
    assert train["flops"] == pytest.approx(found["model_flops"], rel=0.02)
    assert train["collectives"]["all-reduce"]["bytes"] > 0
