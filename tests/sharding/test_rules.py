import math
import types

import jax
import optax
import pytest

from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import Lora
from tubevit.models.lora import adapter_shapes
from tubevit.models.variants import ARCHITECTURES, model_config
from tubevit.sharding.rules import LARGE_BYTES, SMALL, check_sharding, device_bytes, sharding_table, spec


def mesh(data=1, fsdp=1, tensor=1):
    return types.SimpleNamespace(shape={"data": data, "fsdp": fsdp, "tensor": tensor})


def params_of(name, **fields):
    config = model_config(name, num_classes=600, **fields)
    return abstract_parameters(config)


def named(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def huge():
    return params_of("tubevit_h16")


def test_blocks_of_h(huge):
    here, blocks = mesh(16, 8, 2), "encoder/blocks/"
    expected = {
        "attention/qkv/kernel": (None, "fsdp", None, "tensor"),  # (L, D, 3, heads, d)
        "attention/qkv/bias": (None, None, "tensor"),
        "attention/out/kernel": (None, "tensor", None, "fsdp"),  # (L, heads, d, D)
        "attention/out/bias": (),
        "mlp/up/kernel": (None, "fsdp", "tensor"),  # (L, D, M)
        "mlp/up/bias": (None, "tensor"),
        "mlp/down/kernel": (None, "tensor", "fsdp"),  # (L, M, D)
        "norm1/scale": (),
        # Adapters follow their kernels.
        "attention/qkv/lora_a": (None, "fsdp"),  # (L, D, r)
        "attention/qkv/lora_b": (None, None, None, "tensor", "fsdp"),  # (L, r, 3, heads, d)
        "attention/out/lora_a": (None, "tensor", "fsdp"),  # (L, heads, d, r)
        "attention/out/lora_b": (None, None, "fsdp"),  # (L, r, D)
        "mlp/up/lora_a": (None, "fsdp"),
        "mlp/up/lora_b": (None, "fsdp", "tensor"),
        "mlp/down/lora_a": (None, "tensor", "fsdp"),
        "mlp/down/lora_b": (None, None, "fsdp"),
    }
    adapter = adapter_shapes(model_config("tubevit_h16", lora=Lora(16)))
    assert expected.keys() <= {name.removeprefix(blocks) for name in [*named(huge), *adapter]}
    for name, leaf in {**named(huge), **adapter}.items():
        if name.removeprefix(blocks) in expected:
            found = spec(name, leaf.shape, here)
            wanted = expected[name.removeprefix(blocks)]
            assert tuple(found) == wanted, name


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [{"fsdp": 2}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_splits_divide_and_large_arrays_are_split(name, sizes):
    here, params = mesh(**sizes), named(params_of(name))
    for path, leaf in params.items():
        axes = tuple(spec(path, leaf.shape, here))
        for size, axis in zip(leaf.shape, axes):
            assert axis is None or size % here.shape[axis] == 0
        assert len([axis for axis in axes if axis]) == len({axis for axis in axes if axis})  # each axis once
        if path.startswith("encoder/blocks/") and axes:
            assert axes[0] is None  # layers are cut by scans
        if math.prod(leaf.shape[path.startswith("encoder/blocks/") :]) < SMALL:
            assert "fsdp" not in axes
        if math.prod(leaf.shape) * 4 > LARGE_BYTES:
            assert "fsdp" in axes, path


def test_the_optimiser_lies_where_its_parameters_do(huge):
    here, state = mesh(1, 8, 2), jax.eval_shape(optax.adam(1.0).init, huge)
    params = named(huge)
    for path, leaf in named(state).items():
        if leaf.shape:
            name = path.split("mu/" if "/mu/" in path else "nu/")[1]
            assert spec(path, leaf.shape, here) == spec(name, params[name].shape, here)
    assert device_bytes(huge, here) < 1.02 * device_bytes(huge, mesh()) / 16 + 2**20


@pytest.mark.parametrize("fsdp", [2, 4, 8, 16, 32])
def test_sizes_that_suit_h(huge, fsdp):
    check_sharding(huge, mesh(256 // fsdp, fsdp))


def test_sizes_that_do_not(huge):
    with pytest.raises(UserError, match="mesh.fsdp=256 splits most .* narrower than 128.*; use mesh.fsdp=32"):
        check_sharding(huge, mesh(1, 256))
    with pytest.raises(UserError, match="mesh.fsdp=7 replicates 100% .*encoder/blocks"):
        check_sharding(huge, mesh(1, 7))
    check_sharding(huge, mesh(256))  # nothing is to be split
    with pytest.raises(UserError, match="mesh.fsdp=8 .* use mesh.fsdp=2"):
        check_sharding(params_of("tubevit_nano8"), mesh(1, 8))
    narrow = {"encoder": {"blocks": {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((2, 128, 128), "float32")}}}}}
    check_sharding(narrow, mesh(1, 8))  # cannot be avoided


def test_table(huge):
    text = sharding_table(huge, mesh(16, 16)).splitlines()
    assert text[0] == "mesh: data=16, fsdp=16, tensor=1"
    (row,) = [line for line in text if line.startswith("encoder/blocks/mlp/up/kernel ")]
    assert row.split()[1:] == ["32x1280x5120", "-,", "-,", "fsdp", f"{32 * 1280 * 5120 * 4 / 16 / 2**20:.2f}", "MiB"]
    total = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(huge)) / 2**20
    assert text[-1].startswith(
        f"{total:.1f} MiB in total, {device_bytes(huge, mesh(16, 16)) / 2**20:.1f} MiB per device"
    )
