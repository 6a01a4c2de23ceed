"""Launching on TPUs, without any: the commands against the tools' own flags, the restart loops with fake commands."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.scripts import script
from tubevit.config import load_config
from tubevit.data.sources.embedded import HEADS
from tubevit.preflight.topology import accelerator_types as known_to_preflight

ROOT = pathlib.Path(__file__).parent.parent
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


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """`gcloud(**answers)`: puts a `gcloud` on the path that runs the bash of the first word found in its arguments.

    Returns the file of its calls.
    """

    def make(**answers):
        cases = "\n".join(f"*'{word}'*) {answer} ;;" for word, answer in answers.items())
        path = tmp_path / "bin/gcloud"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/calls\ncase "$*" in\n{cases}\nesac\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        return tmp_path / "calls"

    return make


@pytest.fixture
def tpu(monkeypatch, gcloud):
    gcloud()
    module = script("launch/tpu.py")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def printed(tpu, capsys, call, run=RUN):
    """The commands that a dry run prints, as lists."""
    assert tpu.main([*shlex.split(call), "--name", "my-run", "--zone", "z", "--dry-run", "--", *run]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_flags_are_those_of_the_tools(tpu, capsys, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(tpu.subprocess, "run", None)  # a dry run runs nothing
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


def test_accelerator_types(tpu):
    types = tpu.accelerator_types()
    hosts = {"v4-8": 1, "v4-512": 64, "v5p-256": 32, "v5litepod-8": 1, "v5litepod-16": 4, "v6e-4": 1, "v6e-256": 64}
    assert hosts.items() <= types.items()
    assert set(known_to_preflight()) <= set(types)
    assert {name.split("-")[0] for name in types} == set(tpu.RUNTIMES)


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


class Cloud:
    """Answers gcloud's commands for one queued resource, from a script of its states and of what the hosts say."""

    def __init__(self, *story):
        self.story, self.calls = list(story), []

    def __call__(self, command, timeout=None):
        words = " ".join(command)
        name = "status" if "host.sh status" in words else "start" if "host.sh start" in words else command[4]
        self.calls.append(name)
        code, out, err = 0, "", ""
        if name in ("describe", "status"):
            out = self.story.pop(0)
            if out in ("NOT_FOUND", "offline"):
                code, out, err = 1, "", f"ERROR: {out}"
        return subprocess.CompletedProcess(command, code, out, err)


def watched(tpu, monkeypatch, *story, type="v6e-16", slices=1):
    cloud = Cloud(*story)
    monkeypatch.setattr(tpu, "execute", cloud)
    call = ["queued", "--name", "a", "--zone", "z", "--type", type, "--slices", str(slices), "--", *RUN]
    return tpu.main(call), cloud


def said(*words):
    return "".join(f"status: {word}\n" for word in words)


