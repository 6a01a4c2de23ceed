"""Beginning from checkpoints instead of random parameters: compared from both sides, refused unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from tubevit import storage
from tubevit.checkpoint.paths import flatten, matches, no_match, rename, stack, summarise, unflatten, unstack
from tubevit.errors import UserError, unknown
from tubevit.models.config import ModelConfig
from tubevit.models.freeze import is_frozen
from tubevit.transfer.adapt import Donor, adapt
from tubevit.zoo.names import open_checkpoint
from tubevit.zoo.registry import is_release

TUBES = ("same", "inflate", "zero", "random")


def read_donor(name: str) -> Donor:
    """The parameters of a checkpoint; raises UserError if there is none, or it is not whole."""
    checkpoint = open_checkpoint(name)
    return Donor(str(name), checkpoint.model, flatten(checkpoint.read_parameters()))


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
    the model has others. Everything else must fit from both sides, and nothing random may be frozen.

    Args:
        params: the model's own, random.
        model: their configuration.
        name: what `load_model` takes.
        skip: beginnings of paths that are neither taken over nor missed, e.g. `pooling` or `encoder/blocks/6-11`.
        renamed: pairs: a beginning of the checkpoint's paths, and what it is in the model; what the checkpoint has
            there itself is left out.
        tubes: where the 3D tubes come from that the checkpoint lacks: `same` (it must have all; those of a plain ViT
            are inflated), `inflate` (its 2D kernel, see `inflate_kernel`), `zero`, `random`, or the name of a
            checkpoint that has them (a small tube model, see `bootstrapped_config`).

    Returns:
        The parameters, and lines that say what was not taken over as it was.

    Raises:
        UserError: no such checkpoint; it does not fit: all that is missing, unexpected or of another shape; it was
            trained to behave otherwise; or parameters that are frozen would be random.
    """
    source = read_donor(name)
    small = None if tubes in TUBES else _read_small(tubes)
    becomes_video = source.config.is_plain_vit and not model.tubes.is_2d
    notes = _compare_behaviour(source, model, becomes_video)
    how = "inflate" if tubes == "same" and becomes_video else "same" if small else tubes
    found, new, changes = adapt(source, small, model, how)
    notes += changes
    have, displaced = rename(unstack(found), renamed)
    want = unstack(flatten(params))
    new += [path for path in want if path not in have and path.startswith(("encoder/gate", "encoder/added/"))]
    dropped = []
    if becomes_video:
        of_images = ("position/", "class_token", "pooling/")
        new += [path for path in want if path not in have and path.startswith(of_images)]
        dropped += [path for path in have if path not in want and path.startswith(of_images)]
    heads = _changed_heads(source, model, renamed, notes)
    for prefix in skip:
        if not any(matches(path, prefix) for path in {**have, **want}):
            raise no_match("init.skip", prefix, {**have, **want})
    taken = _compare(have, want, (*heads, *skip, *dropped), (*heads, *skip, *new), _title(source, model))
    blank = [] if how != "zero" else [path for path in taken if path.startswith("tokenizer/") and not taken[path].any()]
    _check_frozen([*(want.keys() - taken.keys()), *blank], model)
    notes += [f"new: {', '.join(new)}"] if new else []
    notes += [f"left out: {', '.join(dropped)}"] if dropped else []
    notes += [f"left out for those that were renamed: {', '.join(summarise(dict.fromkeys(displaced, '')))}"] * bool(
        displaced
    )
    notes += [f"neither taken nor missed: {', '.join(skip)}"] if skip else []
    merged = stack(want | taken)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in merged.items()}), notes


def _read_small(name: str) -> Donor:
    if not storage.exists(name) and "/" not in name and not is_release(name):  # more likely one of the words
        raise unknown("init.tubes", name, (*TUBES, "the name of a checkpoint"))
    small = read_donor(name)
    if small.config.tube_linear:
        raise UserError(f"tubes of {name} cannot be carried over: a linear layer of its own follows them (tube_linear)")
    return small


def _compare_behaviour(source: Donor, model: ModelConfig, becomes_video: bool) -> list[str]:
    """What is no parameter but was trained with them: lines about what differs; raises UserError where it must not."""
    old, must = source.config, ["gelu", "norm_epsilon"]
    must += ["gain_norm", "antialias"] if old.interpolated and model.interpolated else []
    must += ["gate_layer"] if None not in (old.gate_layer, model.gate_layer) else []
    differing = [key for key in must if getattr(old, key) != getattr(model, key)]
    if differing:
        flags = " ".join(f"--config.model.{key}={getattr(old, key)}" for key in differing)
        raise UserError(
            f"init.checkpoint {source.name} was trained with another {' and '.join(differing)}: pass {flags}"
        )
    may = () if becomes_video else ("position", "padding")
    return [
        f"{key} {getattr(model, key)} instead of {getattr(old, key)} of {source.name}"
        for key in may
        if getattr(old, key) != getattr(model, key)
    ]


def _check_frozen(fresh: Sequence[str], model: ModelConfig) -> None:
    """Raises UserError if a parameter that no checkpoint gave would never be trained."""
    frozen = {path: "" for path in fresh if is_frozen(path, model)}
    if frozen:
        raise UserError(
            f"frozen by train.freeze_below={model.freeze_below}, but of no checkpoint: {'; '.join(summarise(frozen))}; "
            "expected a checkpoint that has them, or train.freeze_below=0"
        )


def _changed_heads(source: Donor, model: ModelConfig, renamed, notes: list[str]) -> list[str]:
    """Paths of the heads that differ; adds lines about them."""
    stored = {f"heads/{name}": head for name, head in source.config.heads}
    heads, old = dict(model.heads), {}
    for path, head in stored.items():
        pair = next(((old_name, new_name) for old_name, new_name in renamed if matches(path, old_name)), None)
        old[(path if pair is None else pair[1]).removeprefix("heads/")] = head
    new = [head for head in heads if heads[head] != old.get(head)]
    dropped = [head for head in old if head not in heads or head in new]
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


def _title(source: Donor, model: ModelConfig) -> str:
    config = source.config
    return (
        f"init.checkpoint {source.name} ({config.name}, tubes {config.tubes}) does not fit {model.name}, "
        f"tubes {model.tubes}"
    )
