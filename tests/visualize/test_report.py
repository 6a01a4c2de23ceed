import base64
import io
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from PIL import Image

import tubevit
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.cli import main
from tubevit.data.sources.embedded import embedded_folder
from tubevit.errors import UserError
from tubevit.visualize import style
from tubevit.visualize.evaluated import MOST_SHOWN, evaluate_stored, read_files
from tubevit.visualize.page import Animation, Picture, Section, write_page
from tubevit.visualize.report import learned_on, sections
from tubevit.zoo.names import open_checkpoint


@pytest.fixture(scope="module")
def reported(tiny_run, tmp_path_factory):
    """The folder of a report of the tiny run, in its workdir."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / tiny_run.name)
    assert main(["report", str(run)]) == 0
    return run / "report"


def embedded(page):
    """(media type, content) of each picture on a page."""
    found = re.findall(r'(?:src|srcset)="data:([a-z/+]+);base64,([^"]+)"', page)
    return [(kind, base64.b64decode(content)) for kind, content in found]


def test_every_picture_is_there(reported):
    names = {path.name for path in reported.iterdir()}
    pictures = [f"{kind}_{i}" for kind in ("kernels", "components") for i in range(2)]
    pictures += ["layout", "positions", "positions_2d", "loss", "scores"]
    pictures += ["confusion_moving_digits", "confusion_still_digits", "mistakes_moving_digits"]
    assert {f"{name}.{kind}" for name in pictures for kind in ("png", "svg")} <= names
    assert "kernels_0.gif" in names and "kernels_1.gif" not in names  # the second tube is 2D
    assert any(name.startswith("attention_moving_digits_0") for name in names)
    assert not [name for name in names if name.endswith(".tmp")]
    for path in reported.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 2 and min(pixels.shape) > 100, path
    for path in reported.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_holds_all_and_needs_nothing(reported):
    page = (reported / "index.html").read_text()
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page) and "url(" not in page and "<script" not in page
    contents = embedded(page)
    pictures = {path.stem for path in reported.glob("*.png")}
    assert len(contents) == 2 * (len(pictures) + len(list(reported.glob("*.gif"))))
    for kind, content in contents:
        if kind == "image/svg+xml":
            assert not re.search(rb'href="(?!#|data:)', content)
            ElementTree.fromstring(content)
        else:
            Image.open(io.BytesIO(content)).verify()
    ground = [tuple(int(theme.ground[i : i + 2], 16) for i in (1, 3, 5)) for theme in (style.DARK, style.LIGHT)]
    photos = [Image.open(io.BytesIO(content)).convert("RGB") for kind, content in contents if kind == "image/webp"]
    corners = [photo.getpixel((photo.width - 1, 0)) for photo in photos]
    for dark, light in zip(corners[::2], corners[1::2]):
        assert np.abs(np.subtract([dark, light], ground)).max() < 12
    assert "prefers-color-scheme" in page and 'name="viewport"' in page
    assert page.count(" alt=") == page.count("<img")


def test_the_page_says_what_the_kernels_were_learned_on(reported):
    page = (reported / "index.html").read_text()
    assert "moving_digits and still_digits, 9 steps, from random parameters" in page
    assert "16×32×32" in page and str(reported.parent) in page and "What tiny sees" in page and "Left out" not in page


def test_what_is_absent_is_left_out_with_a_reason(tiny_run, tmp_path, capsys, monkeypatch):
    tubevit.save_model(tubevit.load_model(tiny_run), tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "saved"]) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "saved_report" / "index.html").read_text()
    for title in ("What the tubes read", "Where predictions look", "Confusion", "Most confident mistakes"):
        reason = f"{title}: the checkpoint names no evaluation data"
        assert f"left out: {reason}" in out and f"<b>{title}</b>: the checkpoint names no evaluation data" in page
    assert "left out: Training: there is no metrics.jsonl beside the checkpoint" in out
    assert "not recorded in the checkpoint" in page and (tmp_path / "saved_report" / "kernels_0.svg").exists()


def test_on_files_of_ones_own(tiny_run, digits_cache, tmp_path, capsys):
    """A saved model, which names no data, shows tubes and attention on the files that are given."""
    clip = min((digits_cache / "videos/test").iterdir())
    image = min((digits_cache / "images/test").iterdir())
    model, out = tubevit.load_model(tiny_run), tmp_path / "out"
    tubevit.save_model(model, tmp_path / "saved")
    assert main(["report", str(tmp_path / "saved"), str(image), str(clip), "--out", str(out)]) == 0
    assert {"layout.png", "attention_0.svg", "attention_1.png"} <= {path.name for path in out.iterdir()}
    page = (out / "index.html").read_text()
    for path, head, pixels in (
        (image, "digit", tubevit.read_image(image, model.config.size)),
        (clip, "motion", tubevit.read_video(clip, **model.input)),
    ):
        logits = model(pixels, head=head)[0]
        share = float(jax.nn.softmax(logits).max())
        assert f"Attention on {path.name},  {head}: {model.labels[head][int(logits.argmax())]} ({share:.0%})" in page
    assert f"{clip.name}: the pixels that a tube reads" in page and "left out: What the tubes read" not in page
    alone = sections(Checkpoint(tmp_path / "saved"), model, read_files(model, [image])[0])  # tubes that serve images
    assert any(part.caption.startswith(f"{image.name}: the pixels that a tube reads") for part in alone)
    capsys.readouterr()
    assert main(["report", str(tiny_run), "nothing.mp4"]) == 2
    assert "nothing.mp4 does not exist" in capsys.readouterr().err


def test_broken_files_of_ones_own(tiny_run, digits_cache, tmp_path, capsys):
    """They are left out and named, on the page too; the exit code tells. Without any other file there is no page."""
    image, broken, other = min((digits_cache / "images/test").iterdir()), tmp_path / "cut.mp4", tmp_path / "cut.png"
    for path in (broken, other):
        path.write_bytes(b"damaged")
    model, out = tubevit.load_model(tiny_run), tmp_path / "out"
    tubevit.save_model(model, tmp_path / "saved")
    command = ["report", str(tmp_path / "saved"), "--out", str(out)]
    assert main([*command, str(broken)]) == 2 and str(broken) in capsys.readouterr().err
    assert main([*command, str(broken), str(other)]) == 2
    assert "none of the 2 files can be read: " in capsys.readouterr().err and not out.exists()
    assert main([*command, str(broken), str(image)]) == 2
    shown, err = capsys.readouterr()
    assert f"1 of 2 files are left out: {broken}" in err and f"left out: Your files: cannot read {broken}" in shown
    page = (out / "index.html").read_text()
    assert f"Attention on {image.name}" in page and f"cannot read {broken}" in page
    with pytest.raises(UserError, match=f"at most {MOST_SHOWN} files; found {MOST_SHOWN + 1}"):
        read_files(model, [image] * (MOST_SHOWN + 1))


def test_evaluation_data_that_is_all_broken_is_a_failure(tiny_run, tmp_path, capsys, monkeypatch):
    shutil.copytree(os.environ["TUBEVIT_CACHE"], tmp_path / "cache")
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    for clip in (embedded_folder() / "videos/test").iterdir():
        clip.write_bytes(b"damaged")
    assert main(["report", str(tiny_run), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "moving_digits: none of the 8 files" in err and "left out: Evaluation data moving_digits: none of" in out
    assert (tmp_path / "out" / "confusion_still_digits.png").exists()


def test_a_name_that_is_no_utf8(tiny_run, digits_cache, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(min((digits_cache / "images/test").iterdir()), name)
    (file,), _ = read_files(tubevit.load_model(tiny_run), [os.fsdecode(name)])
    assert file.name == "\N{REPLACEMENT CHARACTER}.png" and file.text.startswith(f"{file.name},  digit: ")


def test_a_released_checkpoint_is_not_of_a_run(tiny_run, tmp_path, monkeypatch):
    """Although its folder lies in one that is called as that of a run's checkpoints."""
    name = tmp_path / "checkpoints" / "tubevit_nano8@tiny"
    tubevit.save_model(tubevit.load_model(tiny_run), name)
    (name / "metrics.jsonl").write_text('{"step": 5, "train/loss": 1.0}\n')
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(name)]) == 0
    page = (tmp_path / f"{name.name}_report" / "index.html").read_text()
    assert f"What {name.name} sees" in page and "Loss over steps" in page


