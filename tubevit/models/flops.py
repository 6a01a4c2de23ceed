"""Floating-point operations, parameters and memory of a model, counted from its configuration."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from tubevit.models.tubevit import PRECISIONS, ModelConfig, TubeViT
from tubevit.tubes import Triple


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one view by part: 2 for each multiply-add of a matrix product, nothing for the elementwise rest."""

    tokenizer: int
    encoder: int
    pooling: int
    head: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.tokenizer + self.encoder + self.pooling + self.head

    @property
    def macs(self) -> int:
        """Multiply-adds: half of the FLOPs."""
        return self.total // 2


def count_flops(config: ModelConfig, shape: Triple, head: str | None = None) -> Flops:
    """FLOPs of the forward pass on one clip or image.

    The encoder takes 2 L (4 D^2 N + 2 D M N + 2 N^2 D) for N tokens, width D, MLP width M and L blocks; the softmax,
    normalisations and activations, under 2 % at these sizes, are left out.

    Args:
        config: of the model.
        shape: (T, H, W) of a clip; T = 1 counts an image, which takes the 2D tubes only.
        head: name of the head; None leaves the head out.
    """
    tubes = config.tubes.for_images() if shape[0] == 1 else config.tubes
    tokens, width = tubes.num_tokens(shape), config.width
    # Each of a token's f sub-windows has `volume` pixels and makes width / f channels.
    tokenizer = sum(2 * math.prod(grid) * 3 * tube.volume * width for tube, grid in zip(tubes.tubes, tubes.grid(shape)))
    block = 4 * width**2 * tokens + 2 * width * config.mlp_width * tokens + 2 * tokens**2 * width
    classes = dict(config.heads)[head].classes if head else 0
    return Flops(tokenizer, 2 * config.depth * block, 4 * tokens * width, 2 * width * classes)


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the model, heads included; the model is built abstractly, without memory."""
    shapes = nnx.eval_shape(lambda: TubeViT(config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


def activation_bytes(config: ModelConfig, shape: Triple) -> int:
    """An estimate of what the encoder keeps of one clip for the backward pass.

    A block without remat keeps N (8 D + 2 M) numbers (its input, both normalised ones, query, key and value, what
    attention returns, the sum after it; the MLP before and after GELU) and two score matrices, heads N^2 each. With
    remat `full` it keeps its input only; the other policies lie between and count as without.

    Args:
        config: of the model; `precision` gives the bytes of a number.
        shape: (T, H, W) of the clip.
    """
    tokens = config.tubes.num_tokens(shape)
    kept = tokens * config.width
    if config.remat != "full":
        kept = tokens * (8 * config.width + 2 * config.mlp_width) + 2 * config.num_heads * tokens**2
    return config.depth * kept * jnp.dtype(PRECISIONS[config.precision]).itemsize
