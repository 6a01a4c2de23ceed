import csv
import io
import json
import os
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest

import tubevit
from tests.data.clips import write_audio, write_clip
from tubevit.cli import main
from tubevit.cli.main import entry
from tubevit.cli.predict_output import visible
from tubevit.data.decode import decode_frames
from tubevit.data.warp import centre_crop
from tubevit.errors import UserError
from tubevit.evaluation import find_files
from tubevit.models.config import Head
from tubevit.models.tubevit import TubeViT


@pytest.fixture(scope="module")
def clip(digits_cache):
    return sorted((digits_cache / "videos" / "test").iterdir())[0]


@pytest.fixture(scope="module")
def image(digits_cache):
    return sorted((digits_cache / "images" / "test").iterdir())[0]


def test_videos_images_and_folders(tiny_run, done, clip, image, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.MP4").write_bytes(clip.read_bytes())
    (tmp_path / "b.png").write_bytes(image.read_bytes())
    (tmp_path / "notes.txt").write_text("left out")
    write_clip(tmp_path / "c.mkv", range(0, 800, 40), "mpeg4")
    lines = done(["predict", "--checkpoint", tiny_run, "--json", "--top", 3, clip, image, tmp_path]).splitlines()
    results = [json.loads(line) for line in lines]
    expected = [(clip, "motion"), (image, "digit"), (tmp_path / "b.png", "digit"), (tmp_path / "c.mkv", "motion"),
                (tmp_path / "inner/a.MP4", "motion")]  # fmt: skip
    assert [(result["file"], result["head"]) for result in results] == [(str(path), head) for path, head in expected]
    assert results[0]["top"] == results[4]["top"] and results[1]["top"] == results[2]["top"]
    model = tubevit.load_model(tiny_run)
    pixels = {"motion": tubevit.read_video(clip, **model.input), "digit": tubevit.read_image(image, size=32)}
    for result in results[:2]:
        logits = np.asarray(model(pixels[result["head"]], head=result["head"]), np.float64)[0]
        shares = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-shares)[:3]
        assert [entry["label"] for entry in result["top"]] == [model.labels[result["head"]][i] for i in best]
        assert [entry["probability"] for entry in result["top"]] == pytest.approx(shares[best], abs=2e-6)


