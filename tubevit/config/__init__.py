"""Experiment configurations: keys, locking, loading."""

from tubevit.config.config import (
    check_config,
    dataset_config,
    default_config,
    experiments_folder,
    flatten,
    load_config,
    model_fields,
    names,
    pairs,
    set_key,
    set_model,
)

__all__ = [
    "check_config",
    "dataset_config",
    "default_config",
    "experiments_folder",
    "flatten",
    "load_config",
    "model_fields",
    "names",
    "pairs",
    "set_key",
    "set_model",
]
