"""ViTs of big_vision, such as those of SigLIP and LiT: .npz, blocks scanned or not, maybe one of several towers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import flax_vit
from tubevit.convert.foreign import Foreign, Options
from tubevit.errors import UserError, unknown

# A block counts the modules of each kind on.
ARRAYS = flax_vit.arrays("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding")
_PATCHES = "embedding/kernel"
_SCANNED = "Transformer/encoderblock/"


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """A ViT from its arrays; raises UserError if there is none, or several and no prefix."""
    prefix = _prefix(path, weights, options.prefix)
    inside = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    others = {"/".join(name.split("/")[: prefix.count("/") or 1]) for name in weights if not name.startswith(prefix)}
    found = flax_vit.read(path, _unrolled(inside), ARRAYS, options)
    notes = (f"left out: {', '.join(sorted(others))}",) if others else ()
    return Foreign(**{**vars(found), "notes": (*notes, *found.notes)})


def _prefix(path: pathlib.Path, weights: Mapping, given: str | None) -> str:
    """What the names of the ViT begin with: `` or, say, `params/img/`."""
    there = {name.removesuffix(_PATCHES) for name in weights if f"/{name}".endswith(f"/{_PATCHES}")}
    if given is not None:
        prefix = f"{given.strip('/')}/".removeprefix("/")
        if prefix not in there:
            raise unknown(f"prefix of a ViT in {path}", given, [text.rstrip("/") for text in there])
        return prefix
    if len(there) != 1:
        found = ", ".join(repr(text.rstrip("/")) for text in sorted(there))
        names = ", ".join(sorted({name.split("/")[0] for name in weights})[:8]) or "nothing"
        detail = f"several: pass --prefix, one of {found}" if there else f"none: no {_PATCHES}; it holds {names}"
        raise UserError(f"{path} must hold a ViT; found {detail}")
    return there.pop()


def _unrolled(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacked arrays `Transformer/encoderblock/...` as one for each block, `Transformer/encoderblock_0/...`."""
    apart = {}
    for name, array in weights.items():
        if name.startswith(_SCANNED) and array.ndim:
            inner = name.removeprefix(_SCANNED)
            apart |= {f"{_SCANNED.rstrip('/')}_{i}/{inner}": layer for i, layer in enumerate(array)}
        else:
            apart[name] = array
    return apart
