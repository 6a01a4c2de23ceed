"""TubeViT: tubes to tokens, a plain ViT, attention pooling, one linear head per label set (paper figures 1 and 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.errors import UserError, unknown
from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.models.encoder import Encoder
from tubevit.models.pooling import POOLING
from tubevit.models.position import Position
from tubevit.models.tokenizer import Tokenizer, as_windows
from tubevit.windows import TubeBatch


class TubeViT(nnx.Module):
    """One backbone for videos and images. Build it with `tubevit.create_model`.

    Parameters (names on disk): `tokenizer`, `position` (where learned), `class_token`, `encoder/blocks` (stacked),
    `encoder/norm`, `pooling`, `heads/<name>`; see the modules. There is no random state in it: dropout takes its key
    as an argument.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = PRECISIONS[config.precision]
        self.config = config
        self.tokenizer = Tokenizer(config, dtype, rngs=rngs)
        self.position = Position(config.position, config.tubes, config.shape, config.width, rngs=rngs)
        if config.class_token:  # its own position is part of it
            self.class_token = nnx.Param(jnp.zeros(config.width, jnp.float32))
        self.encoder = Encoder(config, dtype, rngs=rngs)
        self.pooling = POOLING[config.pooling](config, rngs=rngs)
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

    def tokenize(self, video: jax.Array | TubeBatch) -> tuple[jax.Array, np.ndarray]:
        """Tokens as the encoder gets them.

        Args:
            video: clips (B, T, H, W, 3) or images (B, H, W, 3), uint8 0..255 or float -1..1, or the windows of their
                tubes. Images take the tubes of temporal size 1 only (paper section 3.5).

        Returns:
            tokens (B, N, D), position embedding included, the class token first; centres (N, 3), float64, order
            (t, y, x), in frames and pixels, NaN of the class token.

        Raises:
            UserError: shape or dtype is not one of these, the clip is too small for a tube, windows are those of other
                tubes, or positions are learned for another shape.
        """
        batch = self._windows(video)
        tubes, shape = batch.tubes, batch.clip_shape
        tokens = self.tokenizer(batch)
        tokens = tokens + self.position(tubes, shape).astype(tokens.dtype)
        centres = tubes.centres(shape)
        if self.config.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
            tokens = jnp.concatenate([first, tokens], axis=1)
            centres = np.concatenate([np.full((1, 3), np.nan), centres])
        return tokens, centres

    def _windows(self, video: jax.Array | TubeBatch) -> TubeBatch:
        """Those of the model's tubes; raises UserError as `tokenize` says."""
        tubes = self.config.tubes
        if not isinstance(video, TubeBatch):
            video = jnp.asarray(video)
            check_pixels(video)
            if video.ndim == 4:
                video, tubes = video[:, None], tubes.for_images()
            tubes.grid(video.shape[1:4])
            return as_windows(video, tubes)
        tubes = tubes.for_images() if len(video.shape) == 2 else tubes
        if (video.tubes.tubes, video.tubes.padding) != (tubes.tubes, tubes.padding):
            expected, found = (f"{each} with padding {each.padding}" for each in (tubes, video.tubes))
            raise UserError(f"the windows are those of tubes {found}; the model has {expected}")
        video.check()
        for window in video.windows:
            check_dtype(window.dtype)
        return video

    def encode(self, video: jax.Array | TubeBatch, key: jax.Array | None = None) -> jax.Array:
        """Tokens after the encoder, (B, N, D). A key switches dropout on; the rest is as in `tokenize`."""
        return self.encoder(self.tokenize(video)[0], key)

    def features(self, video: jax.Array | TubeBatch, key: jax.Array | None = None) -> jax.Array:
        """Pooled tokens, (B, D) float32; see `encode`."""
        return self.pooling(self.encode(video, key))

    def __call__(
        self, video: jax.Array | TubeBatch, head: str | None = None, key: jax.Array | None = None
    ) -> jax.Array:
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

    def head_for(self, video: jax.Array | TubeBatch, head: str | None) -> str:
        """The name of the head to use; raises UserError as `__call__` says."""
        heads = dict(self.config.heads)
        if head is None and len(heads) != 1:
            found = f"several heads: pass head=, one of {', '.join(map(repr, heads))}" if heads else "no head"
            raise UserError(f"the model has {found}")
        head = next(iter(heads)) if head is None else head
        if head not in heads:
            raise unknown("head", head, heads)
        modality = heads[head].modality
        shape = video.dense_shape if isinstance(video, TubeBatch) else tuple(np.shape(video))
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
    check_dtype(video.dtype)


def check_dtype(dtype) -> None:
    """Raises UserError unless pixels are uint8 or floating."""
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"pixels must be uint8 0..255 or float -1..1; found {dtype}")
