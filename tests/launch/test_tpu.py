"""The commands for TPUs, without any: against the tools' own flags, and with a fake gcloud."""

import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

from launch.accelerators import RUNTIMES, accelerator_types
from tubevit.config import load_config
from tubevit.data.sources.embedded import HEADS
from tubevit.preflight.topology import accelerator_types as known_to_preflight

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = json.loads((ROOT / "tests/data/launch_flags.json").read_text())["commands"]
RUN = ["train", "--config", "k600:list=a b.csv,note=it's $HOME", "--workdir", "gs://b/run"]
CALLS = {
    "vm": "vm --type v5litepod-8",
    "vm, all flags": "vm --type v4-8 --project p --spot --reserved --create-flag=--network=n --clone URL --branch b",
    "pod": "pod --type v6e-256 --project p",
    "pod, there already": "pod --type v5p-128 --no-create",
    "queued": "queued --type v5litepod-256 --spot --project p",
    "queued, slices": "queued --type v6e-256 --slices 2 --reserved --clone URL",
    "xpk": "xpk --type v6e-256 --cluster c --slices 2 --project p",
    "xpk, cluster": "xpk --type v5p-8 --cluster c --create-cluster --spot",
    "xpk, image": "xpk --type v4-512 --cluster c --create-cluster --image i --max-restarts 7",
}
POD = ["pod", "--name", "a", "--zone", "z", "--type", "v6e-16", "--", *RUN]


