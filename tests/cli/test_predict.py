import json

import numpy as np
import pytest

import tubevit
from tests.data.clips import write_audio, write_clip
from tubevit.cli import main


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
    refused([*command, "--top", 0, clip], "--top must be at least 1; found 0")
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
    assert "cut.png" in each[0] and "cut.mp4" in each[1] and "2 of 4 files cannot be read" in last
