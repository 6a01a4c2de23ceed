"""Releases that fail or that are made at once; tests/cli/test_release.py holds what a release is."""

import dataclasses
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import tubevit
from tests.cli.test_full_disk import REASON, content, limited, no_compilation_cache  # noqa: F401
from tests.zoo.test_registry import entry
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.manifest import is_complete
from tubevit.errors import StorageError, UserError
from tubevit.models.config import Head
from tubevit.zoo import registry
from tubevit.zoo.release import ReleaseOptions, release

NAME = "tubevit_nano8@full"
RECORD = {
    "dataset": "a", "split": "test", "head": "motion", "views": "1x1", "top1": 0.5, "top5": 1.0, "map": None,
    "loss": 1.0, "clips_used": 4,
}  # fmt: skip


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """A checkpoint of a run, and an index of many releases."""
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    registry.write_index({each.name: each for i in range(50) if (each := entry(b"x", name=f"tubevit_x@tag{i}"))})
    data = {name: {"a": {"source": "a.csv", "head": "motion"}} for name in ("train", "eval")}
    tubevit.save_model(tiny({"motion": Head(3, labels=("a", "b", "c"))}, depth=1), tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    model = dataclasses.replace(checkpoint.model, name="tubevit_nano8")
    checkpoint.__dict__ |= {"model": model, "metadata": checkpoint.metadata | {"config": {"data": data}, "step": 3}}
    return checkpoint


@pytest.mark.parametrize("place", ["weights", "card", "index"])
@pytest.mark.parametrize("to", ["", "elsewhere"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_the_earlier_release(run, tmp_path, place, to, replace):
    options = ReleaseOptions(to=to and (tmp_path / to).as_uri(), replace=replace)
    if replace:
        release(run, NAME, options, evaluate=lambda stored: [RECORD])
    kept = tmp_path / "checkpoints" if to else tmp_path  # what was published stays, without an entry
    before = content(kept)
    # Weights are larger than the index, which is larger than the card.
    limits = {"weights": 1000, "card": 100, "index": (tmp_path / "checkpoints/index.json").stat().st_size - 1000}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def evaluate(stored):  # the disk fills up during the evaluation
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[place], hard))
        return [RECORD]

    with (
        limited(limits["weights"] if place == "weights" else soft),
        pytest.raises((OSError, StorageError), match=REASON) as error,
    ):
        release(run, NAME, options, evaluate=evaluate)
    assert str(tmp_path) in str(error.value)
    assert content(kept) == before


@pytest.mark.parametrize("same", [False, True])
def test_releases_at_once(run, tmp_path, same):
    """Of two names both are in the index; of one name the first stays, and the second says so."""
    barrier, saving = threading.Barrier(2, timeout=60), threading.Lock()

    def draw(checkpoint):
        saving.acquire()  # Orbax saves in one thread of a process at a time
        return {}

    def evaluate(stored):
        saving.release()
        barrier.wait()
        return [RECORD]

    def make(name: str):
        try:
            return release(run, name, evaluate=evaluate, draw=draw)
        except UserError as error:
            return str(error)

    names = [NAME, NAME if same else f"{NAME}2"]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(make, names))
    refused = [result for result in results if isinstance(result, str)]
    assert len(refused) == same and all("is released already" in text for text in refused)
    assert set(registry.read_index()) == {f"tubevit_x@tag{i}" for i in range(50)} | set(names)
    assert all(is_complete(tmp_path / "checkpoints" / name) for name in names)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"index.json", *names}
