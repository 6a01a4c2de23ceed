"""The benchmarks run, on little; what the input pipeline's compares with decodes the same frames."""

import csv
import importlib.util
import pathlib

import numpy as np
import pytest

from tubevit.data.video import decode_frames


def script(name):
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, name, module)  # dataclasses look there
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch):
    module = script("input_pipeline")
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


def test_bootstrap_step(tmp_path):
    out = tmp_path / "out.csv"
    settings = ["--time", "--rows", "full", "last_8_gate", "--depth", "12", "--width", "24", "--batch", "1"]
    script("bootstrap_step").main([*settings, "--rounds", "1", "--out", str(out)])
    full, frozen = csv.DictReader(out.open())
    assert float(full["trainable_share"]) == 1 > float(frozen["trainable_share"])
    assert float(frozen["gflop_xla"]) < float(full["gflop_xla"])
    for row in (full, frozen):  # the formula leaves the elementwise rest out, which is much at this width
        assert 0.5 < float(row["gflop_formula"]) / float(row["gflop_xla"]) < 1
        assert float(row["step_s"]) > 0
    assert int(frozen["state_mib"]) < int(full["state_mib"])


def test_digits_bootstrap(digits_cache, tmp_path):
    """All that it does, two steps each, of narrow models; a second call trains nothing again."""
    module, out = script("digits_bootstrap"), tmp_path / "out.csv"
    narrow = ["--config.train.steps=2", "--config.eval.every=2", "--config.log.every=1"]
    arguments = ["--workdir", str(tmp_path / "runs"), "--seeds", "3", "--out", str(out), *narrow]
    module.main([*arguments, "--stages", "small", "vit", "last_fc"])
    small, vit, last = csv.DictReader(out.open())
    assert [row["stage"] for row in (small, vit, last)] == ["small", "vit", "last_fc"] and last["seed"] == "3"
    assert 0 <= float(last["video_top1"]) <= 1 and float(vit["still_digits_top1"]) >= 0
    assert vit["video_top1"] == "" and last["still_digits_top1"] == ""
    changed = (tmp_path / "runs/last_fc_3/checkpoints/2").stat().st_mtime
    module.main([*arguments, "--stages", "last_fc"])
    assert (tmp_path / "runs/last_fc_3/checkpoints/2").stat().st_mtime == changed
