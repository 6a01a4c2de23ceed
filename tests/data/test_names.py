"""Names that are not UTF-8, of files, classes and sources, wherever they are written, hashed or printed."""

import csv
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

import tubevit
from tests.data.clips import write_clip
from tubevit import storage
from tubevit.cli import main
from tubevit.data.shard_processes import in_processes
from tubevit.data.shard_writer import write_shards
from tubevit.data.sources import open_source
from tubevit.data.sources.splits import split_by_hash
from tubevit.errors import UserError
from tubevit.models.config import Head
from tubevit.sharding.agreement import _digest
from tubevit.visualize.evaluated import read_files

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path):
    """A folder of class folders whose names, like its own, are not UTF-8; one file is broken."""
    clip = write_clip(tmp_path / "clip.mp4", range(0, 800, 40), size=(32, 32))
    for split in ("Train", "test"):
        for label in (NAME, "dog"):
            (tmp_path / NAME / split / label).mkdir(parents=True)
            for name in (NAME, "a"):
                shutil.copy(clip, tmp_path / NAME / split / label / f"{name}.mp4")
    (tmp_path / NAME / "test/dog" / f"{NAME}.mp4").write_bytes(b"")
    return str(tmp_path / NAME)


def test_text_keeps_its_bytes(tmp_path):
    assert storage.encode(NAME) == b"caf\xe9" and storage.decode(b"caf\xe9") == NAME
    assert storage.printable(f"é {NAME}") == "é caf\N{REPLACEMENT CHARACTER}"
    storage.write_text(tmp_path / "x", f"é {NAME}")
    assert (tmp_path / "x").read_bytes() == "é ".encode() + b"caf\xe9"


def test_hashes_of_utf8_names_stay():
    """Of what earlier versions wrote: SHA-256 and BLAKE2 of the names in UTF-8."""
    for name in ("a.mp4", "é/ü.mp4", "日本.mp4"):
        share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        assert split_by_hash(name) == ("train" if share < 0.8 else "test")
    assert split_by_hash(NAME) in ("train", "test")
    assert _digest(["é"], 0, 1) == hashlib.blake2b("é\0".encode(), digest_size=8).hexdigest()
    assert _digest([NAME], 0, 1) == hashlib.blake2b(b"caf\xe9\0", digest_size=8).hexdigest()


def test_sources(folder):
    source = open_source(folder, "train")
    assert source.classes == (NAME, "dog") and len(source) == 4 and len(source.label_hash) == 16
    assert {os.fsencode(key).rpartition(b"/")[2] for key in source.keys} == {b"caf\xe9.mp4", b"a.mp4"}
    without = open_source(f"{folder}/Train", "all")  # divided by a hash
    assert without.classes == (NAME, "dog") and len(without) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_shards(folder, tmp_path, processes):
    out = str(tmp_path / "shards")
    original = open_source(folder, "test")
    result = write_shards(original, "test", out, 2, write=in_processes(processes))
    assert (result["written"], result["rejected"]) == (3, 1)
    assert write_shards(original, "test", out, 2)["kept"] == 3  # resumed
    source = open_source(f"shards:{out}", "test")
    assert set(source.keys) < set(original.keys) and source.classes == original.classes
    for i, key in enumerate(source.keys):
        with open(key, "rb") as file:
            assert source.media(i) == file.read()
    content = (tmp_path / "shards" / "rejected.csv").read_bytes()
    (row,) = list(csv.reader(content.decode("utf-8", "surrogateescape").splitlines()))[1:]
    assert row[0] == f"{folder}/test/dog/{NAME}.mp4" and b"caf\xe9" in content
    with pytest.raises(UserError, match="shards need a folder whose path is UTF-8"):
        write_shards(original, "test", str(tmp_path / NAME / "shards"), 2)
    with pytest.raises(UserError, match="shards need a folder whose path is UTF-8"):
        open_source(f"shards:{tmp_path / NAME}", "test")


def test_evaluated_and_predicted(folder, tiny_run, tmp_path, capfdbinary):
    saved, out = tmp_path / "saved", tmp_path / f"{NAME}.json"
    head = Head(2, "video", (NAME, "dog"))
    tubevit.save_model(tubevit.load_model(tiny_run, heads={"pets": head}), saved)
    assert tubevit.load_model(saved).labels == {"pets": (NAME, "dog")}
    flags = ["--checkpoint", str(saved)]
    assert main(["evaluate", *flags, "--data", folder, "--out", str(out), "--max-broken", "0.5"]) == 0
    (record,) = json.loads(out.read_text())
    assert record["clips_used"] == 3
    assert [broken["path"] for broken in record["broken"]] == [f"{folder}/test/dog/{NAME}.mp4"]
    table = (tmp_path / f"{NAME}_data_classes.csv").read_bytes().splitlines()
    assert [line.split(b",")[0] for line in table] == [b"class", b"caf\xe9", b"dog"]
    file = f"{folder}/Train/{NAME}/{NAME}.mp4"
    capfdbinary.readouterr()
    assert main(["predict", *flags, "--json", file]) == 0
    record = json.loads(capfdbinary.readouterr().out)
    assert record["file"] == file and {each["label"] for each in record["top"]} == {NAME, "dog"}
    assert main(["predict", *flags, "--features", str(tmp_path / "x.npz"), file]) == 0
    assert np.load(tmp_path / "x.npz")["files"].tolist() == [file]
    (shown,), _ = read_files(tubevit.load_model(saved), [file])  # of a report
    assert shown.text.isprintable() and "caf\N{REPLACEMENT CHARACTER}.mp4" in shown.text
