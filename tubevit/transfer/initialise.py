"""Start from checkpoints instead of random parameters: names and shapes must agree unless the user says otherwise."""

import re
from collections.abc import Sequence

import jax.numpy as jnp

from tubevit import storage
from tubevit.checkpoint import paths
from tubevit.errors import UserError, unknown
from tubevit.models.config import ModelConfig
from tubevit.models.freeze import is_frozen
from tubevit.transfer.adapt import Adapted, Donor
from tubevit.zoo.names import open_checkpoint
from tubevit.zoo.registry import is_release

TUBES = ("same", "inflate", "dense", "zero", "random")
_ADDED = ("encoder/gate", "encoder/added/")  # the gate and the attention layers that no other model has
_OVER_TIME = re.compile(r"encoder/blocks/\d+/time_")  # the layers that an image ViT does not have
_IMAGE_ONLY = ("position/", "class_token", "pooling/")  # may differ between a plain ViT and a video model


def read_donor(name: str) -> Donor:
    """Read the parameters of a checkpoint; raises UserError if it does not exist or is damaged."""
    checkpoint = open_checkpoint(name)
    return Donor(str(name), checkpoint.model, paths.flatten(checkpoint.read_parameters()))


def initialise(
    params: dict,
    model: ModelConfig,
    name: str,
    *,
    skip: Sequence[str] = (),
    renamed: Sequence[tuple[str, ...]] = (),
    tubes: str = "same",
) -> tuple[dict, list[str]]:
    """Replace random parameters by those of a checkpoint.

    Heads are loaded where name and labels are equal; other heads stay new, and so do the gate (alpha = 0) and added
    attention layers. Patches and learned positions of other sizes are resized, and kernels are adjusted to the model's
    pixel statistics. If a plain ViT becomes a video model, the ViT's positions, class token and pooling are left out
    where the model has others, and attention over time stays new. Everything else must agree in both
    directions, and no random parameter may be frozen.

    Args:
        params: the random parameters of the model.
        model: its configuration.
        name: what `load_model` takes.
        skip: prefixes of paths that are neither loaded nor required, e.g. `pooling` or `encoder/blocks/6-11`.
        renamed: pairs of a prefix of the checkpoint's paths and its replacement in the model; parameters that the
            checkpoint itself has under the replacement are left out.
        tubes: the origin of 3D tubes that the checkpoint lacks: `same` (it must have all of them, but a plain ViT is
            inflated), `inflate` (the 2D kernel, see `inflate_kernel`), `dense` (all tubes and positions from its only
            tube, see `sparse_config`), `zero`, `random`, or the name of a checkpoint that has them (a small tube model,
            see `bootstrapped_config`).

    Returns:
        The parameters, and one line for each thing that was changed, left out or new.

    Raises:
        UserError: the checkpoint does not exist, does not fit (the message lists everything that is missing, unexpected
            or of another shape) or was trained with other settings; or random parameters would be frozen.
    """
    source = read_donor(name)
    small = None if tubes in TUBES else _read_small(tubes)
    becomes_video = source.config.is_plain_vit and not model.is_plain_vit
    notes = _compare_settings(source, model, becomes_video)

    missing_tubes = "same" if small else "inflate" if tubes == "same" and becomes_video else tubes
    adapted = Adapted(source, small, model, missing_tubes)
    notes += adapted.notes
    wanted = paths.unstack(paths.flatten(params))
    offered, replaced = paths.rename(paths.unstack(adapted.params), renamed)

    may_be_new = (*_ADDED, *_IMAGE_ONLY, "encoder/temporal/") if becomes_video else _ADDED
    may_be_left_out = _IMAGE_ONLY if becomes_video else ()
    missing = [path for path in wanted if path not in offered]
    new = adapted.new + [path for path in missing if path.startswith(may_be_new)]
    over_time = [path for path in missing if becomes_video and _OVER_TIME.match(path)]
    left_out = [path for path in offered if path not in wanted and path.startswith(may_be_left_out)]
    heads = _changed_heads(source, model, renamed, notes)
    for prefix in skip:
        if not any(paths.matches(path, prefix) for path in {**offered, **wanted}):
            raise paths.no_match("init.skip", prefix, {**offered, **wanted})

    offered = _without(offered, (*heads, *skip, *left_out))
    required = _without(wanted, (*heads, *skip, *new, *over_time))
    if problems := paths.differences(required, offered):
        raise UserError(
            f"init.checkpoint {name} ({source.config.name}, tubes {source.config.tubes}) does not fit {model.name}, "
            f"tubes {model.tubes}: {'; '.join(problems)}; init.skip leaves parameters out, init.rename renames them"
        )
    _check_frozen(wanted, offered, model, zero_tubes=missing_tubes == "zero")
    listed = {
        "new": [*new, *paths.summarise(over_time)], "left out": left_out,
        "left out, replaced by renamed parameters": paths.summarise(replaced), "neither loaded nor required": skip,
    }  # fmt: skip
    notes += [f"{text}: {', '.join(names)}" for text, names in listed.items() if names]
    return paths.unflatten({path: jnp.asarray(leaf) for path, leaf in paths.stack(wanted | offered).items()}), notes


