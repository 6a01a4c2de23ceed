"""Two configurations compared: which keys change what a training run computes."""

import dataclasses
import fnmatch
import json
from collections.abc import Mapping

from tubevit.config.config import flatten
from tubevit.config.keys import find_key
from tubevit.errors import UserError

# Patterns of the keys that do not change the result of a training run.
_CHANGE_NOTHING = (
    "mesh.*", "loader.*", "log.*", "checkpoint.*", "eval.*", "data.eval.*", "data.train.*.allow_overlap", "input.path",
    "train.skip_nonfinite", "train.replay", "compilation_cache", "model.remat", "model.scan", "model.attention",
)  # fmt: skip


def changed_keys(old: Mapping, new: Mapping) -> dict[str, tuple]:
    """Return {key: (old value, new value)} where two configurations differ in what a training run computes.

    A key that is missing, as those of later versions are in older runs, or none counts as what the architecture sets,
    else as its default.
    """
    old, new = (flatten(json.loads(json.dumps(config))) for config in (old, new))
    values = {key: (_value(old, key), _value(new, key)) for key in sorted({*old, *new}) if changes_results(key)}
    return {key: (before, after) for key, (before, after) in values.items() if before != after}


def _value(flat: Mapping, path: str):
    if flat.get(path) is not None:
        return flat[path]
    try:
        key = find_key(path)
    except UserError:  # of another version
        return None
    default = key.default
    if default is None and path.startswith(("model.", "input.")):
        from tubevit.models.config import ModelConfig  # here, as it imports jax
        from tubevit.models.variants import ARCHITECTURES

        fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
        default = (fields | ARCHITECTURES.get(flat.get("model.name", ""), {})).get(key.name)
        default = None if default is dataclasses.MISSING else default
    return json.loads(json.dumps(default))


def changes_results(path: str) -> bool:
    """Return whether a key, by its full name, changes the result of a training run."""
    return not any(fnmatch.fnmatchcase(path, pattern) for pattern in _CHANGE_NOTHING)
