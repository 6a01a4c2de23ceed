"""The protocol of a published model, on a small model of its family and a few clips."""

import csv

import numpy as np
import pytest
from flax import nnx

import tubevit
from tubevit.cli.evaluate import describe_record
from tubevit.config import load_config
from tubevit.errors import UserError
from tubevit.evaluation import EvalOptions, evaluate_checkpoint
from tubevit.models.config import Head
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config

PROTOCOL = "eval_published:model=videomae_nano8,dataset=ssv2,published=12.5"


@pytest.fixture(scope="module")
def checkpoint(randomised, digits_cache, tmp_path_factory):
    """A VideoMAE whose class names are in another order than those of the data."""
    with open(digits_cache / "motion.csv") as file:
        names = sorted({row["label"] for row in csv.DictReader(file)})
    head = Head(8, "video", (*names[3:], *names[:3]))
    model = model_config("videomae_nano8", heads={"default": head}, scan=False)
    folder = tmp_path_factory.mktemp("published") / "videomae"
    tubevit.save_model(randomised(lambda: TubeViT(model, rngs=nnx.Rngs(0))), folder)
    return folder


def protocol(digits_cache, spec=PROTOCOL, **changes):
    return load_config(f"{spec},data={digits_cache}/motion.csv", {"data.eval.ssv2.split": "test", **changes})


def test_labels_are_compared_by_name(checkpoint, digits_cache):
    (found,) = evaluate_checkpoint(checkpoint, EvalOptions(protocol(digits_cache)))
    record, source = found.record, found.load.source
    with open(digits_cache / "motion.csv") as file:
        named = {str(digits_cache / row["path"]): row["label"] for row in csv.DictReader(file)}
    labels = tubevit.load_model(checkpoint).labels["default"]
    predicted = [labels[i] for i in found.predictions.probabilities.argmax(axis=1)]
    assert record["top1"] == np.mean([named[key] == name for key, name in zip(source.keys, predicted, strict=True)])
    assert (record["views"], record["clip_placement"], record["average"]) == ("2x3", "spread", "probabilities")
    assert record["published_top1"] == 0.125 and "published top1 12.5 %" in describe_record(record)
    assert "mean of logits" in describe_record(record | {"average": "logits"})


def test_another_model_is_refused(checkpoint, digits_cache):
    config = protocol(digits_cache, PROTOCOL.replace("videomae_nano8", "videomae_b16"))
    with pytest.raises(
        UserError, match="videomae_b16: it has width 96 instead of 768, depth 3 .* size 64 instead of 2"
    ):
        evaluate_checkpoint(checkpoint, EvalOptions(config))
    with pytest.raises(UserError, match="--average goes without --probe"):
        EvalOptions(average="logits", probe="knn")