def test_a_run_whose_data_is_gone(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    checkpoint = open_checkpoint(tmp_path / "run")

    def reported(*lost):
        """The reasons of the sections that are left out, and the names of all pictures."""

        def evaluate(model, name, values):
            return evaluate_stored(model, name, {**values, "source": "nowhere.csv"} if name in lost else values)

        found = sections(checkpoint, checkpoint.load_model(), evaluate=evaluate)
        reasons = {section.title: section.caption for section in found if section.left_out}
        return reasons, {picture.name for section in found for picture in section.pictures}

    reasons, pictures = reported("still_digits")
    assert "nowhere.csv" in reasons["Evaluation data still_digits"] and "no metrics.jsonl" in reasons["Training"]
    assert "Confusion" not in reasons and "confusion_moving_digits" in pictures
    assert "confusion_still_digits" not in pictures
    reasons, _ = reported("still_digits", "moving_digits")
    assert reasons["Confusion"].startswith("moving_digits: ") and not any("Evaluation" in title for title in reasons)


@pytest.mark.parametrize(
    "metadata, text",
    [
        ({}, "not recorded in the checkpoint"),
        ({"source": "vit-large.safetensors"}, "not recorded; converted from vit-large.safetensors"),
        (
            {
                "step": 1200,
                "config": {"data": {"train": {"mine": {"source": "clips.csv"}}}, "init": {"checkpoint": "a"}},
            },
            "mine (clips.csv), 1,200 steps, from the parameters of a",
        ),
        (
            {"step": 9, "config": {"data": {"train": {}}, "init": {"checkpoint": "vit", "tubes": "small"}}},
            ", 9 steps, from the parameters of vit and small",
        ),
    ],
)
def test_learned_on(metadata, text):
    checkpoint = Checkpoint("nowhere")
    checkpoint.metadata = metadata
    assert learned_on(checkpoint) == text


def test_without_matplotlib_one_line_says_so(tiny_run, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tiny_run)]) == 2
    assert capsys.readouterr().err == (
        "tubevit: drawing needs matplotlib, which is not installed: pip install 'tubevit[plot]'\n"
    )


def test_an_unknown_checkpoint_and_a_folder_that_cannot_be_written(tiny_run, tmp_path, capsys, monkeypatch):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "unknown checkpoint" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(tiny_run), "--out", str(tmp_path / "file")]) == 2
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err


def test_names_are_escaped_and_files_the_same_each_time(tmp_path):
    def draw():
        figure = style.new_figure(2, 2)
        figure.subplots().plot([0, 1])
        return figure

    frames = np.zeros((2, 4, 4, 3), np.uint8)
    section = Section("<b>", "a & b", [Picture("p", '"quoted" <i>', draw), Animation("g", "moving", lambda: frames)])
    first, second = (tmp_path / name for name in ("first", "second"))
    for out in (first, second):
        write_page(out, "<script>", {"<dt>": "x"}, [section, Section("gone", "why <not>")])
    page = (first / "index.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&quot;quoted&quot; &lt;i&gt;" in page
    assert "a &amp; b" in page and "<b>gone</b>: why &lt;not&gt;" in page and "<figcaption>moving</figcaption>" in page
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
