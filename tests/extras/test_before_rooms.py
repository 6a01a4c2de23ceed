"""Files that the code wrote before its rooms were moved and keys renamed: they load, resume and evaluate as they did.

tests/data/before_rooms holds a run of tests/tiny.py at step 4 of 4 (12 wide, 1 head, an MLP of 16, batches accumulated
from 2 parts), the same model saved, and what the evaluation and the next two steps give. The old code measured this on
the embedded data of that time. When these were replaced, it was measured again by code that gave the old figures.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

import tubevit
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.cli import main
from tubevit.data import yuv

BEFORE = pathlib.Path(__file__).parent.parent / "data/before_rooms"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())


@pytest.fixture(autouse=True)
def greens_as_before(monkeypatch):
    """Since then, greens of untagged videos are one level lower, see data/yuv.py."""
    monkeypatch.setattr(yuv, "_GREEN", (0, 0, 0, 0))


@pytest.fixture(scope="module")
def workdir(digits_cache, tmp_path_factory):
    return shutil.copytree(BEFORE / "workdir", tmp_path_factory.mktemp("before") / "workdir")


def check(records):
    for record in records:
        for key, value in EXPECTED["eval"][record["dataset"]].items():
            assert record[key] == pytest.approx(value, rel=1e-5), (record["dataset"], key)


def test_old_keys_are_read_under_their_new_names():
    checkpoint = Checkpoint(BEFORE / "workdir/checkpoints/4")
    assert checkpoint.model.mlp_dim == checkpoint.experiment["model"]["mlp_dim"] == 16
    assert checkpoint.experiment["optimizer"]["grad_clip_norm"] == 1.0
    assert checkpoint.experiment["train"]["grad_accum_steps"] == 2
    groups = [checkpoint.experiment[group] for group in ("model", "optimizer", "train")]
    assert not {"mlp_width", "clip_norm", "accumulate"} & {key for group in groups for key in group}


def test_a_saved_model_loads():
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3), np.uint8)
    saved, run = (tubevit.load_model(BEFORE / name) for name in ("saved_model", "workdir"))
    assert saved.config == run.config and saved.labels["digit"] == tuple("0123456789")
    np.testing.assert_array_equal(saved(clip, head="motion"), run(clip, head="motion"))


def test_a_run_evaluates_as_before(workdir):
    assert main(["evaluate", "--workdir", str(workdir)]) == 0
    check(json.loads((workdir / "eval.json").read_text()))


def test_a_run_resumes_as_before(workdir, train_command):
    sizes = {"model.width": 12, "model.num_heads": 1, "model.mlp_dim": 16, "train.grad_accum_steps": 2}
    intervals = {"checkpoint.every": 2, "checkpoint.keep": 2, "eval.every": 4}
    assert main(train_command(workdir, **sizes, **intervals, **{"train.steps": 6})) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    new = [line for line in lines if line["step"] > 4]
    assert len(new) == len(EXPECTED["continued"])
    for found, expected in zip(new, EXPECTED["continued"]):
        found = {key: value for key, value in found.items() if not key.startswith("time/")}
        assert found == {
            key: value if value is None else pytest.approx(value, rel=1e-5) for key, value in expected.items()
        }
