"""Training runs in processes that benchmarks/faults.py disturbs, and what they end with."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
STEPS, EVERY = 60, 10
CHANGES = {"train.steps": STEPS, "checkpoint.every": EVERY, "eval.every": STEPS}
# Raises in one process, in the middle of the run.
FAULTY = """
import functools
from tubevit.cli.main import entry
from tubevit.sharding.mesh import global_batch
from tubevit.training import loop
calls = []
def place(batch, mesh):
    calls.append(0)
    if len(calls) == 25:
        raise ValueError("a defect")
    return global_batch(batch, mesh)
loop.train = functools.partial(loop.train, parts=loop.Parts(place=place))
entry()
"""


class Job:
    """A training run of one or two processes; a context manager that leaves no process behind."""

    def __init__(
        self,
        workdir: pathlib.Path,
        processes: int = 1,
        changes=(),
        faulty=None,
        before=(),
        environment=(),
        program=FAULTY,
    ):
        self.workdir, self.began = workdir, time.monotonic()
        self.seconds, self.codes = 0.0, []
        changes = CHANGES | {"mesh.data": processes} | dict(changes)
        words = ["train", "--config", str(ROOT / "tests/tiny.py"), "--workdir", str(workdir)]
        words += [f"--config.{key}={value}" for key, value in changes.items()]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                words += ["--coordinator", f"localhost:{free.getsockname()[1]}", "--num-processes", str(processes)]
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"} | dict(environment)
        self.logs = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # a pipe could fill
        self.processes = []
        for index, log in enumerate(self.logs):
            start = ["-c", program] if index == faulty else ["-m", "tubevit"]
            flags = ["--process-id", str(index)] if processes > 1 else []
            command = [*before, sys.executable, *start, *words, *flags]
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def until(self, ready, limit: float = 240) -> float:
        """Waits until `ready()`; returns the seconds that it took. It raises where the run ends before."""
        begin = time.monotonic()
        while not ready():
            ended = all(process.poll() is not None for process in self.processes)
            if time.monotonic() - begin > limit or ended and not ready():
                raise RuntimeError(f"not reached: {self.text(0)[-2000:]}")
            time.sleep(0.002)
        return time.monotonic() - begin

    def until_step(self, step: int) -> None:
        """Waits until a step is logged."""
        self.until(lambda: logged(self.workdir) >= step)

    def send(self, number: int, index: int = 0) -> None:
        """Sends a signal to a process."""
        self.processes[index].send_signal(number)

    def wait(self, limit: float = 240, leave=()) -> list:
        """Exit codes once all have ended, but those in `leave`; None for one that had to be killed."""
        begin = time.monotonic()
        watched = [process for index, process in enumerate(self.processes) if index not in leave]
        while any(process.poll() is None for process in watched) and time.monotonic() - begin < limit:
            time.sleep(0.02)
        self.seconds = time.monotonic() - begin
        self.codes = [process.poll() for process in self.processes]
        return self.codes

    def text(self, index: int) -> str:
        """What a process printed."""
        return os.pread(self.logs[index].fileno(), 1 << 24, 0).decode(errors="replace")

    def resumed(self) -> int:
        """The step that it went on from."""
        found = re.search(r"^resuming .* from step (\d+)$", self.text(0), re.MULTILINE)
        return int(found[1]) if found else 0

    def message(self, index: int, pattern: str = r"^tubevit: .*") -> str:
        """The last line with a pattern, without the machine's paths."""
        lines = [line for line in self.text(index).splitlines() if re.search(pattern, line)]
        line = lines[-1] if lines else "(nothing)"
        return shorten(line.replace(str(self.workdir), "WORKDIR"))


def shorten(line: str) -> str:
    """A line for the table: without the head of a C++ log, paths of temporary folders and what is long."""
    line = re.sub(r"^[EFWI]\d{4} \S+ +\d+ \S+\] ", "", line)
    line = re.sub(rf"{re.escape(tempfile.gettempdir())}/\S*/", "", line)
    line = re.sub(r"process \d+ on \S+?(?=[;:,]| |$)", "process PID on HOST", line)
    return line if len(line) < 220 else line[:200].rsplit(" ", 1)[0] + " ..."


