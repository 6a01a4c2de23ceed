import dataclasses
import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import tubevit
from tests.conftest import TINY
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.manifest import verify
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.cli import main
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.transfer.initialise import initialise
from tubevit.visualize.curves import read_metrics
from tubevit.zoo import registry, release
from tubevit.zoo.card import model_card
from tubevit.zoo.names import open_checkpoint

NAME, VIT = "tubevit_nano8@tiny_digits", "vit_nano8@still"


@pytest.fixture(scope="module")
def places(tmp_path_factory, digits_cache):
    """A folder of released checkpoints, empty, in place of the repository's."""
    folder = tmp_path_factory.mktemp("releases") / "checkpoints"
    folder.mkdir()
    (folder / "index.json").write_text("[]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "checkpoints_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def released(places, tiny_run):
    """The folder of the tiny run's last checkpoint, released."""
    flags = ["--bfloat16", "--config", TINY, "--licence", "CC-BY-4.0", "--split", "train"]
    assert main(["release", str(tiny_run), NAME, *flags]) == 0
    return places / NAME


@pytest.fixture
def clip(digits_cache):
    return sorted((digits_cache / "videos" / "test").iterdir())[0]


def test_the_entry(released, digits_cache):
    (row,) = json.loads((released.parent / "index.json").read_text())
    assert registry.read_index()[NAME] == registry.Release(**row)
    assert (row["name"], row["source"], row["licence"], row["config"]) == (NAME, "", "CC-BY-4.0", "tiny.py")
    assert row["data"] == {"moving_digits": "moving_digits", "still_digits": "still_digits"}
    assert row["input"] == {"frames": 16, "fps": 8.0, "size": 32, "range": "uint8 0..255 or float -1..1"}
    assert row["classes"] == {"motion": 8, "digit": 10}
    assert row["command"] == f"tubevit evaluate --checkpoint {NAME} --split train"
    root = pathlib.Path(tubevit.__file__).parent.parent
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        assert row["commit"].removesuffix("-dirty") == head
    else:
        assert row["commit"] is None


def test_the_weights_are_the_runs_in_bfloat16(released, tiny_run):
    assert verify(released) == []
    stored = flatten(ocp.load_checkpointables(released)["params"])
    assert {str(leaf.dtype) for leaf in stored.values()} == {"bfloat16"}
    run, loaded = (tubevit.load_model(name) for name in (tiny_run, NAME))
    assert loaded.config == run.config
    for path, leaf in flatten(parameters(loaded)).items():
        assert leaf.dtype == np.float32
        exact = np.asarray(flatten(parameters(run))[path])
        np.testing.assert_allclose(leaf, exact, rtol=2**-8, err_msg=path)
    assert Checkpoint(released).metadata["step"] == 9
    names = {path.name for path in released.iterdir()}
    assert {"manifest.json", "README.md", "loss.svg", "accuracy.svg", "metrics.jsonl"} <= names
    assert not {"optimizer", "eval.json"} & names
    assert sorted(path.name for path in released.parent.iterdir()) == ["index.json", NAME]  # nothing else is left
    for path in released.rglob("*"):
        assert not path.is_file() or str(tiny_run).encode() not in path.read_bytes()


def test_its_command_gives_its_numbers(released, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = registry.read_index()[NAME].metrics
    records = json.loads(done([*registry.read_index()[NAME].command.split()[1:], "--json"]))
    assert json.loads((tmp_path / "eval.json").read_text()) == records and not (released / "eval.json").exists()
    assert [each["dataset"] for each in metrics] == ["moving_digits", "still_digits"]
    for record, each in zip(records, metrics, strict=True):
        assert each["clips"] == record["clips_used"] and each["correct"] == round(record["top1"] * each["clips"])
        assert each["source"] == each["dataset"]  # as the configuration has it, not where it lies here
        for key in ("split", "head", "views", "top1", "top5", "map", "loss"):
            assert each[key] == record[key]


def test_the_card(released, places, tiny_run):
    card = (released / "README.md").read_text()
    (motion, still) = registry.read_index()[NAME].metrics
    for part in (
        f"# {NAME}\n", "24 wide, 1 blocks, 2 heads", "trained for 9 steps", "- `moving_digits`: `moving_digits`",
        "head `digit` takes images, 10 classes: 0, 1, 2", "head `motion` takes videos, 8 classes: ",
        "Clips of 16 frames at 8 frames per second, 32x32 pixels. Images of 32x32 pixels. RGB, uint8 0..255",
        f"| moving_digits | train | motion | 1x1 | 24 | {motion['correct']} | {100 * motion['top1']:.2f} % |",
        f"| still_digits | train | digit | 1x1 | {still['clips']} | {still['correct']} |",
        f"    tubevit evaluate --checkpoint {NAME} --split train\n",
        "    tubevit train --workdir DIR --config tiny.py\n",  # without the folder that it is in here
        "## Curves\n\n![loss](loss.svg)\n\n![accuracy](accuracy.svg)\n",
        "## Licence\n\nCC-BY-4.0\n", "## Limits\n\n- The model knows only the classes above",
        "16x32x32 (frames, rows, columns)",
    ):  # fmt: skip
        assert part in card
    assert "None" not in card and str(places) not in card
    entry = registry.read_index()[NAME]
    spread = dataclasses.replace(entry, input={**entry.input, "fps": None})
    text = model_card(spread, tubevit.load_model(NAME).config, steps=9)
    assert "Clips of 16 frames spread over the whole video, 32x32 pixels." in text
    kept, run = (read_metrics((folder / "metrics.jsonl").read_text()) for folder in (released, tiny_run))
    assert {"train/moving_digits/loss", "eval/moving_digits/top1"} <= set(kept) < set(run)
    for name, (steps, values) in kept.items():  # what `report` draws of the release
        np.testing.assert_array_equal(steps, run[name][0])
        np.testing.assert_allclose(values, run[name][1], atol=1e-5)
    for curve, label in (("loss", "loss"), ("accuracy", "top-1 or mAP, %")):
        drawn = (released / f"{curve}.svg").read_text()
        assert f"<!-- {label} -->" in drawn and "<!-- step -->" in drawn and "<!-- moving_digits" in drawn


def test_every_verb_takes_the_name(released, done, refused, clip, tmp_path):
    (line,) = done(["predict", "--checkpoint", NAME, "--json", clip]).splitlines()
    model = tubevit.load_model(NAME)
    best = int(model(tubevit.read_video(clip, **model.input), head="motion").argmax())
    assert json.loads(line)["top"][0]["label"] == model.labels["motion"][best]
    (row,) = json.loads(done(["inspect", NAME, "--json"]))
    assert (row["name"], row["architecture"], row["input"]) == (NAME, "tubevit_nano8", "16x32x32")
    assert "model.safetensors" in done(["export", NAME, tmp_path / "exported", "--format", "safetensors"])
    out = tmp_path / "out.json"
    done(["evaluate", "--checkpoint", NAME, "--data", "still_digits", "--head", "digit", "--out", out])
    assert json.loads(out.read_text())[0]["clips_used"] == 4
    wrong = "tubevit_nano8@tiny_digit"
    for command in (
        ["predict", "--checkpoint", wrong, clip],
        ["evaluate", "--checkpoint", wrong],
        ["inspect", wrong],
        ["export", wrong, tmp_path / "x", "--format", "safetensors"],
        ["convert", wrong, tmp_path / "x", "--format", "timm"],
        ["train", "--config", f"finetune:data=moving_digits,init={wrong}", "--workdir", tmp_path / "x"],
    ):
        refused(command, f"unknown released checkpoint '{wrong}'; did you mean '{NAME}'")


def test_training_begins_from_the_name(released, tiny_run):
    """As `init.checkpoint` and `init.tubes`."""
    expected = flatten(parameters(tubevit.load_model(NAME)))
    model = tubevit.load_model(tiny_run).config
    zeros = unflatten({path: np.zeros_like(leaf) for path, leaf in expected.items()})
    for tubes in ("same", NAME):
        found = flatten(initialise(zeros, model, NAME, tubes=tubes)[0])
        for path, leaf in expected.items():
            np.testing.assert_array_equal(leaf, found[path])
    for names in ({"name": "tubevit_nano8@tiny"}, {"name": NAME, "tubes": "tubevit_nano8@tiny"}):
        with pytest.raises(UserError, match=f"unknown released checkpoint 'tubevit_nano8@tiny'.*'{NAME}'"):
            initialise(zeros, model, **names)


def test_a_plain_vit_is_converted_by_name(released, places, tiny, done, tmp_path):
    fields = dict(tubes="1x8x8/32x8x8", frames=1, size=32, position="learned", class_token=True, pooling="cls")
    tubevit.save_model(tiny(9, **fields), places / VIT)
    entries = registry.read_index()
    values = vars(entries[NAME]) | {"name": VIT}
    registry.write_index(entries | {VIT: registry.Release(**values)})
    try:
        assert VIT in tubevit.list_models(pretrained=True)
        assert "tiny" in done(["convert", VIT, tmp_path / "vit_hf", "--format", "hugging-face"])
        done(["convert", tmp_path / "vit_hf", tmp_path / "back"])
        ours, theirs = (flatten(parameters(tubevit.load_model(name))) for name in (VIT, tmp_path / "back"))
        for path, leaf in ours.items():
            np.testing.assert_array_equal(leaf, theirs[path])
    finally:
        registry.write_index(entries)
        shutil.rmtree(places / VIT)


def test_replacing(released, refused, done, tiny_run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in released.rglob("*") if path.is_file()}
    refused(["release", tiny_run, NAME], f"{NAME} is released already; take another tag, or pass --replace")
    assert {path: path.read_bytes() for path in released.rglob("*") if path.is_file()} == before
    index = (released.parent / "index.json").read_text()
    kept = shutil.copytree(released.parent, released.parent.parent / "kept")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    try:
        text = done(["release", run, NAME, "--replace", "--step", 6])
        assert "moving_digits (motion): top1 " in text and f"card: {released / 'README.md'}" in text
        entry = registry.read_index()[NAME]
        assert (entry.config, entry.licence) == ("", "Apache-2.0") and entry.sha256 not in index
        assert Checkpoint(released).metadata["step"] == 6 and not (released / "loss.svg").exists()
        card = (released / "README.md").read_text()
        assert (
            "trained for 6 steps" in card
            and "stored in the metadata of the checkpoint" in card
            and "Curves" not in card
        )
        stored = flatten(ocp.load_checkpointables(released)["params"])
        assert {str(leaf.dtype) for leaf in stored.values()} == {"float32"}
        assert sorted(path.name for path in released.parent.iterdir()) == ["index.json", NAME]
    finally:
        shutil.rmtree(released.parent)
        kept.rename(released.parent)


def test_at_an_address(places, tiny_run, done, refused, tmp_path, monkeypatch):
    """Weights and card are there, the card is here; what the cache gets is what was released."""
    name, folder = "tubevit_nano8@far", tmp_path / "far"
    options = release.ReleaseOptions(to=folder.as_uri(), largest=1000)  # its size does not matter then
    release.release(open_checkpoint(tiny_run), name, options, evaluate=lambda stored: [])
    refused(["release", tiny_run, name, "--to", folder.as_uri()], f"{name} is released already")
    text = done(["release", tiny_run, name, "--to", folder.as_uri(), "--replace"])
    entry = registry.read_index()[name]
    try:
        assert f"MB in {folder.as_uri()}" in text and entry.source == folder.as_uri()
        figures = {"README.md", "loss.svg", "accuracy.svg", "metrics.jsonl"}
        assert {path.name for path in (places / name).iterdir()} == figures
        assert figures < {path.name for path in folder.iterdir()}
        elsewhere = ["release", tiny_run, f"{name}_2", "--to"]
        refused([*elsewhere, folder.as_uri()], f"{folder.as_uri()} holds a checkpoint already")
        refused([*elsewhere, "/data/x"], "is hf://owner/repo, or the address of a folder")
        monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
        run, loaded = (flatten(parameters(tubevit.load_model(each))) for each in (tiny_run, name))
        for path, leaf in run.items():
            np.testing.assert_array_equal(leaf, loaded[path])
    finally:
        registry.write_index({key: value for key, value in registry.read_index().items() if key != name})
        shutil.rmtree(places / name)


@pytest.mark.parametrize(
    "name, flags, parts",
    [
        ("tiny", [], ["is named ARCHITECTURE@TAG", "found 'tiny'"]),
        ("tubevit_nano8@../x", [], ["is named ARCHITECTURE@TAG"]),
        ("tubevit_nano8@Digits", [], ["lower-case letters"]),
        ("tubevit_nano@x", [], ["unknown architecture 'tubevit_nano'; did you mean 'tubevit_nano8'"]),
        ("tubevit_b16@x", [], ["would name a tubevit_b16; the model is a tubevit_nano8, 24 wide"]),
        ("tubevit_nano8@x", ["--step", "7"], ["has no checkpoint of step 7; it has [6, 9]"]),
        ("tubevit_nano8@x", ["--config", "quickstart"], ["was not trained with quickstart: ", "in the run, "]),
        ("tubevit_nano8@x", ["--config", f"{TINY}:seed=3"], ["seed: 0 in the run, 3 in the experiment"]),
        ("tubevit_nano8@x", ["--licens", "MIT"], ["did you mean '--licence'"]),
        ("tubevit_nano8@x", ["--licence", "see\nREADME"], ["--licence must be the name of a licence"]),
    ],
)
def test_refused(places, tiny_run, refused, name, flags, parts):
    before = sorted(places.rglob("*"))
    refused(["release", tiny_run, name, *flags], *parts)
    assert sorted(places.rglob("*")) == before


def test_a_bootstrapped_model_has_the_name_of_its_vit(places, tiny_run):
    """Of other sizes than the architecture of that name, as here, it may still be called after it."""
    checkpoint = Checkpoint(tiny_run / "checkpoints" / "9")
    checkpoint.metadata["model"] |= {"name": "vit_nano8"}
    release.check_new("tubevit_nano8@tiny", checkpoint)
    release.check_new("vit_nano8@tiny", checkpoint)
    with pytest.raises(UserError, match="tubevit_ti8@tiny would name a tubevit_ti8; the model is a vit_nano8, 24 wide"):
        release.check_new("tubevit_ti8@tiny", checkpoint)


def test_what_is_too_large_or_no_run(places, tiny_run, refused, tmp_path):
    before = sorted(places.rglob("*"))
    with pytest.raises(UserError, match="MB, the repository takes 0: pass --bfloat16.*--to hf://"):
        options = release.ReleaseOptions(largest=50_000)
        release.release(open_checkpoint(tiny_run), "tubevit_nano8@x", options, evaluate=pytest.fail)
    tubevit.save_model(tubevit.load_model(tiny_run), tmp_path / "saved")
    refused(["release", tmp_path / "saved", "tubevit_nano8@x"], "must come from a run")
    checkpoint = open_checkpoint(tiny_run)
    checkpoint.experiment["data"]["eval"] = {}
    with pytest.raises(UserError, match="must come from a run with evaluation data under data.eval"):
        release.check_new("tubevit_nano8@x", checkpoint)
    assert sorted(places.rglob("*")) == before


def test_not_into_an_installed_package(tiny_run, refused, monkeypatch):
    inside = pathlib.Path(tubevit.__file__).parent / "checkpoints"
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: inside)
    refused(["release", tiny_run, NAME], f"{inside} belongs to the installed package", "release from a checkout")
    assert not inside.exists()
