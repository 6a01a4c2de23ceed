import json

import numpy as np
import pytest

import tubevit
from tubevit.cli import main
from tubevit.config import experiments_folder
from tubevit.tubes import PRESETS
from tubevit.windows import take_windows
from tubevit.zoo.describe import sent_bytes


def inspect(done, *arguments):
    return json.loads(done(["inspect", "--json", *arguments]))


def test_the_paper_sizes(done):
    base, large, huge = inspect(done, "tubevit_b16", "tubevit_l16", "tubevit_h16")
    assert [row["name"] for row in (base, large, huge)] == ["tubevit_b16", "tubevit_l16", "tubevit_h16"]
    assert [round(row["parameters"] / 1e6, 1) for row in (base, large, huge)] == [88.2, 306.5, 634.9]
    assert [row["tokens"] for row in (base, large, huge)] == [539] * 3 and base["input"] == "32x224x224"
    assert [tube["tokens"] for tube in base["tubes"]] == [98, 147, 98, 196]
    assert 0.17 < base["pixels_read"] < 0.18  # design.md: 17.5 % with space-to-depth
    assert base["flops"] == pytest.approx(2 * base["macs"], rel=0.05) and base["flops"] < large["flops"] < huge["flops"]
    assert base["activation_bytes"] > 0 and base["trainable_share"] == 1.0


def test_changes(done):
    (row,) = inspect(done, "tubevit_b16", "--tubes", "core", "--frames", 64, "--num-classes", 10)
    (plain,) = inspect(done, "tubevit_b16", "--num-classes", 10)
    assert row["input"] == "64x224x224" and len(row["tubes"]) != 0 and row["parameters"] != plain["parameters"]
    assert inspect(done, "tubevit_b16", "--frames", 64)[0]["tokens"] == 1176
    assert inspect(done, "tubevit_b16", "--padding", "same")[0]["tokens"] == 637
    assert inspect(done, "tubevit_b16", "--size", 256)[0]["tokens"] == 704
    (bare,) = inspect(done, "tubevit_b16", "--num-classes", 0)
    assert plain["parameters"] - bare["parameters"] == 10 * 769


def test_budgets(done):
    (row,), (whole,) = inspect(done, "tubevit_b16", "--budget", "25%"), inspect(done, "tubevit_b16")
    assert [tube["tokens"] for tube in row["tubes"]] == [25, 37, 24, 49] and row["tokens"] == 135
    assert row["flops"] < whole["flops"] / 4 and row["bytes"]["clip"]["tubes"] < whole["bytes"]["clip"]["tubes"] / 3.9
    assert row["pixels_read"] < max(tube["pixels_read"] for tube in whole["tubes"]) and row["budget"] == "25%"
    text = done(["inspect", "tubevit_b16", "--budget", "50%:motion"])
    assert "270 tokens (budget 50%:motion)" in text and text.count("by the clip") == 5


def test_text(done):
    text = done(["inspect", "tubevit_b16", "tubevit_nano8"])
    assert "tubevit_b16: input 32x224x224, 539 tokens" in text and "tubevit_nano8: input 16x64x64, 176 tokens" in text
    assert "88.2 M" in text and "GFLOPs" in text and "pixels read" in text
    assert text.count("8x8x8/16x32x32%2x1x1") == 1


def test_models_of_the_same_tubes_and_other_tokens(done, tiny, tmp_path):
    text = done(["inspect", "vivit_nano8", "videomae_nano8"])
    for name, tokens in (("vivit_nano8", 257), ("videomae_nano8", 256)):
        assert f"{name}: input 16x64x64, {tokens} tokens\n" in text
    for name, budget in (("even", "50%"), ("motion", "50%:motion")):
        tubevit.save_model(tiny(frames=16, size=64, budget=budget), tmp_path / name)
    text = done(["inspect", str(tmp_path / "even"), str(tmp_path / "motion")])
    assert "even: input" in text and "(budget 50%)" in text and "(budget 50%:motion)" in text


