"""The cases of benchmarks/faults.py: each disturbs runs in one way and returns a row."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

from benchmarks.faults_hosts import exception_in_two, freeze_of_two, kill_of_two, sigterm_of_two
from benchmarks.faults_job import EVERY, STEPS, Job, Lab, good, logged, outcome, row, shorten, small_disk
from benchmarks.faults_replay import clean_steps, corrupt_memory, flips_of_eight


def kill_alone(lab: Lab) -> dict:
    """kill -9 of a single process: half of the moments over its whole life, half from its first step on.

    It is killed five times, then it may end; in one of four such runs everything is compiled anew.
    """
    _, life, working = lab.undisturbed()
    jobs, finished, phases = [], [], collections.Counter()
    while len(jobs) < lab.trials and time.monotonic() < lab.deadline:
        workdir, cold = lab.workdir(), len(jobs) // 5 % 4 == 1
        environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if cold else {}
        for _ in range(min(5, lab.trials - len(jobs))):
            before, whole = logged(workdir), good(workdir)
            lease = read(workdir / "lease.json")
            with Job(workdir, environment=environment) as job:
                span = life
                if len(jobs) % 2:
                    job.until(lambda: "| loss" in job.text(0) or job.processes[0].poll() == 0)
                    span = working
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.processes[0].wait(lab.random.uniform(0, span * (2 if cold else 1)))
                if job.processes[0].poll() is not None:
                    break  # it was done
                job.send(signal.SIGKILL)
                job.wait()
            jobs.append(job)
            phases[phase(job, lease)] += 1
            if job.resumed() or logged(workdir) < before:  # it had gone on
                wrong = job.resumed() != max(whole, default=0)
                finished.append({"lost_steps": before - job.resumed(), "wrong_resumes": int(wrong)})
            print(len(jobs), dict(phases), before, job.resumed(), flush=True)
        finished.append(lab.finish(workdir))
    where = ", ".join(f"{count} in {name}" for name, count in sorted(phases.items()))
    return row("kill -9 at random moments", jobs, True, [f"(nothing; {where})"], finished)


def read(path: pathlib.Path) -> str:
    """The text of a file; "" if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def phase(job: Job, lease: str) -> str:
    """What a process that was killed had been doing."""
    folder = job.workdir / "checkpoints"
    steps = os.listdir(folder) if folder.is_dir() else []
    if read(job.workdir / "lease.json") in (lease, ""):
        return "start-up"
    if "| loss" not in job.text(0):
        return "restoring and compiling"
    if any("tmp" in step or not list((folder / step).glob("manifest.json")) for step in steps if "." not in step):
        return "a save"
    return "steps"


def sigterm_alone(lab: Lab) -> dict:
    """SIGTERM of a process alone."""
    with Job(lab.workdir()) as job:
        job.until_step(15)
        job.send(signal.SIGTERM)
        job.wait(150)
    finished = [lab.finish(job.workdir)]
    should = job.codes == [75] and not finished[0]["lost_steps"]
    return row("SIGTERM", [job], should, [job.message(0)], finished)


def full_disk(lab: Lab) -> dict:
    """A file system of 64 MB that is filled: before the start, early, after the first checkpoint."""
    jobs, messages, finished = [], [], []
    for step in (0, 3, 15):
        with small_disk(lab.workdir().parent, "size=64m") as disk:
            if step == 0:
                fill(disk)
            with Job(disk / "run") as job:
                if step:
                    job.until_step(step)
                    fill(disk)
                job.wait()
            jobs.append(job)
            messages.append(clean(job))
            (disk / "filler").unlink()
            finished.append(lab.finish(disk / "run"))
    should = all(job.codes == [1] and "Traceback" not in job.text(0) for job in jobs)
    return row("full disk", jobs, should, messages, finished)


def fill(folder: pathlib.Path) -> None:
    """Writes until nothing more fits."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while file.write(b"\1" * 4096):
            pass


def clean(job: Job) -> str:
    """The last line that a process printed; says so where there are tracebacks."""
    return job.message(0) + (" (after a traceback)" if "Traceback" in job.text(0) else "")


def read_only(lab: Lab) -> dict:
    """A workdir on a file system that is mounted read-only; and a file in its place."""
    place = lab.workdir()
    place.parent.mkdir(parents=True)
    place.write_text("")
    with Job(place) as file:
        file.wait()
    with small_disk(lab.workdir().parent, "ro") as disk, Job(disk / "run") as job:
        job.wait()
    jobs = [job, file]
    should = all(job.codes == [2] and "Traceback" not in job.text(0) for job in jobs)
    return row("read-only workdir; a file in its place", jobs, should, [clean(job) for job in jobs], seconds="")


def flipped_byte(lab: Lab) -> dict:
    """A byte of the newest checkpoint's arrays is another one; it is found when the run goes on."""

    def flip(path: pathlib.Path) -> None:
        data = bytearray(path.read_bytes())
        data[lab.random.randrange(len(data))] ^= 1 << lab.random.randrange(8)
        path.write_bytes(data)

    return _damage(lab, "a flipped bit in the newest checkpoint", flip)


