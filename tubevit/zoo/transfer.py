"""Beginning from checkpoints instead of random parameters: compared from both sides, refused unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT
from tubevit.zoo.adapt import Source, adapt
from tubevit.zoo.checkpoint import config_from_metadata, find_checkpoint, load_tree, parameters, read_metadata
from tubevit.zoo.paths import flatten, matches, rename, stack, summarise, unflatten, unstack

TUBES = ("same", "inflate", "zero", "random")
# No parameters, but those that were trained under them need them.
_BEHAVIOUR = ("gelu", "norm_epsilon")


def read_source(name: str) -> Source:
    """The parameters of a checkpoint; raises UserError if there is none, or it is not whole."""
    checkpoint = find_checkpoint(name)
    config = config_from_metadata(read_metadata(checkpoint)["model"])
    abstract = parameters(nnx.eval_shape(lambda: TubeViT(config, rngs=nnx.Rngs(0))))
    return Source(str(name), config, flatten(load_tree(checkpoint, "params", abstract)))


def initialise(
    params: dict,
    model: ModelConfig,
    name: str,
    *,
    skip: Sequence[str] = (),
    renamed: Sequence[tuple[str, str]] = (),
    tubes: str = "same",
) -> tuple[dict, list[str]]:
    """Parameters of a checkpoint in place of random ones.

    Heads are taken over where name and labels are the same; the others stay new, as do the gate (alpha = 0) and added
    attention layers. Patches and learned positions of other sizes are resized, kernels for other pixel statistics are
    adjusted. Of a plain ViT that becomes a model with 3D tubes, positions, class token and pooling are left out where
    the model has others. Everything else must fit from both sides.

    Args:
        params: the model's own, random.
        model: their configuration.
        name: what `load_model` takes.
        skip: beginnings of paths that are neither taken over nor missed, e.g. `pooling` or `encoder/blocks/6-11`.
        renamed: pairs: a beginning of the checkpoint's paths, and what it is in the model.
        tubes: where the 3D tubes come from that the checkpoint lacks: `same` (it must have all; those of a plain ViT
            are inflated), `inflate` (its 2D kernel, see `inflate_kernel`), `zero`, `random`, or the name of a
            checkpoint that has them (a small tube model, see `bootstrapped_config`).

    Returns:
        The parameters, and lines that say what was not taken over as it was.

    Raises:
        UserError: no such checkpoint; it does not fit: all that is missing, unexpected or of another shape.
    """
    source = read_source(name)
    differing = [key for key in _BEHAVIOUR if getattr(source.config, key) != getattr(model, key)]
    if differing:
        flags = " ".join(f"--config.model.{key}={getattr(source.config, key)}" for key in differing)
        raise UserError(f"init.checkpoint {name} was trained with another {' and '.join(differing)}: pass {flags}")
    small = None if tubes in TUBES else read_source(tubes)
    becomes_video = source.config.tubes.is_2d and not model.tubes.is_2d
    how = "inflate" if tubes == "same" and becomes_video else "same" if small else tubes
    found, new, notes = adapt(source, small, model, how)
    have, want = rename(unstack(found), renamed), unstack(flatten(params))
    new += [path for path in want if path not in have and path.startswith(("encoder/gate", "encoder/added/"))]
    dropped = []
    if becomes_video:
        of_images = ("position/", "class_token", "pooling/")
        new += [path for path in want if path not in have and path.startswith(of_images)]
        dropped += [path for path in have if path not in want and path.startswith(of_images)]
    heads = _changed_heads(source, model, renamed, notes)
    for prefix in skip:
        if not any(matches(path, prefix) for path in {**have, **want}):
            raise UserError(f"init.skip: no parameter begins with {prefix!r}; they are {', '.join(sorted(params))}/...")
    taken = _compare(have, want, (*heads, *skip, *dropped), (*heads, *skip, *new), _title(source, model))
    notes += [f"new: {', '.join(new)}"] if new else []
    notes += [f"left out: {', '.join(dropped)}"] if dropped else []
    notes += [f"neither taken nor missed: {', '.join(skip)}"] if skip else []
    merged = stack(want | taken)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in merged.items()}), notes


def _changed_heads(source: Source, model: ModelConfig, renamed, notes: list[str]) -> list[str]:
    """Paths of the heads that differ; adds lines about them."""
    stored = rename({f"heads/{name}": head for name, head in source.config.heads}, renamed)
    stored, heads = {path.removeprefix("heads/"): head for path, head in stored.items()}, dict(model.heads)
    new = [head for head in heads if heads[head] != stored.get(head)]
    dropped = [head for head in stored if head not in heads or head in new]
    notes += [f"new heads: {', '.join(new)}"] if new else []
    notes += [f"heads of {source.name} left out: {', '.join(dropped)}"] if dropped else []
    return [f"heads/{head}" for head in {*new, *dropped}]


def _compare(have: dict, want: dict, not_taken: Sequence[str], not_missed: Sequence[str], title: str) -> dict:
    """What is taken over; raises UserError with all that is missing, unexpected or of another shape."""
    offered = {path for path in have if not any(matches(path, beginning) for beginning in not_taken)}
    needed = {path for path in want if not any(matches(path, beginning) for beginning in not_missed)}
    missing = {path: "" for path in sorted(needed - offered)}
    unexpected = {path: "" for path in sorted(offered - needed)}
    shapes = {
        path: f": expected {tuple(want[path].shape)}, found {tuple(have[path].shape)}"
        for path in sorted(needed & offered)
        if want[path].shape != have[path].shape
    }
    problems = [f"missing {line}" for line in summarise(missing)]
    problems += [f"unexpected {line}" for line in summarise(unexpected)] + summarise(shapes)
    if problems:
        raise UserError(
            f"{title}: {'; '.join(problems)}; init.skip leaves parameters out, init.rename gives others' names"
        )
    return {path: have[path] for path in needed}


def _title(source: Source, model: ModelConfig) -> str:
    config = source.config
    return (
        f"init.checkpoint {source.name} ({config.name}, tubes {config.tubes}) does not fit {model.name}, "
        f"tubes {model.tubes}"
    )
