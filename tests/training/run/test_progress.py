"""Bars stand on stderr where that is a terminal, and only there."""

import contextlib
import io

import numpy as np
import pytest

from tubevit.config import dataset_config
from tubevit.config.experiment import load_for
from tubevit.data.shard_writer import write_shards
from tubevit.data.sources import open_source
from tubevit.evaluation.evaluate import EvalSettings, predict_source
from tubevit.models.variants import model_config


class Stream(io.StringIO):
    """A terminal or a file."""

    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def bar(request):
    """`bar(call, *parts)`: what is called shows the parts on stderr if that is a terminal, else nothing."""

    def check(call, *parts):
        with contextlib.redirect_stderr(Stream(request.param)) as stderr:  # not before: pytest has its own
            call()
        text = stderr.getvalue()
        assert all(part in text for part in parts) if request.param and parts else text == "", repr(text)

    return check


def test_sharding(bar, digits_cache, tmp_path):
    source = open_source("still_digits", "test")
    bar(lambda: write_shards(source, "test", str(tmp_path / "shards")), "test: ", "100%", "4/4", " files")


def test_evaluation(bar, digits_cache):
    """The bar of `evaluate`, none in training."""
    dataset = dataset_config(source="still_digits", split="test")
    source = open_source("still_digits", "test")
    load = load_for(model_config("tubevit_nano8", num_classes=10), source, dataset.augment, "dense")
    constant = lambda params, pixels: np.full((*pixels.shape[:2], 10), 0.1)  # noqa: E731
    bar(lambda: predict_source(constant, {}, load, 3))
    bar(
        lambda: predict_source(constant, {}, load, 3, EvalSettings(progress="digits")),
        "digits: ",
        "100%",
        "2/2",
        " batches",
    )
