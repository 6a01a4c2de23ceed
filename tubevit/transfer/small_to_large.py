"""Configurations of large video models built from a large image ViT and a small model's tubes (paper section 3.6)."""

import dataclasses
import itertools
import math

from tubevit.errors import UserError, unknown
from tubevit.models.config import ModelConfig
from tubevit.models.variants import patch_tubes
from tubevit.tubes import Triple, Tube, TubeSet

WIDEN = ("concatenate", "zero_pad", "linear")
_PREFERRED = {2: (2, 1, 1), 4: (1, 2, 2)}


def bootstrapped_config(
    small: ModelConfig, large: ModelConfig, *, widen: str = "concatenate", position: str = "learned_2d"
) -> ModelConfig:
    """Return the configuration of a large ViT with the 3D tubes of a small model.

    The tokens of the small model have d channels, those of the large model D. `concatenate` needs no new weights: a
    token concatenates k = ceil(D / d) times as many sub-windows, by an additional space-to-depth of (2, 1, 1) for
    k = 2 and (1, 2, 2) for k = 4, or along other axes if a stride is not divisible; channels beyond D are cut off.
    `zero_pad` sets the channels beyond d to 0, `linear` adds a new layer (d, D) (paper.md section 8, row 27).

    Args:
        small: the configuration of a model with 3D tubes.
        large: the configuration of a plain ViT; its 2D tube, class token and encoder options are kept.
        widen: one of `WIDEN`.
        position: `learned_2d` keeps the ViT's positions for the 2D tokens, and its class token if it has one; `fixed`
            drops both.

    Raises:
        UserError: the small model has no 3D tubes or is wider, or a stride is not divisible by any such factor.
    """
    if widen not in WIDEN:
        raise unknown("way to widen tubes", widen, WIDEN)
    if position not in ("learned_2d", "fixed"):
        raise unknown("position of a bootstrapped model", position, ("learned_2d", "fixed"))
    if small.tubes.is_2d:
        raise UserError(f"the small model {small.name} has no 3D tubes; its tubes are {small.tubes}")
    if not large.is_plain_vit:
        raise UserError(
            f"the large model {large.name} must be a plain ViT with one frame; it has {large.frames} frames, its tubes "
            f"are {large.tubes}"
        )
    if position != "fixed" and large.position not in ("learned", "learned_2d"):
        raise UserError(
            f"the large model {large.name} has {large.position} positions instead of learned ones: pass position=fixed"
        )
    if small.tube_linear:
        raise UserError(
            f"the tubes of {small.name} cannot be carried over, because a linear layer follows them (tube_linear)"
        )
    if small.width > large.width:
        raise UserError(f"the small model is {small.width} wide, the large one only {large.width}: exchange them")
    width = small.width if small.tube_width is None else small.tube_width
    ratio = -(-large.width // width) if widen == "concatenate" else 1
    tubes = [widened_tube(tube, ratio) for tube in small.tubes.tubes if not tube.is_2d]
    patch = large.tubes.tubes[0]
    spacing = next((tube.stride[0] for tube in small.tubes.tubes if tube.is_2d), patch.stride[0])
    tubes.append(dataclasses.replace(patch, stride=(spacing, *patch.stride[1:])))
    width *= ratio
    return large.replace(
        tubes=TubeSet(tuple(tubes), small.tubes.padding),
        tube_width=None if width == large.width else width, tube_linear=widen == "linear" and width != large.width,
        position=position, class_token=large.class_token and position == "learned_2d", pooling="linear",
        frames=small.frames, fps=small.fps,
    )  # fmt: skip


def inflated_config(vit: ModelConfig) -> ModelConfig:
    """Return the configuration of a plain ViT for videos, with the paper's tubes scaled to its patch size.

    The tubes have no space-to-depth, so that each can start from the ViT's kernel (see `inflate_kernel`). Positions
    are fixed, there is no class token, and the pooling is that of the paper.

    Raises:
        UserError: the patch is not square.
    """
    patch = vit.tubes.tubes[0]
    if patch.kernel[1] != patch.kernel[2]:
        raise UserError(f"the paper's tubes need square patches; found {patch} in {vit.name}")
    tubes = TubeSet(tuple(tube.plain for tube in patch_tubes(patch.kernel[1]).tubes), vit.tubes.padding)
    frames = 2 * max(tube.kernel[0] for tube in tubes.tubes)
    return vit.replace(tubes=tubes, position="fixed", class_token=False, pooling="linear", frames=frames, fps=None)


def widened_tube(tube: Tube, ratio: int) -> Tube:
    """Return the tube with `ratio` times as many sub-windows per token; raises UserError if no stride allows it."""
    for factor in _factors(ratio):
        total = tuple(a * b for a, b in zip(tube.space_to_depth, factor))
        if all(stride % f == 0 for stride, f in zip(tube.stride, total)):
            return dataclasses.replace(tube, space_to_depth=total)
    raise UserError(
        f"tube {tube} cannot take {ratio} times as many sub-windows: its strides are not divisible by any such "
        f"factor; use widen={' or '.join(WIDEN[1:])} instead"
    )


def _factors(ratio: int) -> list[Triple]:
    """List the triples with product `ratio`: first the preferred one, then the more even ones, then time first."""
    sizes = range(1, ratio + 1)
    triples = [triple for triple in itertools.product(sizes, repeat=3) if math.prod(triple) == ratio]
    return sorted(triples, key=lambda triple: (triple != _PREFERRED.get(ratio), max(triple), [-f for f in triple]))
