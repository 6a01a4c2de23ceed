"""The benchmark of the input pipeline runs, and what it compares with decodes the same frames; faults; sparse input."""

import csv
import math

import numpy as np
import pytest

from tests.scripts import ROOT, script
from tubevit.data.decode import decode_frames
from tubevit.tubes import PRESETS
from tubevit.windows import take_windows


@pytest.fixture
def benchmark(monkeypatch):
    module = script("benchmarks/input_pipeline.py")
    monkeypatch.setattr(module, "SAMPLING", {"20 frames at stride 2": (20, 15.0)})
    monkeypatch.setattr(module, "AUGMENT", {name: module.AUGMENT[name] for name in ("crop, flip",)})
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
    assert row["gop"] == "30" and row["augment"] == "crop, flip" and float(row["dense_clips"]) == 0
    assert float(row["pipeline"]) > 0 and float(row["decoding"]) > 0 and float(row["pyav_cv2"]) > 0
    assert 0.05 < float(row["share_of_decoding"]) < 2 and 0.05 < float(row["tubes_share_of_decoding"]) < 2
    rates = float(row["tubes"]) / float(row["pipeline"])
    assert float(row["tubes_to_pipeline"]) == pytest.approx(rates, rel=0.01)  # of one round
    shape = (20, 224, 224)
    sent = [math.prod(shape) * 3, *(PRESETS[name].values_read(shape) for name in ("paper", "paper_no_s2d"))]
    assert [int(row[f"{name}_bytes"]) for name in ("pipeline", "tubes", "no_s2d")] == sent


def test_sparse_input():
    """The page holds what the csv files do, all cases are there, and what the page says of them is so."""
    sparse = script("benchmarks/sparse_path.py")
    text, rows = sparse.PAGE.read_text(), sparse.read(sparse.CSV)
    assert sparse.page(text) == text
    assert len(rows) == len(sparse.ROWS) * len(sparse.PATHS) and all(row["fits"] == "True" for row in rows)
    for row in rows:
        share = float(row["tokenizer_gb"]) / float(row["step_gb"])
        assert share <= 0.1 if row["path"] == "tubes" else share > 0
    for dense, tubes in zip(rows[::2], rows[1::2], strict=True):
        assert (dense["path"], tubes["path"]) == sparse.PATHS and dense["encoder_gb"] == tubes["encoder_gb"]
        assert float(tubes["step_gb"]) < float(dense["step_gb"])
    measured = [row for row in sparse.read(sparse.PIPELINE) if row["tubes"]]
    assert {row["augment"] for row in measured} == {"crop, flip", "k400"}
    assert all(float(row["tubes_to_pipeline"]) > 1 for row in measured if row["sampling"].startswith("64"))


def test_picture_of_the_sparse_input():
    """It shows the pixels that are read, and all windows."""
    figure = script("docs/figures/sparse_input.py")
    clip, tubes = figure.digit(), PRESETS[figure.PRESET]
    assert figure.read(clip).mean() == tubes.pixels_read(clip.shape[:3])
    for tube, windows in zip(tubes.tubes, take_windows(clip[None], tubes).windows, strict=True):
        drawn, read = (
            np.unique(pixels.reshape(-1, 3), axis=0) for pixels in (figure.packed(windows, tube, 128), windows)
        )
        assert {tuple(pixel) for pixel in drawn.tolist()} == {tuple(pixel) for pixel in read.tolist()} | {(255,) * 3}
    assert (ROOT / "docs/figures/sparse_input.png").stat().st_size < 300_000


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


