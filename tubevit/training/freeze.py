"""Which parameters are trained: two trees, so that the others have no gradient, no optimiser state and no update."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tubevit.models.config import ModelConfig

_BELOW = ("tokenizer", "position", "class_token")


def split_frozen(params: dict, model: ModelConfig) -> tuple[dict, dict]:
    """Parameters -> (trained, frozen), nested dicts with the same names.

    With `freeze_below` s above 0 tokenizer, positions, class token and blocks 0 to s - 1 are frozen; of the stacked
    blocks each tree has its part. With s = L the final normalisation is frozen as well: pooling and heads are left.
    What has new weights, the gate, added attention and `tube_linear` layers, is always trained.
    """
    s, trained, frozen = model.freeze_below, {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [key.key for key in path]
        if keys[:2] == ["encoder", "blocks"]:
            if s < model.depth:
                _put(trained, keys, leaf[s:] if s else leaf)
            if s:
                _put(frozen, keys, leaf[:s] if s < model.depth else leaf)
        else:
            below = s and keys[0] in _BELOW and "widen" not in keys
            last = s == model.depth and keys[:2] == ["encoder", "norm"]
            _put(frozen if below or last else trained, keys, leaf)
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
