"""Services beside metrics.jsonl, with fake ones: what they get, and that none of them ends or delays a run."""

import json
import sys
import threading

import pytest

from tubevit.errors import RunError, UserError
from tubevit.training.run.trackers import TrackedRun, TrackerThread, start_trackers

CONFIG = {"seed": 0, "data": {"train": {"clips": {"source": "clips.csv"}}}}


class Fake:
    """Notes its calls. Raises `error` in the call of that name; `has` is the last step that it has already."""

    def __init__(self, fails="", error=None, has=-1):
        self.fails, self.error, self.has, self.calls, self.run = fails, error, has, [], None

    def _call(self, name, *values):
        self.calls.append((name, *values))
        if name == self.fails:
            raise self.error

    def start(self, run):
        self.run = run
        self._call("start")
        return self.has

    def log(self, step, metrics):
        self._call("log", step, metrics)

    def finish(self, failed):
        self._call("finish", failed)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def tracked(workdir, fake, step=0, failed=False):
    """Hands three steps after `step` to a service."""
    (thread,) = start_trackers(workdir, step, {"wandb": fake})
    for number in range(step + 1, step + 4):
        thread.log(number, {"train/loss": number / 2})
    thread.close(failed)
    return fake


def test_a_service_gets_the_metrics_in_order(workdir):
    fake = tracked(workdir, Fake())
    logs = [("log", step, {"train/loss": step / 2}) for step in (1, 2, 3)]
    assert fake.calls == [("start",), *logs, ("finish", False)]
    assert fake.run.config == {"seed": 0, "data.train.clips.source": "clips.csv"}
    assert fake.run.name == workdir.name and fake.run.folder == workdir
    assert tracked(workdir, Fake(), failed=True).calls[-1] == ("finish", True)
    assert start_trackers(workdir / "nowhere", 0, {}) == []


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no route to host"), SystemExit(3)])
def test_a_service_that_fails_is_left_out(workdir, said, fails, error):
    fake = tracked(workdir, Fake(fails, error))
    assert [name for name, *_ in fake.calls].count(fails) == 1 and fake.calls[-1][0] == fails
    (warning,) = said
    assert warning.startswith("wandb gets no more metrics of this run") and warning.endswith(str(error))


def test_a_service_that_hangs_delays_nothing(said):
    answer = threading.Event()

    class Hangs(Fake):
        def start(self, run):
            answer.wait(60)
            return super().start(run)

    thread = TrackerThread("wandb", Hangs(), TrackedRun("1", "run", {}, None), patience=0.05)
    thread.log(1, {"x": 1.0})
    thread.close(failed=False)
    answer.set()
    assert said == ["wandb has not taken all metrics within 0.05 s; metrics.jsonl has them"]


def test_a_resumed_run_continues_there(workdir):
    first = tracked(workdir, Fake())
    assert json.loads((workdir / "tracked_run.json").read_text()) == {"id": first.run.id}
    resumed = tracked(workdir, Fake(has=3), step=1)  # it has steps 1 to 3, and the run repeats 2 and 3
    assert resumed.run.id == first.run.id
    assert [call[1] for call in resumed.calls if call[0] == "log"] == [4]
    (workdir / "tracked_run.json").write_text('{"id": "ab')
    assert tracked(workdir, Fake(), step=1).run.id != first.run.id
    begun_again = tracked(workdir, Fake(), step=0)  # no checkpoint: nothing of the earlier run is left
    assert begun_again.run.id != first.run.id


def test_secrets_and_paths_stay_here(workdir, said, monkeypatch):
    planted = {"WANDB_API_KEY": "planted-key-1234", "SOME_VALUE": "planted value", "HOME": "/home/planted-user"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    sources = {"a": "/home/planted-user/data/a.csv", "b": "/data/b.csv?key=planted-key-1234", "c": "planted value.csv"}
    sources |= {"d": "https://me:planted-password@host/d.csv", "e": "gs://bucket/e.csv"}
    config = {"data": {"train": {name: {"source": text} for name, text in sources.items()}}}
    (workdir / "config.json").write_text(json.dumps(config))
    error = RuntimeError("https://host/?key=planted-key-1234 in /home/planted-user/.netrc: refused")
    fake = tracked(workdir, Fake("log", error))
    seen = fake.run.config
    assert seen["data.train.a.source"] == "a.csv" and seen["data.train.e.source"] == "gs://bucket/e.csv"
    for text in (str(seen), *said, *(path.read_text() for path in workdir.glob("tracked*"))):
        assert "planted-" not in text and "planted value" not in text
    assert "SOME_VALUE" in seen["data.train.c.source"]
    variable = "(the value of the environment variable {})"
    assert seen["data.train.b.source"] == f"b.csv?key={variable.format('WANDB_API_KEY')}"
    assert f"RuntimeError: https://host/?key={variable.format('WANDB_API_KEY')} in .netrc: refused" in said[0]


def test_the_writer_passes_on_what_is_finite_and_how_the_run_ends(workdir):
    from tubevit.training.run.workdir import open_metrics

    made, fake = [], Fake()
    with (
        pytest.raises(RunError),
        open_metrics(workdir, 0, ["mlflow"], lambda name: made.append(name) or fake) as writer,
    ):
        writer.write(1, {"x": 1.0, "eval/map": None, "y": float("nan")})
        raise RunError("the loss is not finite")
    assert fake.calls == [("start",), ("log", 1, {"x": 1.0}), ("finish", True)] and made == ["mlflow"]
    assert not list(workdir.glob("events.*"))  # tensorboard was not asked for


def test_a_run_ends_well_whatever_its_services_do(train_tiny, tmp_path, capsys):
    from tubevit.training.loop import Parts

    fakes = {"wandb": Fake("log", RuntimeError("no route to host")), "mlflow": Fake()}
    no_evaluation = lambda experiment, mesh: lambda state: {}  # noqa: E731
    parts = Parts(make_evaluation=no_evaluation, make_tracker=lambda name: fakes[name])
    train_tiny(tmp_path, parts, **{"train.steps": 3, "log.to": "tensorboard,wandb, mlflow"})
    assert fakes["wandb"].calls[-1][:2] == ("log", 1)
    rows = [(step, metrics) for name, step, metrics in fakes["mlflow"].calls[1:-1]]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **row} for step, row in rows] == lines
    assert len(list(tmp_path.glob("events.*"))) == 1 and fakes["mlflow"].calls[-1] == ("finish", False)
    assert capsys.readouterr().err.count("wandb gets no more metrics") == 1


def test_a_missing_package_is_told_before_anything_is_made(train_tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.to=wandb needs wandb, .* pip install 'tubevit\[wandb\]'"):
        train_tiny(tmp_path / "run", **{"log.to": "wandb"})
    assert not (tmp_path / "run").exists()


def test_an_unknown_service_is_refused(tiny_config):
    with pytest.raises(UserError, match="unknown log.to 'wandbb'; did you mean 'wandb'?"):
        tiny_config({"log.to": "tensorboard,wandbb"})
    assert tiny_config({"log.to": ""}).log.to == ""
