"""The benchmark of the peers runs on tiny models of both libraries."""

import pytest

from tests.scripts import script


@pytest.mark.parametrize("what", ["forward", "step"])
def test_both_libraries_are_timed(tmp_path, what):
    module, out = script("benchmarks/peers.py"), tmp_path / "out.csv"
    before = module.PAGE.read_text()
    module.main(["--tiny", "--what", what, "--models", "timesformer_b16", "--rounds", "2", "--out", str(out)])
    ours, theirs = module.read(out)
    assert [row["library"] for row in (ours, theirs)] == ["tubevit", "torch"]
    width = module.TINY["width"]
    folded = width * (width + 1) + width  # the layer after the attention over time; the class token's position
    assert int(theirs["parameters"]) - int(ours["parameters"]) == folded and int(ours["tokens"]) == 8 * 4 + 1
    for row in (ours, theirs):
        assert 0 < float(row["wall_s_least"]) <= float(row["wall_s"]) <= float(row["wall_s_most"])
        assert int(row["import_mib"]) < int(row["peak_mib"]) and row["frames"] == "8" and row["rounds"] == "2"
    assert module.PAGE.read_text() == before  # only the real csv is shown