def truncated_file(lab: Lab) -> dict:
    """A file of the newest checkpoint's arrays is cut off somewhere."""
    return _damage(
        lab,
        "a truncated file in the newest checkpoint",
        lambda path: os.truncate(path, lab.random.randrange(path.stat().st_size)),
    )


def _damage(lab: Lab, fault: str, damage) -> dict:
    lab.undisturbed()
    messages, finished = [], []
    for _ in range(3):
        workdir = shutil.copytree(lab.kept, lab.workdir())
        newest = workdir / "checkpoints" / str(STEPS)
        files = [path for part in ("params", "optimizer") for path in (newest / part).rglob("*") if path.is_file()]
        damage(lab.random.choice([path for path in files if path.stat().st_size]))
        finished.append(lab.finish(workdir))
        found = re.findall(r"^checkpoint \d+ in .*", finished[-1]["text"], re.MULTILINE)
        messages.append(re.sub(r"\(\S+/", "(", shorten(found[0].replace(str(workdir), "WORKDIR"))) if found else "?")
    should = all(f["lost_steps"] == EVERY for f in finished)
    result = row(fault, [], should, messages[:1], finished, trials=len(finished))
    return result | {"exit_codes": "0", "seconds": ""}


def not_finite(lab: Lab) -> dict:
    """A learning rate of 1e30."""
    with Job(lab.workdir(), changes={"optimizer.learning_rate": 1e30}) as job:
        job.wait()
    dumped = list(job.workdir.glob("nonfinite_step_*.npz"))
    return row(
        "NaN in the loss",
        [job],
        job.codes == [1] and len(dumped) == 1 and not good(job.workdir),
        [clean(job)],
        seconds="",
    )


def not_finite_skipped(lab: Lab) -> dict:
    """The same with train.skip_nonfinite=true."""
    with Job(lab.workdir(), changes={"optimizer.learning_rate": 1e30, "train.skip_nonfinite": "true"}) as job:
        job.wait()
    should = job.codes == [0] and STEPS in good(job.workdir)
    return row("NaN in the loss, train.skip_nonfinite=true", [job], should, [job.message(0, "skipped")], seconds="")


def second_run(lab: Lab) -> dict:
    """A second run in the workdir of a live one, which goes on."""
    endless = {"train.steps": 1000000, "eval.every": 1000000, "checkpoint.every": 500}
    with Job(lab.workdir(), changes=endless) as first:
        first.until_step(15)
        with Job(first.workdir, changes=endless) as second:
            second.wait()
        step = logged(first.workdir)
        first.until_step(step + 5)
        first.send(signal.SIGTERM)
        first.wait()
    should = second.codes == [2] and first.codes == [75] and "Traceback" not in second.text(0)
    return row("a second run in one workdir, the first is alive", [second], should, [clean(second)])


def frozen_holder(lab: Lab) -> dict:
    """The first run is frozen, a second one takes over, the first one wakes while the second one works."""
    lab.undisturbed()
    with Job(lab.workdir()) as first:
        first.until_step(15)
        first.send(signal.SIGSTOP)
        with Job(first.workdir) as second:
            waited = second.until(lambda: "resuming" in second.text(0))
            second.until_step(STEPS // 2)
            first.send(signal.SIGCONT)
            first.wait()
            second.wait()
    should = second.codes == [0] and first.codes == [1] and outcome(first.workdir) == lab.undisturbed()[0]
    text = [second.message(0, "taken over"), "the first, awake again: " + clean(first)]
    print("second went on from", second.resumed(), first.codes, second.codes, flush=True)
    return row("a second run, the first is frozen", [first, second], should, text, seconds=waited, trials=1)


def killed_holder(lab: Lab) -> dict:
    """The first run was killed; the second one starts at once."""
    with Job(lab.workdir()) as first:
        first.until_step(15)
        first.send(signal.SIGKILL)
        first.wait()
    whole = logged(first.workdir)
    with Job(first.workdir) as second:
        waited = second.until(lambda: "taken over" in second.text(0))
        second.wait()
    should = second.codes == [0] and outcome(first.workdir) == lab.undisturbed()[0]
    finished = [{"lost_steps": whole - second.resumed(), "wrong_resumes": int(not should)}]
    return row("a second run, the first was killed", [first, second], should, [second.message(0, "taken over")],
               finished, waited, 1)  # fmt: skip


CASES = (
    sigterm_alone, sigterm_of_two, exception_in_two, kill_of_two, freeze_of_two, second_run, frozen_holder,
    killed_holder, flipped_byte, truncated_file, not_finite, not_finite_skipped, full_disk, read_only, kill_alone,
    corrupt_memory, flips_of_eight, clean_steps,
)  # fmt: skip
