import json

import pytest

from tests.data.clips import write_audio, write_clip
from tubevit.data.shard_writer import write_shards
from tubevit.data.sources import open_source
from tubevit.data.sources.shards import open_shards


@pytest.fixture
def clips(tmp_path):
    """A csv of 6 clips, two of them without video."""
    rows = ["path,label,split"]
    for i in range(6):
        (write_audio if i in (1, 4) else lambda path: write_clip(path, range(0, 400, 40)))(tmp_path / f"{i}.mkv")
        rows.append(f"{i}.mkv,{'ab'[i % 2]},{'train' if i < 4 else 'test'}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_every_split(done, clips, capsys):
    out = clips / "out"
    text = done(["shard-videos", clips / "clips.csv", out])
    train, test = text.splitlines()
    assert train.startswith(f"{out}: train: 3 files written, 1 rejected, 4 shards, 0.0 MiB; ") and "files/s" in train
    assert test.startswith(f"{out}: test: 1 files written, 1 rejected, 2 shards")
    assert len(open_shards(f"shards:{out}", "all")) == 4
    assert "3 existed already" in done(["shard-videos", clips / "clips.csv", out, "--split", "train"])
    assert (out / "rejected.csv").read_text().count("no video stream") == 2


def test_json_and_encoding_again(done, clips):
    command = ["shard-videos", clips / "clips.csv", clips / "out", "--split", "train", "--shards", 2, "--json"]
    summary = json.loads(done([*command, "--short-side", 32, "--processes", 2]))
    assert summary["train"].pop("seconds") > 0
    size = sum(shard.stat().st_size for shard in (clips / "out").glob("*.array_record"))
    assert 0 < summary["train"].pop("bytes") < size
    assert summary == {"train": {"written": 3, "rejected": 1, "kept": 0, "shards": 2}}
    assert len(open_shards(f"shards:{clips / 'out'}", "train")) == 3


def test_refused(done, refused, clips, tmp_path):
    source, out = clips / "clips.csv", tmp_path / "out"
    refused(
        ["shard-videos", source, out, "--processes", 0], "--processes: must be at least 1 and at most 4096; found '0'"
    )
    refused(["shard-videos", source, out, "--short-side", 4], "--short-side: must be at least 16; found '4'")
    refused(["shard-videos", source, out, "--split", "train,tset"], "unknown split", "did you mean 'test'?")
    runner = ["shard-videos", source, out, "--runner"]
    refused([*runner, "direct"], "--runner direct needs apache_beam, which is not installed", "'tubevit[beam]'")
    refused([*runner, "dataflw"], "unknown runner 'dataflw'; did you mean 'dataflow'?")
    refused([*runner, "direct", "--processes", 2], "--processes is for this host")
    refused(["shard-videos", source, out, "--beam", "region=x"], "--beam region=x: expected --runner with it")
    assert not out.exists()  # splits are opened before any is written
    done(["shard-videos", source, out, "--split", "train"])
    refused(["shard-videos", source, out, "--split", "train", "--short-side", 32], "was begun with short_side None")
    (clips / "other.csv").write_text("path,label,split\n0.mkv,a,train\n2.mkv,a,holdout\n")
    refused(["shard-videos", clips / "other.csv", out], "other.csv line 3: unknown split 'holdout'; valid: ")
    write_shards(open_source(str(source), "test"), "extra", str(out))
    others = [f"shards:{out}", tmp_path / "copy"]
    refused(["shard-videos", *others], "has 4 files, 3 of them in train of", "name its splits with --split")
