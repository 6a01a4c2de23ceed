import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from tubevit.models.placement import place
from tubevit.sharding.mesh import make_mesh, using

ROWS = PartitionSpec(("data", "fsdp"))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 1, "slices": 1}))


def constraints(function, *arguments) -> list:
    """Shapes and specs of the sharding constraints in the traced function, those in loops and checkpoints once."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "sharding_constraint":
                found.append((equation.invars[0].aval.shape, equation.params["sharding"].spec))
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def test_only_in_a_mesh_that_splits_the_batch(mesh):
    array = jnp.arange(8.0)
    assert place(array) is array
    with using(None):
        assert place(array) is array
    other = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(other):
        assert place(array) is array
    with pytest.raises(KeyError), using(mesh):
        assert constraints(place, array) == [((8,), ROWS)]
        raise KeyError
    assert place(array) is array
    with jax.set_mesh(mesh):
        assert constraints(place, array) == [((8,), ROWS)]


@pytest.mark.parametrize("fields", [{}, {"scan": False}, {"remat": "full"}])
def test_every_tube_and_every_block_is_placed(tiny, mesh, fields):
    """The rows stay the batch's; nothing else changes."""
    model, video = tiny(**fields), np.zeros((4, 16, 64, 64, 3), np.uint8)
    assert constraints(model, video) == []
    with using(mesh):
        seen = constraints(model, video)
    tokens = model.config.tubes.num_tokens(video.shape[1:4])
    assert all(shape[::2] == (4, model.config.width) and spec == ROWS for shape, spec in seen)
    counts = [shape[1] for shape, _ in seen]
    of_tubes, of_blocks = counts[: len(model.config.tubes.tubes)], counts[len(model.config.tubes.tubes) :]
    assert sum(of_tubes) == tokens and of_blocks == [tokens]  # the block is traced once for all layers


def test_rows_lie_on_the_devices_of_a_mesh(mesh):
    """Also where parameters that are split by features pull them elsewhere."""

    def split(shape, *axes):
        return jax.device_put(np.ones(shape, np.float32), jax.NamedSharding(mesh, PartitionSpec(*axes)))

    def shapes(array):
        return {shard.data.shape for shard in array.addressable_shards}

    def product(x, kernel):
        return place(x @ kernel)

    def product_in_mesh(x, kernel):
        with using(mesh):
            return product(x, kernel)

    rows, kernel = split((4, 8), ("data", "fsdp")), split((8, 16), None, "fsdp")
    assert shapes(jax.jit(product)(rows, kernel)) == {(2, 8)}
    placed = jax.jit(product_in_mesh)(rows, kernel)
    assert shapes(placed) == {(1, 16)}
    np.testing.assert_array_equal(placed, np.full((4, 16), 8, np.float32))
