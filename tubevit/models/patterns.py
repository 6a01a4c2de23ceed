"""Patterns of attention over the tokens of one tube: all of them jointly, or apart over time and over space.

`divided` is TimeSformer (Bertasius et al. 2021) and, without a class token, model 3 of ViViT (Arnab et al. 2021), whose
models 2 and 4 are `factorised_encoder` and `factorised_dot`.
"""

import dataclasses
from collections.abc import Callable

import einops
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tubevit.models.position import rotary_angles
from tubevit.tubes import Triple

PATTERNS = ("joint", "divided", "factorised_encoder", "factorised_dot")


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one tube lie: in row-major order of its grid, after the class tokens.

    Attributes:
        grid: numbers of tokens (n_t, n_y, n_x): T = n_t frames of S = n_y n_x places.
        first: number of class tokens, 0 or 1.
    """

    grid: Triple
    first: int = 0

    def by_place(self, x: Float[Array, "B TS *rest"]) -> Float[Array, "BS T *rest"]:
        """Arrange tokens without the class token by their places."""
        return einops.rearrange(x, "b (t s) ... -> (b s) t ...", t=self.grid[0])

    def by_frame(self, x: Float[Array, "B N *rest"]) -> Float[Array, "BT M *rest"]:
        """Arrange tokens by their frames: M = first + S, each frame after a copy of the class token."""
        frames = einops.rearrange(x[:, self.first :], "b (t s) ... -> (b t) s ...", t=self.grid[0])
        return jnp.concatenate([jnp.repeat(x[:, : self.first], self.grid[0], axis=0), frames], axis=1)

    def over_time(self, function: Callable[[Array], Array], x: Float[Array, "B TS *rest"]) -> Array:
        """Apply a function to the tokens of each place, without the class token."""
        places = self.grid[1] * self.grid[2]
        return einops.rearrange(function(self.by_place(x)), "(b s) t ... -> b (t s) ...", s=places)

    def over_space(self, function: Callable[[Array], Array], x: Float[Array, "B N *rest"]) -> Array:
        """Apply a function to the tokens of each frame; the class token gets the mean over the frames."""
        y = einops.rearrange(function(self.by_frame(x)), "(b t) n ... -> b t n ...", t=self.grid[0])
        patches = einops.rearrange(y[:, :, self.first :], "b t s ... -> b (t s) ...")
        return jnp.concatenate([y[:, :, : self.first].mean(axis=1), patches], axis=1)

    def rotate(self, x: Float[Array, "B N *heads d"]) -> Array:
        """Rotate pairs of neighbouring channels of queries or keys by the angles of their tokens."""
        angles = rotary_angles(np.indices(self.grid).reshape(3, -1).T, x.shape[-1])
        angles = np.pad(angles, ((self.first, 0), (0, 0))).reshape(-1, *(1,) * (x.ndim - 3), x.shape[-1])
        cosine, sine = (jnp.asarray(wave(angles), x.dtype) for wave in (np.cos, np.sin))
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        return x * cosine + jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape) * sine


UNKNOWN = TokenLayout((0, 0, 0))  # enough for joint attention without rotary positions
