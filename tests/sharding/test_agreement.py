"""What two real processes agree on, and what each of them raises where they do not."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import tubevit
from tests.hosts import free_address
from tubevit.data.sources.source import Source
from tubevit.errors import RunError, UserError
from tubevit.sharding.agreement import SourceEntries, agree, mapping_entries
from tubevit.sharding.hosts import run_on_all

ROOT = pathlib.Path(tubevit.__file__).parent.parent
PROGRAM = """
import json, pathlib, sys, jax
address, index, out = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from tests.sharding.test_agreement import outcomes
pathlib.Path(out).write_text(json.dumps(outcomes(int(index))))
"""
CLASSES = ("jump", "run")


def source(keys, classes=CLASSES, labels=None):
    labels = np.zeros(len(keys), np.int32) if labels is None else np.asarray(labels)
    return SourceEntries(Source("clips", keys, labels, classes, len(keys)))


def fail(error):
    raise error


def outcomes(index):
    """What each case raises in process `index`: [type, text], or its value."""
    many = [f"{i:06}.mp4" for i in range(3_000_000, 3_005_000)]
    without = {n: many[:n] + many[n + 1 :] for n in (0, 3210, 4999)}
    two = ["a.mp4", "b.mp4"]
    several = np.eye(2, dtype=np.float32)[[0, 1]]
    cases = {
        "same": ({"a": source(many), "b": ["x"]}, {"a": source(list(many)), "b": ["x"]}),
        **{f"process 1 lacks {n}": ({"data": source(many)}, {"data": source(less)}) for n, less in without.items()},
        "process 0 lacks one": ({"data": source(without[3210])}, {"data": source(many)}),
        "other order": ({"data": source(two)}, {"data": source(two[::-1])}),
        "other label": ({"data": source(two)}, {"data": source(two, labels=[0, 1])}),
        "several labels": ({"data": source(two, labels=several)}, {"data": source(two, labels=np.ones_like(several))}),
        "other class": ({"data": source(two)}, {"data": source(two, CLASSES[:1])}),
        "second name": ({"a": ["x"], "b": ["y"]}, {"a": ["x"], "b": ["z"]}),
        "other names": ({"a": ["x"]}, {"b": ["x"]}),
        "config": [{"the configuration": mapping_entries({"train": {"steps": steps}})} for steps in (4, 5)],
        "surrogates": ({"a": ["\udce9.mp4"]}, {"a": ["\udcea.mp4"]}),
    }
    calls = {name: lambda pair=pair: agree(lambda: pair[index]) for name, pair in cases.items()}
    errors = {
        "error of process 1": (lambda: {}, lambda: fail(UserError("no folder"))),
        "error of process 0": (lambda: fail(RunError("no bucket")), lambda: {}),
        "error of all": (lambda: fail(UserError("no folder")),) * 2,
        "defect": (lambda: {}, lambda: fail(KeyError("width"))),
    }
    calls |= {name: lambda pair=pair: agree(pair[index]) for name, pair in errors.items()}
    calls["value"] = lambda: run_on_all(lambda: index)
    found = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    address = free_address()
    outs = [tmp_path_factory.mktemp("agreement") / str(i) for i in range(2)]
    commands = [[sys.executable, "-c", PROGRAM, address, str(i), str(out)] for i, out in enumerate(outs)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    return [json.loads(out.read_text()) for out in outs]


def test_what_is_the_same(both):
    assert [result.pop("value") for result in both] == [0, 1] and both[0]["same"] is both[1]["same"] is None


@pytest.mark.parametrize("name, parts", {
    "process 1 lacks 0": ("in data (5002 and 5001 entries)", "has '3000000.mp4 labelled jump'", "'3000001.mp4 label"),
    "process 1 lacks 3210": ("process 0 has '3003210.mp4 labelled jump' where process 1 has '3003211.mp4",),
    "process 1 lacks 4999": ("process 0 has '3004999.mp4 labelled jump' where process 1 has nothing;",),
    "process 0 lacks one": ("process 0 has '3003211.mp4 labelled jump' where process 1 has '3003210.mp4",),
    "other order": ("differ in data: process 0 has 'a.mp4 labelled jump' where process 1 has 'b.mp4",),
    "other label": ("process 0 has 'b.mp4 labelled jump' where process 1 has 'b.mp4 labelled run'",),
    "several labels": ("process 0 has 'a.mp4 labelled jump' where process 1 has 'a.mp4 labelled jump|run'",),
    "other class": ("process 0 has 'class run' where process 1 has 'a.mp4 labelled jump'",),
    "second name": ("differ in b: process 0 has 'y' where process 1 has 'z'",),
    "other names": ("differ in a (1 and 0 entries): process 0 has 'x' where process 1 has nothing",),
    "config": ("in the configuration: process 0 has 'train.steps = 4' where process 1 has 'train.steps = 5'",),
    "surrogates": (r"'\udce9.mp4' where process 1 has '\udcea.mp4'",),
    "error of process 1": ("process 1: no folder",),
    "error of all": ("no folder",),
}.items())  # fmt: skip
def test_what_differs_is_named_in_both(both, name, parts):
    (kind, text), other = both[0][name], both[1][name]
    assert kind == "UserError" and other == [kind, text] and all(part in text for part in parts), text


def test_errors_that_are_no_user_errors(both):
    assert both[0]["error of process 0"] == both[1]["error of process 0"] == ["RunError", "process 0: no bucket"]
    assert both[0]["defect"] == ["RunError", "process 1 failed: KeyError: 'width'"]
    assert both[1]["defect"] == ["KeyError", "'width'"]


def test_a_process_alone_compares_nothing():
    assert jax.process_count() == 1 and agree(lambda: fail(AssertionError)) is None
