"""The commands that take a checkpoint take a name on the Hub."""

import json

import pytest

import tubevit
from tests.convert.test_both_ways import PLAIN
from tubevit.cli import main
from tubevit.config import load_config
from tubevit.config.resolve import resolve
from tubevit.convert import convert
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.models.config import Head

OURS, THEIRS = "hf://owner/ours@main:folder", "hf://owner/theirs"


@pytest.fixture
def named(hub, tiny, tmp_path, monkeypatch):
    """A model of ours, and one of Hugging Face, on the Hub; the current folder is empty."""
    video = tiny(
        {"motion": Head(8, "video", tuple(sorted(DIRECTIONS)))}, depth=1, tubes="4x8x8/8x16x16", frames=16, size=32
    )
    image = tiny({"default": Head(5, "any", ("cat", "dog", "cow", "hen", "bee"))}, depth=1, **PLAIN)
    for model, name in ((video, "ours"), (image, "theirs")):
        tubevit.save_model(model, tmp_path / name)
    convert(tmp_path / "theirs", tmp_path / "converted", format="hugging-face")
    hub.add_folder("owner/ours", tmp_path / "ours", "folder/")
    hub.add_folder("owner/theirs", tmp_path / "converted")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_verbs(digits_cache, named, tmp_path, capsys):
    clip = str(next((digits_cache / "videos/test").iterdir()))
    assert main(["predict", clip, "--checkpoint", OURS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == clip
    data = ["--data", str(digits_cache / "motion.csv"), "--split", "test", "--head", "motion"]
    assert main(["evaluate", "--checkpoint", OURS, *data]) == 0
    (record,) = json.loads((tmp_path / "here/eval.json").read_text())  # not in the cache
    assert record["clips_used"] > 0 and record["checkpoint"].startswith("hf://owner/ours@")
    assert main(["convert", THEIRS, "vit"]) == 0
    assert tubevit.load_model("vit").labels["default"] == ("cat", "dog", "cow", "hen", "bee")
    large = load_config(f"bootstrap:small={OURS},large={THEIRS},train_last=1,videos={digits_cache / 'motion.csv'}")
    assert resolve(large).model.width == tubevit.load_model("vit").config.width  # both were opened
