"""Experiment configurations: keys, locking, loading; `resolve` fills in what follows from data and checkpoints."""

from tubevit.config.compare import changed_keys
from tubevit.config.config import (
    allow_overlap,
    check_config,
    check_trains,
    dataset_config,
    default_config,
    experiments_folder,
    flatten,
    load_config,
    model_fields,
    names,
    pairs,
    set_key,
)

__all__ = [
    "allow_overlap", "changed_keys", "check_config", "check_trains", "dataset_config", "default_config",
    "experiments_folder", "flatten", "load_config", "model_fields", "names", "pairs", "set_key",
]  # fmt: skip
