"""Beginning from a checkpoint instead of random parameters."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from tubevit.errors import UserError
from tubevit.models.tubevit import ModelConfig, TubeViT
from tubevit.tubes import Tube
from tubevit.zoo.checkpoint import config_from_metadata, find_checkpoint, load_tree, parameters, read_metadata


def initialise(
    params: dict, model: ModelConfig, name: str, *, skip: Sequence[str] = (), tubes: str = "same"
) -> tuple[dict, list[str]]:
    """Parameters of a checkpoint in place of random ones.

    Heads are taken over where name and labels are the same; the others stay new. Everything else must fit from both
    sides. Frames and size of the input, dropout and the like may differ: the position embedding is computed.

    Args:
        params: the model's own, random.
        model: their configuration.
        name: what `load_model` takes.
        skip: beginnings of parameter paths that stay as they are, e.g. `pooling`.
        tubes: `same`, or `inflate`: kernels of tubes that the checkpoint does not have become its 2D kernel, repeated
            over their frames and divided by the number of them, so that a static clip gives the image's tokens.

    Returns:
        The parameters, and lines that say what was not taken over.

    Raises:
        UserError: no such checkpoint; it does not fit: all that is missing, unexpected or of another shape.
    """
    checkpoint = find_checkpoint(name)
    stored = config_from_metadata(read_metadata(checkpoint)["model"])
    abstract = parameters(nnx.eval_shape(lambda: TubeViT(stored, rngs=nnx.Rngs(0))))
    source = _flatten(load_tree(checkpoint, "params", abstract))
    target = _flatten(params)
    notes = []
    if tubes == "inflate":
        source = _inflate_tubes(source, stored, model, checkpoint)
    stored_heads, heads = dict(stored.heads), dict(model.heads)
    new = [head for head in heads if heads[head] != stored_heads.get(head)]
    if new:
        notes.append(f"new heads: {', '.join(new)}")
    if dropped := [head for head in stored_heads if head not in heads or head in new]:
        notes.append(f"heads of {name} left out: {', '.join(dropped)}")
    kept = tuple(f"heads/{head}/" for head in {*new, *dropped}) + tuple(skip)
    wanted = {path for path in target if not path.startswith(kept)}
    for prefix in skip:
        if not any(path.startswith(prefix) for path in target):
            raise UserError(f"init.skip: no parameter begins with {prefix!r}; they are {', '.join(sorted(params))}/...")
    problems = [f"missing {path}" for path in sorted(wanted - set(source))]
    problems += [f"unexpected {path}" for path in sorted(set(source) - wanted) if not path.startswith(kept)]
    problems += [
        f"{path}: expected {target[path].shape}, found {source[path].shape}"
        for path in sorted(wanted & set(source))
        if target[path].shape != source[path].shape
    ]
    if problems:
        raise UserError(
            f"init.checkpoint {name} ({stored.name}, tubes {stored.tubes}) does not fit {model.name}, "
            f"tubes {model.tubes}: {'; '.join(problems)}; init.skip leaves parameters out"
        )
    merged = target | {path: source[path] for path in wanted}
    return _unflatten(merged), notes


def _inflate_tubes(source: dict, stored: ModelConfig, model: ModelConfig, checkpoint) -> dict:
    """The checkpoint's parameters with the tubes of the model in place of its own."""
    images = [i for i, tube in enumerate(stored.tubes.tubes) if tube.kernel[0] == 1]
    if not images:
        raise UserError(f"init.tubes=inflate: {checkpoint} has no tube of one frame; its tubes are {stored.tubes}")
    flat = tuple(source.pop(f"tokenizer/tubes/{images[0]}/{leaf}") for leaf in ("kernel", "bias"))
    rest = {path: value for path, value in source.items() if not path.startswith("tokenizer/tubes/")}
    for i, tube in enumerate(model.tubes.tubes):
        rest |= {
            f"tokenizer/tubes/{i}/{leaf}": value
            for leaf, value in zip(("kernel", "bias"), (_inflate(flat[0], tube), flat[1]), strict=True)
        }
    return rest


def _inflate(kernel: jax.Array, tube: Tube) -> jax.Array:
    """(1, k_y, k_x, 3, D) -> (k_t, k_y, k_x, 3, D)."""
    if tube.kernel[1:] != kernel.shape[1:3] or tube.sub_windows > 1:
        raise UserError(
            f"init.tubes=inflate repeats a kernel of {kernel.shape[1]}x{kernel.shape[2]} pixels over time; "
            f"tube {tube} is not of this size, or has space-to-depth"
        )
    return jnp.repeat(kernel, tube.kernel[0], axis=0) / tube.kernel[0]


def _flatten(tree: dict) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(flat: dict) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
