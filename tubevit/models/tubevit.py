"""TubeViT: tubes to tokens, a plain ViT, attention pooling, one linear head per label set (paper figures 1 and 2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.errors import UserError, unknown
from tubevit.models.encoder import Encoder
from tubevit.models.pooling import AttentionPooling
from tubevit.models.position import position_embedding
from tubevit.models.tokenizer import Tokenizer
from tubevit.tubes import TubeSet, as_tube_set

MODALITIES = ("video", "image", "any")
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Head:
    """A label set and its linear layer.

    Attributes:
        classes: number of classes.
        modality: what it classifies: `video`, `image`, or `any` where it was not said.
        labels: names of the classes, or () where they are not known.
        multi_label: whether a sample may have several labels (sigmoid instead of softmax).
    """

    classes: int
    modality: str = "any"
    labels: tuple[str, ...] = ()
    multi_label: bool = False

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.classes, int) or self.classes < 1:
            raise UserError(f"a head needs at least 1 class; found {self.classes!r}")
        if self.modality not in MODALITIES:
            raise unknown("modality", str(self.modality), MODALITIES)
        if self.labels and len(self.labels) != self.classes:
            raise UserError(f"a head of {self.classes} classes needs as many labels; found {len(self.labels)}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """All that defines a model.

    Attributes:
        name: architecture.
        width, depth, num_heads, mlp_width: sizes of the encoder (Table 11).
        tubes: preset, text or `TubeSet`.
        padding: `valid` or `same`; None keeps that of `tubes`.
        frames, fps, size: the clip that it is made for: frames, frames per second (None: as the file has it), and
            rows = columns. The model takes others as well.
        heads: pairs of name and `Head`.
        dropout, stochastic_depth, remat, scan, attention: see `Encoder`.
        precision: `float32` or `bfloat16` for computation; parameters, softmax and logits stay float32.
    """

    name: str
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    tubes: TubeSet
    padding: str | None = None
    frames: int = 32
    fps: float | None = None
    size: int = 224
    heads: tuple[tuple[str, Head], ...] = ()
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    precision: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "tubes", as_tube_set(self.tubes, self.padding))
        object.__setattr__(self, "padding", self.tubes.padding)
        for name in ("width", "depth", "num_heads", "mlp_width", "frames", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1; found {value!r}")
        if self.width % self.num_heads:
            raise UserError(f"width {self.width} must be divisible by num_heads {self.num_heads}")
        for tube in self.tubes.tubes:
            if self.width % tube.sub_windows:
                raise UserError(f"width {self.width} must be divisible by the {tube.sub_windows} sub-windows of {tube}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", str(self.precision), PRECISIONS)


class TubeViT(nnx.Module):
    """One backbone for videos and images. Build it with `tubevit.create_model`.

    Parameters (names on disk): `tokenizer/tubes/<i>`, `encoder/blocks` (stacked), `encoder/norm`,
    `pooling/score`, `heads/<name>`. There is no random state in it: dropout takes its key as an argument.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = PRECISIONS[config.precision]
        self.config = config
        self.tokenizer = Tokenizer(config.tubes, config.width, dtype, rngs=rngs)
        self.encoder = Encoder(
            config.width, config.depth, config.num_heads, config.mlp_width, dropout=config.dropout,
            stochastic_depth=config.stochastic_depth, remat=config.remat, scan=config.scan,
            attention=config.attention, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.pooling = AttentionPooling(config.width, rngs=rngs)
        initial = nnx.initializers.truncated_normal(0.02)
        self.heads = nnx.Dict(
            {
                name: nnx.Linear(config.width, head.classes, kernel_init=initial, dtype=jnp.float32, rngs=rngs)
                for name, head in config.heads
            }
        )

    @property
    def input(self) -> dict:
        """Keyword arguments for `tubevit.read_video`: frames, fps and size."""
        return {"frames": self.config.frames, "fps": self.config.fps, "size": self.config.size}

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Class names of each head, () where they are not known."""
        return {name: head.labels for name, head in self.config.heads}

    def tokenize(self, video: jax.Array) -> tuple[jax.Array, np.ndarray]:
        """Tokens as the encoder gets them.

        Args:
            video: clips (B, T, H, W, 3) or images (B, H, W, 3), uint8 0..255 or float -1..1. Images take the tubes
                of temporal size 1 only (paper section 3.5).

        Returns:
            tokens (B, N, D), position embedding included; centres (N, 3), float64, order (t, y, x), in frames and
            pixels.

        Raises:
            UserError: shape or dtype is not one of these, or the clip is too small for a tube.
        """
        tubes = self.config.tubes
        video = jnp.asarray(video)
        check_pixels(video)
        if video.ndim == 4:
            video, tubes = video[:, None], tubes.for_images()
        centres = tubes.centres(video.shape[1:4])
        tokens = self.tokenizer(video, tubes)
        return tokens + jnp.asarray(position_embedding(centres, self.config.width), tokens.dtype), centres

    def encode(self, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Tokens after the encoder, (B, N, D). A key switches dropout on; the rest is as in `tokenize`."""
        return self.encoder(self.tokenize(video)[0], key)

    def features(self, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pooled tokens, (B, D) float32; see `encode`."""
        return self.pooling(self.encode(video, key))

    def __call__(self, video: jax.Array, head: str | None = None, key: jax.Array | None = None) -> jax.Array:
        """Logits of a head.

        Args:
            video: see `tokenize`.
            head: name of the head; may be left out where there is only one.
            key: switches dropout and stochastic depth on.

        Returns:
            (B, classes) float32, or pooled features (B, D) of a model without heads.

        Raises:
            UserError: there are several heads and none is named, or the input is not of the head's modality.
        """
        if not self.config.heads and head is None:
            return self.features(video, key)
        head = self.head_for(video, head)
        return self.heads[head](self.features(video, key))

    def head_for(self, video: jax.Array, head: str | None) -> str:
        """The name of the head to use; raises UserError as `__call__` says."""
        heads = dict(self.config.heads)
        if head is None and len(heads) != 1:
            found = f"several heads: pass head=, one of {', '.join(map(repr, heads))}" if heads else "no head"
            raise UserError(f"the model has {found}")
        head = next(iter(heads)) if head is None else head
        if head not in heads:
            raise unknown("head", head, heads)
        modality, shape = heads[head].modality, tuple(np.shape(video))
        if modality == "video" and len(shape) == 4:
            raise UserError(
                f"head {head!r} takes videos (B, T, H, W, 3); found {shape}. "
                "For a single clip add the batch axis: video[None]"
            )
        if modality == "image" and len(shape) == 5:
            raise UserError(f"head {head!r} takes images (B, H, W, 3); found a video of shape {shape}")
        return head


def check_pixels(video: jax.Array) -> None:
    """Raises UserError unless `video` is (B, T, H, W, 3) or (B, H, W, 3), uint8 or floating."""
    shape = tuple(video.shape)
    expected = "expected (B, T, H, W, 3) or (B, H, W, 3)"
    if len(shape) == 3 and shape[-1] == 3:
        raise UserError(f"{expected}; found {shape}. For a single image add the batch axis: image[None]")
    if len(shape) not in (4, 5):
        raise UserError(f"{expected}; found {len(shape)} axes: {shape}")
    if shape[-1] != 3:
        message = f"{expected}, channels last; found {shape}"
        channels = [axis for axis in range(1, len(shape) - 1) if shape[axis] == 3]
        if channels:
            order = [axis for axis in range(len(shape)) if axis != channels[0]] + [channels[0]]
            message += f". Transpose it first: x.transpose({', '.join(map(str, order))})"
        raise UserError(message)
    if video.dtype != jnp.uint8 and not jnp.issubdtype(video.dtype, jnp.floating):
        raise UserError(f"pixels must be uint8 0..255 or float -1..1; found {video.dtype}")
