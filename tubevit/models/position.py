"""Position embeddings: where each tube was (paper section 3.3, equations 3 to 7), and the others of Table 7a."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tubevit.errors import UserError
from tubevit.tubes import Triple, Tube, TubeSet

MAX_PERIOD = 10_000.0  # tau of equation 3
# fixed: of the tubes' centres. fixed_no_stride: of the tokens' indices in each tube's grid. fixed_literal: with the
# exponent of equation 3 as printed. learned: a table for each tube. learned_2d: for the 2D tubes only, fixed elsewhere.
POSITIONS = ("fixed", "fixed_no_stride", "fixed_literal", "learned", "learned_2d", "none")


def position_embedding(centres: np.ndarray, width: int, literal: bool = False) -> np.ndarray:
    """Embeds tube centres; never trained, computed for whatever shape comes.

    Frequency j of d // 6 is tau ** (-j / (d // 6)): equation 3 as printed, tau ** -j, leaves only 12 channels that
    vary. Each j fills six channels: sin t, cos t, sin y, cos y, sin x, cos x (equation 7; its x runs over rows).

    Args:
        centres: (N, 3) tube centres (t, y, x) in frames and pixels.
        width: D; channels beyond 6 * (D // 6) are 0.
        literal: take the exponent as printed.

    Returns:
        (N, D) float32, values -1..1.
    """
    bands = width // 6
    frequencies = MAX_PERIOD ** (-np.arange(bands, dtype=np.float64) / (1 if literal else max(bands, 1)))
    angles = np.asarray(centres, np.float64)[:, None, :] * frequencies[:, None]  # (N, bands, 3)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (N, bands, 3, 2)
    embedding = np.zeros((len(centres), width), np.float32)
    embedding[:, : 6 * bands] = waves.reshape(len(centres), -1)
    return embedding


class Position(nnx.Module):
    """The position embedding of all tubes of a set.

    Parameters: `<i>` (n_t, n_y, n_x, D), the table of tube i at the shape that the model is made for; only of those
    tubes whose positions are learned.

    Args:
        kind: one of `POSITIONS`.
        tubes: of the model.
        shape: (T, H, W) that the model is made for.
        width: D.
    """

    def __init__(self, kind: str, tubes: TubeSet, shape: tuple[int, int, int], width: int, *, rngs: nnx.Rngs):
        self.kind, self.order, self.shape, self.width = kind, tubes.tubes, shape, width
        initial = nnx.initializers.truncated_normal(0.02)
        for i, tube in enumerate(tubes.tubes):
            if is_learned(kind, tube):
                table = initial(rngs.params(), (*tube.grid(shape, tubes.padding), width), jnp.float32)
                setattr(self, str(i), nnx.Param(table))

    def __call__(self, tubes: TubeSet, shape: tuple[int, int, int]) -> jax.Array:
        """(N, D) float32 for the tokens of `tubes`, all of the model's or those for images, in a clip of `shape`.

        Raises:
            UserError: positions are learned, and for another grid. Images take the first frame of a table.
        """
        return jnp.concatenate(list(self._parts(tubes, shape)))

    def _parts(self, tubes: TubeSet, shape) -> Iterator[jax.Array]:
        for i, tube in enumerate(self.order):
            if tube not in tubes.tubes:
                continue
            grid = tube.grid(shape, tubes.padding)
            if is_learned(self.kind, tube):
                yield self._learned(i, tube, grid, shape)
            elif self.kind == "none":
                yield jnp.zeros((tube.num_tokens(shape, tubes.padding), self.width), jnp.float32)
            elif self.kind == "fixed_no_stride":
                yield jnp.asarray(position_embedding(np.indices(grid).reshape(3, -1).T, self.width))
            else:
                centres = tube.centres(shape, tubes.padding)
                yield jnp.asarray(position_embedding(centres, self.width, self.kind == "fixed_literal"))

    def _learned(self, i: int, tube: Tube, grid, shape) -> jax.Array:
        table = getattr(self, str(i))[...]
        if shape[0] == 1 and tube.is_2d:
            table = table[:1]
        if table.shape[:3] != grid:
            made, found = ("x".join(map(str, size)) for size in (self.shape, shape))
            raise UserError(
                f"the learned positions of tube {tube} are made for clips of {made} (T x H x W) and images of the same "
                f"rows and columns; found {found}. position='fixed' takes any shape"
            )
        return table.reshape(-1, self.width)


def is_learned(kind: str, tube: Tube) -> bool:
    """Whether a tube has a table under this kind of position."""
    return kind == "learned" or (kind == "learned_2d" and tube.is_2d)


def resize_positions(table: np.ndarray, grid: Triple) -> np.ndarray:
    """A table of learned positions for another grid: bicubic over rows and columns, antialiased where they shrink.

    Args:
        table: (n_t, n_y, n_x, D); n_t of 1 holds for every frame.
        grid: new (n_t, n_y, n_x).

    Returns:
        (*grid, D) float32.

    Raises:
        UserError: another number of frames, unless it was 1.
    """
    table = np.asarray(table, np.float32)
    if table.shape[1:3] != grid[1:]:
        table = np.asarray(jax.image.resize(table, (len(table), *grid[1:], table.shape[-1]), "cubic", antialias=True))
    if len(table) not in (1, grid[0]):
        raise UserError(f"learned positions of {len(table)} frames do not fit {grid[0]}: expected 1 or {grid[0]}")
    return np.broadcast_to(table, (*grid, table.shape[-1]))
