import concurrent.futures
import csv
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import av
import cv2
import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests import gcs
from tests.data.clips import indices, set_rotation, write_audio, write_clip
from tubevit import storage
from tubevit.data import shards
from tubevit.data.decode import decode_clip, decode_image
from tubevit.data.recode import validated_bytes
from tubevit.data.shard_job import Job, write_shard
from tubevit.data.shard_processes import in_processes
from tubevit.data.shard_writer import default_shards, write_shards
from tubevit.data.sources import open_source
from tubevit.data.sources.shards import open_shards
from tubevit.errors import DecodeError, RunError, UserError

ROOT = pathlib.Path(__file__).parents[2]
BROKEN = ("cut.mp4", "tail.mkv", "empty.mp4", "sound.wav", "none.avi")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A csv of 25 clips, some of them broken, two images and one that does not exist."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(20):
        write_clip(folder / f"{i}.mp4", range(0, 40 * (i + 2), 40))
        rows.append((f"{i}.mp4", f"class {i % 3}", "val" if i % 5 == 4 else "train"))
    (folder / "cut.mp4").write_bytes((folder / "9.mp4").read_bytes()[:-300])
    whole = write_clip(folder / "whole.mkv", range(0, 4000, 40), size=(96, 128)).read_bytes()
    (folder / "tail.mkv").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.mp4").write_bytes(b"")
    write_audio(folder / "sound.wav")
    (folder / "none.avi").write_bytes(b"not a video")
    rows += [(name, "class 1", "train") for name in BROKEN] + [("gone.mp4", "class 0", "train")]
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "split"), *rows])
    (folder / "clips.csv").write_text(text.getvalue())
    return folder


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """Shards of both splits: 3 of train, 2 of val."""
    out = tmp_path_factory.mktemp("made") / "out"
    for split, count in (("train", 3), ("val", 2)):
        write_shards(open_source(str(clips / "clips.csv"), split), split, str(out), count)
    return out


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy(made, tmp_path):
    for path, data in content(made).items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    return tmp_path / "copy"


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_same_source(clips, made, split):
    original, source = open_source(str(clips / "clips.csv"), split), open_shards(f"shards:{made}", split)
    good = [i for i, key in enumerate(original.keys) if not key.endswith(BROKEN)]
    assert {key: source.labels[i] for i, key in enumerate(source.keys)} == {
        original.keys[i]: original.labels[i] for i in good
    }
    assert source.classes == original.classes and source.label_hash == original.label_hash
    assert source.labels.dtype == np.int32 and source.modality == "video"
    assert source.listed == original.listed and len(source) == len(good)
    for i in np.random.default_rng(0).permutation(len(source)):
        assert source.media(i) == pathlib.Path(source.keys[i]).read_bytes()
    assert [note for note in source.notes if f"{len(good)} of {original.listed}" in note] or split == "val"
    assert list(source.keys) != [original.keys[i] for i in good] or split == "val"  # shuffled


