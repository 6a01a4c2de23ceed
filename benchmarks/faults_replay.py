"""The cases of benchmarks/faults.py in which a device computes wrongly, or its memory does, and no error is raised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from benchmarks.faults_job import ROOT, Job, Lab, good, logged, outcome, row
from tests.hosts import free_address

EIGHT = {"mesh.data": 8, "data.train.moving_digits.batch_size": 8, "data.train.still_digits.batch_size": 8}
COMPILED_FAST = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
LIMIT = 24 * 3600  # seconds
# In process 1, a bit of the parameters on its device 2 is flipped before step 25, and stays so.
WRONG = """
import functools
import jax
from tests import flips
from tubevit.cli.main import entry
from tubevit.training import loop
from tubevit.training.step import make_step

def make(graph, optimizer, config, mesh, checked=False):
    compiled = make_step(graph, optimizer, config, mesh, checked=checked)
    def step(state, batch):
        if not checked and int(state["step"]) == 24:
            leaves, structure = jax.tree.flatten(state["params"])
            leaves[0] = flips.in_memory(leaves[0], jax.local_devices()[2], 0, 20)
            state = state | {"params": structure.unflatten(leaves)}
        return compiled(state, batch)
    return step

loop.train = functools.partial(loop.train, parts=loop.Parts(make_step=make))
entry()
"""


def flips_of_eight(lab: Lab) -> dict:
    """200 single bits flip in replays of one step, on one of 2 x 4 devices; see tests/replayed.py."""
    found = flipped(lab.workdir(), 200)
    altering = [each for each in found if each["altered"]]
    named = [each for each in altering if (each["device"], each["process"]) in culprits(each["text"])]
    pairs = [each for each in named if len(culprits(each["text"])) == 2]
    should = all(bool(each["text"]) == each["altered"] for each in found) and named == altering
    should &= all(len(culprits(each["text"])) <= 2 for each in found)
    message = (
        f"{len(altering)} altered the step and were found, {len(named)} with their device ({len(pairs)} as one of "
    )
    message += f"two); {len(found) - len(altering)} changed no bit of the step and raised nothing"
    fault = "a flipped bit in a replayed step, on one of 2 x 4 devices"
    return row(fault, [], should, [message], trials=len(found)) | {"exit_codes": "", "seconds": ""}


def flipped(folder, count: int) -> list[dict]:
    """What the two processes of tests/replayed.py found, which agree."""
    folder.mkdir(parents=True)
    address, results = free_address(), [folder / f"{index}.json" for index in (0, 1)]
    running = []
    for index, result in enumerate(results):
        words = [sys.executable, "-m", "tests.replayed", address, str(index), str(result), str(count)]
        running.append(subprocess.Popen(words, cwd=ROOT, env=os.environ | {"XLA_FLAGS": f"{COMPILED_FAST}4"}))
    assert [process.wait() for process in running] == [0, 0]
    one, other = (json.loads(result.read_text()) for result in results)
    assert one == other
    return one


def culprits(text: str) -> list[tuple[int, int]]:
    """The (device, process) pairs that an error names."""
    return [(int(device), int(process)) for device, process in re.findall(r"device (\d+) of process (\d+)", text)]


def corrupt_memory(lab: Lab) -> dict:
    """A bit of the parameters flips on one of 2 x 4 devices of a run, which is started again without the fault."""
    changes, environment = EIGHT | {"train.replay": 10}, {"XLA_FLAGS": f"{COMPILED_FAST}4"}
    settings = {"changes": changes, "environment": environment}
    with Job(lab.workdir(), 2, **settings) as undisturbed:
        assert undisturbed.wait(LIMIT) == [0, 0], undisturbed.text(0)
    with Job(lab.workdir(), 2, faulty=1, program=WRONG, **settings) as job:
        job.wait(LIMIT)
    before = logged(job.workdir)
    with Job(job.workdir, 2, **settings) as again:
        again.wait(LIMIT)
    wrong = again.codes != [0, 0] or again.resumed() != 20 or outcome(job.workdir) != outcome(undisturbed.workdir)
    finished = [{"lost_steps": before - again.resumed(), "wrong_resumes": int(wrong)}]
    named = [culprits(job.text(index)) for index in (0, 1)]
    should = job.codes == [1, 1] and named == [[(2050, 1)]] * 2 and 60 in good(job.workdir)  # 2048 a process
    fault = "a flipped bit in the parameters of a device, train.replay=10"
    return row(fault, [job], should, [job.message(0)], finished, seconds="")


def clean_steps(lab: Lab) -> dict:
    """10,000 steps on two devices, of which every 10th is computed twice."""
    changes = {"mesh.data": 2, "train.replay": 10, "train.steps": 10_000, "eval.every": 10_000, "log.every": 500}
    changes |= {"checkpoint.every": 5_000}
    environment = {"XLA_FLAGS": f"{COMPILED_FAST}2"}
    with Job(lab.workdir(), changes=changes, environment=environment) as job:
        job.wait(LIMIT)
    clean = json.loads((job.workdir / "replay.json").read_text())["clean"]
    should = job.codes == [0] and clean == 10_000
    return row("none: 10,000 steps on two devices, train.replay=10", [job], should, ["(nothing)"], seconds="")
