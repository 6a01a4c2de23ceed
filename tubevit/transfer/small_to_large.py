"""A large video model from a small one and a large image ViT: what its tubes look like (paper section 3.6)."""

from __future__ import annotations

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
    """The configuration of a large ViT with the 3D tubes of a small model.

    The tokens of the small model are d channels wide. `concatenate` brings them to the width D without new weights: a
    token takes k = ceil(D / d) times as many sub-windows, by a further space-to-depth of (2, 1, 1) for 2 and (1, 2, 2)
    for 4, along other axes where a stride does not divide; what exceeds D is cut off. `zero_pad` leaves the channels
    beyond d at 0, `linear` adds a layer (d, D) of new weights (paper.md section 8, row 27).

    Args:
        small: a model with 3D tubes.
        large: a plain ViT; its 2D tube, class token and options of the encoder are kept.
        widen: one of `WIDEN`.
        position: `learned_2d` keeps the ViT's positions of the 2D tokens, and its class token if it has one; `fixed`
            drops both.

    Raises:
        UserError: the small model has no 3D tubes, is wider, or a stride divides by no such factor.
    """
    if widen not in WIDEN:
        raise unknown("way to widen tubes", widen, WIDEN)
    if position not in ("learned_2d", "fixed"):
        raise unknown("position of a bootstrapped model", position, ("learned_2d", "fixed"))
    if small.tubes.is_2d:
        raise UserError(f"the small model {small.name} has no 3D tubes; its tubes are {small.tubes}")
    if not large.is_plain_vit:
        raise UserError(
            f"the large model {large.name} must be a plain ViT of one frame; it has {large.frames}, its tubes are "
            f"{large.tubes}"
        )
    if position != "fixed" and large.position not in ("learned", "learned_2d"):
        raise UserError(
            f"the large model {large.name} has no learned positions but {large.position}: pass position=fixed"
        )
    if small.tube_linear:
        raise UserError(f"tubes of {small.name} cannot be carried over: a linear layer of its own follows them")
    if small.width > large.width:
        raise UserError(f"the small model is {small.width} wide, the large one {large.width}: exchange them")
    width = small.width if small.tube_width is None else small.tube_width
    ratio = -(-large.width // width) if widen == "concatenate" else 1
    tubes = [widened_tube(tube, ratio) for tube in small.tubes.tubes if not tube.is_2d]
    patch = large.tubes.tubes[0]
    spacing = next((tube.stride[0] for tube in small.tubes.tubes if tube.is_2d), patch.stride[0])
    tubes.append(dataclasses.replace(patch, stride=(spacing, *patch.stride[1:])))
    width *= ratio
    return large.replace(
        tubes=TubeSet(tuple(tubes), small.padding),
        tube_width=None if width == large.width else width, tube_linear=widen == "linear" and width != large.width,
        position=position, class_token=large.class_token and position == "learned_2d", pooling="linear",
        frames=small.frames, fps=small.fps,
    )  # fmt: skip


def inflated_config(vit: ModelConfig) -> ModelConfig:
    """The configuration of a plain ViT with the paper's tubes around its patch, for videos.

    They have no space-to-depth, so that each can begin from the ViT's kernel (see `inflate_kernel`); positions are
    fixed, there is no class token, and pooling is the paper's.

    Raises:
        UserError: its patch is not square.
    """
    patch = vit.tubes.tubes[0]
    if patch.kernel[1] != patch.kernel[2]:
        raise UserError(f"patches of {vit.name} must be square to get the paper's tubes; found {patch}")
    tubes = TubeSet(tuple(tube.plain for tube in patch_tubes(patch.kernel[1]).tubes), vit.padding)
    frames = 2 * max(tube.kernel[0] for tube in tubes.tubes)
    return vit.replace(
        tubes=tubes, position="fixed", class_token=False, pooling="linear",
        frames=frames, fps=None,
    )  # fmt: skip


def widened_tube(tube: Tube, ratio: int) -> Tube:
    """The tube with `ratio` times as many sub-windows in a token.

    Raises:
        UserError: the strides divide by no such factor.
    """
    for factor in _factors(ratio):
        total = tuple(a * b for a, b in zip(tube.space_to_depth, factor))
        if all(stride % f == 0 for stride, f in zip(tube.stride, total)):
            return dataclasses.replace(tube, space_to_depth=total)
    raise UserError(
        f"tube {tube} cannot take {ratio} times as many sub-windows: its strides divide by no such factor; "
        f"widen by {' or '.join(WIDEN[1:])} instead"
    )


def _factors(ratio: int) -> list[Triple]:
    """Triples whose product is `ratio`: the preferred one, then the more even ones, then those along time."""
    sizes = range(1, ratio + 1)
    triples = [triple for triple in itertools.product(sizes, repeat=3) if math.prod(triple) == ratio]
    return sorted(triples, key=lambda triple: (triple != _PREFERRED.get(ratio), max(triple), [-f for f in triple]))