def test_text(tiny_run, done, clip):
    text = done(["predict", "--checkpoint", tiny_run, "--top", 2, clip])
    assert text.startswith(f"{clip}  motion: ") and text.count("\n") == 1
    shares = [float(word) for word in text.split() if word.startswith("0.")]
    assert len(shares) == 2 and shares[0] >= shares[1]
    assert done(["predict", "--checkpoint", tiny_run, "--top", 2, "--head", "motion", clip]) == text


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, clip, image):
    """Unreadable, empty and truncated files."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "empty.png").touch()
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    (folder / "cut.png").write_bytes(image.read_bytes()[:40])
    (folder / "garbage.mp4").write_bytes(b"\x00garbage" * 500)
    (folder / "garbage.jpg").write_bytes(b"\xff\xd8\xff" + b"garbage" * 50)
    (folder / "notes.txt").write_text("not a video")
    (folder / "nothing").mkdir()
    whole = write_clip(folder / "whole.mkv", range(0, 4000, 40), "mpeg4", stream={"g": "1"})
    (folder / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 10])
    write_audio(folder / "sound.wav")
    return folder


@pytest.mark.parametrize(
    "name, part",
    [
        ("none.mp4", "does not exist"),
        ("empty.mp4", "is empty (0 bytes)"),
        ("empty.png", "is empty (0 bytes)"),
        ("cut.mp4", "as a video"),
        ("cut.mkv", "cut.mkv"),
        ("cut.png", "as an image"),
        ("garbage.mp4", "as a video"),
        ("garbage.jpg", "as an image"),
        ("notes.txt", "as a video"),
        ("nothing", "holds no video or image"),
        ("sound.wav", "has no video stream"),
    ],
)
def test_files_that_are_refused(tiny_run, refused, bad_files, name, part):
    refused(["predict", "--checkpoint", tiny_run, bad_files / name], str(bad_files / name), part)


def test_other_errors(tiny_run, refused, clip, image, tmp_path):
    command = ["predict", "--checkpoint", tiny_run]
    refused([*command, "--top", 0, clip], "--top: must be at least 1; found '0'")
    for every in (0, -1, "nan", "inf"):
        refused([*command, "--every", every, clip], "--every: must be ")
    refused([*command, "--csv", "/dev/null/x.csv", clip], "cannot write /dev/null/x.csv", "name another file")
    refused([*command, "--features", "/dev/null/x.npz", clip], "cannot write /dev/null/x.npz")
    refused([*command, "--features", tmp_path / "x.npz", "--head", "motion", clip], "--head chooses labels")
    refused([*command, "--features", tmp_path / "x.npz", "--top", 3, clip], "--top limits labels")
    refused([*command, "--features", "x.npz", "--json", clip], "--json: not allowed with argument --features")
    refused([*command, tmp_path / "*.mp4"], f"no file matches {tmp_path}/*.mp4")
    refused([*command, "--head", "moton", clip], "unknown head 'moton'; did you mean 'motion'")
    refused([*command, "--head", "motion", image], "head 'motion' takes videos")
    refused([*command, "--head", "digit", clip], "head 'digit' takes images")
    refused(["predict", "--checkpoint", tiny_run.parent / "tin", clip], "unknown checkpoint", str(tiny_run))
    tubevit.save_model(tubevit.load_model(tiny_run, num_classes=0), tmp_path / "bare")
    refused(["predict", "--checkpoint", tmp_path / "bare", clip], "has no head to predict with")
    tubevit.save_model(tubevit.load_model(tiny_run, heads={"a": (3, "image")}), tmp_path / "images_only")
    refused(["predict", "--checkpoint", tmp_path / "images_only", clip], "is a video; no head of", "takes one")


def test_a_broken_file_among_others(tiny_run, bad_files, clip, image, capsys):
    """The others are predicted; the exit code tells."""
    command = ["predict", "--checkpoint", tiny_run, bad_files / "cut.png", clip, bad_files / "cut.mp4", image]
    assert main(list(map(str, command))) == 2
    out, err = capsys.readouterr()
    assert str(clip) in out and str(image) in out and "cut" not in out
    *each, last = err.splitlines()[-3:]
    assert "cut.png" in each[0] and "cut.mp4" in each[1] and "2 of 4 files are left out" in last


def test_what_no_head_takes_among_others(tiny_run, clip, image, tmp_path, capsys):
    tubevit.save_model(tubevit.load_model(tiny_run, heads={"a": (3, "image")}), tmp_path / "images_only")
    assert main(["predict", "--checkpoint", str(tmp_path / "images_only"), str(clip), str(image)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{image}  a: ") and f"{clip} is a video; no head of" in err
    assert f"1 of 2 files are left out: {clip}" in err


def test_folders_are_listed_as_sources_list_them(tmp_path):
    """Without what systems leave beside the files; a folder of frames may be called as the video was."""
    wanted = [tmp_path / "x.avi" / "0.png", tmp_path / "y.MP4"]
    for path in (*wanted, *(tmp_path / name for name in (".trash/z.mp4", "__MACOSX/z.mp4", "._y.mp4", "notes.txt"))):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert find_files([str(tmp_path)]) == wanted


def test_patterns_and_names_that_look_like_them(tmp_path):
    names = ("a.mp4", "b [1].mp4", "[x]/c.mp4", "[x]/deep/d.png", "e/f.txt", "*.mp4")
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def found(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in find_files([str(tmp_path / pattern)])]

    assert found("b [1].mp4") == ["b [1].mp4"] and found("*.mp4") == ["*.mp4"]  # names that exist are no patterns
    assert found("?.mp4") == ["*.mp4", "a.mp4"] and found("[x]/*.mp4") == ["[x]/c.mp4"]
    assert found("[x]") == ["[x]/c.mp4", "[x]/deep/d.png"] == found("[x]/**") == found("?x?")
    assert found("**/d.*") == ["[x]/deep/d.png"] == found("**/deep/**") and found("e/*.txt") == ["e/f.txt"]
    for pattern, said in (("none*", "no file matches"), ("none", "does not exist"), ("**/z", "no file matches")):
        with pytest.raises(UserError, match=said):
            found(pattern)
    with pytest.raises(UserError, match="the name of a file is empty"):
        find_files([""])


def test_a_file_in_a_bucket_is_refused(refused, tiny_run):
    command = ["predict", "--checkpoint", str(tiny_run)]
    refused([*command, "gs://bucket/clips/*.mp4"], "found gs://bucket/clips/*.mp4: copy it here first")
    with pytest.raises(UserError, match="expected local files"):  # `search` and `report` list their files with it, too
        find_files(["gs://bucket/clip.mp4"])


def test_an_empty_name_is_told(refused):
    refused(["predict", "--checkpoint", "x", ""], "FILE_OR_DIR is empty")
    refused(["predict", "--checkpoint", "", "a.mp4"], "--checkpoint is empty")
    refused(["evaluate", "--checkpoint", "x", "--data", ""], "--data is empty")


def test_equal_class_names_are_shown_with_their_index(tiny_run, done, image, tmp_path):
    head = Head(3, "image", ("crane", "ox", "crane"))
    saved = tmp_path / "cranes"
    tubevit.save_model(tubevit.load_model(tiny_run, heads={"birds": head}), saved)
    model, command = tubevit.load_model(saved), ["predict", "--checkpoint", saved, image]
    assert model.labels["birds"] == ("crane", "ox", "crane")
    (record,) = map(json.loads, done([*command, "--json"]).splitlines())
    logits = np.asarray(model(tubevit.read_image(image, size=model.config.size)))[0]
    expected = [("crane (0)", "ox", "crane (2)")[i] for i in np.argsort(-logits)]
    assert [each["label"] for each in record["top"]] == expected
    assert all(name in done(command) for name in expected)
    (tmp_path / "x.csv").write_text(f"path,label,split\n{image},{np.argmax(logits)},test\n")
    flags = ["--data", tmp_path / "x.csv", "--json"]
    (record,) = json.loads(done(["evaluate", "--checkpoint", saved, *flags, "--out", tmp_path / "e.json"]))
    assert record["top1"] == 1.0  # by index
    assert "crane (0),ox,crane (2)" in (tmp_path / "e_data_confusion.csv").read_text()


def test_a_name_that_is_no_utf8(tiny_run, clip, tmp_path, monkeypatch):
    name = os.fsencode(tmp_path) + b"/\xff.mp4"
    shutil.copy(clip, name)
    command = ["predict", "--checkpoint", str(tiny_run), "--top", "1", os.fsdecode(name)]
    assert main([*command, "--csv", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_bytes().splitlines()[1].startswith(name + b",,,motion,1,")
    monkeypatch.setattr(sys, "argv", ["tubevit", *command])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True))
    with pytest.raises(SystemExit, match="0"):
        entry()
    assert sys.stdout.buffer.getvalue().startswith(os.fsencode(tmp_path) + b"/\\udcff.mp4  motion: ")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """6 s at 25 FPS, each frame another."""
    return write_clip(tmp_path_factory.mktemp("long") / "long.mkv", range(0, 6000, 40), size=(64, 80))


def test_windows_of_a_long_video(tiny_run, done, long_video, image, tmp_path, monkeypatch):
    """Each row is the prediction of a clip that is cut by hand; the model is compiled once for all of them."""
    model = tubevit.load_model(tiny_run)
    compiled, features = [], TubeViT.features
    monkeypatch.setattr(TubeViT, "features", lambda self, *args: compiled.append(args) or features(self, *args))
    command = ["predict", "--checkpoint", tiny_run, "--every", 0.75, "--top", 8]
    records = [json.loads(line) for line in done([*command, "--json", long_video]).splitlines()]
    assert len(compiled) == 1
    monkeypatch.undo()
    starts = [0, 0.75, 1.5, 2.25, 3.0, 3.75, 4.5]
    assert [(row["start"], row["end"]) for row in records] == [(start, min(start + 2, 6)) for start in starts]
    frames = decode_frames(long_video)
    cut = [[frames[min(int((start + i / 8 + 1e-3) * 25), 149)] for i in range(16)] for start in starts]
    logits = np.asarray(model(np.stack([centre_crop(clip, 32) for clip in cut]), head="motion"), np.float64)
    for row, values in zip(records, logits, strict=True):
        shares = dict(zip(model.labels["motion"], np.exp(values) / np.exp(values).sum(), strict=True))
        assert row["head"] == "motion" and row["file"] == str(long_video)
        assert {each["label"]: each["probability"] for each in row["top"]} == pytest.approx(shares, abs=3e-6)
    assert records[0]["top"] != records[4]["top"]

    *text, last = done([*command, long_video, image]).splitlines()
    assert [line.split("  ")[1] for line in text] == [f"{start:.2f}-{min(start + 2, 6):.2f} s" for start in starts]
    assert last.startswith(f"{image}  digit: ")  # as without --every
    assert done([*command, "--csv", tmp_path / "out.csv", long_video, image]) == ""
    *rows, _, _, _, _, _, _, _, still = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert list(still) == ["file", "start", "end", "head", "rank", "label", "probability"]
    assert list(still.values())[:5] == [str(image), "", "", "digit", "8"]
    flat = [(row, rank, each) for row in records for rank, each in enumerate(row["top"], 1)]
    for row, (record, rank, each) in zip(rows, flat, strict=True):
        assert (row["file"], row["head"], row["label"]) == (record["file"], record["head"], each["label"])
        numbers = [float(row[column]) for column in ("start", "end", "rank", "probability")]
        assert numbers == [record["start"], record["end"], rank, each["probability"]]


def test_features(tiny_run, done, clip, image, long_video, tmp_path):
    """In the order of the files; the same as the model gives on all pixels; no head is needed."""
    model = tubevit.load_model(tiny_run, num_classes=0)
    tubevit.save_model(model, tmp_path / "bare")
    out = tmp_path / "features.npz"
    assert done(["predict", "--checkpoint", tmp_path / "bare", "--features", out, image, long_video, clip]) == ""
    with np.load(out) as found:
        assert found["files"].tolist() == list(map(str, (image, long_video, clip)))
        inputs = [
            tubevit.read_image(image, size=32),
            *(tubevit.read_video(x, **model.input) for x in (long_video, clip)),
        ]
        expected = np.concatenate([model.features(pixels) for pixels in inputs])
        np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-5)
        assert found["features"].dtype == np.float32 and np.isnan([found["start"], found["end"]]).all()
    done(["predict", "--checkpoint", tiny_run, "--features", out, "--every", 2, long_video, image])
    with np.load(out) as found:
        assert found["files"].tolist() == [str(long_video)] * 3 + [str(image)] and found["features"].shape == (4, 24)
        np.testing.assert_array_equal(found["start"], [0, 2, 4, np.nan])
        np.testing.assert_allclose(found["end"], [2, 4, 6, np.nan])


def test_features_stay_where_there_are_no_new_ones(tiny_run, refused, bad_files, tmp_path):
    out = tmp_path / "features.npz"
    out.write_bytes(b"those of yesterday")
    refused(["predict", "--checkpoint", tiny_run, "--features", out, bad_files / "cut.mp4"], "cut.mp4")
    assert out.read_bytes() == b"those of yesterday"


def test_patterns_and_animations(tiny_run, done, clip, tmp_path):
    """A pattern that no shell replaced; a GIF is a video; a file that is named twice is taken once."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "a" / "[x].mp4").write_bytes(clip.read_bytes())
    gif = write_clip(tmp_path / "two.gif", range(0, 240, 10), "gif", "rgb8", (64, 64), Fraction(1, 100))
    command = ["predict", "--checkpoint", tiny_run, "--json"]
    asked = [tmp_path / "**/*.[gm][ip]*", tmp_path / "a", tmp_path / "a" / "[x].mp4"]
    rows = [json.loads(line) for line in done([*command, *asked]).splitlines()]
    assert [row["file"] for row in rows] == [str(tmp_path / name) for name in ("a/[x].mp4", "a/one.mp4", "two.gif")]
    assert {row["head"] for row in rows} == {"motion"} and rows[0]["top"] == rows[1]["top"]
    model = tubevit.load_model(tiny_run)
    logits = np.asarray(model(tubevit.read_video(gif, **model.input), head="motion"))[0]
    assert rows[2]["top"][0]["label"] == model.labels["motion"][int(logits.argmax())]


