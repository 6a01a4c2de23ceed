import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import tubevit
from tubevit.checkpoint.checkpoint import steps
from tubevit.cli import main
from tubevit.data.joint import joint_batches
from tubevit.errors import RunError
from tubevit.models.abstract import parameters
from tubevit.sharding.mesh import global_batch
from tubevit.training.loop import Parts
from tubevit.training.run.preemption import Preempted
from tubevit.training.step import make_step

ROOT = pathlib.Path(tubevit.__file__).parent.parent


def run(program, *arguments, **options):
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def test_what_a_run_leaves(tiny_run, read_metrics):
    assert steps(tiny_run / "checkpoints") == [6, 9]  # the last two
    assert {path.name.split(".")[0] for path in tiny_run.iterdir()} == {"config", "metrics", "events", "checkpoints"}
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["heads"]["motion"]["classes"] == 8 and config["heads"]["digit"]["labels"] == [
        str(i) for i in range(10)
    ]
    assert config["train"]["steps"] == 9 and config["data"]["train"]["moving_digits"]["head"] == "motion"
    lines = read_metrics(tiny_run)
    training, evaluation = ([line for line in lines if key in line] for key in ("train/loss", "eval/still_digits/loss"))
    assert [line["step"] for line in training] == list(range(1, 10)) and [line["step"] for line in evaluation] == [6, 9]
    assert set(training[0]) == {
        "step", "train/loss", "train/moving_digits/loss", "train/still_digits/loss", "train/gradient_norm",
        "train/learning_rate",
    }  # fmt: skip
    names = itertools.product(("moving_digits", "still_digits"), ("top1", "top5", "map", "loss"))
    assert set(evaluation[0]) == {"step", *(f"eval/{name}/{metric}" for name, metric in names)}
    times = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[3])
    assert {"time/data", "time/step", "time/save"} <= set(times) and times["time/step"] > 0
    peak = 2e-3
    assert [line["train/learning_rate"] for line in training[:3]] == pytest.approx([0, peak / 2, peak])


def test_the_same_seed_gives_the_same(tiny_run, train_command, read_metrics, read_arrays, tmp_path, capsys):
    assert main(train_command(tmp_path / "again", **{"loader.threads": 2, "checkpoint.every": 9})) == 0
    assert read_metrics(tmp_path / "again") == read_metrics(tiny_run)
    assert read_arrays(tmp_path / "again", 9) == read_arrays(tiny_run, 9)
    lines = capsys.readouterr().err.splitlines()
    progress = r"step 4/9 \| loss \d+\.\d{4} \| [\d.]+ steps/s \| \d+ clips/s \| ETA \d+:\d\d:\d\d"
    progress += r" \| data \d+, step \d+, save \d+ ms"
    assert sum(bool(re.fullmatch(progress, line)) for line in lines) == 1


def test_sigterm_saves_and_resumes(tiny_run, train_tiny, read_metrics, read_arrays, tmp_path, capsys):
    made = []

    def batches(*arguments, **settings):
        for step, batch in enumerate(joint_batches(*arguments, **settings), start=1):
            if step == 6:  # it is loaded while step 5 runs
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=f"saved step 5 in {tmp_path}"):
        train_tiny(tmp_path, Parts(batches=batches))
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps(tmp_path / "checkpoints") == [3, 5]

    def made_once(*arguments):
        made.append(make_step(*arguments))
        return made[0]

    train_tiny(tmp_path, Parts(make_step=made_once), **{"loader.threads": 2})  # free to change
    assert "resuming" in capsys.readouterr().err
    assert made[0]._cache_size() == 1  # compiled once, also after restoring
    assert read_arrays(tmp_path, 9) == read_arrays(tiny_run, 9)
    assert read_metrics(tmp_path) == read_metrics(tiny_run)


class Watched:
    """The metrics of a step that tell when they are awaited."""

    def __init__(self, metrics, note):
        self.metrics, self.note = metrics, note

    def block_until_ready(self):
        self.note()

    def compute(self):
        self.note()
        return self.metrics.compute()

    def merge(self, other):
        return Watched(self.metrics.merge(other.metrics), self.note)


def test_the_next_batch_is_sent_before_a_step_is_awaited(train_tiny, tmp_path):
    """Batch n + 1 comes after the start of step n and before its end; at most two steps are queued."""
    events, numbers = [], itertools.count(1)

    def place(batch, mesh):
        events.append(("sent", next(numbers)))
        return global_batch(batch, mesh)

    def make(*arguments):
        step = make_step(*arguments)

        def watched(state, batch):
            number = int(state["step"]) + 1
            events.append(("begun", number))
            state, metrics = step(state, batch)
            return state, Watched(metrics, lambda: events.append(("awaited", number)))

        return watched

    parts = Parts(make_step=make, place=place, make_evaluation=lambda experiment, mesh: lambda state: {})
    train_tiny(tmp_path, parts, **{"log.every": 10, "checkpoint.every": 10})
    expected = [("sent", 1), ("begun", 1), ("sent", 2)]
    for step in range(2, 9):
        expected += [("begun", step), ("sent", step + 1), ("awaited", step - 1)]
    assert list(dict.fromkeys(events)) == [*expected, ("begun", 9), ("awaited", 8), ("awaited", 9)]


