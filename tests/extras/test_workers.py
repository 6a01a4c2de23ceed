"""Worker processes end with their parent, however it ends, and with each other."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.data.clips import write_clip

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 5.0  # within which they have to end

# A parent that loads batches; it says so once the first is there. Mode `busy`: it asks for batch after batch, `idle`:
# for no second one, `start`: it says so before its workers are ready.
LOADER = """
import multiprocessing, sys, time
from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader, iterate, training_rows
from tubevit.data.sources import open_source

if __name__ == "__main__":
    clips, mode = sys.argv[1:]
    load = SampleLoader(open_source(clips, "all"), 16, None, 64, Augment())
    batches = iterate(training_rows(load, 0), 2, threads=2, workers=2)
    if mode == "start":
        import threading
        threading.Thread(target=lambda: next(batches), daemon=True).start()
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        print("ready", flush=True)
        time.sleep(600)
    next(batches)
    print("ready", flush=True)
    if mode == "idle":
        time.sleep(600)
    while True:
        next(batches)
"""

# The command line with a stand-in for the verb: what it raises is what the user reads.
COMMAND = """
import sys
from tubevit.cli import evaluate
from tubevit.cli.main import entry
from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader, iterate, training_rows
from tubevit.data.sources import open_source

def run(args):
    load = SampleLoader(open_source(args.data, "all"), 16, None, 64, Augment())
    for batch in iterate(training_rows(load, 0), 2, threads=2, workers=2):
        print("ready", flush=True)

if __name__ == "__main__":
    evaluate.run, evaluate.DISTRIBUTED = run, False
    sys.argv = ["tubevit", "evaluate", "--checkpoint", "none", "--data", sys.argv[1]]
    entry()
"""

# A parent of a compiling worker of `preflight`, which waits for a request that never comes.
COMPILER = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "tubevit.preflight.worker", *sys.argv[1:], str(os.getpid())]
process = subprocess.Popen(command)
time.sleep(2)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "class").mkdir()
    for i in range(4):
        write_clip(folder / "class" / f"{i}.mp4", range(0, 1600, 40))
    return folder


def state_and_parent(pid: int) -> tuple[str, int]:
    """Of a process in /proc: one letter, Z if it has ended, and the id of its parent."""
    try:
        state, parent = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return state, int(parent)


def descendants(pid: int) -> list[int]:
    parents = {int(name): state_and_parent(int(name))[1] for name in os.listdir("/proc") if name.isdecimal()}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def wait_for_end(pids: list[int], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if state_and_parent(pid)[0] != "Z"]:
        assert time.monotonic() < deadline, f"of the processes {pids}, {left} still run"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path):
    """`start(program, *arguments)`: a process whose first line has been read, and those that it started."""
    started = []

    def begin(program: str, *arguments) -> tuple[subprocess.Popen, list[int]]:
        script = tmp_path / "program.py"
        script.write_text(program)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, **pipes)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        children = descendants(process.pid)
        started.extend(children)
        assert children
        return process, children

    yield begin
    for each in started:
        if isinstance(each, subprocess.Popen):
            each.kill()
            each.communicate()
        elif state_and_parent(each)[0] != "Z":
            os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("mode", ["busy", "idle", "start"])
def test_workers_end_with_a_killed_parent(start, clips, mode):
    begun = time.monotonic()
    process, children = start(LOADER, clips, mode)
    assert len(children) >= 2
    # A worker that has just started looks for its parent only after its imports, which took the parent as long.
    imports = time.monotonic() - begun if mode == "start" else 0.0
    process.kill()
    process.wait()
    wait_for_end(children, SECONDS + imports)


def test_a_killed_worker_ends_the_command_with_one_line(start, clips):
    process, children = start(COMMAND, clips)
    workers = [pid for pid in children if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for_end([process.pid, *children])
    process.stdout.close()
    errors = process.stderr.read().splitlines()
    assert process.wait() == 1
    assert errors[-1].startswith("tubevit: a process that loads data ended unexpectedly")
    assert not [line for line in errors if "Traceback" in line]


def test_the_compiler_of_preflight_ends_with_its_parent(start, tmp_path):
    os.mkfifo(tmp_path / "request")
    process, children = start(COMPILER, tmp_path / "request", tmp_path / "result")
    process.kill()
    process.wait()
    wait_for_end(children)
