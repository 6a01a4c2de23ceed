"""Fingerprint of a model: which checkpoints give the same features."""

import dataclasses
import hashlib
import json

import numpy as np

from tubevit.checkpoint.metadata import model_metadata
from tubevit.checkpoint.paths import flatten
from tubevit.models.abstract import parameters
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT

# Fields that change no features, or only their rounding.
_WITHOUT = {"name", "heads", "dropout", "stochastic_depth", "freeze_below", "lora", "remat", "scan", "attention",
            "precision", "quantize"}  # fmt: skip


def fingerprint(model: TubeViT) -> str:
    """Return 64 hexadecimal digits that models have in common if they compute the same features.

    They depend on the parameters below the heads and on the configuration, not on names, on where a checkpoint lies or
    on the precision of the computation. Fields with their default values do not count, so that a field that is new in
    a later version leaves them as they are.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    values = {
        name: value
        for name, value in model_metadata(model.config).items()
        if name not in _WITHOUT and value != defaults[name]
    }
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path, leaf in sorted(flatten(parameters(model)).items()):
        if not path.startswith("heads/"):
            digest.update(f"{path} {leaf.shape} ".encode())
            digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()
