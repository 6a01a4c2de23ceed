"""Training in two real processes of four devices each, interrupted and gone on with in one and in two."""

import pathlib
import re
import subprocess
import sys

import pytest

import tubevit
from tests.hosts import environment_with, free_address
from tubevit.checkpoint.checkpoint import steps
from tubevit.cli import main

ROOT = pathlib.Path(tubevit.__file__).parent.parent
# Sends SIGTERM to itself, in one process of the job only, before step `at` is computed; says what it loaded.
PROGRAM = """
import functools, os, signal, sys, time
import numpy as np
from tubevit.cli.main import entry
from tubevit.data.joint import joint_batches
from tubevit.training import loop

at, name, *sys.argv[1:] = sys.argv[1:]
def batches(*rest, first, **settings):
    for step, batch in enumerate(joint_batches(*rest, first=first, **settings), first + 1):
        if int(at) == step - 1 > 0:  # it is loaded while step `at` runs
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # until the service has told all
        with open(name, "a") as file:
            windows = [part["pixels"].windows[0] for part in batch.values()]  # those of the first tube tell rows apart
            sums = [window.reshape(len(window), -1)[:, ::7].sum(axis=1) for window in windows]
            print(*sorted(map(int, np.concatenate(sums))), file=file)
        yield batch
loop.train = functools.partial(loop.train, parts=loop.Parts(batches=batches))
entry()
"""
CHANGES = {
    "train.steps": 9, "model.width": 32, "model.mlp_dim": 512, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2,
    "checkpoint.every": 100, "eval.every": 100, "input.path": "tubes",
}  # fmt: skip
ONE_DEVICE = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1}


def run(processes, command, stop, folder):
    """Exit codes and error output of each process; process 1 (or the only one) stops itself at step `stop`."""
    address, environment = free_address(), environment_with(8 // processes)
    running = []
    for index in range(processes):
        flags = ["--coordinator", address, "--num-processes", str(processes), "--process-id", str(index)]
        at = stop if index == processes - 1 else 0
        words = [sys.executable, "-c", PROGRAM, str(at), str(folder / f"rows{index}"), *command]
        words += flags if processes > 1 else []
        running.append(subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=240)[1] for process in running]
    return [process.returncode for process in running], outputs


@pytest.fixture(scope="module")
def interrupted(train_command, tmp_path_factory):
    """The workdir of a run of two processes, then one, then two; what each phase printed; rows that each step had."""
    folder = tmp_path_factory.mktemp("hosts")
    command, phases, rows = train_command(folder / "run", **CHANGES), [], []
    for number, (processes, stop) in enumerate(((2, 2), (1, 6), (2, 0))):
        place = folder / str(number)
        place.mkdir()
        phases.append(run(processes, command, stop, place))
        assert phases[-1][0] == [75 if stop else 0] * processes, phases[-1][1]
        lines = [path.read_text().splitlines() for path in sorted(place.iterdir())]
        loaded = [sorted(int(value) for line in step for value in line.split()) for step in zip(*lines, strict=True)]
        rows += loaded[:-1] if stop else loaded  # the last batch was sent ahead and not used
    return folder / "run", phases, rows


@pytest.fixture(scope="module")
def alone(train_command, tmp_path_factory):
    """The workdir of the same run on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert main(train_command(workdir, **CHANGES | ONE_DEVICE)) == 0
    return workdir


def check_losses(found, expected):
    for one, many in zip(expected, found, strict=True):
        known = {key: value for key, value in one.items() if value is not None}
        assert set(many) == set(one) and {key: many[key] for key in known} == pytest.approx(known, rel=1e-4, abs=1e-6)


def test_losses_are_those_of_one_device(interrupted, alone, read_metrics):
    workdir, _, _ = interrupted
    assert len(read_metrics(alone)) == 10
    check_losses(read_metrics(workdir), read_metrics(alone))
    assert steps(workdir / "checkpoints") == [6, 9]


def test_an_adapter_in_two_processes(alone, train_command, read_metrics, tmp_path):
    """Its base, which its checkpoints leave out, is read again by both when they go on."""
    changes = CHANGES | {"train.adapter": "lora", "init.checkpoint": alone, "train.steps": 8}
    assert main(train_command(tmp_path / "alone", **changes | ONE_DEVICE)) == 0
    for stop in (2, 0):
        folder = tmp_path / str(stop)
        folder.mkdir()
        codes, texts = run(2, train_command(tmp_path / "run", **changes), stop, folder)
        assert codes == [75 if stop else 0] * 2, texts
    assert len(read_metrics(tmp_path / "alone")) == 9
    check_losses(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"))


def test_all_stop_at_one_step(interrupted):
    """The service chooses the next step that no process has begun."""
    _, phases, _ = interrupted
    stops = [{re.search(r"saved step (\d+)", text).group(1) for text in phases[i][1]} for i in (0, 1)]
    assert len(stops[0]) == 1 and 2 <= int(*stops[0]) < 6 and stops[1] == {"6"}
    assert f"from step {stops[0].pop()}" in phases[1][1][0] and "from step 6" in phases[2][1][0]


def test_only_one_process_writes_and_logs(interrupted):
    _, phases, _ = interrupted
    assert "step 9/9" in phases[2][1][0] and "step 9" not in phases[2][1][1]


def test_the_rows_are_those_of_one_process(interrupted, tiny_config):
    """The data position follows from the step: none twice, none left out, in the same order."""
    import numpy as np

    from tubevit.config.experiment import open_experiment
    from tubevit.config.resolve import resolve
    from tubevit.data.joint import joint_batches

    experiment = open_experiment(resolve(tiny_config({"input.path": "tubes"})))
    loads = {name: (load, 4) for name, load in experiment.train.items()}
    batches = joint_batches(loads, experiment.config.seed)
    expected = []
    for _ in range(9):
        windows = [part["pixels"].windows[0] for part in next(batches).values()]
        parts = [window.reshape(4, -1)[:, ::7].sum(axis=1) for window in windows]
        expected.append(sorted(map(int, np.concatenate(parts))))
    batches.close()
    assert interrupted[2] == expected
