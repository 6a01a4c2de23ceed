"""Claims and times as rows of csv files: equal FLOPs, verdicts, and pages that say what the csv does."""

import pytest

from tests.scripts import script
from tubevit.config import load_config
from tubevit.config.resolve import resolve
from tubevit.models.flops import training_flops

claims, page = script("benchmarks/claims.py"), script("benchmarks/claims_page.py")
peers = script("benchmarks/peers.py")
elastic, elastic_page = script("benchmarks/elastic.py"), script("benchmarks/elastic_page.py")


def rows_of(values, column="clips"):
    """Rows of the csv from `{variant: top-1 of each seed}`."""
    empty = dict.fromkeys(claims.FIELDS, "")
    return [
        empty | {"variant": variant, "seed": str(seed), f"{column}_test": str(top1)}
        for variant, tops in values.items() for seed, top1 in enumerate(tops)
    ]  # fmt: skip


def test_dense_models_have_the_flops_of_sparse_ones(digits_cache, tmp_path):
    """Half a clip more or less; counted here from the models of the experiment."""

    def of_a_clip(variant):
        model = resolve(load_config(f"claims:variant={variant}")).model
        return training_flops(model, (16, 64, 64), "digit_motion")

    plan = resolve(load_config("claims:variant=joint"))
    ours = sum(
        plan.config.data.train[name].batch_size * training_flops(plan.model, shape, head)
        for name, shape, head in (("clips", (16, 64, 64), "digit_motion"), ("images", (1, 64, 64), "digit"))
    )
    for variant in claims.DENSE:
        clips = claims.clips_of_equal_flops(variant, ours / 1e9)
        assert abs(clips * of_a_clip(variant) - ours) <= of_a_clip(variant) / 2 and 12 <= clips <= 20


def test_every_variant_is_of_a_claim_and_described():
    known = {variant for variants in claims.CLAIMS.values() for variant in variants}
    experiment, stages = script("experiments/claims.py"), script("experiments/digits_bootstrap.py")
    assert known == {*experiment.VARIANTS, *stages.STAGES, *claims.EQUAL, *claims.DENSER, *claims.VIEWS, claims.TWICE}
    assert known - page.LABELS.keys() == {"joint", "learned", "interpolated"}  # their names say it
    for each in page.STATEMENTS:
        assert set(each.variants) <= {*claims.CLAIMS[each.claim], "joint"}
    for claim, variants in claims.CLAIMS.items():
        assert set(variants) <= {
            variant for each in page.STATEMENTS if each.claim == claim for variant in each.variants
        }


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"joint": (0.5, 0.6, 0.7), "no_stride": (0.4, 0.5, 0.6)}, "**confirmed**"),
        ({"joint": (0.5, 0.6, 0.7), "no_stride": (0.4, 0.7, 0.6)}, "**not confirmed**"),
        ({"joint": (0.5, 0.6, 0.7), "no_stride": (0.49, 0.59, 0.69)}, "**not confirmed**"),
        ({"joint": (0.5, 0.6), "no_stride": (0.6, 0.7)}, "**the opposite** (2 seeds so far)"),
        ({"joint": (0.5,), "no_stride": ()}, "not run yet"),
    ],
)
def test_verdicts_compare_seed_by_seed(values, expected):
    (statement,) = [each for each in page.STATEMENTS if each.variants == ("joint", "no_stride")]
    assert page.verdict(statement, rows_of(values)) == expected


