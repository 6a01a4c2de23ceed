"""The benchmark of the input pipeline runs, and what it compares with decodes the same frames; faults."""

import csv

import numpy as np
import pytest

from tests.scripts import script
from tubevit.data.video import decode_frames


@pytest.fixture
def benchmark(monkeypatch):
    module = script("benchmarks/input_pipeline.py")
    monkeypatch.setattr(module, "SAMPLING", {"8 frames at stride 2": (8, 15.0)})
    monkeypatch.setattr(module, "SECONDS", 2)
    return module


def test_the_same_frames_are_decoded(benchmark, tmp_path):
    (path,) = benchmark.write_clips(tmp_path, 30, 1, height=64, width=80)
    for position in (0.0, 0.31, 0.5, 1.0):
        clip = benchmark.clip_at(path, position, 8, 15.0)
        taken = decode_frames(path, 8, 15.0, position)
        alone = {number: frame for number, frame in benchmark.decoded(clip)}
        assert max(alone) == clip.indices[-1] and min(alone) % 30 == 0 and clip.first - min(alone) < 30
        for number, frame in zip(clip.indices, taken, strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(), alone[number].to_ndarray())


def test_it_runs(benchmark, tmp_path):
    out = tmp_path / "out.csv"
    benchmark.main(["--gops", "30", "--rounds", "1", "--clips", "1", "--files", "1", "--out", str(out)])
    (row,) = csv.DictReader(out.open())
    assert row["gop"] == "30" and 0.05 < float(row["share_of_decoding"]) < 2
    assert float(row["pipeline"]) > 0 and float(row["decoding"]) > 0 and float(row["pyav_cv2"]) > 0


def test_faults():
    """All cases of the table ended as they should, none went on wrongly, and the page shows them."""
    faults = script("benchmarks/faults.py")
    rows = list(csv.DictReader(faults.CSV.open()))
    assert len({row["fault"] for row in rows}) == len(rows) == len(faults.CASES)
    assert all(row["wrong_resumes"] in ("", "0") for row in rows)
    assert {row["as_it_should"] for row in rows} == {"yes"}
    page = faults.PAGE.read_text()
    assert all(f"| {row['fault']} | {row['trials']} | {row['as_it_should']} |" in page for row in rows)


def test_a_fault_is_noticed(digits_cache, tmp_path):
    """A workdir that is a file: the smallest case."""
    from benchmarks.faults_job import Job

    (tmp_path / "run").write_text("")
    with Job(tmp_path / "run") as job:
        assert job.wait() == [2] and job.message(0).startswith("tubevit: ")
