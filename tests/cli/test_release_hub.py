"""`release --to hf://owner/repo`, with the Hub's real client against a server at localhost."""

import json
import pathlib
import re

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import tubevit
from tests.cli.test_release import places  # noqa: F401
from tests.zoo.hub_server import TOKEN
from tubevit.checkpoint.paths import flatten
from tubevit.cli import main
from tubevit.errors import RunError, UserError
from tubevit.models.abstract import parameters
from tubevit.zoo import registry
from tubevit.zoo.names import open_checkpoint
from tubevit.zoo.release import ReleaseOptions, release

REPO, NAME = "owner/tiny", "tubevit_nano8@hub"
TO = f"hf://{REPO}"


@pytest.fixture
def logged_in(hub, monkeypatch, digits_cache):
    """The Hub, for a user whose token may write; the embedded data stays where it is."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (pathlib.Path(hub.cache) / digits_cache.name).parent.mkdir(parents=True, exist_ok=True)
    (pathlib.Path(hub.cache) / digits_cache.name).symlink_to(digits_cache)
    return hub


def content(hub) -> dict[str, bytes]:
    return hub.repos[REPO][hub.branches[REPO]["main"]]


def test_one_commit_that_is_found_and_loaded(logged_in, places, tiny_run, done, capfd, tmp_path, monkeypatch):  # noqa: F811
    hub = logged_in
    text = done(["release", tiny_run, NAME, "--bfloat16", "--licence", "CC-BY-4.0", "--split", "train", "--to", TO])
    commit = hub.branches[REPO]["main"]
    assert f"MB in {TO}@{commit}; card: {places / NAME / 'README.md'}" in text
    assert len(hub.repos[REPO]) == 2  # the empty one that made it, and the release
    files = content(hub)
    assert {"README.md", "loss.svg", "accuracy.svg", "metrics.jsonl", "manifest.json", "_CHECKPOINT_METADATA"} < set(
        files
    )
    matter, card = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", files["README.md"].decode(), re.DOTALL).groups()
    metadata = yaml.safe_load(matter)
    assert metadata["license"] == "cc-by-4.0" and metadata["library_name"] == "tubevit"
    assert metadata["pipeline_tag"] == "video-classification"
    (motion, still) = registry.read_index()[NAME].metrics
    results = metadata["model-index"][0]["results"]
    assert [each["dataset"]["name"] for each in results] == ["moving_digits", "still_digits"]
    assert results[0]["metrics"][0] == {"type": "accuracy", "name": "top-1", "value": round(motion["top1"], 4)}
    assert f'tubevit.load_model("{TO}")' in card and f"tubevit evaluate --checkpoint {TO} --split train" in card
    assert card == (places / NAME / "README.md").read_text()
    assert {path.name for path in (places / NAME).iterdir()} == {
        "README.md",
        "loss.svg",
        "accuracy.svg",
        "metrics.jsonl",
    }
    assert registry.read_index()[NAME].source == f"{TO}@{commit}"
    monkeypatch.delenv("HF_TOKEN")
    run = flatten(parameters(tubevit.load_model(tiny_run)))
    for name in (TO, NAME):
        for path, leaf in flatten(parameters(tubevit.load_model(name))).items():
            np.testing.assert_allclose(leaf, run[path], rtol=2**-8, err_msg=path)
    monkeypatch.chdir(tmp_path)
    (record, _) = json.loads(done(["evaluate", "--checkpoint", TO, "--split", "train", "--json"]))
    assert record["top1"] == motion["top1"] and (tmp_path / "eval.json").exists()
    assert TOKEN not in text + "".join(capfd.readouterr())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["release", str(tiny_run), NAME, "--to", TO]) == 2
    assert "is released already" in capfd.readouterr().err
    before = set(files)
    done(["release", tiny_run, NAME, "--step", "6", "--to", TO, "--replace"])
    assert open_checkpoint(NAME).step == 6 and len(hub.repos[REPO]) == 3
    stale = {path for path in before if path.startswith("params/")} - set(json.loads(content(hub)["manifest.json"]))
    assert not stale & set(content(hub))
    registry.write_index({})


@pytest.mark.parametrize(
    "to, part",
    [
        (f"{TO}@dev", "a release is uploaded to the root of a repository, hf://owner/repo; found hf://owner/tiny@dev"),
        (f"{TO}:sub", "a release is uploaded to the root of a repository"),
        ("hf://tiny", "is named hf://owner/repo"),
        (TO, "an upload needs a token: log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_refused_before_the_evaluation(hub, places, tiny_run, to, part):  # noqa: F811
    with pytest.raises(UserError, match=re.escape(part)):
        release(open_checkpoint(tiny_run), NAME, ReleaseOptions(to=to), evaluate=pytest.fail)
    assert REPO not in hub.repos


def test_a_repository_that_holds_a_checkpoint(logged_in, places, tiny_run):  # noqa: F811
    logged_in.add(REPO, {"_CHECKPOINT_METADATA": b"{}"})
    with pytest.raises(UserError, match=f"{TO} holds a checkpoint already; take another repository, or pass --replace"):
        release(open_checkpoint(tiny_run), NAME, ReleaseOptions(to=TO), evaluate=pytest.fail)


PLANTED = "planted-in-the-environment"


def planted(tiny_run, source: str):
    """A checkpoint of a run whose training data has this source."""
    checkpoint = open_checkpoint(tiny_run)
    checkpoint.experiment["data"]["train"]["moving_digits"]["source"] = source
    checkpoint.experiment["init"] = {"checkpoint": source}
    return checkpoint


@pytest.mark.parametrize("folder", ["~", "/home/ada"])
def test_no_path_of_a_home_folder_is_published(logged_in, places, tiny_run, folder):  # noqa: F811
    folder = pathlib.Path(folder).expanduser()
    checkpoint = planted(tiny_run, f"k600:{folder}/lists/train.csv@{folder}/clips")
    release(checkpoint, NAME, ReleaseOptions(to=TO, replace=True), evaluate=lambda stored: [])
    files = content(logged_in) | {"index": (places / "index.json").read_bytes()}
    assert b"k600:train.csv@clips" in files["README.md"] and b"k600:train.csv@clips" in files["_CHECKPOINT_METADATA"]
    for path, held in files.items():
        assert str(folder).encode() not in held and str(places).encode() not in held and TOKEN.encode() not in held, (
            path
        )
    registry.write_index({})


@pytest.mark.parametrize("source, what", [
    (f"gs://bucket/clips.csv?key={TOKEN}", "a token"), ("https://ada:lovelace@example.org/clips.csv", "a password"),
    (f"gs://{PLANTED}/clips.csv", "the value of the environment variable PLANTED"),
])  # fmt: skip
def test_secrets_stop_a_release(logged_in, places, tiny_run, source, what, monkeypatch, said, capfd):  # noqa: F811
    monkeypatch.setenv("PLANTED", PLANTED)
    with pytest.raises(UserError, match=f"_CHECKPOINT_METADATA is not published, because it holds {what}") as error:
        release(planted(tiny_run, source), NAME, ReleaseOptions(to=TO), evaluate=pytest.fail)
    shown = str(error.value) + "".join([*said, *capfd.readouterr()])
    assert not any(secret in shown for secret in (TOKEN, "lovelace", PLANTED))
    assert REPO not in logged_in.repos and not (places / NAME).exists()


def test_from_an_installed_package(logged_in, tiny_run, monkeypatch):
    """It publishes, and changes nothing here."""
    inside = pathlib.Path(tubevit.__file__).parent / "checkpoints"
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: inside)
    entry = release(open_checkpoint(tiny_run), NAME, ReleaseOptions(to=TO), evaluate=lambda stored: [])
    assert open_checkpoint(entry.source).step == 9 and not inside.exists()


def test_a_server_without_xet(logged_in, places, tiny_run, monkeypatch):  # noqa: F811
    """The client uploads by Xet wherever its package is installed; a server that has none is one line."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(RunError, match=f"^{TO}: the transfer .* failed: .*; a server without Xet needs HF_HUB"):
        release(open_checkpoint(tiny_run), NAME, ReleaseOptions(to=TO), evaluate=lambda stored: [])