def test_verdicts_of_several_comparisons():
    (statement,) = [each for each in page.STATEMENTS if each.variants == ("joint", "two_stage", "video")]
    rows = rows_of({"joint": (0.5,) * 3, "two_stage": (0.4,) * 3, "video": (0.45,) * 3})
    text = "joint > two stages: **confirmed**; two stages > clips alone: **the opposite**"
    assert page.verdict(statement, rows) == text
    assert page.verdict(statement, rows_of({"joint": (0.5,) * 3, "two_stage": (0.4,) * 3})).endswith(
        "(not all run yet)"
    )
    (statement,) = [each for each in page.STATEMENTS if ("interpolated", "joint") in each.close]
    near, far = ((0.5, 0.49, 0.485), (0.5, 0.5, 0.4))
    for values, expected in ((near, "**confirmed**"), (far, "**not confirmed**")):
        rows = rows_of({"no_s2d": (0.5,) * 3, "joint": (0.5,) * 3, "interpolated": values})
        assert page.verdict(statement, rows) == expected
    line = page.table(rows_of({"vit": (0.9, 0.8), "joint": (0.7, 0.8)}, "images"))[-1]
    assert "not run yet" in line
    (line,) = [each for each in page.table(rows_of({"vit": (0.9, 0.8)}, "images")) if "image ViT" in each]
    assert "image ViT 85.0 (80.0 to 90.0)" in line


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


def test_elastic_models_and_budgets_share_seeds():
    def row(variant, seed, budget, top1):
        return {"variant": variant, "seed": seed, "budget": budget, "clips_test": top1, "images_test": "",
                "tokens": "44", "clip_gflop": "0.0329", "clip_bytes": "12480"}  # fmt: skip

    rows = [
        *(row("elastic", seed, "25%:even", top1) for seed, top1 in zip("012", ("0.5", "0.6", "0.7"))),
        *(row("alone_25", seed, "25%:even", top1) for seed, top1 in zip("01", ("0.52", "0.6"))),
        row("elastic", "0", "25%:motion", "0.55"),
    ]
    line = "| 25% (44) | 0.033 | 12.5 kB | 60.0 (50.0 to 70.0) | 56.0 (52.0 to 60.0) | -1.0 | - | - | - |"
    assert elastic_page.budget_table(rows)[2:3] == [line.replace("25%", "25 %")]
    assert elastic_page.rule_table(rows)[2] == "| 25 % | 60.0 (50.0 to 70.0) | - | 55.0 | - |"
    assert len(elastic.budgets_of("elastic")) == 13 and elastic.budgets_of("alone_100") == ["100%:even"]
    assert "Seeds: 3 of `elastic`, 2 of `alone_25`. " in elastic_page.budget_table(rows)[-1]
    rows = [row(variant, "0", "25%:even", "0.5") for variant in elastic.VARIANTS]
    assert "Seeds: 1 of each model. " in elastic_page.budget_table(rows)[-1]
    assert "Seeds: 1 of `alone_25`." in elastic_page.budget_table(rows[1:2])[-1]
    for text in (path.read_text() for path in elastic_page.PAGES):
        assert elastic_page.BEGIN in text
        assert elastic_page.page(text, elastic_page.read(elastic.CSV), elastic_page.read(elastic.SPEED)) == text


def test_what_is_claimed_of_elastic_models():
    """On the mean of the seeds, no budget loses a point; with a quarter, `motion` is the best rule on each."""
    rows, seeds = elastic_page.read(elastic.CSV), {"0", "1", "2"}
    for share in elastic.SHARES:
        for column in ("clips", "images"):
            names = "elastic", f"alone_{share}"
            found, alone = (elastic_page.scores(rows, name, f"{share}%:even", column) for name in names)
            assert found.keys() == alone.keys() == seeds
            assert sum(found[seed] - alone[seed] for seed in seeds) / len(seeds) > -1
    by_rule = {rule: elastic_page.scores(rows, "elastic", f"25%:{rule}") for rule in elastic_page.RULES}
    motion, others = by_rule.pop("motion"), by_rule.values()
    assert motion.keys() == seeds and all(motion[seed] > other[seed] + 25 for other in others for seed in seeds)


def test_pages_are_written_from_the_csv():
    for module, paths in ((page, page.PAGES), (peers, (peers.PAGE,))):
        for path in paths:
            text = path.read_text()
            assert module.page(text, module.read(module.CSV)) == text and module.BEGIN in text
            assert script("benchmarks/results.py").END in text
