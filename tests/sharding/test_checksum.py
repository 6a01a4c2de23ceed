import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import flips
from tubevit.config import default_config
from tubevit.sharding.checksum import checksum, minority, odd_copies, same
from tubevit.sharding.mesh import make_mesh

DTYPES = (jnp.uint8, jnp.int32, jnp.float32, jnp.bfloat16)


@pytest.fixture(scope="module")
def mesh():
    settings = default_config().mesh
    settings.update(data=4, fsdp=2, tensor=1)
    return make_mesh(settings)


@pytest.fixture(scope="module")
def tree(mesh):
    """Arrays of several types and odd shapes: replicated, and split over fsdp."""
    rng = np.random.default_rng(0)

    def array(dtype, spec):
        values = np.asarray(jnp.asarray(rng.integers(-100, 100, size=(6, 5, 7)), dtype))
        return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])

    specs = (PartitionSpec(), PartitionSpec("fsdp"))
    return {f"{np.dtype(dtype).name}{len(spec)}": array(dtype, spec) for dtype in DTYPES for spec in specs}


def test_each_bit_changes_the_checksum_of_its_device_alone(mesh, tree):
    clean, rng = checksum(tree, mesh), np.random.default_rng(1)
    assert same(clean, checksum(tree, mesh)) and odd_copies(clean, mesh.devices) == set()
    for name, array in tree.items():
        for bit in range(8 * array.dtype.itemsize):
            device = jax.devices()[rng.integers(8)]
            flipped = checksum(tree | {name: flips.in_memory(array, device, int(rng.integers(105)), bit)}, mesh)
            changed = [mesh.devices[clean[axes] != flipped[axes]].tolist() for axes in clean]
            assert sorted(changed, key=len) == [[], [device]]
            assert odd_copies(flipped, mesh.devices) == {device}


def test_elements_and_arrays_that_change_places(mesh, tree):
    clean = checksum(tree, mesh)
    rolled = jax.device_put(jnp.roll(tree["float320"], 1, axis=2), tree["float320"].sharding)
    swapped = {"int320": tree["float320"], "float320": tree["int320"]}
    for other in (tree | {"float320": rolled}, tree | swapped):
        assert not same(clean, checksum(other, mesh))


@pytest.mark.parametrize(
    "found, wrong",
    [
        ([("a", 1), ("b", 1), ("c", 1)], ""),
        ([("a", 1), ("b", 2), ("c", 1)], "b"),
        ([("a", 1), ("b", 2), ("c", 3)], "abc"),
        ([("a", 1), ("b", 2)], "ab"),
        ([("a", 1), ("b", 2), ("a", 2)], "a"),  # it had both
        ([("a", 1), ("b", 2), ("a", 1)], "ab"),  # one vote each
        ([("a", 1), ("a", 2)], "a"),
        ([("a", 1), ("b", 1), ("c", 2), ("d", 2), ("e", 1)], "cd"),
    ],
)
def test_minority(found, wrong):
    assert minority(found) == set(wrong)