def test_index_and_rejected(clips, made):
    index = json.loads((made / "index.json").read_text())
    train, val = index["splits"]["train"], index["splits"]["val"]
    assert index["format"] == 1 and index["classes"] == ["class 0", "class 1", "class 2"]
    assert [shard["file"] for shard in val["shards"]] == [f"val-0000{i}-of-00002.array_record" for i in (0, 1)]
    assert sum(shard["records"] for shard in train["shards"]) == 16 and train["listed"] == 22
    assert sum(shard["bytes"] for shard in val["shards"]) == sum(
        (clips / f"{i}.mp4").stat().st_size for i in (4, 9, 14, 19)
    )
    assert {shard["records"] for shard in val["shards"]} == {2} and train["rejected"] == len(BROKEN)
    with open(made / "rejected.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert set(rows) == {str(clips / name) for name in BROKEN}
    reasons = {"cut.mp4": "no frame", "tail.mkv": "truncated", "empty.mp4": "0 bytes", "sound.wav": "no video"}
    for name, reason in reasons.items():
        row = rows[str(clips / name)]
        assert reason in row["reason"] and row["label"] == "class 1" and row["split"] == "train"


def test_same_files_from_processes(clips, made, tmp_path):
    for split, count in (("val", 2), ("train", 3)):
        source = open_source(str(clips / "clips.csv"), split)
        result = write_shards(source, split, str(tmp_path), count, write=in_processes(2))
    assert (result["written"], result["rejected"], result["shards"], result["kept"]) == (16, 5, 3, 0)
    assert content(tmp_path) == content(made)


def test_bucket(clips, made, tmp_path):
    """The same files in a bucket, from two processes; a part that is missing is written again."""
    with gcs.emulator("bucket"):
        out = "gs://bucket/some/shards"
        for split, count, processes in (("train", 3, 2), ("val", 2, 1)):
            source = open_source(str(clips / "clips.csv"), split)
            write_shards(source, split, out, count, write=in_processes(processes))
        expected = {str(path): data for path, data in content(made).items()}
        assert {path: storage.read_bytes(f"{out}/{path}") for path in storage.list_files(out)} == expected
        local, remote = open_shards(f"shards:{made}", "all"), open_shards(f"shards:{out}", "all")
        assert _all(remote) == _all(local) and remote.labels.tolist() == local.labels.tolist()

        shard = f"{out}/val-00001-of-00002.array_record"
        for damage, message in (
            (lambda: storage.write_bytes(shard, storage.read_bytes(shard)[:-1]), "cannot be read"),
            (lambda: fsspec.filesystem("gs").rm(shard), "is missing"),
        ):
            damage()
            with pytest.raises(UserError, match=f"shard {shard} {message}.*; expected 2 records"):
                open_shards(f"shards:{out}", "val")
            assert write_shards(source, "val", out)["kept"] == 2
            assert storage.read_bytes(shard) == expected["val-00001-of-00002.array_record"]


def test_again_keeps_what_is_there(clips, made, tmp_path):
    out = copy(made, tmp_path)
    train = open_source(str(clips / "clips.csv"), "train")
    (out / "train-00001-of-00003.array_record").unlink()
    times = {path: (out / path).stat().st_mtime_ns for path in content(out) if path.suffix == ".array_record"}
    result = write_shards(train, "train", str(out))  # as many as there are
    assert result["written"] == 16 and result["shards"] == 3 and 0 < result["kept"] < 16
    assert content(out) == content(made)
    assert all((out / path).stat().st_mtime_ns == time for path, time in times.items())
    damaged = (out / "train-00002-of-00003.array_record").read_bytes()[:-1]
    (out / "train-00002-of-00003.array_record").write_bytes(damaged)
    write_shards(train, "train", str(out), write=in_processes(2))
    assert content(out) == content(made)


@pytest.mark.parametrize("content_of_record", ["", '{"records": [[', "{}", "[]", "3"])
def test_a_damaged_record_is_written_again(clips, made, tmp_path, content_of_record):
    """As after a power loss; the settings of all shards are named instead."""
    out = copy(made, tmp_path)
    source = open_source(str(clips / "clips.csv"), "val")
    (record,) = out.glob("parts/val-00001-*.json")
    record.write_text(content_of_record)
    assert write_shards(source, "val", str(out))["kept"] > 0
    assert content(out) == content(made)
    (settings,) = (path for path in out.glob("parts/val*.json") if "-of-" not in path.name)
    settings.write_text(content_of_record)
    with pytest.raises(UserError, match="val.json is damaged: remove it, or write to another folder"):
        write_shards(source, "val", str(out))


def test_killed_and_begun_again(clips, made, tmp_path):
    """kill -9 of the parent while its workers write: no process stays, and the second run ends with the same files."""
    script = tmp_path / "write.py"
    script.write_text(
        "import time\n"
        "from tubevit.data import recode, shard_job\n"
        "from tubevit.data.shard_processes import in_processes\n"
        "from tubevit.data.shard_writer import write_shards\n"
        "from tubevit.data.sources import open_source\n"
        "real = recode.validated_bytes\n"
        "def slow(*args):\n"
        "    time.sleep(0.1)\n"
        "    return real(*args)\n"
        "shard_job.validated_bytes = slow\n"
        "if __name__ == '__main__':\n"
        f"    source = open_source({str(clips / 'clips.csv')!r}, 'train')\n"
        f"    write_shards(source, 'train', {str(tmp_path / 'out')!r}, 3, write=in_processes(2))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    out = tmp_path / "out"
    deadline = time.monotonic() + 30
    while not list(out.glob("train-*")) and time.monotonic() < deadline:  # two of three are begun, one finished
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(out.glob("train-*"))) < 3 and not (out / "index.json").exists()
    with pytest.raises(UserError, match="no finished shards"):
        open_shards(f"shards:{out}", "train")
    time.sleep(0.5)
    before = content(out)
    time.sleep(0.3)
    assert content(out) == before  # nobody writes any more
    result = write_shards(open_source(str(clips / "clips.csv"), "train"), "train", str(out), 3)
    assert result["kept"] > 0
    write_shards(open_source(str(clips / "clips.csv"), "val"), "val", str(out), 2)
    assert content(out) == content(made)


def test_two_commands_for_one_folder(clips, made, tmp_path):
    """The second waits, and keeps what the first has written."""
    source = open_source(str(clips / "clips.csv"), "train")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: write_shards(source, "train", str(tmp_path / "out"), 3), range(2)))
    written = results[0]["written"]
    assert [result["written"] for result in results] == [written] * 2
    assert sorted(result["kept"] for result in results) == [0, written]
    files = [path for path in content(made) if path.name.startswith("train-")]
    assert len(files) == 6  # three shards and their records
    assert all(content(tmp_path / "out")[path] == content(made)[path] for path in files)


