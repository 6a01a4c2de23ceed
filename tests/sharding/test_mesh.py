import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tubevit.config import default_config
from tubevit.errors import UserError
from tubevit.sharding import mesh as meshes
from tubevit.sharding.mesh import check_batch, global_batch, local_part, local_rows, make_mesh, mesh_shape


def settings(**changes) -> ConfigDict:
    mesh = default_config().mesh
    mesh.update(changes)
    return mesh


@pytest.mark.parametrize(
    "changes, devices, expected",
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, 256, (1, 128, 2)),
        ({"data": 2, "fsdp": 2}, 8, (2, 2, 1)),  # the first four
        ({"data": 1}, 8, (1, 1, 1)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1)),
        ({"fsdp": 16, "slices": 2}, 512, (32, 16, 1)),
    ],
)
def test_shapes(changes, devices, expected):
    assert mesh_shape(settings(**changes), devices) == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fsdp": 3}, "3 does not divide the 8 devices; sizes that fit: 1, 2, 4, 8"),
        ({"data": 4, "fsdp": 4}, "needs 16 devices; found 8"),
        ({"fsdp": -1, "tensor": 2}, "only one size of the mesh may be -1"),
        ({"tensor": 0}, "mesh.tensor must be at least 1"),
        ({"slices": 0}, "mesh.slices must be at least 1"),
        ({"data": 3, "slices": 2}, "mesh.data=3 must be a multiple of mesh.slices=2"),
    ],
)
def test_shapes_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        mesh_shape(settings(**changes), 8)


def test_all_devices_once():
    mesh = make_mesh(settings(fsdp=2, tensor=2))
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == (2, 2, 2)
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}
    assert make_mesh(settings(data=2)).devices.size == 2


def test_slices_that_are_not_there():
    with pytest.raises(UserError, match="mesh.slices=2, but the devices are in 1 slices"):
        make_mesh(settings(slices=2))


@pytest.mark.parametrize("changes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4}])
def test_a_batch_goes_out_and_comes_back(changes):
    mesh = make_mesh(settings(**changes))
    batch = {"pixels": np.arange(8 * 6, dtype=np.uint8).reshape(8, 2, 3), "label": np.arange(8)}
    placed = global_batch(batch, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        np.testing.assert_array_equal(local_part(placed[name]), array)
    shards = meshes.batch_shards(mesh)
    for shard in placed["pixels"].addressable_shards:
        assert shard.data.shape == (8 // shards, 2, 3)


def pretend(grid, axes=meshes.AXES):
    """A mesh whose devices belong to the processes of `grid`."""
    devices = np.vectorize(lambda process: types.SimpleNamespace(process_index=process))(np.asarray(grid))
    return types.SimpleNamespace(devices=devices, shape=dict(zip(axes, devices.shape)), local_devices=[0, 0])


def test_rows_of_a_process_follow_its_devices():
    # As a torus may be laid out: process 0 has the parts 0 and 3.
    rows = local_rows(pretend([[[0], [1]], [[1], [0]]]))
    assert (rows.shards, rows.count) == ((0, 3), 4) and rows.rows(8) == [0, 1, 6, 7]
    with pytest.raises(UserError, match="mesh.tensor=2 spans several processes; it must divide .* 2"):
        local_rows(pretend([[[0, 1]], [[0, 1]]]))


def test_batches_that_do_not_divide():
    mesh = make_mesh(settings())
    check_batch("clips", 16, 2, mesh)
    with pytest.raises(
        UserError, match=r"batch_size must be a multiple of 16 \(8 devices .*=2\); found 20; use 16 or 32"
    ):
        check_batch("clips", 20, 2, mesh)
    with pytest.raises(UserError, match=r"batch_size must be a multiple of 8 .*; found 4; use 8$"):
        check_batch("clips", 4, 1, mesh)
