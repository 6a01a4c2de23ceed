import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import tubevit
from tests import gcs
from tests.hosts import environment_with, free_address
from tests.logs import logged
from tubevit import storage
from tubevit.checkpoint import run_checkpoints as module
from tubevit.checkpoint.checkpoint import Checkpoint, steps
from tubevit.checkpoint.manifest import verify
from tubevit.checkpoint.replays import Replays
from tubevit.checkpoint.run_checkpoints import Checkpoints, newest_good
from tubevit.errors import RunError, UserError

ROOT = pathlib.Path(tubevit.__file__).parent.parent


def state(step):
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"a": {"kernel": jnp.full((2, 3), step, jnp.float32)}},
        "frozen": {},
        "opt_state": ({"count": jnp.asarray(step)},),
    }


def test_keep_policy(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5, 7):
        checkpoints.save(state(step), {"model": {"name": "x"}})
    checkpoints.save(state(7), {}, wait=True)  # is there already
    checkpoints.close()
    assert steps(tmp_path / "checkpoints") == [5, 7]
    for step in (5, 7):
        folder = tmp_path / "checkpoints" / str(step)
        np.testing.assert_array_equal(ocp.load_checkpointables(folder)["params"]["a"]["kernel"], np.full((2, 3), step))
        assert ocp.checkpointables_metadata(folder).custom_metadata["step"] == step


def test_what_a_killed_save_left_is_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(tmp_path, keep=2)
    first.save(state(3), {}, wait=True)
    first.close()
    (folder / "6.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert steps(folder) == [3]
    second = Checkpoints(tmp_path, keep=2)
    second.save(state(6), {}, wait=True)
    second.close()
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]


def test_a_failed_save_is_a_run_error(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(3), {}, wait=True)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", full)
    with pytest.raises(RunError, match=r"No space left on device.*the last good checkpoint is step 3"):
        checkpoints.save(state(6), {})
    checkpoints.close()


def saved(workdir, *numbers, keep=9, keep_best=None, metrics=None):
    """A run's checkpoints of these steps; their folder."""
    checkpoints = Checkpoints(workdir, keep, keep_best)
    for step in numbers:
        checkpoints.save(state(step), {"model": {"name": "x"}}, metrics and metrics.get(step))
    checkpoints.close()
    return checkpoints.folder


