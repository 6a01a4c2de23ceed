"""Our plain ViT with the sizes and options of a foreign one."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from tubevit.errors import UserError
from tubevit.models.config import Head, ModelConfig
from tubevit.models.variants import ARCHITECTURES, OTHER_VIT
from tubevit.tubes import TubeSet

_SIZES = ("width", "depth", "mlp_dim")
_MOST_BLOCKS = 1000  # so that a damaged number does not fill the memory
_PLAIN = {name: fields for name, fields in ARCHITECTURES.items() if name.startswith("vit_")}


def plain_vit(*, patch: int, head: Head | None, **fields) -> ModelConfig:
    """Make a plain ViT with one 2D tube and learned positions from the other fields of `ModelConfig`."""
    if fields["depth"] > _MOST_BLOCKS:
        raise UserError(f"expected at most {_MOST_BLOCKS} blocks, found {fields['depth']}")
    tubes = f"1x{patch}x{patch}/32x{patch}x{patch}"
    sizes = {"tubes": tubes, **{key: fields[key] for key in (*_SIZES, "num_heads")}}
    name = next((name for name, known in _PLAIN.items() if sizes.items() <= known.items()), OTHER_VIT)
    heads = () if head is None else (("default", head),)
    return ModelConfig(name=name, tubes=TubeSet.from_text(tubes), position="learned", frames=1, heads=heads, **fields)


def video_vit(*, tubelet: int, patch: int, head: Head | None, **fields) -> ModelConfig:
    """Make a ViT over all tubelets (tubelet, patch, patch) of a clip from the other fields of `ModelConfig`."""
    blocks = max(fields["depth"], fields.get("temporal_depth", 0))
    if blocks > _MOST_BLOCKS:
        raise UserError(f"expected at most {_MOST_BLOCKS} blocks, found {blocks}")
    text = f"{tubelet}x{patch}x{patch}"
    defaults = {"pattern": "joint", "temporal_depth": 0}
    sizes = {"tubes": f"{text}/{text}", **{key: fields[key] for key in (*_SIZES, "num_heads", "frames", "position")}}
    sizes |= {key: fields.get(key, value) for key, value in defaults.items()}
    known = {name: defaults | architecture for name, architecture in ARCHITECTURES.items()}
    name = next((name for name, architecture in known.items() if sizes.items() <= architecture.items()), OTHER_VIT)
    heads = () if head is None else (("default", head),)
    return ModelConfig(name=name, tubes=TubeSet.from_text(f"{text}/{text}"), heads=heads, **fields)


def heads_of(sizes: dict[str, int], given: int | None, source: str, kind: str = "vit") -> int:
    """Return the number of attention heads for a file that does not say it, from the architecture of the same sizes.

    Raises UserError if the user gave no number, and no architecture `<kind>_...` has this width, depth and mlp_dim.
    """
    if given is not None:
        return given
    known = {name: fields for name, fields in ARCHITECTURES.items() if name.startswith(f"{kind}_")}
    closest = min(known, key=lambda name: sum(abs(math.log(known[name][key] / sizes[key])) for key in _SIZES))
    if all(known[closest][key] == sizes[key] for key in _SIZES):
        return known[closest]["num_heads"]
    found, other = (" ".join(f"{key} {values[key]}" for key in _SIZES) for values in (sizes, known[closest]))
    raise UserError(
        f"{source}: no known {kind} has {found}; the closest is {closest} with {other}. The file does not say the "
        "number of attention heads: pass --heads N"
    )


def depth_of(names: Iterable[str], block: str) -> int:
    """Return the number of blocks that have arrays, at least 1; `block` is their name with `*` for the number."""
    prefix = block.removesuffix("*")
    numbers = (name.removeprefix(prefix).replace(".", "/").split("/")[0] for name in names if name.startswith(prefix))
    return 1 + max(int(number) for number in numbers if number.isdecimal())


def side_of(tokens: int, source: str) -> int:
    """Return the number of patches along each side of the image; raises UserError if they form no square."""
    side = math.isqrt(tokens)
    if side * side != tokens or not side:
        raise UserError(
            f"{source}: positions of {tokens} patches, which form no square; only square images are supported"
        )
    return side


def has_class_row(rows: int) -> bool:
    """Whether a table with this many positions has one for a class token in addition to a square of patches."""
    return rows > 1 and math.isqrt(rows - 1) ** 2 == rows - 1


def fold_layer_scale(config: ModelConfig, params: dict[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Remove LayerScale: its factors become part of the last projection of each branch."""
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


def check_plain(config: ModelConfig, format: str) -> None:
    """Raise UserError unless the model is a plain ViT that pools its class token; it lists all differences."""
    tubes = config.tubes
    tube, problems = tubes.tubes[0], []
    if len(tubes.tubes) > 1 or not tube.is_2d or tube.kernel[1:] != tube.stride[1:] or tube.kernel[1] != tube.kernel[2]:
        problems.append(f"tubes {tubes} instead of one of square patches")
    elif any(tube.offset) or tube.sub_windows > 1 or tube.grid(config.shape, tubes.padding)[0] != 1:
        problems.append(f"tube {tube} with {config.frames} frames instead of patches of one frame")
    elif config.size % tube.kernel[1]:
        problems.append(f"size {config.size}, which is not a multiple of the patch size {tube.kernel[1]}")
    problems += unlike(config, position="learned", class_token=True, pooling="cls")
    if problems:
        raise UserError(f"--format {format} holds only plain ViTs; the model has {'; '.join(problems)}")


def unlike(config: ModelConfig, **expected) -> list[str]:
    """List the fields that have other values than those expected, and what no other library's format holds."""
    expected = dict(softcap=None, add_attention=0, gate_layer=None) | expected
    problems = [
        f"{key}={getattr(config, key)!r} instead of {value!r}"
        for key, value in expected.items()
        if getattr(config, key) != value
    ]
    if config.budget is not None:
        problems.append(f"budget {config.budget}: load it with load_model(..., budget='100%'), and save that")
    if len(config.heads) > 1:
        problems.append(f"several heads ({', '.join(name for name, _ in config.heads)}): --headless leaves them out")
    return problems
