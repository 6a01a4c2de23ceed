"""Releases published on the Hub, with its real client against a server at localhost."""

import json
import pathlib
import re

import pytest
import yaml
from huggingface_hub import constants

import tubevit
from tests.zoo.hub_server import TOKEN
from tests.zoo.test_hub import same
from tests.zoo.test_release import RECORD, run  # noqa: F401
from tubevit.errors import RunError, UserError
from tubevit.zoo import registry
from tubevit.zoo.hub_upload import licence_fields
from tubevit.zoo.names import open_checkpoint
from tubevit.zoo.release import ReleaseOptions, _commit, release

REPO, NAME = "owner/tiny", "tubevit_nano8@hub"
TO = f"hf://{REPO}"
FIGURES = {"loss.svg": b"<svg/>", "metrics.jsonl": b"{}"}
PLANTED = "planted-in-the-environment"


@pytest.fixture
def logged_in(hub, monkeypatch):
    """The Hub, for a user whose token may write."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def content(hub) -> dict[str, bytes]:
    return hub.repos[REPO][hub.branches[REPO]["main"]]


def publish(run, **options):  # noqa: F811
    records = [RECORD, RECORD | {"top1": None, "map": 0.25}]
    return release(run, NAME, ReleaseOptions(to=TO, **options), evaluate=lambda _: records, draw=lambda _: FIGURES)


def test_one_commit_with_all_of_it(logged_in, run, tmp_path, monkeypatch, capfd, said):  # noqa: F811
    entry = publish(run, licence="CC-BY-4.0", split="test", dtype="bfloat16")
    hub, commit = logged_in, logged_in.branches[REPO]["main"]
    assert len(hub.repos[REPO]) == 2  # the empty commit that makes a repository, and the release
    assert entry.source == f"{TO}@{commit}" and registry.read_index()[NAME] == entry
    files, place = content(hub), tmp_path / "checkpoints" / NAME
    assert {"README.md", *FIGURES, "manifest.json", "_CHECKPOINT_METADATA"} < set(files)
    assert {path.name for path in place.iterdir()} == {"README.md", *FIGURES}
    matter, card = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", files["README.md"].decode(), re.DOTALL).groups()
    assert card == (place / "README.md").read_text()
    for part in (
        f'tubevit.load_model("{TO}")',
        f"tubevit evaluate --checkpoint {TO} --split test",
        "![loss](loss.svg)",
    ):
        assert part in card
    metadata = yaml.safe_load(matter)
    expected = {"license": "cc-by-4.0", "library_name": "tubevit", "pipeline_tag": "video-classification"}
    assert expected.items() <= metadata.items()
    (results,) = metadata["model-index"]
    assert results["name"] == NAME and results["results"][0]["dataset"]["name"] == "a"
    values = [(each["type"], each["name"], each["value"]) for each in results["results"][0]["metrics"]]
    assert values == [("accuracy", "top-1", 0.5), ("mean_average_precision", "mAP", 0.25)]
    monkeypatch.delenv("HF_TOKEN")
    same(tubevit.load_model(TO), tubevit.load_model(NAME))
    assert open_checkpoint(TO).step == 3 and hub.tokens[-1] is False
    assert TOKEN not in "".join([*said, *capfd.readouterr()])


def test_replacing(logged_in, run):  # noqa: F811
    publish(run)
    logged_in.repos[REPO][logged_in.branches[REPO]["main"]] |= {"params/d/stale": b"x", "LICENSE": b"kept"}
    with pytest.raises(UserError, match=f"{NAME} is released already; take another tag, or pass --replace"):
        publish(run)
    with pytest.raises(UserError, match=re.escape(f"{TO} holds a model already (_CHECKPOINT_METADATA)")):
        release(run, f"{NAME}2", ReleaseOptions(to=TO), evaluate=pytest.fail)
    publish(run, replace=True)
    assert "params/d/stale" not in content(logged_in) and content(logged_in)["LICENSE"] == b"kept"
    assert len(logged_in.repos[REPO]) == 3


def test_a_foreign_model_stays(logged_in, run, foreign):  # noqa: F811
    """Its card would be replaced; what only has a card is taken."""
    logged_in.add_folder(REPO, foreign)
    with pytest.raises(UserError, match=re.escape(f"{TO} holds a model already (config.json); take another")):
        release(run, NAME, ReleaseOptions(to=TO), evaluate=pytest.fail)
    publish(run, replace=True)
    assert not {"config.json", "model.safetensors"} & set(content(logged_in))
    logged_in.add(REPO, {"README.md": b"", ".gitattributes": b""})
    assert open_checkpoint(publish(run, replace=True).source).step == 3


def test_a_job_that_knows_the_commit(logged_in, run, monkeypatch):  # noqa: F811
    """Variables of a continuous integration hold what the card tells."""
    monkeypatch.setenv("SOME_SHA", _commit() or "")
    publish(run)


@pytest.mark.parametrize(
    "options, part",
    [
        (
            {"to": f"{TO}@dev"},
            "a release is uploaded to the root of a repository, hf://owner/repo; found hf://owner/tiny@dev",
        ),
        ({"to": f"{TO}:sub"}, "a release is uploaded to the root of a repository"),
        ({"to": "hf://tiny"}, "is named hf://owner/repo"),
        ({"to": TO}, "an upload needs a token: log in with `hf auth login`, or set HF_TOKEN"),
        ({"to": TO, "licence": "see\nREADME"}, "--licence must be the name of a licence"),
    ],
)
def test_refused_before_the_evaluation(hub, run, options, part):  # noqa: F811
    with pytest.raises(UserError, match=re.escape(part)):
        release(run, NAME, ReleaseOptions(**options), evaluate=pytest.fail)
    assert REPO not in hub.repos


@pytest.mark.parametrize(
    "licence, fields",
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("My Licence (v1.0)", {"license": "other", "license_name": "my-licence-v1.0"}),  # in lower case, without spaces
    ],
)
def test_licences(licence, fields):
    assert licence_fields(licence) == fields


def plant(run, source: str):  # noqa: F811
    """Give the training data of a run, and what it began from, this name."""
    run.experiment["data"]["train"]["a"]["source"] = source
    run.experiment["init"] = {"checkpoint": source}


@pytest.mark.parametrize("folder", ["~", "/home/ada"])
def test_no_path_of_a_home_folder_is_published(logged_in, run, tmp_path, folder):  # noqa: F811
    folder = pathlib.Path(folder).expanduser()
    plant(run, f"k600:{folder}/lists/train.csv@{folder}/clips")
    publish(run, config=f"{folder}/experiment.py")
    index = json.loads((tmp_path / "checkpoints/index.json").read_text())
    files = content(logged_in) | {"index": json.dumps([row for row in index if row["name"] == NAME]).encode()}
    for name in ("README.md", "_CHECKPOINT_METADATA", "index"):
        assert b"k600:train.csv@clips" in files[name], name
    for name, held in files.items():
        assert not any(secret.encode() in held for secret in (f"{folder}/", str(tmp_path), TOKEN)), name


@pytest.mark.parametrize("source, what", [
    (f"gs://bucket/clips.csv?key={TOKEN}", "a token"), ("https://ada:lovelace@example.org/clips.csv", "a password"),
    (f"gs://{PLANTED}/clips.csv", "the value of the environment variable PLANTED"),
])  # fmt: skip
def test_secrets_stop_a_release(logged_in, run, tmp_path, source, what, monkeypatch, said, capfd):  # noqa: F811
    monkeypatch.setenv("PLANTED", PLANTED)
    plant(run, source)
    with pytest.raises(UserError, match=f"README.md is not published, because it holds {what}") as error:
        release(run, NAME, ReleaseOptions(to=TO), evaluate=pytest.fail)
    shown = str(error.value) + "".join([*said, *capfd.readouterr()])
    assert not any(secret in shown for secret in (TOKEN, "lovelace", PLANTED))
    assert REPO not in logged_in.repos and not (tmp_path / "checkpoints" / NAME).exists()


def test_a_secret_in_the_card_is_found_before_the_evaluation(logged_in, run):  # noqa: F811
    with pytest.raises(UserError, match="README.md is not published, because it holds (a|your) token"):
        release(run, NAME, ReleaseOptions(to=TO, config=f"mine:key={TOKEN}"), evaluate=pytest.fail)


def test_from_an_installed_package(logged_in, run, monkeypatch):  # noqa: F811
    """It publishes, and changes nothing here."""
    inside = pathlib.Path(tubevit.__file__).parent / "checkpoints"
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: inside)
    assert open_checkpoint(publish(run).source).step == 3 and not inside.exists()


def test_a_server_without_xet(logged_in, run, monkeypatch):  # noqa: F811
    """The client uploads by Xet wherever its package is installed; a server that has none is one line."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(RunError, match=f"^{TO}: the transfer .* failed: .*; a server without Xet needs HF_HUB_DISABLE"):
        publish(run)