def data_file(folder):
    """The largest file of the arrays."""
    return max(folder.glob("params/**/d/*"), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_every_step_has_a_manifest(tmp_path):
    folder = saved(tmp_path, 3, 6)
    assert [verify(folder / str(step)) for step in (3, 6)] == [[], []]
    files = json.loads((folder / "6/manifest.json").read_text())
    assert {"_CHECKPOINT_METADATA", "params/_METADATA", "optimizer/_METADATA"} < files.keys()
    assert any(name.startswith("params/d/") for name in files)
    versions = Checkpoint(folder / "6").metadata["versions"]
    assert versions["tubevit"] == tubevit.__version__ and versions["jax"] == jax.__version__
    assert versions.keys() == {"tubevit", "jax", "flax", "orbax-checkpoint", "numpy"}


def test_a_manifest_is_there_when_save_waits_and_before_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    checkpoints.save(state(3), {}, wait=True)
    assert verify(checkpoints.folder / "3") == []
    checkpoints.save(state(6), {})
    checkpoints.save(state(9), {})
    assert verify(checkpoints.folder / "6") == []
    checkpoints.close()
    assert verify(checkpoints.folder / "9") == []


def test_saving_does_not_wait_for_the_manifest(tmp_path, monkeypatch):
    proceed, write = threading.Event(), module.write_manifest
    monkeypatch.setattr(module, "write_manifest", lambda folder: proceed.wait(20) and write(folder))
    checkpoints = Checkpoints(tmp_path, keep=9)
    checkpoints.save(state(3), {})
    assert not proceed.is_set()
    checkpoints._checkpointer.wait()
    assert steps(checkpoints.folder) == [3] and verify(checkpoints.folder / "3") is None
    proceed.set()
    checkpoints.close()
    assert verify(checkpoints.folder / "3") == []


def test_a_manifest_that_cannot_be_written_is_a_run_error(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(3), {})
    with pytest.raises(RunError, match="No space left on device"):
        checkpoints.save(state(6), {})
    checkpoints.save(state(6), {})
    assert "no checkpoint is known to be good" in checkpoints.mark_corrupt(7)  # which is what the run ends with
    assert Replays.read(tmp_path).corrupt == 7
    checkpoints.close()


def test_a_failed_write_is_raised_once(tmp_path, monkeypatch):
    """What the background found is not raised again by `close`, in place of the first error."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(3), {}, wait=True)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer._manager, "_finalize_checkpoint", full)
    with pytest.raises(RunError, match="saving a checkpoint in .* failed .*No space left"):
        checkpoints.save(state(6), {}, wait=True)
    checkpoints.close()


def test_hooks_are_put_back(tmp_path):
    """Several may be open, and close in any order."""
    absl, seen = logging.getLogger("absl"), []
    before = sys.unraisablehook, absl.filters[:]
    sys.unraisablehook = seen.append
    try:
        first, second = (Checkpoints(tmp_path / name, keep=2) for name in ("a", "b"))
        first.close()
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
        assert not seen
        sys.unraisablehook(other := types.SimpleNamespace(exc_value=RuntimeError("another")))
        assert seen == [other] and len(absl.filters) == len(before[1]) + 1
        second.close()
        second.close()
        assert sys.unraisablehook == seen.append and absl.filters == before[1]
    finally:
        sys.unraisablehook = before[0]


def test_the_newest_is_taken(tmp_path, said):
    assert newest_good(tmp_path / "checkpoints") is None
    folder = saved(tmp_path, 3, 6)
    assert newest_good(folder) == 6 and said == []


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage, reason", [
    (lambda folder: flip(data_file(folder)), "its content has changed"),
    (lambda folder: truncate(data_file(folder)), r"expected \d+ bytes, found \d+"),
    (lambda folder: data_file(folder).unlink(), "missing"),
    (lambda folder: flip(folder / "_CHECKPOINT_METADATA"), "_CHECKPOINT_METADATA: its content has changed"),
    (lambda folder: truncate(folder / "params/manifest.ocdbt"), "params/manifest.ocdbt: expected"),
    (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json: cannot be read"),
], ids=["flipped", "truncated", "deleted", "metadata", "index", "manifest"])  # fmt: skip
def test_a_damaged_newest_falls_back_and_is_saved_again(tmp_path, damage, reason, said):
    folder = saved(tmp_path, 3, 6, 9)
    damage(folder / "9")
    assert newest_good(folder) == 6
    (line,) = said
    assert line.startswith(f"checkpoint 9 in {folder} is damaged (") and "resuming from step 6" in line
    assert re.search(reason, line)
    assert steps(folder) == [3, 6] and (folder / "9.damaged/params").is_dir()
    assert newest_good(folder) == 6 and len(said) == 1
    saved(tmp_path, 9, 12)
    assert steps(folder) == [3, 6, 9, 12] and newest_good(folder) == 12
    assert (folder / "9.damaged/params").is_dir()
    np.testing.assert_array_equal(ocp.load_checkpointables(folder / "9")["params"]["a"]["kernel"], np.full((2, 3), 9))


def test_orbax_alone_does_not_notice(tmp_path):
    """Why there are manifests."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    content = {"a": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}}
    checkpoints.save(state(3) | {"params": content}, {}, wait=True)
    checkpoints.close()
    before = np.asarray(content["a"]["kernel"])
    flip(data_file(checkpoints.folder / "3"))
    try:
        after = ocp.load_checkpointables(checkpoints.folder / "3")["params"]["a"]["kernel"]
        assert (np.asarray(after) != before).any()
    except ValueError:
        pass  # it was the compressed stream's frame
    assert len(verify(checkpoints.folder / "3")) == 1


def test_two_damaged_ones(tmp_path, said):
    folder = saved(tmp_path, 3, 6, 9)
    flip(data_file(folder / "6"))
    flip(data_file(folder / "9"))
    truncate(folder / "9/params/_METADATA")
    assert newest_good(folder) == 3
    assert len(said) == 2 and "checkpoint 9" in said[0] and "and 1 more files" in said[0] and "checkpoint 6" in said[1]
    assert steps(folder) == [3] and {"6.damaged", "9.damaged"} < set(os.listdir(folder))


def test_what_is_resumed_from_an_older_step_is_not_proved(tmp_path):
    """Steps that are computed again may differ from those that a clean replay proved."""
    folder = saved(tmp_path, 3, 6)
    Replays(6).write(tmp_path)
    flip(data_file(folder / "6"))
    assert newest_good(folder) == 3 and Replays.read(tmp_path) == Replays(3)
    shutil.rmtree(folder)
    assert newest_good(folder) is None and Replays.read(tmp_path) == Replays(0)


def test_killed_before_the_manifest(tmp_path, said):
    folder = saved(tmp_path, 3, 6)
    (folder / "6/manifest.json").unlink()
    assert newest_good(folder) == 3
    assert len(said) == 1 and "checkpoint 6" in said[0] and "renamed to 6.unverified; resuming from step 3" in said[0]
    assert steps(folder) == [3]
    saved(tmp_path, 6, 9)
    (folder / "9/manifest.json").unlink()
    assert newest_good(folder) == 6
    assert sorted(os.listdir(folder)) == ["3", "6", "9.unverified"]  # they do not fill the disk


def test_without_any_manifest_the_newest_is_taken(tmp_path, said):
    """Runs of an earlier version."""
    folder = saved(tmp_path, 3, 6)
    for step in (3, 6):
        (folder / str(step) / "manifest.json").unlink()
    assert newest_good(folder) == 6 and steps(folder) == [3, 6]
    assert len(said) == 1 and "checkpoint 6" in said[0] and "has no manifest: resuming from it" in said[0]


def test_if_none_is_good_the_run_does_not_begin_anew(tmp_path):
    folder = saved(tmp_path, 3, 6)
    for step in (3, 6):
        flip(data_file(folder / str(step)))
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"no checkpoint in .* can be used: step 6 is damaged \(.*; step 3 is damaged"
        ):
            newest_good(folder)
    assert steps(folder) == [3, 6]


