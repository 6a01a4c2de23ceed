"""What needs no Apache Beam; tests/extras/test_beam.py has the rest."""

import pickle

import numpy as np
import pytest

from tubevit.data.beam_engine import stage, write_staged
from tubevit.data.shard_job import Job
from tubevit.data.sources import Source
from tubevit.errors import RunError


class Planted:
    """Something that would run when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_workers_run_nothing_but_the_job_that_was_launched(tmp_path):
    source = Source("a.csv", ["a.mp4", "b.mp4"], np.zeros(2, np.int32), ("x",), 2)
    path, digest = stage(Job(source, "train/a", str(tmp_path), 1, None))
    assert [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*.*")] == ["parts/train%2Fa.job.pickle"]
    with open(path, "wb") as file:
        pickle.dump(Planted(), file)
    with pytest.raises(RunError, match="job.pickle was changed by another command"):
        write_staged(0, path, digest)
