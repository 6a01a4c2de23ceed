"""Every experiment: its resolved form is a text in tests/golden, so that any change shows in review.

`UPDATE_GOLDEN=1 pytest tests/test_experiments.py` writes the texts anew.
"""

import ast
import csv
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from tubevit.config import experiments_folder, flatten, load_config, model_fields
from tubevit.config.derive import apply_recipe
from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.views import Views
from tubevit.errors import UserError
from tubevit.models.flops import count_parameters, num_tokens
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config
from tubevit.recipes.paper import TABLE_10, paper_config

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROWS = ("kinetics", "two_stage", "joint", "patches_2d", "inflated_3d")
SPECS = [
    "quickstart", "moving_digits", "k400", "k600", "k600:model=tubevit_l16", "k700", "ssv2", "charades",
    "charades:interpolated=true", "imagenet",
    *(f"table5:row={row}" for row in ROWS),
    "bootstrap", "bootstrap:small=tubevit_b16,large=vit_l16,train_last=4,widen=linear,position=fixed",
    *(f"table6:row={row}" for row in ("full", "last_fc", "last_4", "last_8", "last_8_gate")),
    *(f"table9:row={row}" for row in ("last_fc", "last_1", "last_4", "full")),
    *(f"digits_bootstrap:stage={stage}" for stage in ("vit", "gate", "last", "last_fc", "lora", "full", "scratch")),
    "eval_published:model=vivit_b16x2", "eval_published:model=timesformer_b16,data=ssv2",
    "eval_published:model=vjepa2_g16,data=ssv2",
    "sparse_from_dense", "sparse_from_dense:init=dense,tubes=core",
    *(f"claims:variant={variant}" for variant in ("joint", "images", "interpolated", "added_3", "dense", "factorised")),
]  # fmt: skip


def resolved(spec):
    """Every key that is set, and what the model comes to."""
    config, *_ = apply_recipe(load_config(spec))
    model = model_config(**model_fields(config), num_classes=600)
    values = {key: value for key, value in flatten(config).items() if value is not None}
    values |= {"= tokens of a clip": num_tokens(model, model.shape), "= tubes": str(model.tubes)}
    values["= parameters with 600 classes"] = count_parameters(model)
    return "".join(f"{key}: {json.dumps(values[key])}\n" for key in sorted(values))


@pytest.mark.parametrize("spec", SPECS)
def test_resolved_form(spec):
    path = GOLDEN / f"{re.sub('[:,=]', '_', spec)}.txt"
    text = resolved(spec)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "quickstart"])
def test_models_take_their_input(spec):
    """Clips and, where there are images to train on, images; shapes only."""
    config, *_ = apply_recipe(load_config(spec))
    images = ("imagenet", "still_digits", "images")
    heads = {name: (9, "image" if name in images else "video") for name in config.data.train or config.data.eval}
    model = model_config(**model_fields(config), heads=heads)
    for name, (_, modality) in heads.items():
        shape = (model.frames,) if modality == "video" else ()
        pixels = jax.ShapeDtypeStruct((2, *shape, model.size, model.size, 3), "uint8")
        logits = jax.eval_shape(lambda x, name=name: TubeViT(model, rngs=nnx.Rngs(0))(x, head=name), pixels)
        assert logits.shape == (2, 9) and logits.dtype == "float32"


def test_every_experiment_and_golden_text_is_covered():
    experiments = {path.stem for path in experiments_folder().glob("*.py")}
    assert {spec.partition(":")[0] for spec in SPECS} | {"finetune"} == experiments
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {re.sub("[:,=]", "_", spec) for spec in SPECS}


@pytest.mark.parametrize("path", sorted(experiments_folder().glob("*.py")), ids=lambda path: path.stem)
def test_headers(path):
    """Command, hardware, time and expected number; each command names an experiment and arguments that exist."""
    header = ast.get_docstring(ast.parse(path.read_text()))
    commands = re.findall(r"^    (tubevit (?:train|evaluate) .+)$", header, re.MULTILINE)
    assert commands and "Hardware: " in header and "Expected: " in header
    assert "Time: " in header or path.stem == "quickstart"  # it says minutes beside its hardware
    for command in commands:
        spec = re.search(r"--config (\S+)", command).group(1)
        name, _, arguments = spec.partition(":")
        assert name == path.stem and ("--workdir " if " train " in command else "--checkpoint ") in command
        known = re.findall(r"(\w+): [\w |]+ = ", path.read_text())
        assert {item.split("=")[0] for item in arguments.split(",") if item} <= set(known)


def test_arguments_reach_the_data():
    config = load_config("k600:model=tubevit_l16,videos=k600:a/b.csv@gs://clips/k600,images=tfds:imagenet2012")
    assert config.data.train.k600.source == config.data.eval.k600.source == "k600:a/b.csv@gs://clips/k600"
    assert config.data.train.imagenet.source == "tfds:imagenet2012" and config.model.name == "tubevit_l16"
    assert config.data.eval.k600.split == "val" and config.eval.views == "4x3"
    with pytest.raises(UserError, match="unknown row of Table 5 'jointly'; did you mean 'joint'"):
        load_config("table5:row=jointly")


