"""Products of 8-bit integers: the reference with rounded operands, the released models, and the program for TPUs."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tubevit
from tubevit.cli import main
from tubevit.data.moving_digits import make_moving_digits
from tubevit.data.sources.embedded import embedded_folder
from tubevit.models.int8 import int8_dot_general
from tubevit.preflight import devices
from tubevit.zoo.registry import read_index

PROGRAM = """
import sys
import jax, jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import abstract_parameters
from tubevit.models.variants import model_config
from tubevit.preflight.devices import described_devices
from tubevit.preflight.topology import find_topology
from tubevit.sharding.mesh import AXES

device = described_devices(find_topology("v5e:2x2"), 1)[:1]
mesh = Mesh(np.array(device).reshape(1, 1, 1), AXES)
everywhere = NamedSharding(mesh, PartitionSpec())
sizes = dict(depth=2, width=384, num_heads=6, mlp_dim=1536, frames=16, size=64, tubes="small")
config = model_config("tubevit_s16", num_classes=5, precision="bfloat16", quantize=sys.argv[1], **sizes)
params = jax.tree.map(lambda x: x.update(sharding=everywhere), abstract_parameters(config))
clips = jax.ShapeDtypeStruct((8, 1, *config.shape, 3), jnp.uint8, sharding=everywhere)
print(make_forward(config, "default", mesh).lower(params, clips).compile().as_text())
"""


def turned(x, axes):
    """Turn signs so that the largest magnitude over `axes` is positive: -127.5 becomes -127 or -128, 127.5 only 127."""
    largest = np.abs(x) == np.abs(x).max(axis=axes, keepdims=True)
    return x * np.sign((x * largest).sum(axis=axes, keepdims=True))


def rounded(x, axes):
    """Round as Qwix does, with a scale at which the largest magnitude over `axes` is 127.5."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / 127.5
    return np.clip(np.round(x / scale), -128, 127) * scale


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_equals_the_product_of_rounded_operands(dtype, tolerance):
    """Over one axis, as in `qkv`, and over two, as in `out`."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 4, 6)), rng.normal(size=(4, 6, 5)) * np.exp(rng.normal(size=5))
    for axes, flat in ((((1, 2), (0, 1)), "nhd,hde->ne"), (((2,), (1,)), "nhd,kde->nhke")):
        operands = [jnp.asarray(turned(*each), dtype) for each in zip(values, axes)]
        found = int8_dot_general(*operands, (axes, ((), ())))
        expected = np.einsum(flat, *(rounded(np.asarray(x, np.float64), over) for x, over in zip(operands, axes)))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance * np.abs(expected).max())


def products(forward, *arguments):
    """Return the number of products of 8-bit integers in a jaxpr, and of others."""
    text = str(jax.make_jaxpr(forward)(*arguments))
    found = re.findall(r":(\w+)\[[^\]]*\] = dot_general", text)
    return found.count("i32"), len(found) - found.count("i32")


def test_the_layers_of_the_blocks_and_no_others():
    """With the same parameters: `qkv`, `out`, `up` and `down`, once in the loop."""
    name = "tubevit_nano8@moving_digits"
    model, plain = tubevit.load_model(name, quantize="int8"), tubevit.load_model(name)
    for one, two in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(plain)), strict=True):
        np.testing.assert_array_equal(one, two)
    clip = jnp.zeros((1, *model.config.shape, 3), jnp.uint8)
    here, there = (products(each.features, clip) for each in (model, plain))
    assert here[0] == 4 and there[0] == 0 and sum(here) == sum(there)


@pytest.fixture(scope="module")
def all_test_clips(tmp_path_factory):
    """The embedded data, with all clips for tests: `digits_cache` has 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUBEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        make_moving_digits(embedded_folder(), train_clips=1, train_digits=1)
        yield


@pytest.mark.parametrize("name", tubevit.list_models(pretrained=True))
def test_the_released_models_stay_as_good(all_test_clips, tmp_path, name):
    """As good as the index of the releases says, at the hardest of their tasks."""
    out, about = tmp_path / "eval.json", {"source": "moving_digits", "head": "digit_motion", "split": "test"}
    (before,) = (each for each in read_index()[name].metrics if about.items() <= each.items())
    flags = ["--data", about["source"], "--head", about["head"], "--split", about["split"], "--out", str(out)]
    assert main(["evaluate", "--checkpoint", name, *flags, "--int8"]) == 0
    (record,) = json.loads(out.read_text())
    assert (record["quantize"], record["clips_used"]) == ("int8", before["clips"])
    assert abs(record["top1"] - before["top1"]) <= 0.005
    assert 0 < abs(record["loss"] - before["loss"]) < 0.05


def test_the_program_for_tpus_multiplies_integers():
    """The compiler for v5e keeps the products of 8-bit integers: it does not turn them into those of floats."""
    environment, text = {**os.environ, **devices.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}, {}
    environment.pop("XLA_FLAGS", None)
    for kind in ("int8", "none"):
        command = [sys.executable, "-c", PROGRAM, kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        text[kind] = done.stdout
    integers = {kind: set(re.findall(r"= s32\[[^ ]* (?:convolution|dot)\(.*", text[kind])) for kind in text}
    assert len(integers["int8"]) >= 4 and not integers["none"]
