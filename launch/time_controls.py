"""Measure how much a trained model uses the order of frames: on the test clips with shuffled and with reversed frames.

python launch/time_controls.py WORKDIR      # the workdir of a quickstart; writes WORKDIR/time_controls.json
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import numpy as np

import tubevit
from tubevit.config import dataset_config
from tubevit.config.experiment import open_eval
from tubevit.data.augment import Augment
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.evaluation.evaluate import EvalSettings, predict_source
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import parameters


def main(workdir: str) -> None:
    model = tubevit.load_model(workdir)
    dataset = dataset_config(source="moving_digits", split="test", head="motion")
    load = open_eval(model.config, "moving_digits", dataset, "dense")
    forward, params, labels = make_forward(model.config, "motion"), parameters(model), load.source.labels
    names = model.labels["motion"]
    opposite = np.array([names.index(DIRECTIONS[(DIRECTIONS.index(name) + 4) % 8]) for name in names])

    def predicted(order: str) -> np.ndarray:
        ordered = dataclasses.replace(load, augment=Augment(frame_order=order))
        return predict_source(forward, params, ordered, 50, EvalSettings(threads=2)).probabilities.argmax(axis=1)

    shuffled, backwards = predicted("shuffled"), predicted("reversed")
    result = {
        "clips": len(labels),
        "example": load.source.keys[0],
        "shuffled_top1": float((shuffled == labels).mean()),
        "reversed_to_opposite": float((backwards == opposite[labels]).mean()),
    }
    print(json.dumps(result), flush=True)
    (pathlib.Path(workdir) / "time_controls.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
