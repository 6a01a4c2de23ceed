"""host.sh in a checkout with a fake environment, and the targets of make."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


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
    """The commands that make would run; `make test` runs this as its child, and would pass its own flags on."""
    command, env = ["make", "--dry-run", *arguments], {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


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