def test_warnings_once_a_file(tiny_run, capsys, clip, image, long_video, tmp_path):
    short = write_clip(tmp_path / "short.mp4", range(0, 1000, 40), size=(64, 64))
    slow = write_clip(tmp_path / "slow.mkv", range(0, 4000, 500), size=(64, 64))
    small = write_clip(tmp_path / "small.mkv", range(0, 4000, 40), size=(12, 64))
    files = [clip, image, long_video, short, slow, small]
    for flags in ([], ["--every", 0.5]):
        assert main(["predict", "--checkpoint", str(tiny_run), *map(str, flags), *map(str, files)]) == 0
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "warning" in line]
        parts = [(short, "lasts 1.0"), (slow, "different frames in a clip"), (small, "is 64x12")]
        assert len(lines) == 3 and len(out.splitlines()) >= 6
        for line, (path, part) in zip(lines, parts, strict=True):
            assert line.startswith(f"tubevit: warning: {path} ") and part in line


def test_labels_of_others_do_not_drive_the_terminal():
    assert visible("caf\u00e9 \U0001f98a 5") == "caf\u00e9 \U0001f98a 5"
    assert visible("\u0645\u06cc\u200c\u062e") == "\u0645\u06cc\u200c\u062e"
    assert visible("a\nb\x1b[2Jc\u202ed") == "a\\nb\\x1b[2Jc\\u202ed"
