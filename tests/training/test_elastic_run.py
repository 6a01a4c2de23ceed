"""Runs with `train.elastic`: what is drawn follows from the step, also where it meets other settings."""

import shutil

import pytest

SETTINGS = {
    "train.elastic": "25%,50%,100%", "train.grad_accum_steps": 2, "train.replay": 3, "input.path": "tubes",
    "log.every": 9, "checkpoint.keep": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(train_tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "elastic"
    train_tiny(workdir, **SETTINGS)
    return workdir


def test_it_resumes_bit_for_bit(run, train_tiny, read_arrays, tmp_path, said):
    """With accumulation, mixtures of windows, dropout and replays, which must find nothing."""
    shutil.copytree(run, tmp_path / "run")
    for step in (6, 9):
        shutil.rmtree(tmp_path / f"run/checkpoints/{step}")
    train_tiny(tmp_path / "run", **SETTINGS)
    assert read_arrays(tmp_path / "run", 9) == read_arrays(run, 9) != read_arrays(run, 6)
    assert not [line for line in said if "another" in line]


def test_it_is_another_run_than_one_with_all_tokens(run, tiny_run, read_arrays):
    assert read_arrays(run, 9) != read_arrays(tiny_run, 9)


def test_evaluation_takes_all_tokens(tiny_config):
    from tubevit.config.resolve import resolve

    assert not any("train.elastic" in note for note in resolve(tiny_config({"train.elastic": "50%,100%"})).notes)
    notes = resolve(tiny_config({"train.elastic": "25%,50%"})).notes
    assert "train.elastic: evaluation takes all tokens, a training step at most 50 %" in notes