def test_refuses_other_settings(clips, made, tmp_path):
    out = str(copy(made, tmp_path))
    source = open_source(str(clips / "clips.csv"), "val")
    with pytest.raises(UserError, match="val was begun with short_side None; found 32"):
        write_shards(source, "val", out, short_side=32)
    with pytest.raises(UserError, match="val was begun with shards 2; found 1"):
        write_shards(source, "val", out, 1)
    with pytest.raises(UserError, match="val was begun with listing .*; found"):
        write_shards(dataclasses.replace(source, labels=source.labels[::-1].copy()), "val", out)
    with pytest.raises(UserError, match="with 3 classes .* has 4"):
        write_shards(dataclasses.replace(source, classes=("a", "b", "c", "d")), "test", out)
    with pytest.raises(UserError, match="expected 1 to 4 shards, .*; found 5"):
        write_shards(source, "test", out, 5)


def test_nothing_decodable(clips, tmp_path):
    source = dataclasses.replace(
        open_source(str(clips / "clips.csv"), "val"), keys=(str(clips / "cut.mp4"),), labels=np.zeros(1, np.int32)
    )
    with pytest.raises(UserError, match="none of the 1 files of val .* can be decoded; see .*rejected.csv"):
        write_shards(source, "val", str(tmp_path))


def test_damage_is_found_on_opening(made, tmp_path):
    out = copy(made, tmp_path)
    name, shard = f"shards:{out}", out / "train-00001-of-00003.array_record"
    whole = shard.read_bytes()
    for end in (0, 1000, 2**16, len(whole) - 2**16, len(whole) - 1):
        shard.write_bytes(whole[:end])
        with pytest.raises(UserError, match=f"shard {shard} cannot be read.*; expected [2-7] records"):
            open_shards(name, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"shard {shard} is missing; expected"):
        open_shards(name, "all")
    open_shards(name, "val")
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(b"one")
    writer.close()
    with pytest.raises(UserError, match=f"shard {shard} holds 1 records; expected"):
        open_shards(name, "train")


def test_exchanged_shards_are_found_on_reading(made, tmp_path):
    out = copy(made, tmp_path)
    first, second = (out / f"val-0000{i}-of-00002.array_record" for i in (0, 1))
    first.write_bytes(second.read_bytes())
    source = open_shards(f"shards:{out}", "val")
    with pytest.raises(UserError, match=f"{first} does not match index.json: expected .*mp4; found") as error:
        source.media(0)
    assert not isinstance(error.value, DecodeError)  # a run must not go on with other files


def test_flipped_bits_are_found_on_reading(made, tmp_path):
    out = copy(made, tmp_path)
    shard = out / "val-00000-of-00002.array_record"
    source = open_shards(f"shards:{out}", "val")
    whole, media = shard.read_bytes(), source.media(1)
    position = whole.index(media) + len(media) // 2
    shard.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    source = open_shards(f"shards:{out}", "val")
    assert source.media(0)
    with pytest.raises(DecodeError, match=f"cannot read {source.keys[1]}: its record in {shard} is damaged"):
        source.media(1)


def test_index_and_lists_must_fit(made, tmp_path):
    out = copy(made, tmp_path)
    text = (out / "index.json").read_text()
    for old, new, message in (
        ('"class 0"', '"class 9"', "the classes in index.json were changed"),
        ('"format": 1', '"format": 2', "has format 2; this version of tubevit reads format 1"),
        ('"splits"', '"split"', "is not the index of shards"),
        ("{", "", "is not the index of shards"),
    ):
        (out / "index.json").write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            open_shards(f"shards:{out}", "val")
    (out / "index.json").write_text(text)
    with pytest.raises(UserError, match="unknown split of shards:.* 'vol'; did you mean 'val'"):
        open_shards(f"shards:{out}", "vol")
    records = (out / "val.records.csv").read_text()
    (out / "val.records.csv").write_text(records.replace(",0", ",1"))
    with pytest.raises(UserError, match="val.records.csv has changed since"):
        open_shards(f"shards:{out}", "val")
    (out / "val.records.csv").unlink()
    with pytest.raises(UserError, match="val.records.csv is missing"):
        open_shards(f"shards:{out}", "val")


def _all(source):
    return [source.media(i) for i in range(len(source))]


def test_read_in_a_spawned_process(made):
    source = open_shards(f"shards:{made}", "train")
    expected = _all(source)  # files are open when it is pickled
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_all, (source,)) == expected
    assert _all(pickle.loads(pickle.dumps(source))) == expected


