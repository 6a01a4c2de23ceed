"""`shard-videos --runner` with Apache Beam; `make test-extras` runs this file in an environment of its own."""

import dataclasses
import json
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from apache_beam import Pipeline
from apache_beam.portability.api import beam_runner_api_pb2

from tests.data.clips import write_audio, write_clip
from tests.scripts import ROOT
from tubevit.cli import main
from tubevit.data import beam_engine
from tubevit.data.shard_job import Job
from tubevit.data.shard_writer import write_shards
from tubevit.data.sources import open_source
from tubevit.errors import UserError

# With `dry_run`, Beam looks at no bucket and sends nothing.
PROJECT = ("project=my-project", "region=us-central1")
IMAGE = "sdk_container_image=gcr.io/my-project/tubevit"
CLOUD = (*PROJECT, "temp_location=gs://bucket/tmp", IMAGE, "dry_run=True")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A csv of 12 clips in two splits: some large, one truncated, one empty, one with sound only, one missing."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["path,label,split"]
    for i in range(8):
        write_clip(folder / f"{i}.mp4", range(0, 40 * (i + 3), 40), size=(48, 64) if i % 3 else (96, 160))
        rows.append(f"{i}.mp4,{'ab'[i % 2]},{'val' if i == 5 else 'train'}")
    whole = (folder / "7.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    write_audio(folder / "sound.wav")
    rows += [f"{name},a,train" for name in ("cut.mp4", "empty.mp4", "sound.wav", "gone.mp4")]
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder / "clips.csv"


def arguments(clips, out, *more):
    return ["shard-videos", str(clips), str(out), "--short-side", "48", "--shards", "4", "--split", "train", *more]


@pytest.fixture(scope="module")
def expected(clips, tmp_path_factory):
    """What the local command writes."""
    out = tmp_path_factory.mktemp("local")
    assert main(arguments(clips, out)) == 0
    return content(out)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_bytes_as_the_local_command(clips, expected, tmp_path, capsys):
    """Shards, index, records, rejected files, and the state that a run resumes from."""
    assert main(arguments(clips, tmp_path, "--runner", "direct", "--json")) == 0
    assert content(tmp_path) == expected
    summary = json.loads(capsys.readouterr().out)["train"]
    assert (summary["written"], summary["rejected"], summary["kept"], summary["shards"]) == (7, 3, 0, 4)
    (tmp_path / "parts/train.job.pickle").write_bytes(b"of a command that was interrupted when all shards were written")
    assert main(arguments(clips, tmp_path, "--runner", "direct")) == 0
    assert content(tmp_path) == expected


def test_several_workers_killed_and_begun_again(clips, expected, tmp_path):
    """kill -9 after the first of four shards: the second command keeps what is finished."""
    workers = ["--runner", "direct", "--beam", "direct_num_workers=2", "direct_running_mode=multi_processing"]
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "from tubevit.data import shard_job\n"
        "real = shard_job.validated_bytes\n"
        "shard_job.validated_bytes = lambda *args: (time.sleep(0.3), real(*args))[1]\n"
        "from tubevit.cli import main\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(script), *arguments(clips, out, "--runner", "direct")]
    process = subprocess.Popen(command, cwd=ROOT)
    while not list(out.glob("train-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert 1 <= len(finished) < 4 and not (out / "index.json").exists()
    assert main(arguments(clips, out, *workers)) == 0
    assert content(out) == expected
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


@pytest.fixture
def job(tmp_path):
    """A job of two shards."""
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, [0, 40])
    return Job(open_source(str(tmp_path / "list.csv"), "all"), "train", str(tmp_path / "out"), 2, 48)


def built(runner, options, job, numbers):
    pipeline = beam_engine.new_pipeline(runner, options)
    beam_engine.add_steps(pipeline, numbers, *beam_engine.stage(job))
    return pipeline


def test_the_job_that_dataflow_would_get(job):
    """Beam's own dry run validates the options, translates the pipeline and stops before it is sent."""
    options = [*CLOUD, "max_num_workers=50"]
    result = built("dataflow", options, job, range(1000)).run()
    proto = result.job.proto_pipeline
    assert "gcr.io/my-project/tubevit" in str(proto.components.environments)
    assert any("write shards" in each.unique_name for each in proto.components.transforms.values())
    keys = [f"gs://bucket/{i}.mp4" for i in range(20_000)]
    source = dataclasses.replace(job.source, keys=keys, labels=np.zeros(len(keys), np.int32))
    long = built("dataflow", options, dataclasses.replace(job, source=source), range(1000)).run().job.proto_pipeline
    assert abs(long.ByteSize() - proto.ByteSize()) < 1000  # the list of files is not a part of it


def test_flink_gets_the_same_steps(job):
    """The pipeline in Beam's portable form, which the job server of Flink is sent."""
    options = ["flink_master=host:8081", "environment_type=DOCKER", "environment_config=my/image", "object_reuse=true"]
    pipeline = built("flink", options, job, range(3))
    proto = pipeline.to_runner_api(default_environment=pipeline.runner.default_environment(pipeline.options))
    assert beam_runner_api_pb2.Pipeline.FromString(proto.SerializeToString()) == proto
    (environment,) = proto.components.environments.values()
    assert b"my/image" in environment.payload
    again = Pipeline.from_runner_api(proto, pipeline.runner, pipeline.options)  # unpickles all functions
    assert "write shards" in {node.full_label for node in again.transforms_stack[0].parts}


def test_workers_share_nothing_with_the_command(job):
    """The function of the workers is found by name: what it needs travels in the staged job."""
    path, digest = beam_engine.stage(job)
    program = f"""
import pickle, sys
from tubevit.data import beam_engine
assert pickle.loads({pickle.dumps(beam_engine.write_staged)!r})(1, {path!r}, {digest!r}) == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len(list(pathlib.Path(job.folder).glob("*.array_record"))) == 1


@pytest.mark.parametrize(
    "runner, options, message",
    [
        ("dataflow", CLOUD[1:], "project"),
        ("dataflow", (*PROJECT, IMAGE), "temp_location"),
        ("dataflow", (*PROJECT, "temp_location=gs://bucket/tmp"), "sdk_container_image=IMAGE with tubevit"),
        (
            "dataflow",
            [*CLOUD, "max_num_worker=3"],
            "--beam 'max_num_worker'; did you mean 'max_num_workers'",
        ),
        ("direct", ["direct_num_workers=two"], "--beam: argument --direct_num_workers: invalid int value: 'two'"),
        ("direct", ["--help"], "--beam help: the options are those of Apache Beam"),
        ("direct", ["runner=FlinkRunner"], "expected the runner as --runner"),
        ("flink", ["flink_version=0.1"], "--beam: .*flink_version: invalid choice"),
    ],
)
def test_options_are_checked_first(runner, options, message):
    with pytest.raises(UserError, match=message):
        beam_engine.on_beam(runner, options)


def test_what_workers_elsewhere_cannot_reach_is_refused(clips, tmp_path, monkeypatch):
    write = beam_engine.on_beam("dataflow", CLOUD)
    with pytest.raises(UserError, match=f"workers on other hosts cannot reach {tmp_path}"):
        write_shards(open_source(str(clips), "train"), "train", str(tmp_path), 2, write=write)
    monkeypatch.chdir(clips.parent)
    write = beam_engine.on_beam("flink", ["flink_master=host:8081"])
    for source, out in ((str(clips), "out"), ("clips.csv", str(tmp_path / "shared"))):
        with pytest.raises(UserError, match="workers on other hosts cannot reach .*; expected an absolute path"):
            write_shards(open_source(source, "train"), "train", out, 2, write=write)


@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_a_worker_that_fails(clips, expected, tmp_path, capsys, mode):
    """One clear line and exit code 1. When the cause is mended, the same command goes on."""
    blocked = tmp_path / "train-00002-of-00004.array_record"
    blocked.mkdir()
    command = arguments(clips, tmp_path, "--runner", "direct")
    capsys.readouterr()
    assert main([*command, "--beam", f"direct_running_mode={mode}"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tubevit: ")]
    assert line.startswith("tubevit: --runner direct: ") and line.endswith("; the same command resumes")
    assert "Is a directory" in line and blocked.name in line
    blocked.rmdir()
    assert main(command) == 0
    assert content(tmp_path) == expected
