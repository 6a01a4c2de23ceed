"""Floating-point operations, parameters and memory of a model, counted from its configuration."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.models.lora import adapter_shapes
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
    2 (4 D^2 N + 2 N^2 D) for each added attention layer. Other patterns of attention have more and shorter sequences,
    see `models.patterns`. Softmax, normalisations and activations, under 2 % at these sizes, are not counted.

    Args:
        config: configuration of the model.
        shape: shape (T, H, W) of a clip; T = 1 is an image, which uses only the 2D tubes.
        head: name of the head; None does not count a head.
    """
    tubes = config.tubes.for_images() if shape[0] == 1 else config.tubes
    width, tokenizer = config.width, 0
    for tube, kept in zip(tubes.tubes, tubes.kept(shape)):
        # Each of a token's f sub-windows has `volume` pixels and makes channels / f.
        per_token = 3 * tube.volume * config.channels(tube)
        per_token += config.channels(tube) * width if config.tube_linear and not tube.is_2d else 0
        tokenizer += 2 * kept * per_token
    block, other, tokens = _encoder(config, shape)
    pooling = {"linear": 2 * tokens * width, "mean": 0, "cls": 0}
    pooling["query"] = 2 * width**2 * (tokens + 1) + 2 * tokens * width
    pooling["map"] = pooling["query"] + 2 * width * config.mlp_dim
    pooling["attentive"] = (
        pooling["query"] + 8 * width**2 + 3 * (_attention(width, (1, tokens)) + 8 * width**2 * tokens)
    )
    classes = dict(config.heads)[head].classes if head else 0
    encoder = config.depth * block + other
    return Flops(tokenizer, 2 * encoder, 2 * pooling[config.pooling], 2 * width * classes)


def _sequences(config: ModelConfig, shape: Triple) -> list[tuple[int, int]]:
    """Return how many sequences of what length attend in each attention layer of a block."""
    if config.pattern == "joint":
        return [(1, num_tokens(config, shape))]
    ((frames, *sides),) = config.tubes.grid(shape)
    over_space = (frames, config.class_token + math.prod(sides))
    return [over_space] if config.pattern == "factorised_encoder" else [over_space, (math.prod(sides), frames)]


def _attention(width: int, *sequences: tuple[int, int]) -> int:
    """Count the multiply-adds of attention layers."""
    return sum(batch * (4 * width**2 * length + 2 * length**2 * width) for batch, length in sequences)


def _encoder(config: ModelConfig, shape: Triple) -> tuple[int, int, int]:
    """Return the multiply-adds of a block and of all other layers, and the number of output tokens of the encoder."""
    sequences, tokens = _sequences(config, shape), num_tokens(config, shape)
    attention, mlp = _attention(config.width, *sequences), 2 * config.width * config.mlp_dim
    if config.pattern == "factorised_encoder":
        ((frames, length),) = sequences
        time = (length, frames) if config.frame_pooling == "none" else (1, config.class_token + frames)
        temporal = _attention(config.width, time) + mlp * math.prod(time)
        return attention + mlp * frames * length, config.temporal_depth * temporal, math.prod(time)
    if config.pattern == "factorised_dot":
        attention //= 2  # each layer has half of the heads
    return attention + mlp * tokens, config.add_attention * attention, tokens


def num_tokens(config: ModelConfig, shape: Triple) -> int:
    """Count the tokens that the encoder takes of a clip (T, H, W), or of an image if T = 1, with the class token."""
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
    the gradients of tokens, and only if something is trained before them or beside them, as an adapter is; see
    `first_with_gradient`.
    """
    flops, frozen = count_flops(config, shape, head), config.frozen_blocks
    block, other, last = _encoder(config, shape)
    passes = 4
    if frozen == config.depth and config.temporal_depth:  # the second encoder is frozen as well
        passes = 0 if config.lora is None else 2
    trained, passed = config.depth - frozen, frozen - first_with_gradient(config)
    back = 2 * (flops.head + flops.pooling) + passes * other + 4 * trained * block + 2 * passed * block
    for path, leaf in adapter_shapes(config).items():  # with their forward pass
        rows = last if path.startswith("encoder/temporal/") else num_tokens(config, shape)
        back += 6 * rows * math.prod(leaf.shape)
    if not frozen:
        back += flops.tokenizer  # pixels need no gradient
    return flops.total + back


def recomputed_flops(config: ModelConfig, shape: Triple) -> int:
    """Count the FLOPs that a training step at least computes again in the backward pass of one clip, by `config.remat`.

    `full` computes the blocks again but for their last product, `names` queries, keys, values and scores. Other
    settings, and `names` with other patterns of attention than `joint`, count as 0. The arguments are those of
    `count_flops`.
    """
    blocks, tokens = config.depth - first_with_gradient(config), num_tokens(config, shape)
    if config.remat == "full":
        return 2 * blocks * (_encoder(config, shape)[0] - config.mlp_dim * config.width * tokens)
    if config.remat == "names" and config.pattern == "joint":
        return 2 * blocks * (3 * config.width**2 * tokens + tokens**2 * config.width)
    return 0


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
    after GELU) and two score matrices of heads N^2 numbers each. Divided attention keeps N 6 D more, and other patterns
    have smaller score matrices. With remat `full`, a block keeps only its input; with `names` N (3 D + M) numbers (its
    input, the output of attention, the sum after it, the MLP before GELU), divided attention N D more. The other
    policies keep less than no remat, but are counted like it. The second encoder of a factorised encoder is not
    counted.

    Args:
        config: configuration of the model; `precision` gives the bytes per number.
        shape: shape (T, H, W) of the clip.
    """
    tokens, layers = num_tokens(config, shape), _sequences(config, shape)
    if config.pattern == "factorised_encoder":
        tokens = math.prod(layers[0])
    kept = tokens * config.width
    if config.remat == "names":
        kept = tokens * ((4 if config.pattern == "divided" else 3) * config.width + config.mlp_dim)
    elif config.remat != "full":
        heads = config.num_heads // 2 if config.pattern == "factorised_dot" else config.num_heads
        scores = sum(batch * length**2 for batch, length in layers)
        kept = tokens * ((14 if config.pattern == "divided" else 8) * config.width + 2 * config.mlp_dim)
        kept += 2 * heads * scores
    return (config.depth - first_with_gradient(config)) * kept * jnp.dtype(PRECISIONS[config.precision]).itemsize