def logged(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except OSError:
        return 0
    found = re.findall(r'^\{"step": (\d+),.*\}$', text, re.MULTILINE)
    return int(found[-1]) if found else 0


def good(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints whose files are those of their manifest."""
    from tubevit.checkpoint.checkpoint import steps
    from tubevit.checkpoint.manifest import verify

    folder = workdir / "checkpoints"
    return [step for step in steps(folder) if verify(folder / str(step)) == []]


def outcome(workdir: pathlib.Path) -> str:
    """A hash of all arrays of the last step, read by Orbax alone, and of the losses that were logged."""
    import jax
    from orbax.checkpoint import v1 as ocp

    checkpoint, digest = workdir / "checkpoints" / str(STEPS), hashlib.sha256()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = ocp.checkpointables_metadata(checkpoint).metadata
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {part: found[part] for part in ("params", "optimizer")},
    )
    trees = ocp.load_checkpointables(checkpoint, shapes)
    for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]:
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


class Lab:
    """Where the cases run: fresh workdirs, and what undisturbed runs of one and of two processes end with."""

    def __init__(self, folder: pathlib.Path, trials: int, minutes: float, seed: int):
        self.folder, self.trials, self.random = folder, trials, random.Random(seed)
        self.deadline = time.monotonic() + 60 * minutes
        self._count, self._undisturbed, self.kept = 0, {}, None  # the workdir of the undisturbed run of one process

    def workdir(self) -> pathlib.Path:
        """A fresh one."""
        self._count += 1
        return self.folder / str(self._count) / "run"

    def undisturbed(self, processes: int = 1) -> tuple[str, float, float]:
        """The outcome of a run; its seconds with all compiled before, and those from the first step on."""
        if processes not in self._undisturbed:
            for _ in range(2 if processes == 1 else 1):  # the first one compiles
                with Job(self.workdir(), processes) as job:
                    job.until(lambda: logged(job.workdir) >= 1)
                    stepped = time.monotonic()
                    assert job.wait() == [0] * processes, job.text(0)
                    end = time.monotonic()
            self.kept = job.workdir if processes == 1 else self.kept
            self._undisturbed[processes] = outcome(job.workdir), end - job.began, end - stepped
        return self._undisturbed[processes]

    def finish(self, workdir: pathlib.Path, processes: int = 1) -> dict:
        """Starts a run again and lets it end: steps that were lost, and whether anything of it is wrong."""
        before, whole = logged(workdir), good(workdir)
        with Job(workdir, processes) as job:
            codes = job.wait()
        expected = self.undisturbed(processes)[0]
        wrong = codes != [0] * processes or job.resumed() != max(whole, default=0) or outcome(workdir) != expected
        if wrong:
            print(f"WRONG: {codes}, from {job.resumed()} of {whole}\n{job.text(0)[-3000:]}", flush=True)
        return {"lost_steps": max(0, before - job.resumed()), "wrong_resumes": int(wrong), "text": job.text(0)}


def row(fault: str, jobs: list[Job], should: bool, messages: list[str], finished=(), seconds=None, trials=None) -> dict:
    """A row of the csv: what the jobs of a case ended with, and what came of them when they were started again."""
    finished = list(finished)
    codes = [", ".join(name(code) for code in job.codes) for job in jobs]
    longest = max((job.seconds for job in jobs), default=0) if seconds is None else seconds
    return {
        "fault": fault,
        "trials": trials or len(jobs),
        "as_it_should": "yes" if should and not sum(f["wrong_resumes"] for f in finished) else "NO",
        "exit_codes": "; ".join(dict.fromkeys(codes)),
        "seconds": round(longest, 1) if longest != "" else "",
        "lost_steps": max((f["lost_steps"] for f in finished), default=""),
        "wrong_resumes": sum(f["wrong_resumes"] for f in finished) if finished else "",
        "message": " / ".join(dict.fromkeys(messages)),
        "date": datetime.date.today().isoformat(),
    }


def name(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "none"
    return signal.Signals(-code).name if code < 0 else str(code)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str):
    """A file system of its own at a folder; needs the rights to mount one."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def small_data() -> None:
    """The embedded data, 24 training clips and 4 test digits, in the cache."""
    from tubevit.data.moving_digits import make_moving_digits
    from tubevit.data.sources.embedded import embedded_folder

    if not embedded_folder().exists():
        make_moving_digits(embedded_folder(), train_clips=24, train_digits=20, held_out_digits=2)
