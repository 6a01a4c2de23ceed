"""The configuration of a model: its sizes, tubes, options and heads."""

import dataclasses
import numbers
from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from tubevit.budget import Budget, as_budget
from tubevit.errors import UserError, unknown
from tubevit.models.patterns import PATTERNS, UNKNOWN, TokenLayout
from tubevit.models.position import POSITIONS
from tubevit.ranges import COUNT, POSITIVE, RATE, SHARE, WHOLE, Range, check_fields
from tubevit.tubes import Triple, Tube, TubeSet, as_tube_set

Colour = tuple[float, float, float]  # red, green, blue
MODALITIES = ("video", "image", "any")
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
POOLINGS = ("linear", "query", "map", "attentive", "mean", "cls")
FRAME_POOLINGS = ("cls", "mean", "none")
FINAL_NORMS = ("tokens", "pooled")
ATTENTION = ("auto", "einsum", "xla", "cudnn", "kernel")
# Activations that are kept for the backward pass, from least memory to most.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("attention", "up", "middle", "statistics"),
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}
GELUS = ("exact", "tanh")
QUANTIZED = ("none", "int8")
LORA_TARGETS = ("qkv", "out", "mlp")
CHOICES = {
    "position": POSITIONS, "pooling": POOLINGS, "attention": ATTENTION, "remat": REMAT, "gelu": GELUS,
    "precision": PRECISIONS, "pattern": PATTERNS, "frame_pooling": FRAME_POOLINGS, "final_norm": FINAL_NORMS,
    "quantize": QUANTIZED,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Head:
    """A label set and its linear layer.

    Attributes:
        classes: number of classes.
        modality: input that the head classifies: `video`, `image`, or `any` where this is not specified.
        labels: class names, or () where they are unknown.
        multi_label: whether a sample may have several labels (sigmoid instead of softmax).
    """

    classes: int
    modality: str = "any"
    labels: tuple[str, ...] = ()
    multi_label: bool = False

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        whole = isinstance(self.classes, numbers.Integral) and not isinstance(self.classes, bool)
        if not whole or self.classes < 1:
            raise UserError(f"a head needs at least 1 class; found {self.classes!r}")
        object.__setattr__(self, "classes", int(self.classes))
        if self.modality not in MODALITIES:
            raise unknown("modality", str(self.modality), MODALITIES)
        if self.labels and len(self.labels) != self.classes:
            raise UserError(f"a head of {self.classes} classes needs as many labels; found {len(self.labels)}")

    def probabilities(self, logits: Float[Array, "*rows classes"]) -> Float[Array, "*rows classes"]:
        """Convert logits to probabilities: by softmax, or by sigmoid where a sample may have several labels."""
        return jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A low-rank adapter (LoRA, Hu et al., 2021): the kernels W of the targets act as W + alpha / rank A B.

    Attributes:
        rank: columns of A and rows of B.
        alpha: numerator of the scale.
        targets: linear layers of the blocks: `qkv` and `out` of attention, `mlp`.

    Raises:
        UserError: a number is out of range, or a target is unknown or missing.
    """

    rank: int = dataclasses.field(default=8, metadata={"range": COUNT})
    alpha: float = dataclasses.field(default=16.0, metadata={"range": POSITIVE})
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        check_fields(self)
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise unknown("target of LoRA", target, LORA_TARGETS)
        if not self.targets:
            raise UserError(f"LoRA needs at least one target: {', '.join(LORA_TARGETS)}")

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The complete definition of a model.

    Attributes:
        name: architecture.
        width: channels of a token (Table 11).
        depth: number of blocks (Table 11).
        num_heads: attention heads of a block (Table 11).
        mlp_dim: hidden units of the MLP of a block (Table 11).
        tubes: preset, text or `TubeSet`.
        padding: `valid` or `same`; None keeps the padding of `tubes`.
        interpolated: whether the 3D tubes share one 8x8x8 kernel, which is resized for each of them (section 3.4); None
            keeps the setting of `tubes`.
        budget: which tokens of a clip the encoder takes, such as `25%` or `50%:motion`, see `tubevit.budget`; None
            keeps the setting of `tubes`. It changes no parameter: a model with fixed positions takes any budget.
        gain_norm: divide interpolated kernels by the growth of their volume.
        antialias: apply a low-pass filter to interpolated kernels where they shrink.
        tube_width: output channels of a 3D tube, cut or zero-padded to `width` (tubes of a smaller model, section 3.6);
            None uses `width`.
        tube_linear: map tube outputs to `width` by a linear layer instead of cutting or padding them.
        position: kind of position embedding, see `models.position`.
        class_token: whether a learned token precedes the tube tokens.
        pooling: `linear`, `query`, `map`, `attentive`, `mean` or `cls`, see `models.pooling`.
        pattern: which tokens attend to each other: `joint` (all), `divided` (over time, then in each frame),
            `factorised_encoder` (in each frame, then a second encoder over time) or `factorised_dot` (half of the heads
            over time, the others in each frame), see `models.patterns`. All but `joint` need a single tube.
        temporal_depth: number of blocks of the second encoder; only with `factorised_encoder`.
        frame_pooling: what the second encoder takes of each frame: `cls`, `mean`, or `none` for each place by itself.
        final_norm: what the last layer normalisation takes, the `tokens` or the `pooled` features.
        pooled_norm_epsilon: epsilon of that normalisation of pooled features; None uses `norm_epsilon`.
        softcap: attention scores s become softcap * tanh(s / softcap); None disables it.
        mean: means of red, green and blue for pixels as 0..1; the kernels see (p - mean) / std.
        std: standard deviations of red, green and blue for pixels as 0..1.
        frames: frames of the default clip. Other clips are accepted as well, unless positions are learned.
        fps: frames per second of the default clip; None spreads the frames over the whole video.
        size: rows and columns of the default clip, in pixels.
        heads: pairs of name and `Head`.
        dropout: rate of dropout on the tokens, after attention and twice in the MLP.
        stochastic_depth: rate of stochastic depth at the last block; it rises linearly from 0 at the first block.
        gelu: `exact`, or `tanh` for the approximation.
        norm_epsilon: epsilon of the layer normalisations; Hugging Face uses 1e-12.
        qkv_bias: whether queries, keys and values have biases.
        layer_scale: initial value of LayerScale, a factor per channel on both branches of a block; None disables it.
        add_attention: number of last blocks that get a new attention layer before them (Table 8).
        gate_layer: index of the block after which the gate is applied (equation 8); None disables the gate.
        gate_per_channel: learn one alpha per channel instead of a single one.
        freeze_below: index of the first trained block; no gradient reaches the blocks before it. Changes no output.
        lora: the adapter that is trained in place of the blocks, see `models.lora`; None trains the blocks. A model
            itself never has one: its kernels are merged.
        remat: activations kept for the backward pass: `none` (keep everything), `dots`, `dots_no_batch`, `names` (the
            output of attention, the sum after it, the MLP before GELU and the statistics of the normalisations) or
            `full` (recompute everything). Changes no output.
        scan: whether the blocks are compiled once, as a loop. Unrolled they take longer to compile and, by the
            compiler's cycles, less time to run on TPUs. Changes no output.
        attention: implementation of attention: `einsum`, `xla`, `cudnn` (NVIDIA GPUs), `kernel` (TPUs), or `auto`,
            which chooses by device and shape, see `models.attention.implementation_for`. Changes no output.
        precision: dtype of the computation, `float32` or `bfloat16`; parameters, softmax and logits stay float32. By
            JAX's default, TPUs multiply float32 matrices in bfloat16 and recent NVIDIA GPUs in TF32, unless
            `jax_default_matmul_precision` is `highest`.
        quantize: `int8` multiplies 8-bit integers in the linear layers of the blocks, see `models.int8`; for inference
            only.

    Raises:
        UserError: a value is out of range, unknown, or does not fit the others.
    """

    name: str
    width: int = dataclasses.field(metadata={"range": COUNT})
    depth: int = dataclasses.field(metadata={"range": Range(int, least=1, most=1000)})
    num_heads: int = dataclasses.field(metadata={"range": COUNT})
    mlp_dim: int = dataclasses.field(metadata={"range": COUNT})
    tubes: TubeSet
    padding: str | None = None
    interpolated: bool | None = None
    budget: Budget | None = None
    gain_norm: bool = False
    antialias: bool = False
    tube_width: int | None = dataclasses.field(default=None, metadata={"range": COUNT})
    tube_linear: bool = False
    position: str = "fixed"
    class_token: bool = False
    pooling: str = "linear"
    pattern: str = "joint"
    temporal_depth: int = dataclasses.field(default=0, metadata={"range": WHOLE})
    frame_pooling: str = "cls"
    final_norm: str = "tokens"
    pooled_norm_epsilon: float | None = dataclasses.field(default=None, metadata={"range": POSITIVE})
    softcap: float | None = dataclasses.field(default=None, metadata={"range": POSITIVE})
    mean: Colour = dataclasses.field(default=(0.5, 0.5, 0.5), metadata={"range": SHARE})
    std: Colour = dataclasses.field(default=(0.5, 0.5, 0.5), metadata={"range": Range(float, above=0, most=1)})
    frames: int = dataclasses.field(default=32, metadata={"range": COUNT})
    fps: float | None = dataclasses.field(default=None, metadata={"range": POSITIVE})
    size: int = dataclasses.field(default=224, metadata={"range": COUNT})
    heads: tuple[tuple[str, Head], ...] = ()
    dropout: float = dataclasses.field(default=0.0, metadata={"range": RATE})
    stochastic_depth: float = dataclasses.field(default=0.0, metadata={"range": RATE})
    gelu: str = "exact"
    norm_epsilon: float = dataclasses.field(default=1e-6, metadata={"range": POSITIVE})
    qkv_bias: bool = True
    layer_scale: float | None = dataclasses.field(default=None, metadata={"range": Range(float)})
    add_attention: int = dataclasses.field(default=0, metadata={"range": WHOLE})
    gate_layer: int | None = dataclasses.field(default=None, metadata={"range": WHOLE})
    gate_per_channel: bool = False
    freeze_below: int = dataclasses.field(default=0, metadata={"range": WHOLE})
    lora: Lora | None = None
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    precision: str = "float32"
    quantize: str = "none"

    def __post_init__(self):
        own = self.padding, self.interpolated, as_budget(self.budget)
        object.__setattr__(self, "tubes", as_tube_set(self.tubes, *own))
        for name in ("padding", "interpolated", "budget"):
            object.__setattr__(self, name, getattr(self.tubes, name))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _colours(getattr(self, name), name))
        check_fields(self)
        for name, most in (("add_attention", self.depth), ("freeze_below", self.depth), ("gate_layer", self.depth - 1)):
            found = getattr(self, name)
            if found is not None and found > most:
                raise UserError(f"{name} must be 0 to {most} for {self.depth} blocks; found {found}")
        if self.width % self.num_heads:
            raise UserError(f"width {self.width} must be divisible by num_heads {self.num_heads}")
        for tube in self.tubes.tubes:
            width, parts = self.channels(tube), tube.sub_windows
            if width % parts:
                raise UserError(f"width {width} must be divisible by the {parts} sub-windows of {tube}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(name, str(getattr(self, name)), choices)
        if self.pooling == "cls" and not self.class_token:
            raise UserError("pooling 'cls' needs class_token=True; other poolings: " + ", ".join(POOLINGS[:-1]))
        self._check_pattern()

    def _check_pattern(self) -> None:
        pattern, rope, token = self.pattern, self.position == "rope", f"class_token={not self.class_token}"
        factorised, dot = pattern == "factorised_encoder", pattern == "factorised_dot"
        if (pattern != "joint" or rope) and (len(self.tubes.tubes) > 1 or self.budget):
            what = "position 'rope'" if rope else f"pattern {pattern!r}"
            found = f"budget {self.budget}" if self.budget else str(self.tubes)
            raise UserError(f"{what} needs all tokens of a single tube, which form one grid; found {found}")
        needs = {
            "a position other than 'rope'": rope and pattern != "joint",
            "add_attention=0 and gate_layer=None": pattern != "joint"
            and (self.add_attention or self.gate_layer is not None),
            "temporal_depth of at least 1": factorised and not self.temporal_depth,
            f"temporal_depth=0 instead of {self.temporal_depth}": self.temporal_depth and not factorised,
            f"an even num_heads instead of {self.num_heads}": dot and self.num_heads % 2,
            token: (dot and self.class_token)
            or (factorised and {"cls": False, "none": True}.get(self.frame_pooling) == self.class_token),
        }
        if any(needs.values()):
            what = f"pattern {pattern!r}" + (f" with frame_pooling {self.frame_pooling!r}" if factorised else "")
            raise UserError(f"{what} needs {', '.join(name for name, need in needs.items() if need)}")

    def replace(self, **fields) -> Self:
        """Return a copy with other values; new tubes bring their own padding and kind of kernels."""
        own = {"padding": None, "interpolated": None} if "tubes" in fields else {}
        if "budget" in fields and "tubes" not in fields:
            own = {"tubes": self.tubes.with_budget(None)}
        return dataclasses.replace(self, **own | fields)

    def channels(self, tube: Tube) -> int:
        """Return the output channels of a tube, before they are brought to `width`."""
        return self.width if tube.is_2d or self.tube_width is None else self.tube_width

    def layout(self, shape: Triple) -> TokenLayout:
        """Return where the tokens of a clip (T, H, W) lie if there is a single tube, else `UNKNOWN`."""
        if len(self.tubes.tubes) > 1:
            return UNKNOWN
        return TokenLayout(self.tubes.grid(shape)[0], int(self.class_token))

    def renumbers(self, other: Self) -> bool:
        """Return whether positions follow from the numbers of tokens, which are not those of another model's clip."""
        if not self.position == other.position == "index":
            return False
        own, others = ([grid[1:] for grid in each.tubes.grid(each.shape)] for each in (self, other))
        return own != others

    @property
    def frozen_blocks(self) -> int:
        """The number of first blocks whose own parameters are frozen: all of them beside an adapter."""
        return self.freeze_below if self.lora is None else self.depth

    @property
    def is_plain_vit(self) -> bool:
        """Whether this is an image ViT: 2D tubes only, and one frame."""
        return self.tubes.is_2d and self.frames == 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (T, H, W) of the default clip."""
        return (self.frames, self.size, self.size)


def _colours(values, name: str) -> Colour:
    """Return three numbers for red, green and blue as a tuple."""
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError) as error:
        text = f"{name} must be 3 numbers (red, green, blue) of pixels as 0..1; found {values!r}"
        raise UserError(text) from error
    return red, green, blue