def _read_small(name: str) -> Donor:
    if "/" not in name and not storage.exists(name) and not is_release(name):  # more likely a misspelt keyword
        raise unknown("init.tubes", name, (*TUBES, "the name of a checkpoint"))
    small = read_donor(name)
    if small.config.tube_linear:
        raise UserError(
            f"init.tubes={name}: its tubes cannot be carried over, because a linear layer follows them "
            "(tube_linear=true); expected a model with tube_linear=false"
        )
    return small


def _compare_settings(source: Donor, model: ModelConfig, becomes_video: bool) -> list[str]:
    """Compare settings that the parameters were trained with: note differences, refuse harmful ones."""
    old, fixed = source.config, ["gelu", "norm_epsilon", "softcap"]
    if old.final_norm == model.final_norm == "pooled":
        fixed.append("pooled_norm_epsilon")
    if old.pattern == model.pattern == "factorised_encoder":
        fixed.append("frame_pooling")
    if old.interpolated and model.interpolated:
        fixed += ["gain_norm", "antialias"]
    if None not in (old.gate_layer, model.gate_layer):
        fixed.append("gate_layer")
    differing = [key for key in fixed if getattr(old, key) != getattr(model, key)]
    if differing:
        flags = " ".join(f"--config.model.{key}={getattr(old, key)}" for key in differing)
        raise UserError(
            f"init.checkpoint {source.name} was trained with another {' and '.join(differing)}: pass {flags}"
        )
    noted = ["pooling"] if becomes_video else ["pooling", "position", "padding", "pattern"]
    notes = [
        f"{key} {getattr(model, key)} instead of {getattr(old, key)} of {source.name}"
        for key in noted
        if getattr(old, key) != getattr(model, key)
    ]
    if model.renumbers(old):
        notes.append(f"positions 'index' give the tokens other numbers than those of {source.name}")
    return notes


def _changed_heads(source: Donor, model: ModelConfig, renamed, notes: list[str]) -> list[str]:
    """Return the paths of the heads that differ; adds lines about them to `notes`."""
    old, heads = {}, dict(model.heads)
    for name, head in source.config.heads:
        path = f"heads/{name}"
        path = next((replacement for prefix, replacement in renamed if paths.matches(path, prefix)), path)
        old[path.removeprefix("heads/")] = head
    new = [head for head in heads if heads[head] != old.get(head)]
    dropped = [head for head in old if head not in heads or head in new]
    if new:
        notes.append(f"new heads: {', '.join(new)}")
    if dropped:
        notes.append(f"heads of {source.name} left out: {', '.join(dropped)}")
    return [f"heads/{head}" for head in {*new, *dropped}]


def _without(params: dict, prefixes: Sequence[str]) -> dict:
    return {path: leaf for path, leaf in params.items() if not any(paths.matches(path, prefix) for prefix in prefixes)}


def _check_frozen(wanted: dict, loaded: dict, model: ModelConfig, zero_tubes: bool) -> None:
    """Raise UserError if a parameter that no checkpoint gave would never be trained."""
    fresh = [path for path in wanted if path not in loaded]
    if zero_tubes:
        fresh += [path for path, leaf in loaded.items() if path.startswith("tokenizer/") and not leaf.any()]
    frozen = [path for path in fresh if is_frozen(path, model)]
    if frozen:
        key, value, off = "train.freeze_below", model.freeze_below, 0
        if model.lora is not None:
            key, value, off = "train.adapter", "lora", "none"
        raise UserError(
            f"frozen by {key}={value}, but not in a checkpoint: {'; '.join(paths.summarise(frozen))}; expected a "
            f"checkpoint that has them, or {key}={off}"
        )