def test_several_labels_and_images(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40 + i, 60, 3), i * 50, np.uint8))
    (tmp_path / "c.csv").write_text("path,label,split\n0.png,a|c,val\n1.png,b,val\n2.png,b|a,val\n")
    original = open_source(str(tmp_path / "c.csv"), "val")
    write_shards(original, "x/y", str(tmp_path / "out"), 2)
    source = open_shards(f"shards:{tmp_path}/out", "x/y")
    assert source.multi_label and source.modality == "image" and source.labels.dtype == np.float32
    labels = dict(zip(source.keys, source.labels.tolist()))
    assert labels == dict(zip(original.keys, original.labels.tolist()))
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)  # as TFDS has some: kept without loss
    assert np.array_equal(decode_image(validated_bytes(pixels)), pixels)
    with pytest.raises(DecodeError, match="expected an encoded video; found pixels"):
        validated_bytes(pixels[None])


@pytest.mark.parametrize(
    "name, times, options",
    [
        ("a.mp4", range(0, 1600, 40), {}),
        ("b.webm", [0, 33, 66, 100, 500, 533, 900, 910], {"codec": "libvpx-vp9"}),
        ("c.mp4", [0, 40, 200, 240, 800], {"size": (64, 48), "stream": {"bf": "0"}}),
        ("d.mkv", range(0, 990, 33), {"size": (49, 65), "pixels": "yuv444p"}),
        ("e.mp4", range(0, 1600, 40), {"pixels": "yuv420p10le"}),
    ],
)
def test_encoded_again(tmp_path, name, times, options):
    path = write_clip(tmp_path / name, list(times), **options)
    encoded = validated_bytes(path, 32)
    height, width = options.get("size", (48, 64))
    clip = decode_clip(encoded)
    assert min(clip.shape[1:3]) == 32 and abs(max(clip.shape[1:3]) - 32 * max(height, width) / min(height, width)) <= 1
    assert indices(clip) == list(range(len(times))) and (clip.shape[1] > clip.shape[2]) == (height > width)
    with av.open(io.BytesIO(encoded)) as container:
        stream = container.streams.video[0]
        assert [round(float(frame.pts * stream.time_base) * 1000) for frame in container.decode(stream)] == list(times)
        assert float(stream.duration * stream.time_base) > times[-1] / 1000  # clips are placed by it
    for fps in (7.0, 30.0):
        sampled = decode_clip(path, 6, fps, 0.0), decode_clip(encoded, 6, fps, 0.0)
        assert indices(sampled[0]) == indices(sampled[1])


def test_encoded_again_is_upright_small_and_close(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(0, 400, 40))
    set_rotation(path, 1)
    assert decode_clip(validated_bytes(path, 32)).shape == (10, 42, 32, 3)
    assert decode_clip(path).shape == (10, 64, 48, 3)
    plain = write_clip(tmp_path / "b.mp4", range(0, 400, 40))
    assert validated_bytes(plain, 48) == plain.read_bytes() != validated_bytes(plain, 46)  # never enlarged
    small = cv2.resize(decode_clip(plain)[5], (62, 46), interpolation=cv2.INTER_AREA)
    assert np.abs(decode_clip(validated_bytes(plain, 46))[5] - small.astype(float)).mean() < 4
    noise = np.random.default_rng(0).integers(0, 255, (90, 61, 3), np.uint8)
    encoded = cv2.imencode(".png", noise)[1].tobytes()
    assert decode_image(validated_bytes(encoded, 30)).shape == (44, 30, 3) and validated_bytes(encoded, 61) == encoded


def test_number_of_shards(clips):
    source = open_source(str(clips / "clips.csv"), "train")
    assert default_shards(source) == 8
    size = sum(os.path.getsize(key) for key in source.keys)
    assert default_shards(source, size / 9) == 16
    assert default_shards(source, size / 30) == len(source) == 21


def test_a_process_that_dies(clips, tmp_path):
    source = dataclasses.replace(open_source(str(clips / "clips.csv"), "val"), read=os._exit)
    with pytest.raises(ChildProcessError, match="the same command resumes"):
        write_shards(source, "val", str(tmp_path), 2, write=in_processes(2))


def test_unwritten_format():
    assert shards.unpack(shards.pack("a/ü.mp4", [3], b"\0\xff")) == {"key": "a/ü.mp4", "label": [3], "media": b"\0\xff"}


def test_a_file_that_cannot_be_read_is_named(clips, tmp_path):
    """And not the shard, whose disk is in order."""

    def read(index):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = dataclasses.replace(open_source(str(clips / "clips.csv"), "train"), read=read)
    with pytest.raises(RunError, match=rf"cannot read {source.keys[2]}: Input/output error"):
        write_shard(Job(source, "train", str(tmp_path), 1, None), 0, [2], lambda: None)