def printed(tpu, capsys, call, run=RUN):
    """The commands that a dry run prints, as lists."""
    assert tpu.main([*shlex.split(call), "--name", "my-run", "--zone", "z", "--dry-run", "--", *run]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_flags_are_those_of_the_tools(tpu, capsys, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)  # a dry run runs nothing
        commands = printed(tpu, capsys, call)
    for command in commands:
        if command[0] not in ("gcloud", "xpk"):
            assert command[0] in ("git", "tar", "mkdir")
            continue
        words = 5 if command[0] == "gcloud" else 3
        reference = REFERENCE[" ".join(command[:words])]
        flags = [word for word in command[words:] if word.startswith("-")]
        places = [word for word in command[words:] if not word.startswith("-")]
        for flag in flags:
            name, equals, value = flag.partition("=")
            if equals:
                assert name in reference["flags_with_value"] and value, flag
            else:
                assert name in reference["flags"], flag
        assert len({flag.partition("=")[0] for flag in flags}) == len(flags)
        assert len(places) == (0 if command[0] == "xpk" else 2 if command[words - 1] == "scp" else 1)
    remote = [flag.removeprefix("--command=") for command in commands for flag in command if "--command=" in flag]
    assert remote
    for line in remote:
        subprocess.run(["bash", "-n", "-c", line], check=True)
    runs = [shlex.split(line) for line in remote if "train" in line]
    assert [line[-len(RUN) :] for line in runs] == [RUN]  # quoted for two shells, and whole


def test_what_is_created(tpu, capsys):
    def create(call):
        return next(c for c in printed(tpu, capsys, call) if "create" in c and "cluster" not in c)

    assert {"--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite"} <= set(create(CALLS["vm"]))
    queued = create(CALLS["queued"])
    assert {"--node-id=my-run", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(queued)
    assert {"--node-count=2", "--node-prefix=my-run"} <= set(create(CALLS["queued, slices"]))
    workload = create(CALLS["xpk, image"])
    assert {"--tpu-type=v4-512", "--max-restarts=7", "--restart-on-exit-codes=75"} <= set(workload)


def test_accelerator_types():
    types = accelerator_types()
    hosts = {"v4-8": 1, "v4-512": 64, "v5p-256": 32, "v5litepod-8": 1, "v5litepod-16": 4, "v6e-4": 1, "v6e-256": 64}
    assert hosts.items() <= types.items()
    assert set(known_to_preflight()) <= set(types)
    assert {name.split("-")[0] for name in types} == set(RUNTIMES)


REFUSED = {
    "vm --type v6e-2": "unknown accelerator type 'v6e-2'; did you mean 'v6e-",
    "vm --type v5e-8": "did you mean 'v5litepod-8'?",
    "vm --type v6e-16": "v6e-16 has 4 hosts, expected one; use pod instead of vm",
    "pod --type v6e-16 --slices 2": "--slices 2: expected 1, or more with queued, xpk or jobset",
    "xpk --type v6e-16": "xpk needs --cluster NAME",
    "skypilot --type v6e-16 --slices 2": "--slices 2: expected 1, or more with queued, xpk or jobset",
    "jobset --type v6e-16": "jobset needs --image IMAGE, which has a checkout as its working directory, or --clone URL",
    "jobset --type v4-640 --image i": "unknown accelerator type 'v4-640'; did you mean 'v4-64'",
    "skypilot --type v6e-16 --image i": "--image is for xpk, jobset; found skypilot",
    "jobset --type v6e-16 --image i --project p": "--project is for vm, pod, queued, xpk; found jobset",
    "queued --type v6e-16 --no-create": "--no-create is for vm, pod; found queued",
    "pod --type v6e-16 --branch b": "--branch b is a branch of --clone, which is missing",
    "xpk --type v5litepod-4 --cluster c": "unknown accelerator type 'v5litepod-4'",
    "pod --type v6e-16 --name A_b": "--name 'A_b': expected up to 40 lower-case letters",
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_work_is_refused(tpu, capsys, call):
    assert tpu.main(["--name", "a", "--zone", "z", *call.split(), "--dry-run", "--", *RUN]) == 2
    printed = capsys.readouterr()
    assert REFUSED[call] in printed.err and printed.out == "" and printed.err.count("\n") == 1


def test_what_to_run_is_checked(tpu, capsys):
    flags = ["--name", "a", "--zone", "z", "--type", "v5litepod-8", "--dry-run"]
    assert tpu.main(["vm", *flags]) == 2
    assert "the arguments for tubevit are missing" in capsys.readouterr().err
    local = ["--", "train", "--config", "k600", "--workdir=runs/a"]
    assert tpu.main(["vm", *flags, *local]) == 0
    capsys.readouterr()
    assert tpu.main(["pod", *flags, *local]) == 2
    assert "--workdir runs/a: expected gs://BUCKET/..." in capsys.readouterr().err


def test_calls_of_the_documentation(tpu, capsys):
    text = (ROOT / "docs/tpu.md").read_text().replace("\\\n", " ")
    calls = re.findall(r"^    python3 launch/tpu.py (.+)$", text, re.MULTILINE)
    assert {call.split()[0] for call in calls} == {"vm", "pod", "queued", "xpk", "jobset", "skypilot"}
    for call in calls:
        assert tpu.main(["--dry-run", *shlex.split(call)]) == 0, call
        config = load_config(re.search(r"--config (\S+)", call).group(1))
        sources = {each.source for each in config.data.train.values()}
        assert all(each.startswith("shards:gs://") for each in sources - HEADS.keys()), (
            call
        )  # data/ is not on the hosts


def test_versions_of_the_documentation():
    pins = re.findall(
        r'^(jax|flax|libtpu)==(\S+) ; python_version (>=|<) "3.12"$',
        (ROOT / "constraints.txt").read_text(),
        re.MULTILINE,
    )
    page = (ROOT / "docs/tpu.md").read_text()
    for python, since in (("3.12 or newer", ">="), ("3.11", "<")):
        versions = {name: version for name, version, operator in pins if operator == since}
        assert f"| {python} | {versions['jax']} | {versions['flax']} | {versions['libtpu']} |" in page
    assert "libtpu 0.0.42.1" in (ROOT / "docs/preflight.md").read_text()


def test_a_tpu_that_may_be_left_can_be_deleted(tpu, gcloud, capsys):
    calls = gcloud(scp="exit 1")
    assert tpu.main(POD) == 1
    assert [line.split()[3] for line in calls.read_text().splitlines()] == ["create", "scp"]
    printed = capsys.readouterr()
    assert "failed with exit code 1" in printed.err
    assert "# delete:\ngcloud compute tpus tpu-vm delete a" in printed.out


def test_nothing_is_created_without_all_tools(tpu, gcloud, monkeypatch, tmp_path, capsys):
    calls = gcloud()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert tpu.main(POD) == 2 and not calls.exists()
    assert capsys.readouterr().err == "tpu.py: git is not installed, see docs/tpu.md\n"


@pytest.fixture
def interruptible():
    """Have child processes take SIGINT, which those of a job in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_the_set_up_says_how_to_delete_the_tpu(gcloud, interruptible):
    gcloud(setup="kill -INT $PPID; exec sleep 60")
    done = subprocess.run([sys.executable, ROOT / "launch/tpu.py", *POD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "# delete:\ngcloud compute tpus tpu-vm delete a" in done.stdout