@pytest.mark.parametrize("tubes, warnings", [("table14_2", 1), ("paper", 0), ("dense_2x16x16", 1)])
def test_bytes_of_both_paths(done, tubes, warnings):
    """Against the windows themselves; a warning where those of a clip are not smaller."""
    (row,) = inspect(done, "tubevit_nano8", "--tubes", tubes, "--frames", 32, "--size", 96)
    pixels = {"clip": np.zeros((1, 32, 96, 96, 3), np.uint8), "image": np.zeros((1, 96, 96, 3), np.uint8)}
    if tubes != "paper":
        del pixels["image"]  # no tube of the others takes them
    windows = {kind: take_windows(each, PRESETS[tubes]).nbytes for kind, each in pixels.items()}
    assert row["bytes"] == {kind: {"dense": pixels[kind].nbytes, "tubes": windows[kind]} for kind in pixels}
    text = done(["inspect", "tubevit_nano8", "--tubes", tubes, "--frames", 32, "--size", 96])
    assert f"bytes per clip: dense {pixels['clip'].nbytes / 1e3:,.1f} kB, tubes {windows['clip'] / 1e3:,.1f} kB" in text
    assert text.count("warning: tubes are not smaller than the clip") == warnings == text.count("warning")


def test_bytes_of_the_presets(done):
    """The paper's at its own size, and those of Table 14 that are denser than the clip."""
    shares = {}
    for tubes in [f"table14_{i}" for i in range(1, 8)] + ["paper", "paper_no_s2d"]:
        found = sent_bytes(PRESETS[tubes], (32, 224, 224))["clip"]
        shares[tubes] = found["tubes"] / found["dense"]
    assert {tubes for tubes, share in shares.items() if share >= 1} == {"table14_2", "table14_3", "table14_4"}
    assert shares["paper"] < 1 / 4 and shares["paper_no_s2d"] < 1 / 8
    for budget in ("25%", "25%:motion"):  # with the numbers of the chosen tokens
        tubes = PRESETS["small"].with_budget(budget)
        batch = take_windows(np.zeros((1, 16, 64, 64, 3), np.uint8), tubes)
        assert sent_bytes(tubes, (16, 64, 64))["clip"]["tubes"] == batch.nbytes
    (plain,) = inspect(done, "vit_nano8")
    assert list(plain["bytes"]) == ["image"]


def test_checkpoints_and_experiments(done, tiny_run, tmp_path):
    saved = tmp_path / "saved"
    tubevit.save_model(tubevit.load_model(tiny_run), saved)
    run, copy = inspect(done, tiny_run, saved)
    assert {key: run[key] for key in run if key != "name"} == {key: copy[key] for key in copy if key != "name"}
    assert run["architecture"] == "tubevit_nano8" and run["input"] == "16x32x32"
    bare, wide = (inspect(done, saved, "--num-classes", count)[0]["parameters"] for count in (0, 1000))
    assert wide - bare == 1000 * (24 + 1) and bare == copy["parameters"] - (10 + 8) * (24 + 1)
    for path in experiments_folder().glob("*.py"):
        (row,) = inspect(done, "--config", path.stem)
        assert row["name"] == path.stem and row["tokens"] > 0
    (changed,) = inspect(done, "--config", "quickstart", "--config.model.depth=1")
    (whole,) = inspect(done, "--config", "quickstart")
    assert changed["parameters"] < whole["parameters"]


@pytest.mark.parametrize("elastic, said", [("", False), ("100%", False), ("50%,100%", True), ("50%", True)])
def test_whose_flops_they_are(capsys, elastic, said):
    assert main(["inspect", "--config", "quickstart", f"--config.train.elastic={elastic}"]) == 0
    assert ("the FLOPs are those with all tokens" in capsys.readouterr().err) == said
    assert main(["inspect", "--config", "quickstart", f"--config.train.elastic={elastic}", "--budget", "50%"]) == 0
    assert "the FLOPs are those" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["name a model, or pass --config FILE"]),
        (["tubevit_b61"], ["unknown model 'tubevit_b61'; did you mean 'tubevit_b16'"]),
        (["tubevit_b16", "--tubes", "papr"], ["papr", "did you mean 'paper'"]),
        (["tubevit_b16", "--tubes", "8x8/1x1x1"], ["'8x8/1x1x1' is not a tube"]),
        (["tubevit_b16", "--padding", "sam"], ["unknown padding 'sam'"]),
        (["tubevit_b16", "--size", "2"], ["a clip of 32x2x2", "too small"]),
        (["tubevit_b16", "--frames", "0"], ["--frames: must be at least 1; found '0'"]),
        (["--config", "quickstrat"], ["did you mean 'quickstart'"]),
        (["--config", "quickstart", "--config.model.nam=x"], ["did you mean 'model.name'"]),
    ],
)
def test_errors(refused, arguments, parts):
    refused(["inspect", *arguments], *parts)


def test_a_folder_that_is_no_checkpoint(refused, tmp_path):
    refused(["inspect", tmp_path], f"{tmp_path} holds no checkpoint")