@pytest.mark.parametrize("metric, expected", [("eval/clips/top1", 6), ("eval/clips/loss", 3)])
def test_the_best_is_kept(tmp_path, metric, expected):
    values = {3: 0.2, 6: 0.9, 9: 0.5, 12: float("nan"), 18: 0.3, 21: 0.4}
    metrics = {step: {metric: value, "eval/clips/map": None} for step, value in values.items()} | {15: None}
    folder = saved(tmp_path, 3, 6, 9, 12, 15, keep=2, keep_best=metric, metrics=metrics)
    assert steps(folder) == sorted({expected, 12, 15})
    best = {"step": expected, "metric": metric, "value": values[expected]}
    assert json.loads((tmp_path / "best.json").read_text()) == best
    saved(tmp_path, 18, 21, keep=2, keep_best=metric, metrics=metrics)  # it is remembered by the next process
    assert steps(folder) == sorted({expected, 18, 21}) and verify(folder / str(expected)) == []
    assert json.loads((tmp_path / "best.json").read_text()) == best
    assert set(ocp.load_checkpointables(folder / str(expected))) == {"params", "optimizer"}


def test_a_metric_that_there_is_not(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, "eval/clip/top1")
    with pytest.raises(
        UserError, match="unknown metric of checkpoint.keep_best 'eval/clip/top1'; did you mean 'eval/cl"
    ):
        checkpoints.save(state(3), {}, {"eval/clips/top1": 0.5})
    checkpoints.save(state(3), {}, {})  # before the first evaluation
    checkpoints.close()
    assert steps(checkpoints.folder) == [3] and not (tmp_path / "best.json").exists()


def test_an_older_damaged_one_does_not_stop_the_run(tmp_path):
    folder = saved(tmp_path, 3, 6, keep_best="x", metrics={3: {"x": 1.0}, 6: {"x": 0.5}})
    (folder / "3/metrics/metrics").write_text("{")
    assert newest_good(folder) == 6
    saved(tmp_path, 9, keep_best="x", metrics={9: {"x": 0.1}})
    assert steps(folder) == [6, 9] and (folder / "3.damaged").is_dir()
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 6


