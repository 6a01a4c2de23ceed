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


def test_claims(digits_cache, tmp_path):
    """Runs that begin from others, equal FLOPs, other strides and views; no row is repeated."""
    module, out = script("benchmarks/claims.py"), tmp_path / "out.csv"
    short = ["--config.train.steps=2", "--config.eval.every=2", "--config.log.every=1", "--config.mesh.data=1"]
    arguments = ["--workdir", str(tmp_path / "runs"), "--seeds", "3", "--out", str(out), *short]
    module.main([*arguments, "--only", "7"])
    assert [row["variant"] for row in module.read(out)] == [*module.CLAIMS[7]]
    module.main([*arguments, "--only", "6", "7"])
    rows = {row["variant"]: row for row in module.read(out)}
    assert list(rows) == [*module.CLAIMS[7], *module.CLAIMS[6]] == [row["variant"] for row in module.read(out)]
    for variant, row in rows.items():
        assert (0 <= float(row["clips_val"]) <= 1) and (row["images_test"] == "") == (variant in module.CLAIMS[7])
        assert row["step"] == ("0" if variant in (*module.DENSER, *module.VIEWS) else "2")
    costs = [float(rows[variant]["step_gflop"]) for variant in module.CLAIMS[7]]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    runs = module.Runs(tmp_path / "runs", 3, tuple(short))
    vit, full = (runs.measure(variant) for variant in ("vit", "full_equal"))
    assert vit["images_val"] >= 0 and full["parameters"] > 6 * int(rows["no_s2d"]["parameters"])
    assert runs.stage_gflop("full") == pytest.approx(full["step_gflop"], rel=1e-3)


def test_finetuning(digits_cache, tmp_path):
    """Two steps of a narrow model, its checkpoints with other views; no row is repeated, none without a change."""
    module, out = script("benchmarks/finetuning.py"), tmp_path / "out.csv"
    narrow = {"model.width": 24, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 32, "mesh.data": 1}
    short = {"train.steps": 2, "eval.every": 1, "checkpoint.every": 1, "log.every": 1, "loader.threads": 1}
    flags = [f"--config.{key}={value}" for key, value in (narrow | short).items()]
    arguments = ["--workdir", str(tmp_path / "runs"), "--seeds", "3", "--out", str(out), *flags]
    module.main([*arguments, "--settings", "short", "views_4x3"])
    # A key of the model begins from scratch anyway, so that there is nothing to measure for `scratch`.
    module.main([*arguments, "--settings", "recipe", "scratch", "short"])
    rows = {row["setting"]: row for row in module.read(out)}
    assert list(rows) == ["short", "views_4x3", "recipe"] == [row["setting"] for row in module.read(out)]
    listed = module.read(tmp_path / "runs/digits/clips_3.csv")
    for row in rows.values():
        assert row["set"] == "digits" and row["seed"] == "3" and int(row["classes"]) > 1
        assert int(row["clips"]) + int(row["held_out"]) == len(listed) and int(row["held_out"]) > 0
        assert all(0 <= float(row[column]) <= 1 for column in ("pixels", "last", "best"))
        assert row["setting"] in module.VIEWS or float(row["last"]) <= float(row["best"])
    assert (rows["short"]["steps"], rows["recipe"]["steps"]) == ("1", "2")
    content = out.read_text()
    module.main([*arguments, "--settings", "recipe", "views_4x3"])
    assert out.read_text() == content
    assert module.page(module.PAGE.read_text(), module.read(out)).count("| the recipe") == 2
