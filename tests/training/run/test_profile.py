import jax
import pytest

from tubevit.cli import main
from tubevit.errors import UserError
from tubevit.training.run.profile import Profile, parse_steps


@pytest.mark.parametrize("text, expected", [("steps=10:13", (10, 13)), ("1:2", (1, 2))])
def test_steps(text, expected):
    assert parse_steps(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10", "steps=10", "steps=13:10", "steps=3:3", "steps=0:2", "10:13:1", "a:b", "steps=1:2 "]
)
def test_bad_steps(text):
    with pytest.raises(UserError, match="must be steps=FIRST:END with 1 <= FIRST < END, such as steps=10:13; found"):
        parse_steps(text)


@pytest.fixture
def traced(monkeypatch, tmp_path):
    """`traced(steps, first, last)`: what a profile did in a run of the steps first to last."""

    def run(steps, first, last):
        events = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(folder))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
        profile = Profile(tmp_path, steps)
        for step in range(first, last + 1):
            profile.before(step)
            events.append(step)
            profile.after(step, None)
        events.append("end")
        profile.close()
        return [event if event != f"{tmp_path}/profile" else "start" for event in events]

    return run


def test_only_these_steps_are_traced(traced):
    assert traced((2, 4), 1, 5) == [1, "start", 2, 3, "stop", 4, 5, "end"]
    assert traced((2, 3), 1, 3) == [1, "start", 2, "stop", 3, "end"]
    assert traced(None, 1, 2) == [1, 2, "end"]


def test_runs_that_do_not_have_all_of_them(traced):
    assert traced((2, 9), 1, 3) == [1, "start", 2, 3, "end", "stop"]  # ends, or fails, before
    assert traced((2, 5), 4, 6) == ["start", 4, "stop", 5, 6, "end"]  # resumed in between
    assert traced((2, 4), 5, 6) == [5, 6, "end"]  # resumed behind


def test_a_run_writes_a_trace(train_tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    train_tiny(workdir, profile=parse_steps("steps=4:6"), **{"checkpoint.every": 9})
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert f"trace written to {workdir}/profile" in capsys.readouterr().err
    assert b"jit_step" in trace.read_bytes()  # the training step ran inside


def test_a_bad_text_is_refused(train_command, tmp_path, capsys):
    assert main([*train_command(tmp_path / "run"), "--profile", "steps=6"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tubevit: --profile must be steps=FIRST:END") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
