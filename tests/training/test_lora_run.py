"""Runs that train an adapter: what their checkpoints hold, how they are read, and how they resume."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import tubevit
from tubevit.checkpoint.paths import flatten
from tubevit.errors import UserError
from tubevit.evaluation import evaluate_checkpoint
from tubevit.models.abstract import parameters
from tubevit.models.config import Lora
from tubevit.training.begin import base_of
from tubevit.training.loop import Parts
from tubevit.zoo.describe import describe
from tubevit.zoo.names import named_config, open_checkpoint

RANK, ALPHA = 2, 8.0
CHANGES = {
    "train.adapter": "lora", "train.lora.rank": RANK, "train.lora.alpha": ALPHA, "train.steps": 4,
    "optimizer.ema_decay": 0.5, "optimizer.weight_decay": 0.1, "checkpoint.every": 2, "eval.every": 4,
    "checkpoint.keep_best": "eval/moving_digits/top1",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_run, tmp_path_factory):
    """A copy of the tiny run's last checkpoint, from which `run` begins."""
    return shutil.copytree(tiny_run / "checkpoints" / "9", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(base, train_tiny, tmp_path_factory):
    """The workdir of a run of 4 steps with checkpoints 2 and 4, and what it printed of its evaluation."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    return workdir, train_tiny(workdir, Parts(), **CHANGES, **{"init.checkpoint": base})


@pytest.fixture(scope="module")
def stored(run):
    """The parameters in the last checkpoint by path, read by Orbax alone."""
    return flatten(ocp.load_checkpointables(run[0] / "checkpoints" / "4")["params"])


def test_checkpoints_hold_what_is_trained(run, base, stored):
    layers = [f"encoder/blocks/{layer}" for layer in ("attention/qkv", "attention/out", "mlp/up", "mlp/down")]
    adapter = {f"{layer}/lora_{name}" for layer in layers for name in "ab"}
    whole = flatten(parameters(tubevit.load_model(base)))
    assert set(stored) == adapter | {path for path in whole if path.startswith(("pooling/", "heads/"))}
    described = open_checkpoint(run[0]).metadata["adapter"]
    assert (described["name"], described["step"]) == (str(base), None)
    assert set(described["paths"]) == whole.keys() - stored.keys()
    moments = ocp.load_checkpointables(run[0] / "checkpoints" / "4")["optimizer"]
    sizes = [leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim]
    assert sum(sizes) == 3 * sum(leaf.size for leaf in stored.values())  # two moments and the average


def test_loading_merges(run, base, stored):
    before, model = flatten(parameters(tubevit.load_model(base))), tubevit.load_model(run[0])
    after = flatten(parameters(model))
    assert after.keys() == before.keys() and model.config.lora is None
    for path, leaf in after.items():
        layer, _, last = path.rpartition("/")
        if f"{layer}/lora_a" in stored and last == "kernel":
            pair = (np.asarray(stored[f"{layer}/lora_{name}"], np.float64) for name in "ab")
            product = np.stack([np.tensordot(a, b, 1) for a, b in zip(*pair)])
            assert np.abs(product).max() > 1e-5
            np.testing.assert_allclose(leaf, before[path] + ALPHA / RANK * product, atol=1e-6, err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, stored.get(path, before[path]), err_msg=path)
    read = flatten(open_checkpoint(run[0]).read_parameters())
    assert all((read[path] == leaf).all() for path, leaf in after.items())


def test_training_evaluates_the_merged_model(run):
    (best,) = (run[0] / "best.json").read_text().splitlines()
    assert '"step": 4' in best
    for evaluation in evaluate_checkpoint(run[0]):
        record = evaluation.record
        assert record["loss"] == pytest.approx(run[1][f"eval/{record['dataset']}/loss"], rel=1e-5)


def resumed(run, workdir, train_tiny, **changes):
    shutil.copytree(run[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    config = {**CHANGES, "init.checkpoint": open_checkpoint(run[0]).base.name, **changes}
    train_tiny(workdir, **config)


def test_resumed_it_ends_the_same(run, train_tiny, read_arrays, tmp_path):
    resumed(run, tmp_path / "run", train_tiny)
    assert read_arrays(tmp_path / "run", 4) == read_arrays(run[0], 4)


def test_on_eight_devices(run, stored, train_tiny, tmp_path):
    """Resumed on another mesh, only the order of sums changes."""
    resumed(run, tmp_path / "run", train_tiny, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    found = flatten(ocp.load_checkpointables(tmp_path / "run" / "checkpoints" / "4")["params"])
    assert found.keys() == stored.keys()
    for path, leaf in stored.items():
        np.testing.assert_allclose(found[path], leaf, atol=2e-5, err_msg=path)


def test_a_base_that_is_not_the_same(run, base, train_tiny, tiny, tmp_path):
    moved = base.rename(base.parent / "moved")
    try:
        with pytest.raises(UserError, match=f"an adapter of {base}, which cannot be read: unknown checkpoint"):
            tubevit.load_model(run[0])
        model = tubevit.load_model(moved)
        model.encoder.norm.bias[...] += 1e-6
        tubevit.save_model(model, base)
        changed = f"an adapter of {base}, whose parameters have changed: expected sha256 [0-9a-f]+, found"
        with pytest.raises(UserError, match=changed):
            tubevit.load_model(run[0])
        with pytest.raises(UserError, match=changed):
            resumed(run, tmp_path / "run", train_tiny)
        shutil.rmtree(base)
        model.encoder.norm.bias[...] = tubevit.load_model(moved).encoder.norm.bias[...]
        tubevit.save_model(model, base)  # other files, the same parameters
        tubevit.load_model(run[0])
    finally:
        shutil.rmtree(base, ignore_errors=True)
        moved.rename(base)


def test_an_adapter_of_an_adapter(run):
    """Its base is the merged model of the step that it began from."""
    checkpoint = open_checkpoint(run[0])
    base = base_of(str(run[0]), checkpoint.read_parameters(), checkpoint.model)
    assert (base.name, base.step) == (str(run[0]), 4)
    taken, merged = base.read(open_checkpoint, "x"), flatten(parameters(tubevit.load_model(run[0])))
    assert taken.keys() == {path for path in merged if not path.startswith(("pooling/", "heads/"))}
    assert all((leaf == merged[path]).all() for path, leaf in taken.items())


def test_a_model_that_does_not_fit(run):
    with pytest.raises(UserError, match="does not fit the model"):
        tubevit.load_model(run[0], mlp_dim=40)


def test_what_inspect_shows(run, base, stored):
    adapted, plain = (describe("x", named_config(name)) for name in (run[0], base))
    trained, whole = sum(leaf.size for leaf in stored.values()), plain["parameters"]
    adapter = sum(leaf.size for path, leaf in stored.items() if "lora" in path)
    assert adapted["parameters"] == whole + adapter
    assert adapted["trainable_share"] == trained / (whole + adapter)
    assert adapted["state_bytes"] == 4 * (whole + adapter + 3 * trained)
    more = describe("x", dataclasses.replace(named_config(base), lora=Lora(RANK + 1)))
    assert plain["training_flops"] > more["training_flops"] > adapted["training_flops"] > plain["flops"]
