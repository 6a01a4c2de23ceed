"""ViTs of vision_transformer, those of "How to train your ViT?" (AugReg) among them: .npz."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert import flax_vit
from tubevit.convert.foreign import Foreign, Options

# A block counts all of its modules on.
MLP = "MlpBlock_3"
ARRAYS = flax_vit.arrays(
    "LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", MLP, "Transformer/posembed_input/pos_embedding"
)


def read(path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options) -> Foreign:
    """A ViT from its arrays; raises UserError if it is none."""
    return flax_vit.read(path, weights, ARRAYS, options)