def test_a_save_comes_before_the_next_batch(train_tiny, tmp_path):
    def batches(*arguments, **settings):
        yield from itertools.islice(joint_batches(*arguments, **settings), 3)
        raise RunError("broken")

    with pytest.raises(RunError, match="broken"):
        train_tiny(tmp_path, Parts(batches=batches))
    assert steps(tmp_path / "checkpoints") == [3]


@pytest.mark.parametrize("keep_best, saved", [(None, [3, 6]), ("eval/moving_digits/top1", [3])])
def test_an_evaluation_that_fails_does_not_cost_the_state(train_tiny, tmp_path, keep_best, saved):
    """Unless its scores choose the checkpoint that is kept."""

    def fails(state):
        raise RunError("no memory for the evaluation")

    changes = {} if keep_best is None else {"checkpoint.keep_best": keep_best}
    with pytest.raises(RunError, match="no memory"):
        train_tiny(tmp_path, Parts(make_evaluation=lambda experiment, mesh: fails), **changes)
    assert steps(tmp_path / "checkpoints") == saved


def test_a_finished_run_has_nothing_to_do(tiny_run, train_command, tmp_path, read_metrics, capsys):
    workdir = shutil.copytree(tiny_run, tmp_path / "copy")
    assert main(train_command(workdir)) == 0
    assert "has reached step 9 of 9 already" in capsys.readouterr().err
    assert read_metrics(workdir) == read_metrics(tiny_run)
    assert steps(workdir / "checkpoints") == [6, 9]


@pytest.fixture
def partly_broken(digits_cache, tmp_path):
    """A csv of the 24 training clips, of which two are cut off, and `data.train` settings for it."""
    rows = [row.split(",") for row in (digits_cache / "motion.csv").read_text().splitlines() if ",train" in row]
    lines = [f"{digits_cache / path},{label},{split}" for path, label, split, *_ in rows]
    for i in (2, 7):
        whole = digits_cache / rows[i][0]
        (tmp_path / whole.name).write_bytes(whole.read_bytes()[:500])
        lines[i] = f"{tmp_path / whole.name},{rows[i][1]},train"
    (tmp_path / "partly.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    broken = [str(tmp_path / pathlib.Path(rows[i][0]).name) for i in (2, 7)]
    return {
        "data.train.moving_digits.source": tmp_path / "partly.csv",
        "data.train.moving_digits.batch_size": 8,
    }, broken


def test_broken_clips_are_replaced_and_named_once(train_tiny, partly_broken, tmp_path, capsys):
    changes, broken = partly_broken
    train_tiny(tmp_path / "run", **changes, **{"loader.max_broken": 0.1})
    lines = [line for line in capsys.readouterr().err.splitlines() if "replaced a broken file" in line]
    assert len(lines) == 2 and {path for path in broken for line in lines if path in line} == set(broken)


def test_too_many_broken_clips_end_the_run(train_command, partly_broken, tmp_path, capsys):
    changes, broken = partly_broken
    assert main(train_command(tmp_path / "run", **changes, **{"loader.max_broken": 0.05})) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "2 of its 24 files are broken, more than loader.max_broken=0.05 allows" in last
    assert all(path in last for path in broken)


def test_a_run_begins_from_a_checkpoint(tiny_run, train_tiny, tmp_path, capsys):
    changes = {"init.checkpoint": tiny_run, "train.steps": 1, "optimizer.learning_rate": 0.0}
    train_tiny(tmp_path / "run", **changes)
    assert f"beginning from {tiny_run}" in capsys.readouterr().err
    begun, source = (parameters(tubevit.load_model(folder)) for folder in (tmp_path / "run", tiny_run))
    for one, two in zip(jax.tree.leaves(begun), jax.tree.leaves(source), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_path_of_the_input_may_change(tiny_run, train_tiny, read_metrics, tmp_path):
    """Six steps of whole clips, then windows of tubes: the same files, and losses to rounding."""

    def trained(folder, **changes):
        """Trains on, and returns the batches."""
        seen = []

        def batches(*arguments, **settings):
            for batch in joint_batches(*arguments, **settings):
                seen.append(batch)
                yield batch

        shutil.copytree(tiny_run, folder)
        shutil.rmtree(folder / "checkpoints/9")
        train_tiny(folder, Parts(batches=batches, make_evaluation=lambda experiment, mesh: lambda state: {}), **changes)
        return seen

    windows = trained(tmp_path / "run", **{"input.path": "tubes"})
    files = trained(tmp_path / "again")
    assert len(windows) == len(files) == 3
    for one, two in zip(windows, files, strict=True):
        assert {name: part["file"].tolist() for name, part in one.items()} == {
            name: part["file"].tolist() for name, part in two.items()
        }
        assert all(isinstance(part["pixels"], tubevit.TubeBatch) for part in one.values())
    found, expected = (
        [line for line in read_metrics(folder) if line["step"] > 6] for folder in (tmp_path / "run", tiny_run)
    )
    for one, two in zip(found, (line for line in expected if "train/loss" in line), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
        assert one["train/moving_digits/dense"] == one["train/still_digits/dense"] == 0.0
