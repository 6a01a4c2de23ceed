"""The benchmarks of bootstrapping run, on little. Here because they compile much."""

import csv

import pytest

from tests.scripts import script


def test_bootstrap_step(tmp_path):
    out = tmp_path / "out.csv"
    settings = ["--time", "--rows", "full", "last_8_gate", "--depth", "12", "--width", "24", "--batch", "1"]
    script("benchmarks/bootstrap_step.py").main([*settings, "--rounds", "1", "--out", str(out)])
    full, frozen = csv.DictReader(out.open())
    assert float(full["trainable_share"]) == 1 > float(frozen["trainable_share"])
    assert float(frozen["gflop_xla"]) < float(full["gflop_xla"])
    for row in (full, frozen):  # the formula leaves the elementwise rest out, which is much at this width
        assert 0.5 < float(row["gflop_formula"]) / float(row["gflop_xla"]) < 1
        assert float(row["step_s"]) > 0
    assert int(frozen["state_mib"]) < int(full["state_mib"])


def test_digits_bootstrap(digits_cache, tmp_path):
    """All that it does, two steps each, of narrow models; a second call trains nothing again."""
    module, out = script("benchmarks/digits_bootstrap.py"), tmp_path / "out.csv"
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


def test_sparse_from_dense(digits_cache, tmp_path):
    """All that it does, two steps each; a second call measures nothing again."""
    module, out = script("benchmarks/sparse_from_dense.py"), tmp_path / "out.csv"
    short = [
        f"--config.{key}={value}" for key, value in {"train.steps": 2, "eval.every": 1, "checkpoint.every": 2}.items()
    ]
    arguments = ["--workdir", str(tmp_path / "runs"), "--seeds", "3", "--out", str(out), *short, "--config.log.every=1"]
    module.main(arguments)
    rows = module.read(out)
    expected = [("dense", "300"), ("half", "0"), ("quarter", "0")]
    expected += [(start, step) for start in module.STARTS for step in "012" if (start, step) != ("scratch", "0")]
    assert [(row["start"], row["step"]) for row in rows] == expected
    tokens = {row["start"]: int(row["tokens"]) for row in rows}
    assert [tokens[start] for start in ("dense", "half", "quarter", "rule")] == [257, 129, 65, 177]
    assert all(0 <= float(row["top1"]) <= 1 for row in rows)
    content, kernels = out.read_text(), module.plain_tubes()
    module.main(arguments)
    assert out.read_text() == content and "%" not in kernels
    split = [row["split"] for row in csv.DictReader((tmp_path / "runs/motion.csv").open())]
    assert split == ["train"] * 12 + ["val"] * 12 + ["test"] * 8


def test_seed_claim(digits_cache, tmp_path):
    """An image ViT, TubeViT, and a model with layers over time that begins from the ViT; no row is repeated."""
    module, out = script("benchmarks/seed_claim.py"), tmp_path / "out.csv"
    short = ["--config.train.steps=2", "--config.eval.every=2", "--config.log.every=1", "--config.mesh.data=1"]
    arguments = ["--workdir", str(tmp_path / "runs"), "--seeds", "3", "--out", str(out), *short]
    for only in ("vit_scratch", "factorised_image_flops", "vit_scratch"):
        module.main([*arguments, "--only", only])
    vit, ours, factorised = module.read(out)
    assert [row["variant"] for row in (vit, ours, factorised)] == ["vit", "tubevit", "factorised"]
    assert ours["equal"] == "both" and factorised["equal"] == "flops" and {vit["step"], ours["step"]} == {"2"}
    assert float(factorised["step_gflop"]) == pytest.approx(float(ours["step_gflop"]), rel=0.06)
    for row in (vit, ours, factorised):
        assert 0 <= float(row["val_top1"]) <= 1 and 0 <= float(row["test_top1"]) <= 1 and float(row["seconds"]) > 0
