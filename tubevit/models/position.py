"""Position embeddings of tubes (paper section 3.3, equations 3 to 7), and the alternatives of Table 7a."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Num

from tubevit.errors import UserError
from tubevit.tubes import Triple, Tube, TubeSet

MAX_PERIOD = 10_000.0  # tau of equation 3
# fixed: from tube centres. fixed_no_stride: from token indices in the grid of each tube. fixed_literal: with the
# exponent of equation 3 as printed. learned: a table per tube. learned_2d: a table per 2D tube, and fixed for 3D tubes.
# learned_space: a table of one frame, for all times. learned_space_time: with another table over time. index: from the
# number of the token (VideoMAE). rope: rotations of queries and keys instead of an embedding (V-JEPA 2).
POSITIONS = (
    "fixed", "fixed_no_stride", "fixed_literal", "learned", "learned_2d", "learned_space", "learned_space_time",
    "index", "rope", "none",
)  # fmt: skip


def position_embedding(
    centres: Num[np.ndarray, "N 3"], width: int, literal: bool = False
) -> Float[np.ndarray, "N {width}"]:
    """Compute the fixed position embedding of tube centres, float32 values from -1 to 1.

    Frequency j of D // 6 is tau ** (-j / (D // 6)). With tau ** -j, as equation 3 is printed, only 12 channels vary.
    Each j fills six channels: sin t, cos t, sin y, cos y, sin x, cos x (equation 7, where x runs over rows).

    Args:
        centres: tube centres (t, y, x) in frames and pixels.
        width: D; channels beyond 6 * (D // 6) are 0.
        literal: use the exponent as printed.
    """
    bands = width // 6
    frequencies = MAX_PERIOD ** (-np.arange(bands, dtype=np.float64) / (1 if literal else max(bands, 1)))
    angles = np.asarray(centres, np.float64)[:, None, :] * frequencies[:, None]  # (N, bands, 3)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (N, bands, 3, 2)
    embedding = np.zeros((len(centres), width), np.float32)
    embedding[:, : 6 * bands] = waves.reshape(len(centres), -1)
    return embedding


def index_embedding(count: int, width: int) -> Float[np.ndarray, "N {width}"]:
    """Compute the embedding of token numbers, float32: sine and cosine interleaved (VideoMAE, Vaswani et al. 2017)."""
    channels = np.arange(width)
    angles = np.arange(count)[:, None] / MAX_PERIOD ** (2 * (channels // 2) / width)
    return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def rotary_angles(indices: Num[np.ndarray, "N 3"], channels: int) -> Float[np.ndarray, "N {channels}"]:
    """Compute the angles that rotate queries and keys of one head, as V-JEPA 2 does.

    A third of the channels, rounded down to an even number, belongs to each of t, y and x; the rest is not rotated. The
    frequencies are tiled over these channels, although neighbouring channels are rotated together: the released weights
    depend on it.
    """
    each = channels // 3 // 2 * 2
    frequencies = MAX_PERIOD ** (-np.arange(each // 2) / max(each / 2, 1))
    angles = np.tile(np.asarray(indices, np.float64)[:, :, None] * frequencies, 2).reshape(len(indices), -1)
    return np.pad(angles, ((0, 0), (0, channels - 3 * each)))


class Position(nnx.Module):
    """The position embedding of all tubes of a model.

    Parameters: `<i>` (n_t, n_y, n_x, D), the table of tube i for the default clip, if its positions are learned. For
    `learned_space` and `learned_space_time` it has one frame; the latter adds `<i>_time` (n_t, D).

    Args:
        kind: one of `POSITIONS`.
        tubes: tubes of the model.
        shape: shape (T, H, W) of the default clip.
        width: D.
    """

    def __init__(self, kind: str, tubes: TubeSet, shape: Triple, width: int, *, rngs: nnx.Rngs):
        self.kind, self.order, self.shape, self.width = kind, tubes.tubes, shape, width
        initial = nnx.initializers.truncated_normal(0.02)
        for i, tube in enumerate(tubes.tubes):
            if is_learned(kind, tube):
                grid = tube.grid(shape, tubes.padding)
                setattr(self, str(i), nnx.Param(initial(rngs.params(), (*table_grid(kind, grid), width), jnp.float32)))
                if kind == "learned_space_time":
                    setattr(self, f"{i}_time", nnx.Param(jnp.zeros((grid[0], width), jnp.float32)))

    def __call__(self, tubes: TubeSet, shape: Triple) -> Float[Array, "N D"]:
        """Embed the tokens of all tubes, or of the tubes for images, in a clip of `shape`, in float32.

        Raises:
            UserError: positions are learned for another grid. Images use the first frame of a table.
        """
        parts = [self._part(i, tube, shape, tubes.padding) for i, tube in enumerate(self.order) if tube in tubes.tubes]
        return jnp.concatenate(parts)

    def _part(self, i: int, tube: Tube, shape: Triple, padding: str) -> Float[Array | np.ndarray, "N D"]:
        grid = tube.grid(shape, padding)
        if is_learned(self.kind, tube):
            table = getattr(self, str(i))[...]
            if self.kind == "learned_space":
                table = jnp.broadcast_to(table, (grid[0], *table.shape[1:]))
            elif self.kind == "learned_space_time":
                table = table + getattr(self, f"{i}_time")[...][:, None, None]
            if shape[0] == 1 and tube.is_2d:
                table = table[:1]
            if table.shape[:3] != grid:
                made, found = ("x".join(map(str, size)) for size in (self.shape, shape))
                remedy = f"read_video(path, **model.input) and read_image(path, size={self.shape[1]}) give what fits"
                if len(table) == grid[0] and shape[1] == shape[2]:
                    remedy = f"load_model(..., size={shape[1]}) resizes those of a checkpoint"
                raise UserError(
                    f"the learned positions of tube {tube} fit clips of {made} (T x H x W) and images with the same "
                    f"rows and columns; found {found}: {remedy}. A new model with position='fixed' takes any shape"
                )
            return table.reshape(-1, self.width)
        if self.kind in ("none", "rope"):
            return jnp.zeros((math.prod(grid), self.width), jnp.float32)
        if self.kind == "index":
            return jnp.asarray(index_embedding(math.prod(grid), self.width))
        no_stride = self.kind == "fixed_no_stride"
        centres = np.indices(grid).reshape(3, -1).T if no_stride else tube.centres(shape, padding)
        return jnp.asarray(position_embedding(centres, self.width, self.kind == "fixed_literal"))


def is_learned(kind: str, tube: Tube) -> bool:
    """Return whether a tube has a learned table with this kind of position."""
    return kind in ("learned", "learned_space", "learned_space_time") or (kind == "learned_2d" and tube.is_2d)


def table_grid(kind: str, grid: Triple) -> Triple:
    """Return the grid of the table of a tube with this kind of position."""
    return (1, *grid[1:]) if kind.startswith("learned_space") else grid


def resize_positions(
    table: Float[np.ndarray | Array, "n_t n_y n_x D"], grid: Triple
) -> Float[np.ndarray, "{grid[0]} {grid[1]} {grid[2]} D"]:
    """Resize learned positions (float32), bicubic over rows and columns and antialiased where they shrink.

    Args:
        table: learned positions; a table of one time holds for all times.
        grid: new (n_t, n_y, n_x).

    Raises:
        UserError: the number of times changes, and the table has more than one.
    """
    table = np.asarray(table, np.float32)
    if table.shape[1:3] != grid[1:]:
        table = np.asarray(jax.image.resize(table, (len(table), *grid[1:], table.shape[-1]), "cubic", antialias=True))
    if len(table) not in (1, grid[0]):
        raise UserError(
            f"the learned positions over time fit {len(table)} times, and these frames give {grid[0]}: keep the frames "
            "of the checkpoint"
        )
    return np.broadcast_to(table, (*grid, table.shape[-1]))
