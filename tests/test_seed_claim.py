"""Sparse against dense models, trained: equal FLOPs, held-out digits, and pages that say what the csv files do."""

import csv

import pytest

from tests.scripts import script
from tubevit.config import load_config
from tubevit.models.flops import training_flops
from tubevit.models.variants import model_config

claim = script("benchmarks/seed_claim.py")


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
    lines = claim.verdict(rows, "flops")
    assert len(lines) == 3
    for line in lines[:2]:
        better, overlapping, worse = line.split("; it ")
        assert "better in every seed than joint attention" in better
        assert "higher mean, but with overlapping ranges, than divided attention" in overlapping
        assert "worse in every seed than the factorised encoder" in worse
    assert lines[2].count("+5.0 points") == 4 and claim.verdict(rows, "clips") == []
    (line,) = [line for line in claim.table(rows, "flops") if line.startswith("| divided")]
    assert line.split(" | ")[-2:] == ["40.0 % (10.0 to 90.0)", "45.0 % (15.0 to 95.0) |"]


@pytest.mark.parametrize("name", ["seed_claim", "peers"])
def test_pages_are_written_from_the_csv(name):
    module = script(f"benchmarks/{name}.py")
    text, rows = module.PAGE.read_text(), module.read(module.CSV)
    assert module.page(text, rows) == text and module.BEGIN in text and module.END in text
