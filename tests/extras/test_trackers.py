"""The real clients: Weights & Biases offline, and MLflow with a local store. A run stops and resumes."""

import json
import os
import struct
import subprocess
import sys
import time

import mlflow
import pytest

from tests.logs import logged
from tests.scripts import ROOT
from tubevit.training.run.trackers import make_tracker, start_trackers

# A run of W&B in a program that ends while nobody answers.
UNREACHABLE = """
import pathlib, sys
from tubevit.training.run import trackers, wandb
wandb.PATIENCE = 2
run = trackers.TrackedRun("abcdefgh", "run", {}, pathlib.Path(sys.argv[1]))
thread = trackers.TrackerThread("wandb", trackers.make_tracker("wandb"), run, patience=0.5)
thread.log(1, {"x": 1.0})
thread.close(failed=False)
print("the run is over", flush=True)
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    home = tmp_path / "planted-user"
    planted = {"WANDB_API_KEY": "planted-key-1234", "SOME_TOKEN": "planted-token", "HOME": str(home)}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    source = {"source": f"{home}/clips/list.csv", "head": "planted-token"}
    config = {"seed": 7, "data": {"train": {"clips": source}}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def write(workdir, name, restored, last, failed=False):
    """Hand over the metrics of the steps after `restored`; returns what is logged."""
    with logged() as said:
        (thread,) = start_trackers(workdir, restored, {name: make_tracker(name)})
        for step in range(restored + 1, last + 1):
            thread.log(step, {"train/loss": 1 / step})
        thread.log(last, {"eval/clips/top1": 0.25})
        thread.close(failed)
    return said


def without_planted(files):
    """Whether no file holds anything that was planted."""
    files = [path for path in files if path.is_file()]
    assert files
    return all(b"planted" not in path.read_bytes() for path in files)


def records(data):
    """The records of a log in the format of LevelDB: parts of up to 32 KiB, after a header of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_rows(folder):
    """The configuration and the history in the file that `wandb sync` sends."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    config, history = {}, []
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            config |= {"id": record.run.run_id, "project": record.run.project, "host": record.run.host}
        if record.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history.append({key: value for key, value in row.items() if key in ("_step", "train/loss")})
    return config, history


def test_wandb_offline(workdir, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert write(workdir, "wandb", 0, 3) == []
    (folder,) = workdir.glob("wandb/offline-run-*")
    config, history = wandb_rows(folder)
    assert (config["seed"], config["data.train.clips.source"], config["project"]) == (7, "list.csv", "tubevit")
    assert config["host"] == "" and "environment variable SOME_TOKEN" in config["data.train.clips.head"]
    assert history == [{"_step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    assert without_planted([*folder.glob("*.wandb"), *folder.glob("files/**/*")])
    assert write(workdir, "wandb", 1, 4) == []
    (second,) = set(workdir.glob("wandb/offline-run-*")) - {folder}
    assert wandb_rows(second)[0]["id"] == config["id"] and [row["_step"] for row in wandb_rows(second)[1]] == [2, 3, 4]


def test_mlflow_with_a_local_store(workdir, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert write(workdir, "mlflow", 0, 3, failed=True) == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tubevit").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED" and run.info.run_name == "run"
    assert (run.data.params["seed"], run.data.params["data.train.clips.source"]) == ("7", "list.csv")
    assert write(workdir, "mlflow", 1, 5) == []
    (run,) = client.search_runs([experiment])  # the same one
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(step, 1 / step) for step in (1, 2, 3, 4, 5)]
    assert run.info.status == "FINISHED" and run.data.metrics["eval/clips/top1"] == 0.25
    assert write(workdir, "mlflow", 0, 1) == [] and len(client.search_runs([experiment])) == 2
    assert without_planted((tmp_path / "mlruns").rglob("*"))


def test_the_process_ends_soon_if_wandb_cannot_be_reached(workdir, tmp_path):
    """By default, its client would hold the process for a minute and a half."""
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    command = [sys.executable, "-c", UNREACHABLE, str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0 and done.stdout == "the run is over\n" and time.monotonic() - began < 45


def test_nobody_is_logged_in(workdir, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (warning,) = write(workdir, "wandb", 0, 2)
    assert "not logged in" in warning
