"""Evaluation during training."""

import shutil

import pytest

from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.errors import RunError
from tubevit.models.abstract import parameters
from tubevit.sharding.mesh import make_mesh
from tubevit.sharding.rules import put
from tubevit.training.evaluation import make_evaluation
from tubevit.training.run.broken_files import BrokenFiles
from tubevit.zoo.names import load_model


def test_files_that_are_gone_meanwhile(tiny_run, tiny_config, digits_cache, tmp_path):
    """Scores are missing then, and the run ends for it once its state is saved."""
    clip = shutil.copy(next((digits_cache / "videos/test").glob("*.mp4")), tmp_path / "clip.mp4")
    (tmp_path / "list.csv").write_text("path,label,split\nclip.mp4,left,test\n")
    experiment = open_experiment(resolve(tiny_config({"data.eval.moving_digits.source": str(tmp_path / "list.csv")})))
    mesh = make_mesh(experiment.config.mesh)
    evaluate = make_evaluation(experiment, mesh)
    state = {"params": put(parameters(load_model(tiny_run)), mesh), "frozen": {}}
    whole = evaluate(state)
    clip.unlink()
    found = evaluate(state)
    assert {key for key in whole if whole[key] != found[key]} == {
        f"eval/moving_digits/{key}" for key in ("top1", "top5", "loss")
    }
    assert found["eval/moving_digits/top1"] is None and found["eval/moving_digits/broken"] == 1
    assert found["eval/still_digits/top1"] is not None
    with pytest.raises(RunError, match="eval/moving_digits/broken is 1: more files are broken"):
        BrokenFiles(experiment.train, 0.5).check_evaluation(found)
