"""What the processes of a run find together; what one of them finds is tested with the loop."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tubevit.errors import DecodeError, RunError
from tubevit.training.run.broken_files import BrokenFiles, lost_later


@pytest.fixture
def broken():
    """A tenth of ten files may be broken."""
    load = SimpleNamespace(source=range(10), tubes=None, reason=lambda index: f"{index}.mp4 is cut off")
    return BrokenFiles({"clips": load}, 0.1)


def test_the_files_of_all_processes_count(broken):
    """Each process found one file; what travels is JSON, and only what is new."""
    broken.check({"clips": {"broken": np.array([-1, 3])}})
    sent = []

    def gather(value):
        sent.append(json.loads(json.dumps(value)))
        return [sent[-1], {"clips": {"7": "7.mp4 is cut off"}}]

    broken.check_together(lambda value: gather(value)[:1])
    with pytest.raises(RunError, match="2 of its 10 files are broken, .*: 3.mp4 is cut off; 7.mp4 is cut off"):
        broken.check_together(gather)
    assert sent == [{"clips": {"3": "3.mp4 is cut off"}}, {"clips": {}}]


def test_a_file_that_two_processes_found_counts_once(broken):
    broken.check({"clips": {"broken": np.array([3])}})
    broken.check_together(lambda value: [value, {"clips": {"3": "3.mp4 is cut off"}}])


def test_data_that_is_lost_is_no_bad_input():
    """Only that of the first batch is; the batches are closed with the generator."""

    def batches(count):
        try:
            yield from range(count)
            raise DecodeError("20 files in a row cannot be decoded")
        finally:
            closed.append(count)

    closed = []
    with pytest.raises(DecodeError):
        next(lost_later(batches(0)))
    running = lost_later(batches(2))
    assert [next(running), next(running)] == [0, 1]
    with pytest.raises(RunError, match="20 files in a row"):
        next(running)
    running = lost_later(batches(3))
    assert next(running) == 0
    running.close()
    assert closed == [0, 2, 3]
