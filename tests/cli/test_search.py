import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest

import tubevit
from tests.data.clips import paint, write_clip
from tubevit.cli import main
from tubevit.data.moving_digits import write_video


@pytest.fixture(scope="module")
def searched(tiny_run, digits_cache, tmp_path_factory):
    """A folder with the features of a long video, of the test clips and of an image, and a clip cut from the video."""
    folder = tmp_path_factory.mktemp("searched")
    long = write_clip(folder / "long.mkv", range(0, 12000, 40), size=(64, 80))
    write_video(folder / "query.mp4", np.stack([paint(number, 64, 80) for number in range(175, 225)]), 25)
    image = min((digits_cache / "images/test").iterdir())
    command = ["predict", "--checkpoint", tiny_run, "--every", 0.5, "--features", folder / "long.npz"]
    clips = digits_cache / "videos/test"
    assert main([str(word) for word in [*command, "--tokens", folder / "tokens", long, clips, image]]) == 0
    return folder


def test_the_query_is_found_where_it_was_cut(searched, done, digits_cache, tmp_path):
    command = ["search", searched / "long.npz", searched / "query.mp4"]
    rows = [json.loads(line) for line in done([*command, "--json"]).splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5] and len({row["query"] for row in rows}) == 1
    assert rows[0]["file"] == str(searched / "long.mkv") and (rows[0]["start"], rows[0]["end"]) == (7, 9)
    assert rows[0]["similarity"] > 0.999 and sorted(row["similarity"] for row in rows)[::-1] == [
        row["similarity"] for row in rows
    ]
    *text, last = done([*command, "--top", 2, "--csv", tmp_path / "x.csv", "--page", tmp_path / "page"]).splitlines()
    assert text == [] and last.startswith(f"written: {tmp_path}/page/index.html")
    first, second = csv.DictReader((tmp_path / "x.csv").open())
    assert list(first) == ["query", "rank", "file", "start", "end", "similarity"]
    assert [first[name] for name in ("query", "rank", "start", "end")] == [
        str(searched / "query.mp4"),
        "1",
        "7.0",
        "9.0",
    ]
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("<img") == 3 and f"1.  {searched / 'long.mkv'},  0:07.0 to 0:09.0,  similarity 1.000" in page

    image = min((digits_cache / "images/test").iterdir())
    lines = done([*command, image, "--top", 1]).splitlines()
    assert lines[0] == f"similar to {searched / 'query.mp4'}:" and lines[2] == f"similar to {image}:"
    assert lines[1] == f"  1  1.000  {searched / 'long.mkv'}  7.00-9.00 s" and lines[3] == f"  1  1.000  {image}"


def test_features_and_tokens_together(searched, tiny_run):
    """In one pass; both have the clips of the video, and the same model."""
    with np.load(searched / "long.npz") as found:
        rows = found["files"] == str(searched / "long.mkv")
        (path,) = searched.glob("tokens/**/long.mkv.json")
        about = json.loads(path.read_text())
        np.testing.assert_array_equal(found["start"][rows], about["start"])
        assert (about["model"], about["fingerprint"]) == (str(found["model"]), str(found["fingerprint"]))
        tokens = np.load(path.with_suffix(".npy"), mmap_mode="r")
        model = tubevit.load_model(tiny_run)
        pooled = model.pool(jnp.asarray(tokens[:1], jnp.float32))
        np.testing.assert_allclose(pooled[0], found["features"][rows][0], atol=1e-2)


def test_features_of_a_budget(searched, tiny_run, done, tmp_path):
    """The query has the same budget as the features."""
    command = ["predict", "--checkpoint", tiny_run, "--every", 1, "--budget", "25%:motion", "--features"]
    done([*command, tmp_path / "part.npz", searched / "long.mkv"])
    with np.load(tmp_path / "part.npz") as part, np.load(searched / "long.npz") as whole:
        assert str(part["budget"]) == "25%:motion" and str(whole["budget"]) == ""
    row = json.loads(done(["search", tmp_path / "part.npz", searched / "query.mp4", "--top", 1, "--json"]))
    assert (row["start"], row["end"]) == (7, 9) and row["similarity"] > 0.999


def test_queries_that_cannot_be_read(searched, tmp_path, capsys):
    """They are left out, as `predict` leaves files out."""
    (tmp_path / "cut.mkv").write_bytes((searched / "query.mp4").read_bytes()[:300])
    command = ["search", searched / "long.npz", tmp_path / "cut.mkv", searched / "query.mp4", "--top", 1, "--json"]
    assert main(list(map(str, command))) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["query"] == str(searched / "query.mp4")
    assert f"1 of 2 files are left out: {tmp_path / 'cut.mkv'}" in err


def test_bad_input(searched, tiny_run, digits_cache, refused, tmp_path):
    features, query = searched / "long.npz", searched / "query.mp4"
    (tmp_path / "cut.mkv").write_bytes(query.read_bytes()[:300])
    (tmp_path / "cut.npz").write_bytes(features.read_bytes()[:-300])
    refused(["search", features, tmp_path / "cut.mkv"], "cut.mkv")
    refused(["search", features, tmp_path / "none.mkv"], "none.mkv does not exist")
    refused(["search", tmp_path / "cut.npz", query], "cut.npz is damaged")
    refused(["search", features, query, "--checkpoint", "tubevit_nano8@moving_digits"], "is another model")
    refused(["search", features, query, "--top", 0], "--top: must be at least 1")
    refused(["search", features, query, "--json", "--csv", "x.csv"], "not allowed with")
    refused(["search", features, query, "--csv", "/dev/null/x.csv"], "cannot write /dev/null/x.csv")
    refused(["search", features, query, "--csv", "gs://b/x.csv"], "writes to a local file")
    refused(["search", features, query, "--page", "/dev/null/x"], "cannot write /dev/null/x")
    command = ["predict", "--checkpoint", tiny_run, query, "--tokens"]
    refused([*command, "/dev/null/x"], "cannot write /dev/null/x")
    refused([*command, "gs://b/x"], "writes to a local file")
    refused([*command, tmp_path, "--json"], "--tokens are written instead of labels")
    refused([*command, tmp_path, "--budget", "50%"], "found budget 50%: pass --budget 100%")
    refused([*command, tmp_path, "--head", "motion"], "--head chooses labels")
    refused([*command[:3], tmp_path / "cut.mkv", "--tokens", tmp_path / "new"], "cut.mkv")
    assert not (tmp_path / "new").exists()
