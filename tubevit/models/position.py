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
POSITIONS = ("fixed", "fixed_no_stride", "fixed_literal", "learned", "learned_2d", "none")


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


class Position(nnx.Module):
    """The position embedding of all tubes of a model.

    Parameters: `<i>` (n_t, n_y, n_x, D), the table of tube i for the default clip, if its positions are learned.

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
                table = initial(rngs.params(), (*tube.grid(shape, tubes.padding), width), jnp.float32)
                setattr(self, str(i), nnx.Param(table))

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
            if shape[0] == 1 and tube.is_2d:
                table = table[:1]
            if table.shape[:3] != grid:
                made, found = ("x".join(map(str, size)) for size in (self.shape, shape))
                raise UserError(
                    f"the learned positions of tube {tube} fit clips of {made} (T x H x W) and images with the same "
                    f"rows and columns; found {found}. position='fixed' accepts any shape"
                )
            return table.reshape(-1, self.width)
        if self.kind == "none":
            return jnp.zeros((math.prod(grid), self.width), jnp.float32)
        no_stride = self.kind == "fixed_no_stride"
        centres = np.indices(grid).reshape(3, -1).T if no_stride else tube.centres(shape, padding)
        return jnp.asarray(position_embedding(centres, self.width, self.kind == "fixed_literal"))


def is_learned(kind: str, tube: Tube) -> bool:
    """Return whether a tube has a learned table with this kind of position."""
    return kind == "learned" or (kind == "learned_2d" and tube.is_2d)


def resize_positions(
    table: Float[np.ndarray | Array, "n_t n_y n_x D"], grid: Triple
) -> Float[np.ndarray, "{grid[0]} {grid[1]} {grid[2]} D"]:
    """Resize learned positions (float32), bicubic over rows and columns and antialiased where they shrink.

    Args:
        table: learned positions; a table of one frame holds for every frame.
        grid: new (n_t, n_y, n_x).

    Raises:
        UserError: the number of frames changes, and the table has more than one.
    """
    table = np.asarray(table, np.float32)
    if table.shape[1:3] != grid[1:]:
        table = np.asarray(jax.image.resize(table, (len(table), *grid[1:], table.shape[-1]), "cubic", antialias=True))
    if len(table) not in (1, grid[0]):
        raise UserError(f"learned positions of {len(table)} frames do not fit {grid[0]}: expected 1 or {grid[0]}")
    return np.broadcast_to(table, (*grid, table.shape[-1]))
