"""What is published holds no path of this machine and no secret."""

import json
import pathlib

import pytest

from tubevit.errors import UserError
from tubevit.private import check_no_secrets, redacted, shareable


@pytest.mark.parametrize(
    "text, short",
    [
        ("/home/ada/clips.csv", "clips.csv"),
        ("/home/ada smith/clips/list.csv", "list.csv"),
        ("k600:/home/ada b/list.csv@/mnt/c d/clips", "k600:list.csv@clips"),
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


HOME, VALUE = "/homes/of/users/ada", 'the "value" of ä variable'


@pytest.mark.parametrize(
    "what, secret",
    [
        ("a token", "hf_" + "aB3" * 8),
        ("a token", "github_pat_" + "aB3_" * 8),
        ("a private key", "-----BEGIN RSA PRIVATE KEY-----"),
        ("a password in an address", "https://ada:lovelace@example.org/clips.csv"),
        ("a password in an address", "redis://:love:lace@example.org"),
        ("a password in an address", "https://example.org/clips.csv?X-Amz-Date=1&X-Amz-Signature=0a1b"),
        ("a password in an address", "https://example.org/clips.csv?X-Amz-Security-Token=0a1b"),
        ("the path of a home folder", "file:///home/ada/clips.csv"),
        ("the value of the environment variable PLANTED", VALUE),
        ("the path of your home folder", HOME),
        ("your key", "abcdefgh"),
    ],
)
@pytest.mark.parametrize("ascii", [True, False])
def test_secrets_are_refused(what, secret, ascii, monkeypatch):
    monkeypatch.setenv("PLANTED", VALUE)
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path(HOME))
    contents = {"README.md": b"a card", "config.json": json.dumps({"source": secret}, ensure_ascii=ascii).encode()}
    with pytest.raises(UserError, match=f"^config.json is not published, because it holds {what}: ") as error:
        check_no_secrets(contents, "", {"your key": "abcdefgh"})
    assert secret not in str(error.value) and ("unset" in str(error.value)) == ("variable" in what)


@pytest.mark.parametrize(
    "text, replaced",
    [
        ("hf_" + "aB3" * 8, "(a token)"),
        ("-----BEGIN PRIVATE KEY-----\naB3/\n-----END PRIVATE KEY-----", "(a private key)"),
        ("s3://ada:love@host/a.csv", "s3://(a password in an address)host/a.csv"),
        ("https://host/a.csv?a=1&X-Amz-Signature=0a1b&b=2", "https://host/a.csv?a=1(a password in an address)&b=2"),
        ("file:///home/ada/a.csv", "file://(the path of a home folder)/a.csv"),
        (VALUE, "(the value of the environment variable PLANTED)"),
        (json.dumps(VALUE), '"(the value of the environment variable PLANTED)"'),
        (f"{HOME}/a.csv", "(the path of your home folder)/a.csv"),
        ("hf_hub, runs/quickstart", "hf_hub, runs/quickstart"),
    ],
)
def test_secrets_are_replaced(text, replaced, monkeypatch):
    monkeypatch.setenv("PART", VALUE[:12])  # what holds another value is replaced as a whole
    monkeypatch.setenv("PLANTED", VALUE)
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path(HOME))
    assert redacted(f"a {text} b, {text}") == f"a {replaced} b, {replaced}"


def test_what_is_no_secret(monkeypatch):
    """Short values, and those that the user asked to publish."""
    monkeypatch.setenv("SHORT", "quick")
    monkeypatch.setenv("RELEASE", "tubevit_nano8@digits")
    contents = {"README.md": b"# tubevit_nano8@digits\n\nhf_hub, quickstart, /homework, a://b/c@d:e, user@host"}
    contents["config.json"] = b'{"server":"http://localhost:8080","mail":"user@host","address":"a://b/c?key=d"}'
    check_no_secrets(contents, "tubevit_nano8@digits --split test")
