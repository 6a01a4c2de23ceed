"""Sparse and dense models, trained and timed: equal FLOPs, held-out digits, and pages that say what the csv does."""

import csv

import pytest

from tests.scripts import script
from tubevit.config import load_config
from tubevit.models.flops import training_flops
from tubevit.models.variants import model_config

claim, peers = script("benchmarks/seed_claim.py"), script("benchmarks/peers.py")


def row(variant, init, equal, seed, top1):
    values = {"step": "1", "clips": "2", "images": "3", "step_gflop": "1.5", "parameters": "1000"}
    keys = dict(zip(claim.KEY, (str(seed), variant, init, equal)))
    return {**values, **keys, "val_top1": "0.1", "test_top1": str(top1)}


def test_steps_have_equal_flops():
    """Half a clip more or less; counted here from the models of the experiment."""

    def of(variant, shape):
        name = load_config(f"seed_claim:variant={variant}").model.name
        return training_flops(model_config(name, num_classes=8), shape, "default")

    ours = claim.CLIPS * of("tubevit", (16, 64, 64)) + claim.IMAGES * of("tubevit", (1, 64, 64))
    assert claim.step_gflop("tubevit", claim.CLIPS, claim.IMAGES) == pytest.approx(ours / 1e9)
    for variant in claim.DENSE:
        clips, images = claim.batch(variant, "flops")
        clip = of(variant, (16, 64, 64))
        assert images == 0 and abs(clips * clip - ours) <= clip / 2
        assert claim.batch(variant, "clips") == (claim.CLIPS, 0)


def test_digits_of_validation_are_held_out(digits_cache, tmp_path):
    """All clips of a digit are in one split; paths, labels and the test split stay as they are."""
    with open(digits_cache / "motion.csv") as file:
        before = {str(digits_cache / row["path"]): row for row in csv.DictReader(file)}
    with open(claim.held_out(tmp_path)["moving_digits"]) as file:
        after = {row["path"]: row for row in csv.DictReader(file)}
    assert after.keys() == before.keys()
    splits = {(before[path]["instance"], row["split"]) for path, row in after.items()}
    assert len(splits) == len({instance for instance, _ in splits}) and {split for _, split in splits} > {"val"}
    for path, row in after.items():
        assert row["label"] == before[path]["label"]
        assert row["split"] == before[path]["split"] or (row["split"], before[path]["split"]) == ("val", "train")


def test_verdict_compares_the_ranges():
    tops = {"tubevit": (0.5, 0.6, 0.7), "joint": (0.2, 0.3, 0.4), "divided": (0.1, 0.2, 0.9), "factorised": (0.8,) * 3}
    rows = [
        row(variant, init, "both" if variant == "tubevit" else "flops", seed, top1 + (init == "image") / 20)
        for variant, values in tops.items() for init in claim.INITS for seed, top1 in enumerate(values)
    ]  # fmt: skip
    lines = [" ".join(line.split()) for line in claim.verdict(rows, "flops")]
    assert len(lines) == 3
    for line in lines[:2]:
        better, overlapping, worse = line.split("; it ")
        assert "better in every seed than joint attention" in better
        assert "higher mean, but with overlapping ranges, than divided attention" in overlapping
        assert "worse in every seed than the factorised encoder" in worse
    assert lines[2].count("+5.0 points") == 4 and claim.verdict(rows, "clips") == []
    (line,) = [line for line in claim.table(rows, "flops") if line.startswith("| divided")]
    assert line.split(" | ")[-2:] == ["40.0 % (10.0 to 90.0)", "45.0 % (15.0 to 95.0) |"]


def test_peers_are_compared_within_a_library():
    def timed(model, library, seconds, gflop, parameters, **values):
        row = dict.fromkeys(peers.FIELDS, "1") | {"what": "step", "model": model, "library": library, "remat": "none"}
        ends = {"wall_s_least": str(seconds / 2), "wall_s": str(seconds), "wall_s_most": str(2 * seconds)}
        return row | ends | {"gflop": str(gflop), "parameters": str(parameters)} | values

    rows = [
        timed("tubevit_b16", "tubevit", 0.5, 100, 88_000_000, tokens="539"),
        timed("vivit_b16x2", "tubevit", 4.0, 900, 89_000_000, tokens="3137", remat="full"),
        timed("vivit_b16x2", "torch", 6.0, 900, 89_000_000, tokens="", remat=""),
        timed("timesformer_b16", "torch", 2.0, 392, 121_600_000, tokens="", remat=""),
        timed("timesformer_b16", "tubevit", 1.0, 370, 115_500_000, tokens="1569"),
    ]
    _, _, *lines = [line.strip("| ").split(" | ") for line in peers.table(rows, "step")]
    assert lines == [
        ["TubeViT-B, paper's tubes", "1", "539", "88.0", "100.0", "0.50 (0.25 to 1.00)", "1.00", "1", "-", "-", "-"],
        ["TimeSformer-B", "1", "1,569", "115.5 / 121.6", "370.0 / 392.0",
         "1.00 (0.50 to 2.00)", "1.00", "1", "2.00 (1.00 to 4.00)", "1.00", "1"],
        ["ViViT-B, joint", "1", "3,137", "89.0", "900.0",
         "4.00 (2.00 to 8.00), remat", "1.00", "1", "6.00 (3.00 to 12.00)", "1.00", "1"],
    ]  # fmt: skip
    text = " ".join(peers.findings(rows, "step")[0].split())
    assert "8.0 times for ViViT-B, joint (9.0)" in text and "2.0 times for TimeSformer-B (3.7)" in text
    assert peers.table(rows, "forward") == ["Not measured yet."] and peers.findings(rows, "forward") == []


@pytest.mark.parametrize("name", ["seed_claim", "peers"])
def test_pages_are_written_from_the_csv(name):
    module = script(f"benchmarks/{name}.py")
    text, rows = module.PAGE.read_text(), module.read(module.CSV)
    assert module.page(text, rows) == text and module.BEGIN in text and script("benchmarks/results.py").END in text
