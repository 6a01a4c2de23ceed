"""A run meets a loss that is not finite and ends; then it goes on with `train.skip_nonfinite`."""

import contextlib
import functools
import io
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tubevit.checkpoint.checkpoint import steps
from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.joint import joint_batches
from tubevit.errors import RunError
from tubevit.training.loop import Parts
from tubevit.training.run.nonfinite import NonFiniteGuard
from tubevit.training.run.workdir import MetricsWriter
from tubevit.training.step import joint_loss, make_step, metrics_class
from tubevit.tubes import TubeSet
from tubevit.windows import take_windows

BAD = 5  # the step whose loss is not a number
SKIP = "train.skip_nonfinite"
TUBES = TubeSet.from_text("2x4x4/2x4x4_1x8x8/4x8x8")


def strict(path):
    """The lines of a file of JSON, which knows no NaN and no Infinity."""

    def refuse(name):
        raise AssertionError(f"{path} has {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def seen_as_bad(make_step):
    """`make_step` whose step gives metrics that are not finite at the bad step; compiled as for all other tests."""

    def make(*arguments):
        step = make_step(*arguments)

        def run(state, batch):
            bad = int(jax.device_get(state["step"])) == BAD - 1
            state, metrics = step(state, batch)
            with jax.transfer_guard("allow"):
                return state, jax.tree.map(lambda value: value * jnp.nan, metrics) if bad else metrics

        return run

    return make


def made_bad(joint_loss):
    """`joint_loss` that is not a number at the bad step, which is known by its key."""
    bad_key = jax.random.key_data(jax.random.fold_in(jax.random.key(0), BAD - 1))

    def run(graph, params, frozen, batch, config, key):
        loss, losses = joint_loss(graph, params, frozen, batch, config, key)
        bad = (jax.random.key_data(key) == bad_key).all()
        return loss * jnp.where(bad, np.float32("nan"), np.float32(1)), losses

    return run


@pytest.fixture(scope="module")
def runs(train_tiny, tmp_path_factory):
    """The run that ends, and the one that goes on in a copy: workdir, error or None, lines on stderr."""
    folder = tmp_path_factory.mktemp("nonfinite")

    def run(workdir, make, allow_change=(), **changes):
        # Checkpoints and log lines are not at the bad step: it is found later, before anything is saved.
        settings = {"checkpoint.every": 2, "checkpoint.keep": 9, "log.every": 100}
        parts = Parts(make_step=make, make_evaluation=lambda experiment, mesh: lambda state: {})
        said, error = io.StringIO(), None
        with contextlib.redirect_stderr(said):
            try:
                train_tiny(workdir, parts, allow_change=allow_change, **settings | changes)
            except RunError as caught:
                error = caught
        return types.SimpleNamespace(workdir=workdir, error=error, lines=said.getvalue().splitlines())

    ended = run(folder / "ended", seen_as_bad(make_step))
    copy = shutil.copytree(ended.workdir, folder / "continued")
    jax.config.update("jax_disable_most_optimizations", True)  # half the time of compiling a step used but here
    changes = {SKIP: "true", "train.steps": 7, "checkpoint.every": 1, "log.every": 1, "loader.threads": 2}
    try:
        bad_step = functools.partial(make_step, loss_function=made_bad(joint_loss))
        return ended, run(copy, bad_step, (SKIP,), **changes)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def bad_batch(tiny_config):
    """The batch of the bad step, and its files as they are to be named."""
    experiment = open_experiment(resolve(tiny_config()))
    with contextlib.closing(joint_batches({k: (v, 4) for k, v in experiment.train.items()}, 0)) as batches:
        batch = [next(batches) for _ in range(BAD)][-1]
    keys = {name: load.source.keys for name, load in experiment.train.items()}
    names = {name: [str(keys[name][i]) for i in part["file"]] for name, part in batch.items()}
    return batch, "; ".join(f"{name}: {', '.join(names[name])}" for name in sorted(names))


def test_it_ends_with_the_step_and_its_files(runs, bad_batch):
    ended, _ = runs
    text = str(ended.error)
    assert text.startswith(f"loss of step {BAD} is not finite") and f"its files are {bad_batch[1]}." in text
    assert not any("not finite" in line or "Traceback" in line for line in ended.lines)


def test_the_dump_is_the_batch(runs, bad_batch):
    ended, _ = runs
    (path,) = ended.workdir.glob("*.npz")
    assert path.name == f"nonfinite_step_{BAD}.npz" and str(path) in str(ended.error)
    expected = {f"{name}/{key}": value for name, part in bad_batch[0].items() for key, value in part.items()}
    with np.load(path) as dump:
        assert dict(dump).keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(dump[name], value)


def test_nothing_is_saved_after_the_last_finite_step(runs):
    ended, _ = runs
    assert sorted(path.name for path in (ended.workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_skipping_goes_on_and_changes_nothing(runs, read_arrays, bad_batch):
    ended, continued = runs
    assert continued.error is None and any("from step 4" in line for line in continued.lines)
    assert steps(continued.workdir / "checkpoints") == [2, 4, 5, 6, 7]
    before, bad, after = (read_arrays(continued.workdir, step) for step in (BAD - 1, BAD, BAD + 1))
    assert before == read_arrays(ended.workdir, BAD - 1)
    differ = [name for name in bad if bad[name] != before[name]]
    assert len(differ) == 1 and differ[0].endswith("['count']")  # parameters and moments are equal, bit for bit
    assert np.frombuffer(bad[differ[0]], np.int32) == BAD  # the learning rate is the one that is logged
    assert {name for name in after if after[name] != bad[name]} >= {name for name in bad if "['params']" in name}
    (line,) = [line for line in continued.lines if "not finite" in line]
    assert line == f"step {BAD}: loss is not finite; skipped the step (files: {bad_batch[1]})"


def test_metrics_stay_json(runs):
    _, continued = runs
    lines = {line["step"]: line for line in strict(continued.workdir / "metrics.jsonl")}
    assert lines.keys() == {5, 6, 7}
    assert lines[BAD]["train/loss"] is None and lines[BAD + 1]["train/loss"] > 0


def test_values_that_are_no_json(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, 0)) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": None, "d": 0.5})
    assert strict(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5}]


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "clips_loss"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_looked_at(tmp_path, name, value):
    def metrics(**changes):
        values = {"loss": 1.0, "gradient_norm": 1.0, "clips_loss": 1.0} | changes
        return metrics_class(["clips"]).single_from_model_output(**{k: jnp.float32(v) for k, v in values.items()})

    def batch_of(step):
        return {"clips": {"file": np.array([step, 0])}}

    names, good = {"clips": tuple("abcdef")}, metrics()
    pending = [(1, good), (2, metrics(**{name: float(value)})), (3, metrics(loss=float("nan")))]
    assert NonFiniteGuard(tmp_path, names, batch_of, skip=True).take([*pending, (4, good)]) == [good, good]
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match=rf"{name} of step 2 is not finite; .*files are clips: c, a\."):
        NonFiniteGuard(tmp_path, names, batch_of, skip=False).take(pending)
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_2.npz"]


def test_windows_of_tubes_are_dumped(tmp_path):
    pixels = take_windows(np.arange(2 * 4 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 4, 8, 8, 3), TUBES)
    metrics = metrics_class(["clips"]).single_from_model_output(
        loss=jnp.float32("nan"), gradient_norm=jnp.float32(1), clips_loss=jnp.float32(1)
    )
    batch = {"clips": {"pixels": pixels, "file": np.array([0, 0])}}
    with pytest.raises(RunError):
        NonFiniteGuard(tmp_path, {"clips": ("a",)}, lambda step: batch, skip=False).take([(3, metrics)])
    with np.load(tmp_path / "nonfinite_step_3.npz") as dump:
        assert set(dump) == {"clips/file", "clips/pixels/windows/0", "clips/pixels/windows/1"}
        for i, window in enumerate(pixels.windows):
            np.testing.assert_array_equal(dump[f"clips/pixels/windows/{i}"], window)
