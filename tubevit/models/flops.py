"""Floating-point operations, parameters and memory of a model, counted from its configuration."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.tubes import Triple


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one view by part: 2 per multiply-add of a matrix product. Elementwise operations are not counted."""

    tokenizer: int
    encoder: int
    pooling: int
    head: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.tokenizer + self.encoder + self.pooling + self.head

    @property
    def macs(self) -> int:
        """The number of multiply-adds, half of the FLOPs."""
        return self.total // 2


def count_flops(config: ModelConfig, shape: Triple, head: str | None = None) -> Flops:
    """Count the FLOPs of the forward pass on one clip or image.

    The encoder takes 2 L (4 D^2 N + 2 D M N + 2 N^2 D) for N tokens, width D, MLP width M and L blocks, and
    2 (4 D^2 N + 2 N^2 D) for each added attention layer; other patterns of attention have shorter sequences, see
    `models.patterns`. Softmax, normalisations and activations, under 2 % at these sizes, are not counted.

    Args:
        config: configuration of the model.
        shape: shape (T, H, W) of a clip; T = 1 is an image, which uses only the 2D tubes.
        head: name of the head; None does not count a head.
    """
    tubes = config.tubes.for_images() if shape[0] == 1 else config.tubes
    width, tokenizer = config.width, 0
    for tube, grid in zip(tubes.tubes, tubes.grid(shape)):
        # Each of a token's f sub-windows has `volume` pixels and makes channels / f.
        per_token = 3 * tube.volume * config.channels(tube)
        per_token += config.channels(tube) * width if config.tube_linear and not tube.is_2d else 0
        tokenizer += 2 * math.prod(grid) * per_token
    encoder, tokens = _encoder(config, shape)
    pooling = {"linear": 2 * tokens * width, "mean": 0, "cls": 0}
    pooling["query"] = 2 * width**2 * (tokens + 1) + 2 * tokens * width
    pooling["map"] = pooling["query"] + 2 * width * config.mlp_dim
    blocks = 3 * (_attention(width, 1, tokens) + 8 * width**2 * tokens)
    pooling["attentive"] = pooling["query"] + 8 * width**2 + blocks
    classes = dict(config.heads)[head].classes if head else 0
    return Flops(tokenizer, 2 * encoder, 2 * pooling[config.pooling], 2 * width * classes)


def _attention(width: int, batch: int, tokens: int) -> int:
    """Count the multiply-adds of an attention layer on a batch of sequences."""
    return batch * (4 * width**2 * tokens + 2 * tokens**2 * width)


def _encoder(config: ModelConfig, shape: Triple) -> tuple[int, int]:
    """Return the multiply-adds of the encoder, and the number of its output tokens."""
    width, tokens, first = config.width, num_tokens(config, shape), int(config.class_token)
    mlp = 2 * width * config.mlp_dim
    if config.pattern == "joint":
        attention = _attention(width, 1, tokens)
        return config.depth * (attention + mlp * tokens) + config.add_attention * attention, tokens
    ((frames, *sides),) = config.tubes.grid(shape)
    places = math.prod(sides)
    over_space, over_time = _attention(width, frames, first + places), _attention(width, places, frames)
    added = config.add_attention * _attention(width, 1, tokens)
    if config.pattern == "divided":
        return config.depth * (over_space + over_time + mlp * tokens) + added, tokens
    if config.pattern == "factorised_dot":  # half of the heads each; the projections are counted once
        projections = 4 * width**2 * tokens
        scores = (over_space + over_time - 2 * projections) // 2
        return config.depth * (projections + scores + mlp * tokens) + config.add_attention * (
            projections + scores
        ), tokens
    spatial = config.depth * (over_space + mlp * frames * (first + places)) + config.add_attention * over_space
    batch, length = (places, frames) if config.frame_pooling == "none" else (1, first + frames)
    temporal = config.temporal_depth * (_attention(width, batch, length) + mlp * batch * length)
    return spatial + temporal, batch * length


def num_tokens(config: ModelConfig, shape: Triple) -> int:
    """Count the tokens of a clip of `shape` (T, H, W), or of an image if T = 1, with the class token."""
    tubes = config.tubes.for_images() if shape[0] == 1 else config.tubes
    return tubes.num_tokens(shape) + config.class_token


def count_parameters(config: ModelConfig) -> int:
    """Count the parameters of a model, heads included, without initialising them."""
    return count(abstract_parameters(config))


def count(tree) -> int:
    """Count the elements of all arrays, or shapes of arrays, in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def training_flops(config: ModelConfig, shape: Triple, head: str | None = None) -> int:
    """Count the FLOPs of a training step on one clip; see `count_flops` for the arguments.

    The backward pass of trained parts takes twice the FLOPs of their forward pass. Frozen blocks take half as much, for
    the gradients of tokens, and only if something is trained before them; see `first_with_gradient`.
    """
    flops = count_flops(config, shape, head)
    added = flops.encoder - count_flops(config.replace(add_attention=0), shape).encoder
    block = (flops.encoder - added) / config.depth
    trained, passed = config.depth - config.freeze_below, config.freeze_below - first_with_gradient(config)
    back = 2 * (flops.head + flops.pooling + added + trained * block) + passed * block
    if not config.freeze_below:
        back += flops.tokenizer  # pixels need no gradient
    return flops.total + round(back)


def first_with_gradient(config: ModelConfig) -> int:
    """Return the index of the first block that the backward pass reaches.

    This is the first trained block, or an earlier one if `tube_linear` or added attention layers are trained before it.
    """
    if config.tube_linear:
        return 0
    return min(config.freeze_below, config.depth - config.add_attention)


def activation_bytes(config: ModelConfig, shape: Triple) -> int:
    """Estimate the bytes that the encoder keeps for the backward pass of one clip.

    A block that the backward pass does not reach keeps nothing. Without remat, a block keeps N (8 D + 2 M) numbers (its
    input, both normalised inputs, query, key and value, the output of attention, the sum after it; the MLP before and
    after GELU) and two score matrices of heads N^2 numbers each. With remat `full`, it keeps only its input. The other
    policies keep less than no remat, but are counted like it.

    Args:
        config: configuration of the model; `precision` gives the bytes per number.
        shape: shape (T, H, W) of the clip.
    """
    tokens = num_tokens(config, shape)
    kept = tokens * config.width
    if config.remat != "full":
        kept = tokens * (8 * config.width + 2 * config.mlp_dim) + 2 * config.num_heads * tokens**2
    return (config.depth - first_with_gradient(config)) * kept * jnp.dtype(PRECISIONS[config.precision]).itemsize
