"""All notebooks, executed as they are but for the values of their cell of parameters."""

import base64
import importlib.util
import json
import os
import pathlib
import re

import cv2
import numpy as np
import pytest

import tubevit
from tests.scripts import ROOT, script
from tubevit.tubes import PRESETS

render = script("colabs/render.py")
STEPS = {
    "train.steps": "2",
    "optimizer.warmup_steps": "1",
    "eval.every": "2",
    "checkpoint.every": "2",
    "log.every": "1",
}


@pytest.fixture(scope="module")
def execute(digits_cache, tmp_path_factory):
    """`execute(name, **parameters)`: what a notebook printed, its pictures, and the folder that it ran in."""

    def run(name, **parameters):
        folder = tmp_path_factory.mktemp(name)
        source = ROOT / "colabs" / f"{name}.py"
        book = render.with_parameters(render.notebook_of(source), parameters)
        expected = [cell.source for cell in render.notebook_of(source).cells if not cell.metadata.get("tags")]
        assert [cell.source for cell in book.cells if not cell.metadata.get("tags")] == expected
        # A process with one device, as most notebooks have.
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        outputs = [out for cell in render.execute(book, folder, environment).cells for out in cell.get("outputs", ())]
        text = "".join(out["text"] for out in outputs if out.output_type == "stream")
        coded = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
        pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_COLOR) for each in coded]
        assert all(picture.std() > 5 and min(picture.shape[:2]) > 100 for picture in pictures)
        return text, pictures, folder

    return run


def last_metrics(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_quickstart(execute, tiny_run):
    text, pictures, folder = execute("1_quickstart", checkpoint=str(tiny_run))
    model = tubevit.load_model(tiny_run)
    logits = model(tubevit.read_video(folder / "example.mp4", **model.input), head="motion")
    assert f"motion: {model.labels['motion'][int(logits.argmax())]} " in text
    assert len(pictures) == 3 and "digit:" not in text  # the head for images does not answer


def test_quickstart_takes_a_video_of_ones_own(execute, tiny_run, digits_cache):
    video = next((digits_cache / "videos/test").iterdir())
    text, pictures, folder = execute("1_quickstart", checkpoint=str(tiny_run), video=str(video))
    assert "motion: " in text and len(pictures) == 3 and not list(folder.iterdir())


def test_finetune(execute, tiny_run):
    text, pictures, folder = execute("2_finetune", init=str(tiny_run), clips=16, changes=STEPS)
    assert len(pictures) == 4 and "step 2: eval/data/top1" in text
    (labels,) = tubevit.load_model(folder / "runs/finetuned").labels.values()
    assert labels == ("falling", "horizontal", "rising", "vertical")
    assert last_metrics(folder / "runs/finetuned")["step"] == 2
    rows = dict(line.split(",")[:2] for line in (folder / "example/axis.csv").read_text().splitlines())
    motions = dict(line.split(",")[:2] for line in (folder / "example/motion.csv").read_text().splitlines())
    axes = {"up": "vertical", "right": "horizontal", "down_right": "falling", "down_left": "rising"}
    assert {axes[motions[path]] for path in rows if motions[path] in axes} == set(labels)
    assert all(rows[path] == axes[motions[path]] for path in rows if motions[path] in axes)


def test_finetune_on_a_folder(execute, tiny_run, digits_cache, tmp_path):
    lines = [line.split(",") for line in (digits_cache / "motion.csv").read_text().splitlines()[1:]]
    for path, label, split, *_ in lines:
        if split == "test":
            continue
        place = tmp_path / split / label
        place.mkdir(parents=True, exist_ok=True)
        (place / pathlib.Path(path).name).symlink_to(digits_cache / path)
    text, _, folder = execute("2_finetune", data=str(tmp_path), init=str(tiny_run), changes=STEPS)
    assert "24 files to train, 8 to evaluate (split val), 8 classes" in text and not (folder / "example").exists()


def test_joint_training(execute):
    batches = {f"data.train.{name}.batch_size": "4" for name in ("moving_digits", "digit_motion", "still_digits")}
    text, pictures, folder = execute("3_joint_training", steps=2, changes=STEPS | batches)
    tokens = PRESETS["small"].num_tokens((16, 64, 64)), PRESETS["small"].for_images().num_tokens((1, 64, 64))
    assert [int(n) for n in re.findall(r"-> (\d+) tokens", text)] == list(tokens)
    assert len(pictures) == 6 and re.search(r"backwards, \d+% of 8 clips", text)
    assert {"eval/moving_digits/top1", "eval/still_digits/top1"} <= set(last_metrics(folder / "runs/joint"))


def test_small_to_large(execute, tiny_run):
    batches = [STEPS | {f"data.train.{name}.batch_size": "4"} for name in ("images", "clips")]
    size = {"model.width": "48", "model.mlp_dim": "96", "model.depth": "3"}
    text, pictures, folder = execute(
        "4_small_to_large", small=str(tiny_run), vit_changes=batches[0] | size, changes=batches[1]
    )
    assert re.findall(r"largest difference (.+)", text) == ["0.0"] and len(pictures) == 3
    small, large = (tubevit.load_model(path) for path in (tiny_run, folder / "runs/small_to_large/large"))
    assert f"large: 48 wide, 3 blocks, tubes {large.config.tubes}" in text
    assert large.config.freeze_below == 1 and large.config.width == 2 * small.config.width
    (gate,) = map(float, re.findall(r"tanh\(alpha\): \[?([-\d.e]+)", text))
    assert gate != 0


def test_in_and_out(execute, hub, tiny_run, tmp_path):
    """A model on the Hub, an adapter of it, and the same outputs in torch."""
    tubevit.save_model(tubevit.load_model(tiny_run), tmp_path / "saved")
    hub.add_folder("owner/repo", tmp_path / "saved")
    text, _, folder = execute("6_in_and_out", init="hf://owner/repo", clips=16, changes=STEPS)
    assert "heads motion, digit" in text and "classes: falling, horizontal, rising, vertical" in text
    shown = re.search(r"in PyTorch: (.+)", text).group(1)
    assert {each.split()[0] for each in shown.split(", ")} == {"falling", "horizontal", "rising", "vertical"}
    assert float(re.search(r"largest difference: (\S+)", text).group(1)) < 1e-5
    assert sorted(path.name for path in (folder / "runs/adapted/for_torch").glob("*.*")) == [
        "config.json", "model.safetensors", "tubevit_torch.py",
    ]  # fmt: skip


def test_tpu_pod(execute):
    values = dict(experiment="quickstart", on_hosts="quickstart:seed=1", topology="v5litepod-8", changes={})
    text, _, folder = execute("5_tpu_pod", **values)
    assert "v5litepod-8 is v5e:2x4: 8 chips" in text and "176 tokens" in text
    wanted = "train --config quickstart:seed=1 --workdir gs://BUCKET/k600_h16"
    assert text.count(f"host.sh start {wanted}") == 2
    assert "tpu-vm create my-run" in text and "queued-resources create my-run" in text and "--spot" in text
    compiled = importlib.util.find_spec("libtpu") is not None
    assert ("FITS: at most " in text) == compiled and ("libtpu is not installed" in text) == (not compiled)
