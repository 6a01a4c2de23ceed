import pytest
from jax.sharding import AbstractMesh

from tubevit.config import load_config
from tubevit.config.resolve import resolve
from tubevit.errors import UserError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.flops import activation_bytes, count_parameters
from tubevit.sharding.mesh import AXES
from tubevit.sharding.rules import check_sharding
from tubevit.training.automatic_fsdp import SHARE, choose_fsdp, training_mesh

GIB = 2**30
FULL = {"model.remat": "full"}


@pytest.fixture(scope="module")
def huge():
    """TubeViT-H on Kinetics-600 and ImageNet-1k, 256 clips and 256 images a step."""
    return resolve(load_config("k600:model=tubevit_h16", FULL), assume_missing=True)


def needed(plan, fsdp, rows):
    """Bytes by hand: 4 for a parameter, its two moments, its gradient, the sum of gradients and the update."""
    kept = sum(activation_bytes(plan.model, (frames, 224, 224)) for frames in (1, 64))
    return 6 * 4 * count_parameters(plan.model) / fsdp + rows * kept


@pytest.mark.parametrize("devices", [64, 256])
def test_the_smallest_that_fits(huge, devices):
    """With just enough memory for a size by hand, it is chosen; with a little less, the next one is."""
    rows = 256 // devices
    for fsdp in (1, 2, 4, 8):
        enough = needed(huge, fsdp, rows) / SHARE
        assert choose_fsdp(huge.config, huge.model, devices, int(1.01 * enough))[0] == fsdp
        assert choose_fsdp(huge.config, huge.model, devices, int(0.97 * enough))[0] == 2 * fsdp


def test_replays_keep_another_state(huge):
    """Parameters and moments, 12 bytes per parameter; and 8 bytes for each value of the pixels."""
    config = huge.config.copy_and_resolve_references()
    config.train.replay = 100
    pixels = 4 * 8 * 3 * (1 + 64) * 224**2
    enough = (needed(huge, 4, 4) + 3 * 4 * count_parameters(huge.model) / 4 + pixels) / SHARE
    assert choose_fsdp(config, huge.model, 64, int(1.01 * enough))[0] == 4
    assert choose_fsdp(config, huge.model, 64, int(0.97 * enough))[0] == 8


def test_elastic_steps_need_the_memory_of_their_largest_budget(huge):
    config = huge.config.copy_and_resolve_references()
    config.train.elastic = "25%,50%"
    half = huge.model.replace(budget="50%")
    kept = sum(activation_bytes(half, (frames, 224, 224)) for frames in (1, 64))
    enough = (needed(huge, 2, 0) + 4 * kept) / SHARE
    assert choose_fsdp(config, huge.model, 64, int(1.01 * enough))[0] == 2
    assert choose_fsdp(config, huge.model, 64, int(0.97 * enough))[0] == 4


def test_it_says_why(huge):
    fsdp, note = choose_fsdp(huge.config, huge.model, 256, 16 * GIB)
    assert f"mesh.fsdp={fsdp}, " in note and f"{needed(huge, fsdp, 1) / GIB:.1f}" in note and "of 16.00 GiB" in note


def test_where_nothing_fits_it_is_the_largest_without_narrow_shards(huge):
    fsdp, note = choose_fsdp(huge.config, huge.model, 256, GIB // 4)
    assert "may not fit" in note and "model.remat" in note
    params = abstract_parameters(huge.model)
    check_sharding(params, AbstractMesh((256 // fsdp, fsdp, 1), AXES))
    for larger in (size for size in (2, 4, 8, 16, 32, 64, 128, 256) if size > fsdp):
        with pytest.raises(UserError):
            check_sharding(params, AbstractMesh((256 // larger, larger, 1), AXES))


def test_the_mesh_has_the_chosen_size(huge):
    config, memory = huge.config.copy_and_resolve_references(), int(needed(huge, 4, 32) / SHARE) + GIB // 4
    mesh, (note,) = training_mesh(config, huge.model, memory=memory)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1} and note.startswith("mesh.fsdp=4, ")
    config.mesh.slices = 4  # data must span them
    assert choose_fsdp(config, huge.model, 8, memory)[0] == 2
    config.mesh.update(slices=1, tensor=2)
    assert training_mesh(config, huge.model, memory=memory)[0].shape["tensor"] == 2
    config.mesh.update(data=1, tensor=1)  # as given
    mesh, notes = training_mesh(config, huge.model, memory=memory)
    assert mesh.size == 1 and notes == ()


def test_devices_that_report_no_memory_split_nothing(huge):
    mesh, notes = training_mesh(huge.config, huge.model)
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1} and notes == ()
