"""The cases of benchmarks/faults.py with two processes: one of them is disturbed, the other is to end too."""

from __future__ import annotations

import re
import signal
import time

from benchmarks.faults_job import Job, Lab, good, logged, row, shorten


def kill_of_two(lab: Lab) -> dict:
    """kill -9 of one of two processes: of process 1, and of process 0 when they are started again."""
    jobs, messages, finished = [], [], []
    for job, index in _each_of_two(lab, jobs, finished):
        job.send(signal.SIGKILL, index)
        job.wait(150)
        messages.append(cause(job, 1 - index))
    return row("kill -9 of one of two processes", jobs, ended(jobs, 100), messages, finished)


def freeze_of_two(lab: Lab) -> dict:
    """SIGSTOP of one of two processes, as above; what was frozen wakes when the other has ended."""
    jobs, messages, finished, seconds = [], [], [], []
    for job, index in _each_of_two(lab, jobs, finished):
        job.send(signal.SIGSTOP, index)
        job.wait(150, leave=[index])
        seconds.append(job.seconds)
        job.send(signal.SIGCONT, index)
        job.wait(150)
        messages.append(cause(job, 1 - index))
        print("freeze", index, job.codes, seconds[-1], "after waking", job.seconds, job.text(index)[-1500:], flush=True)
    should = ended(jobs, 100) and max(seconds) < 100
    return row("SIGSTOP of one of two processes", jobs, should, messages, finished, max(seconds))


def exception_in_two(lab: Lab) -> dict:
    """An exception in one of two processes, as above."""
    jobs, messages, finished = [], [], []
    for job, index in _each_of_two(lab, jobs, finished, faulty=True):
        messages += [job.message(index, "^ValueError"), cause(job, 1 - index)]
    return row("an exception in one of two processes", jobs, ended(jobs, 10), messages, finished)


def _each_of_two(lab: Lab, jobs: list[Job], finished: list[dict], faulty: bool = False):
    """Runs of two processes in one workdir, to disturb process 1, then 0; at last one that nothing disturbs.

    Yields (job, index of the process), in the middle of the run or, if `faulty`, when all have ended.
    """
    workdir = lab.workdir()
    for index, step in ((1, 15), (0, 35)):
        before, whole = logged(workdir), good(workdir)
        with Job(workdir, 2, faulty=index if faulty else None) as job:
            if faulty:
                while all(process.poll() is None for process in job.processes):
                    time.sleep(0.01)
                job.wait(150)
            else:
                job.until_step(step)
            yield job, index
            finished.append(
                {"lost_steps": before - job.resumed(), "wrong_resumes": int(job.resumed() != max(whole, default=0))}
            )
            print(job.codes, job.seconds, job.text(1 - index)[-1500:], flush=True)
        jobs.append(job)
    finished.append(lab.finish(workdir, 2))


def ended(jobs: list[Job], seconds: float) -> bool:
    """Whether all processes of all jobs failed, in time."""
    return all(code not in (None, 0, 2, 75) for job in jobs for code in job.codes) and all(
        job.seconds < seconds for job in jobs
    )


def cause(job: Job, index: int) -> str:
    """Why a process ended, in its own words or those of JAX's service."""
    _, status, rest = job.text(index).partition("absl::Status: ")
    return shorten(" ".join(rest.partition("***")[0].split())) if status else job.message(index, r"^tubevit: |Error: ")


def sigterm_of_two(lab: Lab) -> dict:
    """SIGTERM of one of two processes, as above."""
    jobs, finished, messages = [], [], []
    for job, index in _each_of_two(lab, jobs, finished):
        job.send(signal.SIGTERM, index)
        job.wait(150)
        messages.append(re.sub(r"step \d+", "step N", job.message(0)))
    should = all(job.codes == [75, 75] for job in jobs) and not any(f["lost_steps"] for f in finished)
    return row("SIGTERM of one of two processes", jobs, should, messages, finished)
