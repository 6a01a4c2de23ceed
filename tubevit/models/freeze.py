"""Which parameters are trained: two trees, so that the others have no gradient, no optimiser state and no update."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tubevit.models.config import ModelConfig

_BELOW = ("tokenizer", "position", "class_token")


def is_frozen(path: str, model: ModelConfig) -> bool:
    """Whether a parameter is not trained.

    With `freeze_below` s above 0 those are tokenizer, positions, class token and blocks 0 to s - 1; with s = L the
    final normalisation as well, so that pooling and heads are left. Gate, added attention and `tube_linear` layers,
    which no other model has, are always trained.

    Args:
        path: such as `encoder/norm/scale`; of a block `encoder/blocks/<i>/...`.
        model: its configuration.
    """
    s, parts = model.freeze_below, path.split("/")
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) < s
    if parts[:2] == ["encoder", "norm"]:
        return s == model.depth
    return bool(s) and parts[0] in _BELOW and "widen" not in parts


def split_frozen(params: dict, model: ModelConfig) -> tuple[dict, dict]:
    """Parameters -> (trained, frozen), nested dicts with the same names; of the stacked blocks each has its part."""
    s, trained, frozen = model.freeze_below, {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [key.key for key in path]
        if keys[:2] != ["encoder", "blocks"]:
            _put(frozen if is_frozen("/".join(keys), model) else trained, keys, leaf)
        elif s in (0, model.depth):
            _put(frozen if s else trained, keys, leaf)
        else:
            _put(frozen, keys, leaf[:s])
            _put(trained, keys, leaf[s:])
    return trained, frozen


def join_frozen(trained: dict, frozen: dict) -> dict:
    """The inverse of `split_frozen`."""
    joined = dict(trained)
    for name, part in frozen.items():
        if name not in trained:
            joined[name] = part
        elif isinstance(part, dict):
            joined[name] = join_frozen(trained[name], part)
        else:
            joined[name] = jnp.concatenate([part, trained[name]])
    return joined


def _put(tree: dict, keys: list[str], leaf) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = leaf
