"""What is published holds no path of this machine and no secret."""

import pathlib

import pytest

from tubevit.errors import UserError
from tubevit.private import check_no_secrets, redacted, shareable


@pytest.mark.parametrize(
    "text, short",
    [
        ("/home/ada/clips.csv", "clips.csv"),
        ("~/clips/", "clips"),
        ("~ada/clips.csv", "clips.csv"),
        ("k600:/data/list.csv@/data/k600/clips", "k600:list.csv@clips"),
        ("finetune:data=/mnt/a.csv,init=/mnt/runs/b", "finetune:data=a.csv,init=b"),
        ("see /root/x and (/srv/y)", "see x and (y)"),
        ("runs/quickstart", "runs/quickstart"),
        ("gs://bucket/clips.csv", "gs://bucket/clips.csv"),
        ("hf://owner/repo@main:sub/folder", "hf://owner/repo@main:sub/folder"),
        ("4x8x8/8x16x16%2x1x1_1x8x8/16x16x16", "4x8x8/8x16x16%2x1x1_1x8x8/16x16x16"),
    ],
)
def test_paths_are_shortened(text, short):
    assert shareable(text) == short
    assert shareable({"a": [text, (text, 1)], "b": None}) == {"a": [short, (short, 1)], "b": None}


SECRETS = {
    "a token": "hf_" + "aB3" * 8,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a password in an address": "https://ada:lovelace@example.org/clips.csv",
    "the path of a home folder": "file:///home/ada/clips.csv",
    "the value of the environment variable PLANTED": "value-of-a-variable",
    "the path of your home folder": "/homes/of/users/ada",
    "your key": "abcdefgh",
}


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_refused(what, monkeypatch):
    monkeypatch.setenv("PLANTED", SECRETS["the value of the environment variable PLANTED"])
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path(SECRETS["the path of your home folder"]))
    contents = {"README.md": b"a card", "config.json": f'{{"source": "{SECRETS[what]}"}}'.encode()}
    with pytest.raises(UserError, match=f"^config.json is not published, because it holds {what}: ") as error:
        check_no_secrets(contents, "", {"your key": "abcdefgh"})
    assert SECRETS[what] not in str(error.value)


def test_secrets_are_replaced(monkeypatch):
    """One of them is a part of another, which is replaced as a whole."""
    monkeypatch.setenv("PART", "value-of-a")
    monkeypatch.setenv("PLANTED", SECRETS["the value of the environment variable PLANTED"])
    replaced = {what: f"({what})" for what in SECRETS if what != "your key"}
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path(SECRETS["the path of your home folder"]))
    replaced["a password in an address"] = "http(a password in an address)example.org/clips.csv"
    replaced["the path of a home folder"] = "file://(the path of a home folder)/clips.csv"
    assert {what: redacted(f"a {SECRETS[what]}, b") for what in replaced} == {
        what: f"a {text}, b" for what, text in replaced.items()
    }
    assert redacted("hf_hub, runs/quickstart") == "hf_hub, runs/quickstart"


def test_what_is_no_secret(monkeypatch):
    """Short values, and those that the user asked to publish."""
    monkeypatch.setenv("SHORT", "quick")
    monkeypatch.setenv("RELEASE", "tubevit_nano8@digits")
    contents = {"README.md": b"# tubevit_nano8@digits\n\nhf_hub, quickstart, /homework, a://b/c@d:e, user@host"}
    check_no_secrets(contents, "tubevit_nano8@digits --split test")
