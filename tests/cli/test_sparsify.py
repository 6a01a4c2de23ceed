import json

import pytest

import tubevit
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.models.config import Head
from tubevit.zoo.names import open_checkpoint

DENSE = dict(depth=1, tubes="4x8x8/4x8x8", frames=8, size=32, class_token=True, pooling="cls", position="learned")


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    """A saved dense model that tells the motions of the embedded data, badly."""
    path = tmp_path_factory.mktemp("models") / "dense"
    tubevit.save_model(tiny({"motion": Head(8, "video", tuple(sorted(DIRECTIONS)))}, **DENSE), path)
    return path


def test_without_data(dense, done, tmp_path):
    out = tmp_path / "sparse"
    text = done(["sparsify", dense, out, "--tubes", "4x4x4/8x16x16%2x1x1_1x8x8/4x8x8"])
    header, before, after, *notes = text.splitlines()
    assert header.split() == ["tokens", "pixels", "read", "parameters", "GFLOPs"]
    assert before.split()[:3] == [str(dense), "33", "100.00%"] and after.split()[:2] == [str(out), "37"]
    assert notes[0] == "note: tube 4x4x4/8x16x16 starts from the kernel of 4x8x8/4x8x8" and len(notes) == 2
    stored = open_checkpoint(out)
    stored.verify()
    assert stored.metadata["source"]["name"] == str(dense) and stored.model.shape == (8, 32, 32)
    assert (
        str(stored.model.tubes) == "4x4x4/8x16x16_1x8x8/4x8x8"
        and stored.model.heads == open_checkpoint(dense).model.heads
    )


def test_a_budget_of_the_dense_model(dense, done, tmp_path):
    """It chose among the tokens of a tube that is gone, so the sparse model takes all of its own."""
    tubevit.save_model(tubevit.load_model(dense, budget="50%:motion"), tmp_path / "half")
    text = done(["sparsify", tmp_path / "half", tmp_path / "sparse", "--tubes", "4x8x8/8x8x8"])
    _, before, after = text.splitlines()[:3]
    assert "by the clip" in before and open_checkpoint(tmp_path / "sparse").model.budget is None
    assert after.split()[1:3] == ["17", "50.00%"]


def test_the_same_tubes_score_the_same(dense, digits_cache, done, tmp_path):
    command = ["sparsify", dense, tmp_path / "same", "--tubes", "4x8x8/4x8x8", "--data", digits_cache / "motion.csv"]
    found = json.loads(done([*command, "--split", "test", "--json"]))
    scores = [{key: found[when][key] for key in ("dataset", "head", "split", "clips_used", "top1", "loss", "tokens")}
              for when in ("before", "after")]  # fmt: skip
    assert scores[0] == scores[1] and scores[0]["clips_used"] == 8 and scores[0]["head"] == "motion"
    table = done([*command[:2], tmp_path / "half", "--tubes", "4x8x8/8x8x8", *command[5:], "--split", "test"])
    assert "top1" in table and "8 clips, split test, views 1x1, crop centre, average probabilities" in table


def test_both_are_evaluated_as_in_the_run_of_the_dense_model(dense, digits_cache, done, tmp_path):
    keys = {"views": "3x2", "average": "logits", "clip_placement": "start", "short_side": 40}
    config = {"eval": keys, "loader": {"max_broken": 0.5}}
    tubevit.save_model(tubevit.load_model(dense), tmp_path / "dense", metadata={"config": config})
    data = ["--tubes", "4x8x8/4x8x8", "--data", digits_cache / "motion.csv", "--split", "test"]
    found = json.loads(done(["sparsify", tmp_path / "dense", tmp_path / "same", *data, "--json"]))
    assert {**found["before"], "name": ""} == {**found["after"], "name": ""}
    used = {"views": "3x2", "crop": "2 along the longer side, short side 40", "average": "logits"}
    assert (used | {"clip_placement": "start"}).items() <= found["after"].items()
    flags = ["--average", "probabilities", "--views", "1x1"]
    table = done(["sparsify", tmp_path / "dense", tmp_path / "again", *data, *flags])
    assert "views 1x1, crop centre, short side 40, average probabilities, clip placement start" in table


@pytest.mark.parametrize(
    "flags, parts",
    [
        ([], ["required: --tubes"]),
        (["--tubes", "smal"], ["unknown tube preset 'smal'; did you mean 'small'"]),
        (["--tubes", "paper"], ["a clip of 8x32x32", "is too small for tube 16x4x4"]),
        (["--tubes", "4x8x8/8x8x8", "--views", "2x1"], ["--views goes with --data"]),
        (["--tubes", "4x8x8/8x8x8", "--split", "test"], ["--split goes with --data"]),
        (["--tubes", "4x8x8/8x8x8", "--head", "motion"], ["--head goes with --data"]),
        (["--tubes", "4x8x8/8x8x8", "--data", "clips.cvs"], ["clips.cvs"]),
    ],
)
def test_bad_input(dense, refused, tmp_path, flags, parts):
    refused(["sparsify", dense, tmp_path / "out", *flags], *parts)
    assert list(tmp_path.iterdir()) == []


def test_models_and_folders_that_are_refused(dense, tiny_run, refused, tmp_path):
    tubes = ["--tubes", "4x8x8/8x8x8"]
    refused(["sparsify", tiny_run, tmp_path / "out", *tubes], "needs one tube without space-to-depth", str(tiny_run))
    refused(["sparsify", "vit_nano8", tmp_path / "out", *tubes], "is an architecture without parameters")
    refused(["sparsify", dense.parent / "dens", tmp_path / "out", *tubes], "unknown checkpoint", str(dense))
    (tmp_path / "file").write_text("kept")
    refused(["sparsify", dense, tmp_path / "file", *tubes], "file exists already; name a new folder")
    refused(["sparsify", dense, tmp_path / "file/inside", *tubes], "cannot write", "file/inside")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"
