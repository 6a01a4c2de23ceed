"""Renamed configuration keys: the one table that maps old names on disk to the current ones."""

from collections.abc import Mapping

# Old key -> current key.
RENAMED = {
    "model.mlp_width": "model.mlp_dim",
    "optimizer.clip_norm": "optimizer.grad_clip_norm",
    "train.accumulate": "train.grad_accum_steps",
}


def with_current_keys(config: Mapping) -> dict:
    """Return a stored configuration, nested dicts, with current names for all renamed keys."""
    current = {name: dict(group) if isinstance(group, Mapping) else group for name, group in config.items()}
    for old, new in RENAMED.items():
        (group, old_name), (_, new_name) = old.split("."), new.split(".")
        if old_name in current.get(group, {}):
            current[group] = {new_name if key == old_name else key: value for key, value in current[group].items()}
    return current
