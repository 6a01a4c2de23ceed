"""Runs with `train.elastic`: what is drawn follows from the step, also where it meets other settings."""

import shutil

import pytest

from tubevit.config.resolve import resolve
from tubevit.models.elastic import elastic_models
from tubevit.models.lora import training_graph
from tubevit.training.loop import Parts
from tubevit.training.step import make_step, taught_loss

SETTINGS = {
    "train.elastic": "25%,50%,100%", "train.grad_accum_steps": 2, "train.replay": 9, "input.path": "tubes",
    "log.every": 9, "checkpoint.keep": 9, "mesh.data": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """What was handed to `make_step` in `run`: (graph, keyword arguments)."""
    return []


@pytest.fixture(scope="module")
def evaluated():
    """The models that `run` evaluates."""
    return []


@pytest.fixture(scope="module")
def run(train_tiny, tmp_path_factory, made, evaluated):
    def recorded(graph, *arguments, **kind):
        made.append((graph, kind))
        return make_step(graph, *arguments, **kind)

    def recorded_evaluation(experiment, mesh):
        evaluated.append(experiment.model)
        return lambda state: {}

    workdir = tmp_path_factory.mktemp("runs") / "elastic"
    train_tiny(workdir, Parts(make_step=recorded, make_evaluation=recorded_evaluation), **SETTINGS)
    return workdir


def test_the_largest_budget_teaches_in_every_step(run, made, tiny_config):
    """In replayed ones as well, here the last; and it is not drawn itself."""
    model = resolve(tiny_config({key: str(value) for key, value in SETTINGS.items()})).model
    *smaller, largest = map(training_graph, elastic_models(model, SETTINGS["train.elastic"]))
    for checked in (False, True):
        graphs = [graph for graph, kind in made if kind.get("checked", False) == checked]
        assert graphs and all(graph in smaller for graph in graphs)
    assert all(kind["loss_function"].func is taught_loss for _, kind in made)
    assert all(kind["loss_function"].args == (largest,) for _, kind in made)


def test_it_resumes_bit_for_bit(run, train_tiny, read_arrays, tmp_path, said):
    """With accumulation, mixtures of windows, dropout and a replay, which must find nothing."""
    shutil.copytree(run, tmp_path / "run")
    for step in (6, 9):
        shutil.rmtree(tmp_path / f"run/checkpoints/{step}")
    train_tiny(tmp_path / "run", **SETTINGS)
    assert read_arrays(tmp_path / "run", 9) == read_arrays(run, 9) != read_arrays(run, 6)
    assert not [line for line in said if "another" in line]


def test_it_is_another_run_than_one_with_all_tokens(run, tiny_run, read_arrays):
    assert read_arrays(run, 9) != read_arrays(tiny_run, 9)


def test_evaluation_takes_all_tokens(run, evaluated, tiny_config):
    assert evaluated and all(model.budget is None for model in evaluated)
    assert not any("train.elastic" in note for note in resolve(tiny_config({"train.elastic": "50%,100%"})).notes)
    notes = resolve(tiny_config({"train.elastic": "25%,50%"})).notes
    assert "train.elastic: evaluation takes all tokens, a training step at most 50 %" in notes
