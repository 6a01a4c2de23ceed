"""Our plain ViT of the sizes and options that a foreign one has."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tubevit.errors import UserError
from tubevit.models.config import Head, ModelConfig
from tubevit.models.variants import ARCHITECTURES, OTHER_VIT

_SIZES = ("width", "depth", "mlp_dim")
_MOST_BLOCKS = 1000  # a damaged number is not to fill the memory
_PLAIN = {name: fields for name, fields in ARCHITECTURES.items() if name.startswith("vit_")}


def plain_vit(*, patch: int, head: Head | None, **fields) -> ModelConfig:
    """The configuration of a plain ViT: one 2D tube, learned positions.

    Args:
        patch: rows = columns of a patch.
        head: the one named `default`, or None.
        **fields: the others of `ModelConfig` but `name`, `tubes`, `position` and `frames`.

    Raises:
        UserError: sizes that do not fit each other.
    """
    if fields["depth"] > _MOST_BLOCKS:
        raise UserError(f"expected at most {_MOST_BLOCKS} blocks, found {fields['depth']}")
    tubes = f"1x{patch}x{patch}/32x{patch}x{patch}"
    same = [
        name for name, known in _PLAIN.items()
        if known["tubes"] == tubes and all(known[key] == fields[key] for key in (*_SIZES, "num_heads"))
    ]  # fmt: skip
    heads = () if head is None else (("default", head),)
    name = same[0] if same else OTHER_VIT
    return ModelConfig(name=name, tubes=tubes, position="learned", frames=1, heads=heads, **fields)


def heads_of(sizes: dict[str, int], given: int | None, source: str) -> int:
    """The number of attention heads of a file that does not say it: that of the architecture of the same sizes.

    Args:
        sizes: width, depth and mlp_dim.
        given: by the user, or None.
        source: of the error.

    Raises:
        UserError: no architecture has these sizes.
    """
    if given is not None:
        return given
    for known in _PLAIN.values():
        if all(known[key] == sizes[key] for key in _SIZES):
            return known["num_heads"]

    def distance(name: str) -> float:
        return sum(abs(math.log(_PLAIN[name][key] / sizes[key])) for key in _SIZES)

    closest = min(_PLAIN, key=distance)
    found, other = (" ".join(f"{key} {values[key]}" for key in _SIZES) for values in (sizes, _PLAIN[closest]))
    raise UserError(
        f"{source}: no known ViT has {found}; the closest is {closest} with {other}. The file does not say how many "
        "attention heads there are: pass --heads N"
    )


def side_of(tokens: int, source: str) -> int:
    """Patches along each side of the image.

    Raises:
        UserError: they make no square.
    """
    side = math.isqrt(tokens)
    if side * side != tokens or not side:
        raise UserError(f"{source}: positions of {tokens} patches, which make no square; only square images are read")
    return side


def with_class_row(rows: int) -> bool:
    """Whether a table of this many positions has one for the class token before those of a square of patches."""
    return rows > 1 and math.isqrt(rows - 1) ** 2 == rows - 1


def fold_layer_scale(config: ModelConfig, params: dict[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The same model without LayerScale: its factors become part of the last projection of each branch."""
    if config.layer_scale is None:
        return config, params
    folded = dict(params)
    for scale, layer in (("scale1", "attention/out"), ("scale2", "mlp/down")):
        factors = np.asarray(folded.pop(f"encoder/blocks/{scale}"))  # (L, D)
        for leaf in ("kernel", "bias"):
            path = f"encoder/blocks/{layer}/{leaf}"
            between = (1,) * (folded[path].ndim - 2)
            folded[path] = folded[path] * factors.reshape(len(factors), *between, -1)
    return dataclasses.replace(config, layer_scale=None), folded


def check_plain(config: ModelConfig, where: str) -> None:
    """Raises UserError with all that a plain ViT, with a class token that it pools, does not have."""
    tubes = config.tubes
    tube, problems = tubes.tubes[0], []
    if len(tubes.tubes) > 1 or not tube.is_2d or tube.kernel[1:] != tube.stride[1:] or tube.kernel[1] != tube.kernel[2]:
        problems.append(f"tubes {tubes} instead of one of square patches")
    elif any(tube.offset) or tube.sub_windows > 1 or tube.grid(config.shape, tubes.padding)[0] != 1:
        problems.append(f"tube {tube} with {config.frames} frames instead of patches of one frame")
    elif config.size % tube.kernel[1]:
        problems.append(f"size {config.size}, which patches of {tube.kernel[1]} do not fill")
    wanted = dict(position="learned", class_token=True, pooling="cls", add_attention=0, gate_layer=None)
    found = {key: getattr(config, key) for key in wanted}
    problems += [f"{key}={found[key]!r} instead of {value!r}" for key, value in wanted.items() if found[key] != value]
    if len(config.heads) > 1:
        names = ", ".join(name for name, _ in config.heads)
        problems.append(f"several heads ({names}): --headless leaves them out")
    if problems:
        raise UserError(f"{where} holds plain ViTs only; the model has {'; '.join(problems)}")
