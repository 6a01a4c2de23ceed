"""ViTs of big_vision, such as those of SigLIP and LiT: .npz files with one or several towers."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import flax_vit
from tubevit.convert.foreign import Foreign, Options
from tubevit.errors import UserError, unknown

_PATCHES = "embedding/kernel"
_BLOCKS = "Transformer/encoderblock"


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """Read a ViT; raises UserError if there is none, or several and no prefix was given."""
    prefix = _prefix(path, weights, options.prefix)
    inside = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    others = {"/".join(name.split("/")[: prefix.count("/") or 1]) for name in weights if not name.startswith(prefix)}
    found = flax_vit.read(path, flax_vit.unstacked(inside, _BLOCKS), flax_vit.BIG_VISION, options)
    notes = (f"left out: {', '.join(sorted(others))}",) if others else ()
    return dataclasses.replace(found, notes=notes + found.notes)


def _prefix(path: pathlib.Path, weights: Mapping, given: str | None) -> str:
    """Find the prefix of the names of the ViT, which is empty or, for example, `params/img/`."""
    prefixes = {name.removesuffix(_PATCHES) for name in weights if f"/{name}".endswith(f"/{_PATCHES}")}
    if given is not None:
        prefix = f"{given.strip('/')}/".removeprefix("/")
        if prefix not in prefixes:
            raise unknown(f"prefix of a ViT in {path}", given, [text.rstrip("/") for text in prefixes])
        return prefix
    if not prefixes:
        names = ", ".join(sorted({name.split("/")[0] for name in weights})[:8]) or "nothing"
        raise UserError(f"{path} must hold a ViT; found none: no {_PATCHES}; it holds {names}")
    if len(prefixes) > 1:
        choices = ", ".join(repr(text.rstrip("/")) for text in sorted(prefixes))
        raise UserError(f"{path} must hold one ViT; found several: pass --prefix, one of {choices}")
    return prefixes.pop()
