"""TubeViT: a tube tokenizer, a plain ViT, attention pooling and a linear head per label set (paper figures 1, 2)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray, Shaped

from tubevit.errors import UserError, unknown
from tubevit.models.block import layer_norm
from tubevit.models.config import PRECISIONS, ModelConfig
from tubevit.models.elastic import draw
from tubevit.models.encoder import Encoder, Group
from tubevit.models.patterns import TokenLayout
from tubevit.models.pooling import POOLING
from tubevit.models.position import Position
from tubevit.models.tokenizer import Tokenizer, as_windows, keep, token_numbers
from tubevit.tubes import TubeSet
from tubevit.windows import TubeBatch

Video = Shaped[Array | np.ndarray, "..."] | TubeBatch  # clips, images or their windows, see `TubeViT.tokenize`


class TubeViT(nnx.Module):
    """A backbone for videos and images, with its heads. `tubevit.create_model` builds one.

    Parameters (names on disk): `tokenizer`, `position` (where learned), `class_token`, `encoder/blocks` (stacked),
    `encoder/norm`, `pooling`, `pooled_norm`, `heads/<name>`; see the modules. A model holds no random state: the key
    of dropout is an argument.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = PRECISIONS[config.precision]
        self.config = config
        self.tokenizer = Tokenizer(config, dtype, rngs=rngs)
        self.position = Position(config.position, config.tubes, config.shape, config.width, rngs=rngs)
        if config.class_token:  # it includes its own position
            self.class_token = nnx.Param(jnp.zeros(config.width, jnp.float32))
        self.encoder = Encoder(config, dtype, rngs=rngs)
        self.pooling = POOLING[config.pooling](config, rngs=rngs)
        if config.final_norm == "pooled":
            epsilon = config.pooled_norm_epsilon or config.norm_epsilon
            self.pooled_norm = layer_norm(config.replace(norm_epsilon=epsilon), jnp.float32, rngs=rngs)
        initial = nnx.initializers.truncated_normal(0.02)
        settings: dict = dict(kernel_init=initial, dtype=jnp.float32, rngs=rngs)
        self.heads = nnx.Dict({name: nnx.Linear(config.width, head.classes, **settings) for name, head in config.heads})

    @property
    def input(self) -> dict:
        """The keyword arguments for `tubevit.read_video`: frames, fps and size."""
        return {"frames": self.config.frames, "fps": self.config.fps, "size": self.config.size}

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The class names of each head, () where they are unknown."""
        return {name: head.labels for name, head in self.config.heads}

    def tokenize(
        self, video: Video, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "B N D"], Float[np.ndarray | Array, "*B N 3"]]:
        """Compute the input tokens of the encoder.

        Args:
            video: clips (B, T, H, W, 3) or images (B, H, W, 3), uint8 0..255 or float -1..1, or the windows of their
                tubes. Images use only the tubes of temporal size 1 (paper section 3.5).
            key: random key, by which a `random` budget draws the tokens of each row anew, see `draw`.

        Returns:
            The tokens with their position embedding, class token first, and the tube centres (t, y, x) as float64, in
            frames and pixels, (N, 3). If the tokens are not the same in all rows, the centres are (B, N, 3) and
            float32. The centre of the class token is NaN.

        Raises:
            UserError: shape or dtype is none of these, the clip is too small for a tube, the windows belong to other
                tubes, or positions are learned for another shape.
        """
        budget, own = self.config.budget, self.config.tubes
        draws = key is not None and budget is not None and budget.rule == "random"
        batch = self._windows(video, own.with_budget(None) if draws else own)
        tubes, shape, numbers = batch.tubes.with_budget(None), batch.clip_shape, token_numbers(batch)
        tokens, position, centres = self.tokenizer(batch), self.position(tubes, shape), tubes.centres(shape)
        if draws and key is not None and budget is not None:
            numbers = draw(key, budget, tubes.grid(shape), len(tokens))
            tokens = jnp.take_along_axis(tokens, numbers[..., None], axis=1)
        if numbers is not None:
            centres = centres if isinstance(numbers, np.ndarray) else jnp.asarray(centres, jnp.float32)
            position, centres = position[numbers], centres[numbers]
        tokens = tokens + position.astype(tokens.dtype)
        if self.config.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
            tokens = jnp.concatenate([first, tokens], axis=1)
            of_class = np.full((*centres.shape[:-2], 1, 3), np.nan, centres.dtype)
            centres = (np if isinstance(centres, np.ndarray) else jnp).concatenate([of_class, centres], axis=-2)
        return tokens, centres

    def _windows(self, video: Video, tubes: TubeSet) -> TubeBatch:
        """Extract or check the windows of tubes, see `tokenize`."""
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
            raise UserError(f"the windows belong to tubes {found}; the model has {expected}")
        video.check()
        for window in video.windows:
            check_dtype(window.dtype)
        if video.tubes.budget == tubes.budget:
            return video
        if video.tubes.budget is not None or tubes.depends_on_clip(video.clip_shape):
            found, expected = video.tubes.budget or "all tokens", tubes.budget or "all tokens"
            raise UserError(f"the windows are those of {found}; this call takes {expected}: read them so")
        return keep(video, tubes)

    def encode(self, video: Video, key: PRNGKeyArray | None = None) -> Float[Array, "B N D"]:
        """Compute the output tokens of the encoder. A key enables dropout; see `tokenize` for the input."""
        return self.encode_together([(video, key)])[0]

    def encode_together(self, inputs: Sequence[tuple[Video, PRNGKeyArray | None]]) -> list[Float[Array, "B N D"]]:
        """Compute the output tokens of several inputs in one pass over the blocks, see `encode`."""
        groups = [Group(self.tokenize(video, key)[0], key, self.layout(video)) for video, key in inputs]
        return self.encoder.encode_together(groups)

    def layout(self, video: Video) -> TokenLayout:
        """Return where the tokens of an input lie if the model has a single tube. Arguments as `tokenize`."""
        if isinstance(video, TubeBatch):
            return self.config.layout(video.clip_shape)
        return self.config.layout((1, *np.shape(video)[1:-1])[-3:])

    def features(self, video: Video, key: PRNGKeyArray | None = None) -> Float[Array, "B D"]:
        """Compute pooled features in float32, see `encode`."""
        return self.pool(self.encode(video, key))

    def pool(self, encoded: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """Pool the output tokens of the encoder to features in float32."""
        pooled = self.pooling(encoded)
        return self.pooled_norm(pooled) if self.config.final_norm == "pooled" else pooled

    def __call__(
        self, video: Video, head: str | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B classes"]:
        """Compute the float32 logits of a head, or pooled features if the model has no heads.

        Args:
            video: see `tokenize`.
            head: name of the head; optional if there is only one.
            key: random key, which enables dropout and stochastic depth.

        Raises:
            UserError: there are several heads and none is named, or the head does not accept the modality.
        """
        if not self.config.heads and head is None:
            return self.features(video, key)
        return self.classify_together([(video, self.head_for(head), key)])[0]

    def classify_together(
        self, inputs: Sequence[tuple[Video, str, PRNGKeyArray | None]]
    ) -> list[Float[Array, "B classes"]]:
        """Compute the logits of several inputs, given as (video, head, key), in one pass over the blocks.

        Devices that share the parameters then gather those of each block once, for images and clips alike.
        """
        for video, head, _ in inputs:
            _check_modality(video, head, dict(self.config.heads)[head].modality)
        encoded = self.encode_together([(video, key) for video, _, key in inputs])
        return [self.heads[head](self.pool(tokens)) for tokens, (_, head, _) in zip(encoded, inputs)]

    def head_for(self, head: str | None) -> str:
        """Return the name of the head, or of the only one if it is None; raises UserError, see `__call__`."""
        heads = dict(self.config.heads)
        if head is None and len(heads) != 1:
            found = f"several heads: pass head=, one of {', '.join(map(repr, heads))}" if heads else "no head"
            raise UserError(f"the model has {found}")
        head = next(iter(heads)) if head is None else head
        if head not in heads:
            raise unknown("head", head, heads)
        return head


def _check_modality(video: Video, head: str, modality: str) -> None:
    shape = video.dense_shape if isinstance(video, TubeBatch) else np.shape(video)
    if modality == "video" and len(shape) == 4:
        hint = "For a single clip add the batch axis: video[None]"
        raise UserError(f"head {head!r} takes videos (B, T, H, W, 3); found {shape}. {hint}")
    if modality == "image" and len(shape) == 5:
        raise UserError(f"head {head!r} takes images (B, H, W, 3); found a video of shape {shape}")


def check_pixels(video: Array) -> None:
    """Raise UserError unless a video is (B, T, H, W, 3) or (B, H, W, 3), uint8 or floating."""
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
    """Raise UserError unless pixels are uint8 or floating."""
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"pixels must be uint8 0..255 or float -1..1; found {dtype}")