def test_in_a_bucket(said):
    with gcs.emulator("safe"):
        folder = saved("gs://safe/run", 6, 9, keep_best="x", metrics={6: {"x": 1.0}})
        assert [verify(folder / str(step)) for step in (6, 9)] == [[], []]
        assert json.loads(storage.read_bytes("gs://safe/run/best.json")) == {"step": 6, "metric": "x", "value": 1.0}
        storage.write_bytes(folder / "9/params/_METADATA", b"{}")
        assert newest_good(folder) == 6
        assert "9/" not in said[0] and "params/_METADATA: expected" in said[0]
        assert steps(folder) == [6] and storage.exists(folder / "9.damaged/params/_METADATA")
        saved("gs://safe/run", 9)
        assert steps(folder) == [6, 9] and newest_good(folder) == 9 and len(said) == 1
        assert storage.exists(folder / "9.damaged/params/_METADATA")  # Orbax did not take it for a killed save


PROGRAM = """
import pathlib, sys, jax
address, index, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from tests.checkpoint.test_run_checkpoints import two_processes
two_processes(pathlib.Path(workdir))
"""


def sharded(step, mesh):
    """A state whose kernel is split over the mesh."""
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    kernel = np.arange(48, dtype=np.float32).reshape(8, 6) * step
    make = jax.make_array_from_callback
    return {
        "step": make((), everywhere, lambda index: np.int32(step)),
        "params": {"a": {"kernel": make(kernel.shape, rows, lambda index: kernel[index])}},
        "frozen": {},
        "opt_state": ({"count": make((), everywhere, lambda index: np.int32(step))},),
    }


def mesh(count):
    return jax.make_mesh((count,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def expected(shards):
    abstract = jax.eval_shape(lambda: state(0))["params"]["a"]["kernel"]
    sharding = jax.sharding.NamedSharding(mesh(shards), jax.sharding.PartitionSpec("x"))
    return {"a": {"kernel": jax.ShapeDtypeStruct((8, 6), abstract.dtype, sharding=sharding)}}


def two_processes(workdir):
    """Run by each of two processes with four devices: saves, finds the damage alike, restores."""
    checkpoints = Checkpoints(workdir, 3)
    for step in (3, 6):
        checkpoints.save(sharded(step, mesh(8)), {"model": {}})
    checkpoints.save(sharded(9, mesh(8)), {"model": {}}, wait=True)
    if jax.process_index() == 0:
        assert verify(checkpoints.folder / "9") == []
        flip(data_file(checkpoints.folder / "9"))
    checkpoints.close()
    with logged() as said:
        assert newest_good(checkpoints.folder) == 6
    assert len(said) == (1 if jax.process_index() == 0 else 0)
    loaded = Checkpoint(checkpoints.folder / "6").read("params", expected(8))["a"]["kernel"]
    for shard in loaded.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(48).reshape(8, 6)[shard.index] * 6)
    if jax.process_index() == 0:
        flip(data_file(checkpoints.folder / "3"))
        flip(data_file(checkpoints.folder / "6"))
    with pytest.raises(UserError, match="can be used: step 6 is damaged .*; step 3 is damaged"):  # in both
        newest_good(checkpoints.folder)


def test_two_processes(tmp_path):
    address, environment = free_address(), environment_with(4)
    commands = [[sys.executable, "-c", PROGRAM, address, str(index), str(tmp_path)] for index in (0, 1)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_restored_on_another_mesh(tmp_path, shards):
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(sharded(3, mesh(4)), {})
    checkpoints.close()
    loaded = Checkpoint(checkpoints.folder / "3").read("params", expected(shards))["a"]["kernel"]
    assert loaded.sharding.mesh.size == shards and loaded.addressable_shards[0].data.shape == (8 // shards, 6)
    np.testing.assert_array_equal(loaded, np.arange(48).reshape(8, 6) * 3)
    plain = {"a": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}}
    here = Checkpoint(checkpoints.folder / "3").read("params", plain)["a"]["kernel"]
    assert here.sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    np.testing.assert_array_equal(here, loaded)