def test_a_queued_resource_comes_again(tpu, monkeypatch):
    none, running = said(*["none"] * 4), said(*["running"] * 4)
    first = ["NOT_FOUND", "WAITING_FOR_RESOURCES", "ACTIVE", "", "ACTIVE", none, "ACTIVE", running]
    preempted = ["SUSPENDING", "SUSPENDED", "NOT_FOUND", "offline", "ACTIVE", none, "ACTIVE", running]
    code, cloud = watched(tpu, monkeypatch, *first, *preempted, "ACTIVE", said("0", "running", "0", "0"), "ACTIVE",
                          said(*"0000"))  # fmt: skip
    assert code == 0 and not cloud.story
    acts = [name for name in cloud.calls if name in ("create", "delete", "scp", "start")]
    assert acts == ["create", "scp", "start", "delete", "create", "scp", "start", "delete"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_queued_run_that_failed_ends(tpu, monkeypatch, code):
    result, cloud = watched(tpu, monkeypatch, "ACTIVE", said("running", str(code)))
    assert result == code and cloud.calls == ["describe", "status", "ssh", "delete"]


def test_what_is_not_to_be_had_ends(tpu, monkeypatch, capsys):
    result, cloud = watched(tpu, monkeypatch, *["NOT_FOUND", "FAILED"] * 5)
    assert result == 1 and cloud.calls.count("create") == 5 and not cloud.story
    assert "# delete:\ngcloud compute tpus queued-resources delete a --force" in capsys.readouterr().out


def test_an_interrupt_leaves_the_resource_and_says_how_to_delete_it(tpu, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(tpu.time, "sleep", interrupt)
    result, cloud = watched(tpu, monkeypatch, "ACTIVE", said(*["running"] * 4))
    assert result == 1 and cloud.calls == ["describe", "status"]
    assert "# delete:\ngcloud" in capsys.readouterr().out


def test_hosts_that_do_not_answer_are_replaced(tpu, monkeypatch):
    silent = ["ACTIVE", said("running")] * 10  # one of two slices of four hosts
    result, cloud = watched(tpu, monkeypatch, *silent, "NOT_FOUND", "ACTIVE", said(*"0" * 8), slices=2)
    assert result == 0 and [name for name in cloud.calls if name in ("create", "delete")] == [
        "delete",
        "create",
        "delete",
    ]


def test_waiting_outlasts_checks_that_fail(tpu, monkeypatch):
    waiting = ["offline", "WAITING_FOR_RESOURCES"] * 20
    result, cloud = watched(tpu, monkeypatch, *waiting, "ACTIVE", said(*"0000"))
    assert result == 0 and not cloud.story
    result, cloud = watched(tpu, monkeypatch, "WAITING_FOR_RESOURCES", *["offline"] * 5)
    assert result == 1 and not cloud.story


QUEUED = ["queued", "--name", "a", "--zone", "z", "--type", "v6e-16", "--", *RUN]
POD = ["pod", "--name", "a", "--zone", "z", "--type", "v6e-16", "--", *RUN]


@pytest.mark.parametrize("code, hosts", [(0, "--worker=0"), (3, "--node=all --worker=all")])
def test_the_log_is_read_before_its_host_is_deleted(tpu, gcloud, capsys, code, hosts):
    """That of all hosts if one failed, whatever bytes it has."""
    statuses = said(*"000", str(code)).replace("\n", "\\n")
    calls = gcloud(describe="echo ACTIVE", status=f"printf '{statuses}'", tail="printf 'caf\\xe9 é\\n'", delete=":")
    assert tpu.main(QUEUED) == code
    assert "caf\\xe9 é\n" in capsys.readouterr().out
    *_, log, delete = calls.read_text().splitlines()
    assert f"ssh a {hosts} --command=" in log and "delete a --force" in delete


def test_hosts_that_never_answer_are_replaced(tpu, gcloud, monkeypatch, capsys):
    monkeypatch.setattr(tpu, "QUICK", 0.2)
    monkeypatch.setattr(tpu, "SILENT", 2)
    calls = gcloud(describe="echo ACTIVE", status="exec sleep 60", delete="exit 1")
    assert tpu.main(QUEUED) == 1
    assert calls.read_text().count(" delete ") == tpu.FAILURES
    assert "gcloud did not end within 0.2 s" in capsys.readouterr().err


def test_what_was_printed_in_time_is_kept(tpu):
    done = tpu.execute(["bash", "-c", "echo begun; exec sleep 60"], 0.5)
    assert (done.returncode, done.stdout) == (tpu.TIMED_OUT, "begun\n")


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


def test_an_interrupt_of_the_set_up_says_how_to_delete_the_tpu(gcloud):
    gcloud(setup="kill -INT $PPID; exec sleep 60")
    done = subprocess.run([sys.executable, ROOT / "launch/tpu.py", *POD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "# delete:\ngcloud compute tpus tpu-vm delete a" in done.stdout


@pytest.fixture
def fake(tmp_path):
    """A command that ends with the next of the given codes each time (-9: killed), and a way to run the loop on it."""

    def make(*codes):
        path = tmp_path / "command"
        lines = " ".join(map(str, codes))
        path.write_text(
            f"#!/usr/bin/env bash\ncd {tmp_path}\ncodes=({lines})\necho run $* >>runs\n"
            "code=${codes[$(($(wc -l <runs) - 1))]}\n"
            "if [ $code -lt 0 ]; then kill $code $$; fi\nexit $code\n"
        )
        path.chmod(0o755)
        return path

    return make


RESTARTS = {  # codes of the command: those of the loop, runs, waits
    (0,): (0, 1, []),
    (2, 0): (2, 1, []),
    (75, 75, 75, 0): (0, 4, []),
    (1, 75, 0): (0, 3, [0.01]),
    (-9, 1, -15, 0): (0, 4, [0.01, 0.02, 0.04]),
    (1, 1, 2, 0): (2, 3, [0.01, 0.02]),
    (1, 134, 3, 1, 0): (1, 4, [0.01, 0.02, 0.04]),
    (1, -9, -9, -9, 0): (137, 4, [0.01, 0.02, 0.04]),
}


@pytest.mark.parametrize("codes", RESTARTS, ids=str)
def test_restarts_follow_the_exit_code(fake, tmp_path, codes):
    code, runs, waits = RESTARTS[codes]
    command = [sys.executable, ROOT / "launch/restart.py", "--wait=0.01", "--limit=3", f"--exit-file={tmp_path}/exit"]
    done = subprocess.run([*command, "--", fake(*codes), "train", "--x=a b"], capture_output=True, text=True)
    assert done.returncode == code and (tmp_path / "exit").read_text() == f"{code}\n"
    assert (tmp_path / "runs").read_text() == "run train --x=a b\n" * runs
    assert re.findall(r"restarting in (\S+) s", done.stderr) == [str(wait) for wait in waits]
    assert done.stderr.count("restarting at once") == codes[:runs].count(75)


def test_a_long_run_resets_the_count_however_it_ends(tmp_path):
    run = "echo >>runs; n=$(wc -l <runs); codes=(1 1 75 1 1 0); if [ $n = 3 ]; then sleep 2.5; fi; exit ${codes[n-1]}"
    loop = [sys.executable, ROOT / "launch/restart.py", "--wait=0.01", "--limit=2", "--healthy=2", "--"]
    done = subprocess.run([*loop, "bash", "-c", run], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.findall(r"\(restart (\d) of 2\)", done.stderr) == ["1", "2", "1", "2"]


def test_a_command_that_is_not_there(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "launch/restart.py", "--", tmp_path / "no"], capture_output=True)
    assert done.returncode == 2 and b"cannot run" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("code", [75, 0, 1])
def test_a_signal_reaches_the_command_and_ends_the_loop(tmp_path, code):
    saves = f"trap 'echo saved; exit {code}' TERM; echo begun; while true; do sleep 0.05; done"
    command = [sys.executable, ROOT / "launch/restart.py", f"--exit-file={tmp_path}/exit", "--", "bash", "-c", saves]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as loop:
        assert loop.stdout.readline() == "begun\n"
        loop.send_signal(signal.SIGTERM)
        assert loop.stdout.read() == "saved\n"  # and did not begin again
    assert loop.returncode == (0 if code == 0 else 75)
    assert (tmp_path / "exit").exists() == (code == 0)


def test_a_signal_ends_a_wait():
    command = [sys.executable, ROOT / "launch/restart.py", "--", "bash", "-c", "exit 1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as loop:
        assert "restarting in 100 s (restart 1 of 5)" in loop.stderr.readline()
        loop.send_signal(signal.SIGTERM)
        assert loop.wait(timeout=20) == 75


@pytest.fixture
def host(fake, tmp_path):
    """host.sh in a checkout with a fake environment and a fake make."""
    checkout = tmp_path / "tubevit"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    shutil.copytree(ROOT / "tubevit", checkout / "tubevit", ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    bin = checkout / ".venv/bin"
    bin.mkdir(parents=True)
    (bin / "python").write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    (bin / "tubevit").symlink_to(tmp_path / "command")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text(f"#!/usr/bin/env bash\necho make $* >>{tmp_path}/made\n")
    for path in (bin / "python", tmp_path / "bin/make"):
        path.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"

    def call(*arguments):
        return subprocess.run(
            ["bash", "tubevit/launch/host.sh", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "HOST_PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )

    return call


def test_a_run_on_a_host(host, fake, tmp_path):
    fake(75, 0)
    assert host("status").stdout == "status: none\n"
    assert host("start", "train", "--workdir", "a b").returncode == 0
    end = time.monotonic() + 30
    while (status := host("status").stdout) == "status: running\n" and time.monotonic() < end:
        time.sleep(0.1)
    assert status == "status: 0\n"
    assert (tmp_path / "runs").read_text() == "run train --workdir a b\n" * 2
    assert "restarting at once" in (tmp_path / "tubevit/runs/launch/log").read_text()


def test_a_host_has_one_run(host, tmp_path):
    (tmp_path / "command").write_text("#!/usr/bin/env bash\nwhile true; do sleep 0.05; done\n")
    (tmp_path / "command").chmod(0o755)
    assert host("start", "train").returncode == 0
    pid = int((tmp_path / "tubevit/runs/launch/pid").read_text())
    try:
        assert host("status").stdout == "status: running\n"
        second = host("start", "train")
        assert second.returncode == 2 and "a run is already in progress" in second.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 30
    while (status := host("status").stdout) == "status: running\n" and time.monotonic() < end:
        time.sleep(0.1)
    assert status == "status: none\n"  # told to end: the next start goes on


def test_a_run_in_a_container(host, fake, tmp_path):
    fake(75, 2)
    assert host("run", "train", "--config", "c").returncode == 2
    made = (tmp_path / "made").read_text()
    assert made == f"make --no-print-directory setup EXTRAS=tpu,hub,wandb,mlflow PYTHON={sys.executable}\n"
    assert (tmp_path / "runs").read_text() == "run train --config c\n" * 2


def planned(*arguments):
    """The commands that make would run."""
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_installs_and_cleans_what_it_is_told(tmp_path):
    assert f"launch/quickstart.py --venv {tmp_path} --seed 1" in planned(
        "quickstart", f"VENV={tmp_path}", "QUICKSTART=--seed 1"
    )
    assert planned("clean", f"VENV={tmp_path}") == f"rm -rf {tmp_path} build\n"  # not runs/, which holds models


def test_the_make_target_takes_extras(tmp_path):
    for extras in ("dev", "tpu", "dev,tpu"):
        flags = [f"VENV={tmp_path}/venv", *([f"EXTRAS={extras}"] if extras != "dev" else [])]
        plan = planned("setup", *flags)
        assert f"-e '.[{extras}]'" in plan and "-c constraints.txt" in plan
    assert '"tpu": [' in (ROOT / "setup.py").read_text()
