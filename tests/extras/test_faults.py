"""Faults of whole processes, too slow for `make test`; more of them are tried by benchmarks/faults.py."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import tubevit
from tests.hosts import environment_with, free_address
from tubevit.checkpoint.checkpoint import steps
from tubevit.cli import main

CHANGES = {"mesh.data": 8, "data.train.moving_digits.batch_size": 8, "data.train.still_digits.batch_size": 8}
ROOT = pathlib.Path(tubevit.__file__).parent.parent
# Ends itself by SIGKILL at a moment of the run.
KILLED = """
import os, pathlib, signal, sys, threading, time
from tubevit.checkpoint.checkpoint import steps
from tubevit.cli import main
from tubevit.config import load_config
from tubevit.training import loop

moment, at, *arguments = sys.argv[1:]
workdir = pathlib.Path(arguments[arguments.index("--workdir") + 1])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def while_saving():  # as soon as anything of the checkpoint can be seen
    folder = workdir / "checkpoints"
    while not folder.is_dir() or not any(name.startswith(at) for name in os.listdir(folder)):
        time.sleep(0.0002)
    die()

def batches(*rest, **settings):
    start = 1 + max(steps(workdir / "checkpoints"), default=0)
    for step, batch in enumerate(loop.joint_batches(*rest, **settings), start):
        if step == int(at):  # a checkpoint is whole, later steps are not in it, a line is half written
            while not steps(workdir / "checkpoints"):
                time.sleep(0.01)
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write('{"step": ' + at + ', "train/lo')
                file.flush()
            die()
        yield batch

if moment == "saving":
    threading.Thread(target=while_saving, daemon=True).start()
    sys.exit(main(arguments))
loop.train(load_config(arguments[2]), workdir, parts=loop.Parts(batches=batches))
"""


def test_an_exception_in_one_process_ends_both(train_command, tmp_path):
    """Within seconds, with the cause; here process 1 cannot read its configuration."""
    address = free_address()
    program = (
        "import sys\nfrom tubevit.cli.main import entry\nfrom tubevit.training import loop\n"
        "def fail(*_):\n    raise ValueError('a defect')\n"
        "if sys.argv[-1] == '1':\n    loop.local_rows = fail\nentry()"
    )
    running = []
    for index in ("0", "1"):
        words = [sys.executable, "-c", program, *train_command(tmp_path, **CHANGES), "--coordinator", address]
        words += ["--num-processes", "2", "--process-id", index]
        running.append(subprocess.Popen(words, cwd=ROOT, env=environment_with(4), stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=60)[1] for process in reversed(running)]
    assert running[1].returncode == 1 and "ValueError: a defect" in outputs[0]
    assert running[0].returncode not in (0, 2, 75)
    assert not [process for process in running if process.returncode == -signal.SIGKILL]


def test_a_full_disk_leaves_the_last_good_checkpoint(tiny_run, train_command, tmp_path):
    """Files cannot grow beyond 20 kB, as if the disk were full."""
    workdir = shutil.copytree(tiny_run, tmp_path / "copy")
    command = train_command(workdir, **{"train.steps": 12})
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # it has files of its own
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", sys.executable, "-m", "tubevit", *command]
    result = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("tubevit: saving a checkpoint") and "the last good checkpoint is step 9" in last
    assert "Traceback" not in result.stderr
    assert steps(workdir / "checkpoints")[-1] == 9
    assert tubevit.load_model(workdir).config == tubevit.load_model(tiny_run).config


def test_killed_at_any_moment_ends_the_same(tiny_run, train_command, read_metrics, read_arrays, tmp_path):
    workdir = tmp_path / "killed"
    # While the first checkpoint is saved; then in between; then while the second one is.
    for moment, at, whole in (("saving", 3, []), ("between", 5, [3]), ("saving", 6, [3])):
        command = [sys.executable, "-c", KILLED, moment, str(at), *train_command(workdir)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert steps(workdir / "checkpoints") == whole
        if moment == "between":
            assert (workdir / "metrics.jsonl").read_text().endswith('{"step": 5, "train/lo')
    assert main(train_command(workdir)) == 0
    assert read_arrays(workdir, 9) == read_arrays(tiny_run, 9)
    assert read_metrics(workdir) == read_metrics(tiny_run)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "9"]  # nothing half is left
