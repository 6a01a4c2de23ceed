"""Runs, models and data in a bucket, on an emulator: no real bucket was tried."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

import tubevit
from tests import gcs
from tests.data.clips import write_clip
from tubevit import storage
from tubevit.checkpoint.checkpoint import Checkpoint, steps
from tubevit.checkpoint.run_checkpoints import Checkpoints
from tubevit.convert import convert
from tubevit.data.decode import decode_frames
from tubevit.data.sources import open_source
from tubevit.errors import RunError, UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head
from tubevit.training.run import workdir as workdirs
from tubevit.training.run.workdir import MetricsWriter, prepare_workdir
from tubevit.zoo.names import open_checkpoint

HEADS = {"motion": {"classes": 2, "labels": ("a", "b")}}


@pytest.fixture(scope="module")
def bucket():
    with gcs.emulator("bucket"):
        yield "gs://bucket"


def state(step):
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"a": {"kernel": jnp.full((30, 40), step, jnp.float32)}},
        "frozen": {},
        "opt_state": ({"count": jnp.asarray(step)},),
    }


def lines(workdir):
    return [json.loads(line) for line in storage.read_bytes(f"{workdir}/metrics.jsonl").splitlines()]


def test_csv_and_clips(bucket, tmp_path):
    write_clip(tmp_path / "clip.mp4", range(0, 400, 40))
    storage.upload(tmp_path / "clip.mp4", f"{bucket}/data/clips/a.mp4")
    storage.write_text(f"{bucket}/data/list.csv", "path,label,split\nclips/a.mp4,x,train\nclips/gone.mp4,y,train\n")
    source = open_source(f"{bucket}/data/list.csv", "train")
    assert source.keys == (f"{bucket}/data/clips/a.mp4",) and source.listed == 2 and source.classes == ("x", "y")
    assert source.media(0) == (tmp_path / "clip.mp4").read_bytes() and source.modality == "video"
    assert len(decode_frames(source.media(0))) == 10


def test_array_record_reads_from_a_bucket(bucket, tmp_path):
    from array_record.python import array_record_module as array_record

    writer = array_record.ArrayRecordWriter(str(tmp_path / "shard"), "group_size:1")
    for number in range(50):
        writer.write(bytes([number]) * 30_000)
    writer.close()
    storage.upload(tmp_path / "shard", f"{bucket}/shards/shard")
    reader = array_record.ArrayRecordReader(f"{bucket}/shards/shard")
    assert reader.ok() and reader.num_records() == 50 and reader.read([7]) == [bytes([7]) * 30_000]


def test_a_run_and_its_resumption(bucket, tiny_config):
    workdir = storage.as_path(f"{bucket}/runs/a")
    prepare_workdir(workdir, tiny_config(), HEADS)
    assert steps(workdir / "checkpoints") == []
    writer, checkpoints = MetricsWriter(workdir, 0), Checkpoints(workdir, keep=2)
    for step in (2, 3, 4):
        writer.write(step, {"loss": 1 / step})
        writer.sync()
        checkpoints.save(state(step), {"model": {"name": "x"}})
    checkpoints.wait()
    assert [line["step"] for line in lines(workdir)] == [2, 3, 4]  # before it is closed
    writer.write(5, {"loss": 0.1})
    writer.close(), checkpoints.close()
    assert steps(workdir / "checkpoints") == [3, 4] and len(lines(workdir)) == 4
    found = [open_checkpoint(name).folder for name in (workdir, workdir / "checkpoints/4")]
    assert found == [workdir / "checkpoints/4"] * 2
    assert open_checkpoint(workdir, 3).folder == workdir / "checkpoints/3"
    with pytest.raises(UserError, match=r"gs://bucket/runs/a has no checkpoint of step 9; it has \[3, 4\]"):
        open_checkpoint(workdir, 9)
    assert open_checkpoint(workdir).metadata["step"] == 4
    kernel = Checkpoint(workdir / "checkpoints/4").read("params", state(4)["params"])["a"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((30, 40), 4))

    with pytest.raises(UserError, match="gs://bucket/runs/a holds a run of another configuration"):
        prepare_workdir(f"{bucket}/runs/a/", tiny_config({"seed": "1"}), HEADS)
    before = lines(workdir)
    prepare_workdir(f"{bucket}/runs/a/", tiny_config(), HEADS)
    writer = MetricsWriter(workdir, 4)
    writer.sync()
    assert lines(workdir) == before[:3]  # cut back to the checkpoint
    writer.write(5, {"loss": 0.2})
    writer.close()
    assert lines(workdir) == [*before[:3], {"step": 5, "loss": 0.2}]
    events = [name for name in storage.names(workdir) if name.startswith("events.out.tfevents.")]
    assert len(events) in (1, 2)  # two unless made within one second
    assert b"loss" in storage.read_bytes(f"{workdir}/{events[0]}")
    assert set(storage.names(workdir)) == {"config.json", "metrics.jsonl", "checkpoints", *events}


def test_metrics_are_uploaded_now_and_then(bucket, monkeypatch):
    writer = MetricsWriter(f"{bucket}/runs/now", 0)
    writer.write(1, {"loss": 1.0})
    assert not storage.exists(f"{bucket}/runs/now/metrics.jsonl")
    monkeypatch.setattr(workdirs, "_UPLOAD_EVERY", 0.0)
    writer.write(2, {"loss": 0.5})
    assert [line["step"] for line in lines(f"{bucket}/runs/now")] == [1, 2]
    folder = writer._folder
    writer.close()
    assert not folder.exists()


def test_a_save_that_was_killed_is_not_taken(bucket):
    """Orbax marks a whole checkpoint in a bucket last; its metadata is there long before."""
    workdir = storage.as_path(f"{bucket}/runs/killed")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (3, 6):
        checkpoints.save(state(step), {"model": {}}, wait=True)
    checkpoints.close()
    import gcsfs

    gcsfs.GCSFileSystem().rm("bucket/runs/killed/checkpoints/6/commit_success.txt")
    assert storage.exists(workdir / "checkpoints/6/_CHECKPOINT_METADATA")
    assert steps(workdir / "checkpoints") == [3] and open_checkpoint(workdir).folder.name == "3"
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(state(6), {"model": {}}, wait=True)
    checkpoints.close()
    assert steps(workdir / "checkpoints") == [3, 6]
    kernel = Checkpoint(workdir / "checkpoints/6").read("params", state(6)["params"])["a"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((30, 40), 6))


def test_models(bucket, tiny):
    model = tiny({"motion": Head(3, "video", ("left", "right", "up"))}, depth=1)
    tubevit.save_model(model, f"{bucket}/models/mine")
    loaded = tubevit.load_model(f"{bucket}/models/mine/")
    assert loaded.config == model.config
    ours, theirs = parameters(model), parameters(loaded)
    np.testing.assert_array_equal(ours["heads"]["motion"]["kernel"], theirs["heads"]["motion"]["kernel"])
    np.testing.assert_array_equal(
        ours["tokenizer"]["tubes"]["1"]["kernel"], theirs["tokenizer"]["tubes"]["1"]["kernel"]
    )
    with pytest.raises(UserError, match="gs://bucket/models/mine exists already"):
        tubevit.save_model(model, f"{bucket}/models/mine")
    with pytest.raises(UserError, match="did you mean 'gs://bucket/models/mine'"):
        tubevit.load_model(f"{bucket}/models/mien")
    with pytest.raises(UserError, match="gs://bucket/models holds no checkpoint"):
        tubevit.load_model(f"{bucket}/models")


def test_weights_of_another_library(bucket, tmp_path):
    storage.write_text(f"{bucket}/vivit/config.json", '{"model_type": "vivit"}')
    with pytest.raises(UserError, match="gs://bucket/vivit is neither a checkpoint nor .* a local disk: copy them"):
        convert(f"{bucket}/vivit", tmp_path / "ours", open_checkpoint=open_checkpoint)


def test_a_typing_error_in_a_full_folder(tiny):
    """Only the most similar names are tried: each of them is a request, and its run is two more."""
    with gcs.emulator("full") as asked:
        for number in range(40):
            storage.write_text(f"gs://full/runs/experiment_{number}/config.json", "{}")
        tubevit.save_model(tiny(depth=1), "gs://full/runs/mine")
        asked.clear()
        with pytest.raises(UserError, match="did you mean 'gs://full/runs/mine'"):
            tubevit.load_model("gs://full/runs/mien")
        assert len(asked) < 40


def test_no_such_bucket(bucket, tiny_config):
    with pytest.raises(UserError, match="cannot write workdir gs://no-such-bucket/run: there is no such bucket"):
        prepare_workdir("gs://no-such-bucket/run", tiny_config(), HEADS)


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "hangs"])
def test_a_bucket_that_goes_out_of_reach_during_a_run(bucket, accepts, monkeypatch):
    workdir = storage.as_path(f"{bucket}/runs/lost-{accepts}")
    writer, checkpoints = MetricsWriter(workdir, 0), Checkpoints(workdir, keep=2)
    checkpoints.save(state(1), {}, wait=True)
    begin = time.monotonic()
    with gcs.unreachable(accepts), monkeypatch.context() as patch:
        patch.setattr(storage, "TIMEOUT", 0.5)  # not for the service that answers again, on a busy machine
        with pytest.raises(RunError, match=f"saving a checkpoint in {workdir}/checkpoints failed: cannot reach"):
            checkpoints.save(state(2), {}, wait=True)
        with pytest.raises(storage.StorageError, match=f"cannot reach {workdir}"):
            writer.close()
        with pytest.raises(storage.StorageError):
            Checkpoint(workdir / "checkpoints/1").read("params", state(1)["params"])
    assert time.monotonic() - begin < 20  # the clients alone: 35 seconds and more than 100
    assert 1 in steps(workdir / "checkpoints")