def test_published_protocols():
    """The table in the header is what the experiment shows; clips lie where the authors' code takes them."""
    path = experiments_folder() / "eval_published.py"
    header = ast.get_docstring(ast.parse(path.read_text()))
    rows = re.findall(r"^\| (\w+)(?: \(v2\))? \| ([\d.]*) ?\| ([\d.]*) ?\| ([\d.]*) ?\|$", header, re.MULTILINE)
    table = {(name, data): float(x) for name, *row in rows for data, x in zip(("k400", "k600", "ssv2"), row) if x}
    assert len(table) == 21
    for (name, data), published in table.items():
        config = load_config(f"eval_published:model={name},data={data}:LIST@CLIPS")
        assert config.data.eval[data].source == f"{data}:LIST@CLIPS" and config.data.eval[data].split == "val"
        assert config.data.eval[data].published_top1 == pytest.approx(published / 100) and not config.data.train
    views = lambda text: Views.from_keys(load_config(f"eval_published:{text}").eval)  # noqa: E731
    assert views("model=vivit_fe_b16x2") == Views(4, 3, short_side=256, average="logits")
    assert views("model=timesformer_hr_b16,data=k600") == Views(1, 3, "start", average="logits")
    assert views("model=timesformer_b16,data=ssv2") == Views(1, 3, "spread", average="logits")
    assert views("model=videomae_b16,data=a.csv,dataset=k400") == Views(5, 3)
    assert views("model=videomae_b16,data=ssv2") == Views(2, 3, "spread")
    for name, frames, stride in (("b16", 8, 32), ("hr_b16", 16, 16), ("l_b16", 96, 4)):
        fps = load_config(f"eval_published:model=timesformer_{name}").input.fps
        expected = np.linspace(0, frames * stride - 1, frames)  # of 30 frames per second
        np.testing.assert_allclose(30 * np.arange(frames) / fps, expected, atol=1e-9)
    assert load_config("eval_published:published=86.6").data.eval.k400.published_top1 == 0.866
    with pytest.raises(UserError, match="unknown data set .dataset=. 'mine.csv'; valid: k400, k600, ssv2"):
        load_config("eval_published:data=mine.csv")
    with pytest.raises(UserError, match="unknown model with a protocol for ssv2 'vivit_b16x2'"):
        load_config("eval_published:model=vivit_b16x2,data=ssv2")
    with pytest.raises(UserError, match="data.train is empty: this experiment only evaluates"):
        open_experiment(resolve(load_config("eval_published")))


def test_table_10():
    """The columns as printed, each figure once more by hand."""
    printed = {  # batch size, learning rate, mixup, dropout, label smoothing, frames, fps
        "k400": (256, 5e-5, 0, 0, 0, 64, 15),
        "k600": (256, 5e-5, 0, 0, 0, 64, 15),
        "k700": (256, 5e-5, 0, 0, 0, 64, 15),
        "charades": (64, 1e-3, 0, 0.2, 0.1, 128, 6),
        "ssv2": (256, 2e-5, 0.3, 0.3, 0.3, 32, 24),
    }
    assert set(printed) == set(TABLE_10)
    for column, row in printed.items():
        config = paper_config(column, "tubevit_b16")
        found = (config.optimizer.learning_rate, config.train.mixup, config.model.dropout, config.train.label_smoothing)
        assert (TABLE_10[column]["batch_size"], *found, config.input.frames, config.input.fps) == row
        assert (config.optimizer.name, config.optimizer.warmup_steps, config.train.steps) == ("adam", 10_000, 300_000)
        assert config.optimizer.weight_decay == 1e-3
    for name in ("tubevit_l16", "tubevit_h16"):
        assert paper_config("k400", name).optimizer.learning_rate == 1e-5
        assert paper_config("ssv2", name).optimizer.learning_rate == 2e-5
        assert paper_config("k400", name).optimizer.weight_decay == 1e-5
    with pytest.raises(UserError, match="unknown column of Table 10 'k500'; did you mean"):
        paper_config("k500", "tubevit_b16")


HARDWARE = re.compile(r"^    (\w+) +(v\S+) +(\d+) +(\d+) +(\d+) % +([\d.]+) +(\d+)$", re.MULTILINE)


def test_tables_of_slices_are_those_of_the_benchmark():
    """Milliseconds, share of the peak, hours and chip-hours follow from the rows of benchmarks/preflight.csv."""
    with (GOLDEN.parent.parent / "benchmarks/preflight.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = 0
    for path in sorted(experiments_folder().glob("*.py")):
        for model, topology, fsdp, *figures in HARDWARE.findall(path.read_text()):
            changes = "" if fsdp == "1" else f"mesh.fsdp={fsdp}"
            default = load_config(path.stem).model.name in (None, model)
            names = {path.stem, f"{path.stem}:row=full"} if default else {f"{path.stem}:model={model}"}
            key = changes, topology
            (row,) = (r for r in rows if r["experiment"] in names and (r["changes"], r["topology"]) == key)
            milliseconds = float(row["xla_ms"]) + float(row["kernel_ms"])
            hours = milliseconds * apply_recipe(load_config(row["experiment"]))[0].train.steps / 3.6e6
            share = 100 * float(row["mfu_by_cycles"])
            expected = f"{milliseconds:.0f} {share:.0f} {hours:.1f} {hours * int(row['devices']):.0f}".split()
            assert figures == expected, (path.name, model, topology)
            found += 1
    assert found >= 10
