import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from tubevit.models.placement import activations_placed, place
from tubevit.sharding.mesh import by_rows, make_mesh


def test_only_while_it_is_open():
    array = jnp.arange(4.0)
    assert place(array) is array
    with activations_placed(lambda x: x + 1):
        np.testing.assert_array_equal(place(array), array + 1)
        with activations_placed(None):
            assert place(array) is array
        with pytest.raises(KeyError), activations_placed(lambda x: x * 2):
            np.testing.assert_array_equal(place(array), array * 2)
            raise KeyError
        np.testing.assert_array_equal(place(array), array + 1)
    assert place(array) is array


@pytest.mark.parametrize("fields", [{}, {"scan": False}, {"remat": "full"}])
def test_every_tube_and_every_block_is_placed(tiny, fields):
    """The rows stay the batch's; nothing else changes."""
    model, video, seen = tiny(**fields), np.zeros((2, 16, 64, 64, 3), np.uint8), []

    def constraint(array):
        seen.append(array.shape)
        return array

    with activations_placed(constraint):
        jax.eval_shape(model, video)
    tokens = model.config.tubes.num_tokens(video.shape[1:4])
    assert all(rows == 2 and width == model.config.width for rows, _, width in seen)
    of_tubes, of_blocks = seen[:-1], seen[-1]  # the block is traced once for all layers
    assert len(of_tubes) == len(model.config.tubes.tubes) and sum(count for _, count, _ in of_tubes) == tokens
    assert of_blocks[1] == tokens


def test_rows_lie_on_the_devices_of_a_mesh():
    """Also where parameters that are split by features pull them elsewhere."""
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 1, "slices": 1}))

    def split(shape, *axes):
        return jax.device_put(np.ones(shape, np.float32), jax.NamedSharding(mesh, PartitionSpec(*axes)))

    def shapes(array):
        return {shard.data.shape for shard in array.addressable_shards}

    rows, kernel = split((4, 8), ("data", "fsdp")), split((8, 16), None, "fsdp")
    assert shapes(jax.jit(lambda x, kernel: place(x @ kernel))(rows, kernel)) == {(2, 8)}
    with activations_placed(by_rows(mesh)):
        placed = jax.jit(lambda x, kernel: place(x @ kernel))(rows, kernel)
    assert shapes(placed) == {(1, 16)}
    np.testing.assert_array_equal(placed, np.full((4, 16), 8, np.float32))
    assert by_rows(None) is None