def test_sparse_from_dense():
    """The page holds what the csv does, nothing is missing, and what the page says of it is so."""
    module = script("benchmarks/sparse_from_dense.py")
    text, rows = module.PAGE.read_text(), module.read(module.CSV)
    assert module.page(text, rows) == text and module.FIGURE.exists()
    found = {start: module.scores(rows, start) for start in ("dense", *module.SUBSETS, *module.STARTS)}
    for start, steps in {"dense": [300], "half": [0], "quarter": [0], "rule": [0, 50, 100, 150, 200]}.items():
        assert list(found[start]) == steps and all(len(values) == 3 for values in found[start].values())
    (dense,), (half,), (quarter,) = (found[start].values() for start in ("dense", "half", "quarter"))
    for whole, two, four in zip(dense, half, quarter, strict=True):
        assert abs(whole - two) < 1 and 9 < whole - four < 14
    for step, rule in found["rule"].items():
        assert all(a > b for a, b in zip(rule, found["averaged"][step], strict=True))
        assert min(rule) > max(found["random"][step]) and max(found["scratch"].get(step, [0])) < 15


def test_cost_of_sharding():
    """The table of docs/data.md follows from the last measurement and the prices that stand above it."""
    page = (ROOT / "docs/data.md").read_text()
    price = sum(float(a) * float(b) for a, b in [("1", "0.056"), ("3.75", "0.003557")])
    assert f"$0.056 + 3.75 x $0.003557 = ${price:.4f}" in page
    sharding = script("benchmarks/sharding.py")
    with sharding.CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))[-len(sharding.CASES) :]
    for row, case in zip(rows, sharding.CASES, strict=True):
        width, height, short_side = case
        assert (row["width"], row["height"], row["short_side"]) == (str(width), str(height), str(short_side or ""))
        what = f"re-encoded with a short side of {short_side}" if short_side else "checked"
        hours = 1000 / float(row["seconds_of_video"])
        cells = f"| {width}x{height} | {what} | {row['seconds_of_video']} | {hours:.0f} | ${hours * price:.2f} |"
        assert cells in page
    assert f"takes {float(row['to_dependent']) - 1:.0%}".replace("%", " %") in page


def test_sharding_runs(tmp_path, monkeypatch):
    sharding = script("benchmarks/sharding.py")
    monkeypatch.setattr(sharding, "CASES", [(80, 64, None), (80, 64, 32)])
    sharding.main(["--seconds", "1", "--rounds", "1", "--out", str(tmp_path / "out.csv")])
    checked, encoded = csv.DictReader((tmp_path / "out.csv").open())
    assert float(checked["seconds_of_video"]) > 0 and checked["to_dependent"] == ""
    assert 0.1 < float(encoded["to_dependent"]) < 10


def test_long_videos():
    """Scenes lie at their times; the rows show constant memory and that they are found, and the page has the rows."""
    module = script("benchmarks/long_videos.py")
    times, frames = module.planted_times(0.5), list(module.frames_of(0.5))
    assert times == [3.125, 15.25, 27.375] and len(frames) == 240
    for time in times:
        begin = int(time * 8)
        np.testing.assert_array_equal(frames[begin : begin + 16], module.query())
        assert (frames[begin - 1] != module.query()[0]).any()
    rows = list(csv.DictReader(module.CSV.open()))
    assert [int(row["minutes"]) for row in rows] == [10, 180]
    first, last = ({key: float(row[key]) for key in row if key.endswith("_mb")} for row in rows)
    grown = last["predict_peak_mb"] - first["predict_peak_mb"]
    assert grown < 0.1 * first["predict_peak_mb"] and grown < 0.1 * (last["tokens_mb"] - first["tokens_mb"])
    assert all(len(row["ranks"].split()) == 3 and max(map(int, row["ranks"].split())) <= 10 for row in rows)
    page = (ROOT / "docs/long_videos.md").read_text()
    for row in rows:
        names = ("minutes", "clips", "predict_seconds", "predict_peak_mb", "tokens_mb", "features_mb", "search_peak_mb")
        cells = [*(f"{float(row[name]):,g}" for name in names), ", ".join(row["ranks"].split())]
        assert f"| {' | '.join(cells)} |" in page, cells
