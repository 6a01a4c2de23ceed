"""Trained and frozen parameters: two trees, so that frozen ones have no gradient, optimiser state or update."""

import jax
import jax.numpy as jnp

from tubevit.models.config import ModelConfig
from tubevit.models.lora import NAMES

_BELOW = ("tokenizer", "position", "class_token")


def is_frozen(path: str, model: ModelConfig) -> bool:
    """Return whether a parameter is frozen.

    If `freeze_below` s is above 0, the tokenizer, positions, class token and blocks 0 to s - 1 are frozen, and so is
    the gate if a frozen block follows it, which its gradient would pass through. If s = L, the final normalisation (of
    tokens or of pooled features) and the second encoder of a factorised encoder are frozen as well. Pooling, heads,
    added attention and `tube_linear` layers are always trained. With an adapter, all that s = L freezes is frozen but
    the gate, and the adapter is trained.

    Args:
        path: path of the parameter, such as `encoder/norm/scale` or, for blocks, `encoder/blocks/<i>/...`.
        model: configuration of the model.
    """
    s, parts = model.frozen_blocks, path.split("/")
    if parts[-1] in NAMES:
        return False
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) < s
    if parts[:2] == ["encoder", "gate"]:
        return model.gate_layer is not None and model.gate_layer + 1 < model.freeze_below
    if parts[:2] in (["encoder", "norm"], ["encoder", "temporal"]) or parts[0] == "pooled_norm":
        return s == model.depth
    return bool(s) and parts[0] in _BELOW and "widen" not in parts


def split_frozen(params: dict, model: ModelConfig) -> tuple[dict, dict]:
    """Split parameters into trained and frozen ones, with the same names; stacked blocks are sliced."""
    s, trained, frozen = model.frozen_blocks, {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [key.key for key in path]
        if keys[:2] != ["encoder", "blocks"] or keys[-1] in NAMES:
            _put(frozen if is_frozen("/".join(keys), model) else trained, keys, leaf)
        elif s in (0, model.depth):
            _put(frozen if s else trained, keys, leaf)
        else:
            _put(frozen, keys, leaf[:s])
            _put(trained, keys, leaf[s:])
    return trained, frozen


def join_frozen(trained: dict, frozen: dict) -> dict:
    """Join trained and frozen parameters again, see `split_frozen`."""
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
