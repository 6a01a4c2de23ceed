"""The weights in checkpoints/ are really there: each gives the numbers of its entry, and its kernels are learned."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

import tubevit
from tubevit.zoo.registry import read_index

RELEASES = read_index()


def test_there_are_some():
    names = {"tubevit_nano8@moving_digits", "tubevit_ti8@moving_digits_bootstrap"}
    assert names <= set(tubevit.list_models(pretrained=True))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """That of a user, for whom XLA optimises; the whole embedded data is made once."""
    others = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return others | {"TUBEVIT_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.mark.parametrize("name", RELEASES)
def test_its_command_gives_its_numbers(name, environment, tmp_path):
    """The same count of correct files, give or take one, of the whole embedded data."""
    program, *arguments = shlex.split(RELEASES[name].command)
    assert program == "tubevit"
    command = [sys.executable, "-m", program, *arguments, "--out", tmp_path / "eval.json"]
    subprocess.run(command, env=environment, check=True)
    records = json.loads((tmp_path / "eval.json").read_text())
    assert len(records) == len(RELEASES[name].metrics)
    for record, entry in zip(records, RELEASES[name].metrics, strict=True):
        assert (record["dataset"], record["clips_used"]) == (entry["dataset"], entry["clips"])
        assert abs(record["top1"] * record["clips_used"] - entry["correct"]) <= 1.5


@pytest.mark.parametrize("name", RELEASES)
def test_it_loads_in_both_precisions(name):
    video = np.random.default_rng(0).integers(0, 256, (1, *tubevit.load_model(name).config.shape, 3), np.uint8)
    full, half = (tubevit.load_model(name, dtype=dtype).features(video) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(np.asarray(half, np.float32), full, atol=0.1 * float(np.abs(full).max()))
