"""Evaluation in two real processes that share the clips."""

import json
import pathlib
import subprocess
import sys

import pytest

import tubevit
from tests.hosts import environment_with, free_address
from tubevit.config import dataset_config
from tubevit.config.experiment import open_eval
from tubevit.data.views import Views
from tubevit.evaluation.evaluate import EvalSettings, evaluate_source
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import parameters

ROOT = pathlib.Path(tubevit.__file__).parent.parent
PROGRAM = """
import json, pathlib, sys, jax
address, index, run, out = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from tests.evaluation.test_evaluate_hosts import evaluate
pathlib.Path(out).write_text(json.dumps(evaluate(run)))
"""


def evaluate(run):
    """8 clips of 3x2 views in batches of 3 temporal views, which two hosts make 4."""
    model = tubevit.load_model(run)
    load = open_eval(model.config, "x", dataset_config(source="moving_digits", split="test", head="motion"), "dense")
    forward, settings = make_forward(model.config, "motion"), EvalSettings(Views(3, 2))
    found = evaluate_source(forward, parameters(model), load, 3, name="x", head="motion", settings=settings)
    return {"record": found.record | {"seconds": 0}, "probabilities": found.predictions.probabilities.tolist()}


def test_two_processes_count_every_clip_once(tiny_run, tmp_path):
    address, environment = free_address(), environment_with(2)
    commands = [
        [sys.executable, "-c", PROGRAM, address, str(index), str(tiny_run), str(tmp_path / str(index))]
        for index in (0, 1)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for command in commands]
    results = []
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        results.append(json.loads((tmp_path / str(len(results))).read_text()))
    assert results[0] == results[1]
    alone = evaluate(tiny_run)
    assert results[0]["record"]["clips_used"] == 8
    for key in ("top1", "top5", "loss"):
        assert results[0]["record"][key] == pytest.approx(alone["record"][key], rel=1e-6)
    for one, two in zip(results[0]["probabilities"], alone["probabilities"], strict=True):
        assert one == pytest.approx(two, abs=1e-6)
