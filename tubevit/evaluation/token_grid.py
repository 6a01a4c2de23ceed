"""Where the tokens of a clip lie in its video: centres in seconds and pixels, and the grid of each tube."""

import dataclasses
import math

import numpy as np

from tubevit.data.decode import Decoded
from tubevit.data.warp import frame_size, square_map
from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.tubes import TubeSet


@dataclasses.dataclass(frozen=True, eq=False)
class TubeTokens:
    """The tokens of a tube: `first` to `end` - 1, in row-major order of a grid (n_t, n_y, n_x); `tube` is its text."""

    tube: str
    first: int
    end: int
    grid: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenGrid:
    """Where the output tokens of the encoder lie.

    Attributes:
        start, end: of the clip, in seconds from the beginning of the video; None for an image.
        picture: height and width of the upright frames, in pixels.
        centres: (N, 3) float64: seconds from `start`, 0 for an image; row and column in the upright frames, where the
            centre of the first pixel is 0. NaN for a class token.
        tubes: the tokens of each tube. A class token comes before them and belongs to none.
    """

    start: float | None
    end: float | None
    picture: tuple[int, int]
    centres: np.ndarray
    tubes: tuple[TubeTokens, ...]


def check_whole(config: ModelConfig) -> None:
    """Raise UserError if the encoder of a model takes only some of the tokens, which have no grid."""
    if config.budget is not None:
        remedy = "pass --budget 100%, or load_model(..., budget='100%')"
        raise UserError(f"tokens need whole grids; found budget {config.budget}: {remedy}")


def token_grid(config: ModelConfig, clip: Decoded, count: int) -> TokenGrid:
    """Locate the output tokens of the encoder for a clip or an image.

    Args:
        config: configuration of the model, which sees the centred square at `size`.
        clip: what was decoded for the model.
        count: number of output tokens.

    Raises:
        UserError: the model has a budget, or the number is neither that of the tubes nor that of a token per frame.
    """
    check_whole(config)
    tubes = config.tubes.for_images() if clip.kind == "image" else config.tubes
    shape = (len(clip.frames), config.size, config.size)
    grids, centres, class_tokens = tubes.grid(shape), tubes.centres(shape), int(config.class_token)
    if len(grids) == 1 and count == class_tokens + grids[0][0] != class_tokens + len(centres):  # a token per frame
        centres = centres.reshape(grids[0][0], -1, 3).mean(axis=1)
        grids = ((grids[0][0], 1, 1),)
    if count != class_tokens + len(centres):
        raise UserError(f"the tubes {tubes} have {len(centres)} tokens, and the encoder returns {count}: no grid")
    frames, y, x = centres.T
    picture = frame_size(clip.frames[0])
    # Pixel i covers i to i + 1 for the map, and has its centre at i here.
    x, y, _ = square_map(*picture, config.size) @ [x + 0.5, y + 0.5, np.ones(len(x))] - 0.5
    start, end, seconds = _times(clip, frames, spread=config.fps is None)
    centres = np.concatenate([np.full((class_tokens, 3), np.nan), np.stack([seconds, y, x], axis=1)])
    return TokenGrid(start, end, picture, centres, _tokens_of(tubes, grids, class_tokens))


def _times(clip: Decoded, frames: np.ndarray, spread: bool) -> tuple[float | None, float | None, np.ndarray]:
    """Return start and end of a clip, and the times of indices of frames from the start on, all in seconds.

    Frames that are `spread` over a clip lie in the middles of its parts, others at their beginnings.
    """
    if clip.first is None or clip.step is None:
        return None, None, np.zeros(len(frames))
    shift = 0.5 * clip.step if spread else 0.0
    start, end = clip.start, clip.end
    if start is None or end is None:
        start = clip.first - shift
        end = min(start + len(clip.frames) * clip.step, clip.seconds or math.inf)
    return start, end, shift + clip.step * frames


def _tokens_of(tubes: TubeSet, grids: tuple[tuple[int, ...], ...], first: int) -> tuple[TubeTokens, ...]:
    ends = first + np.cumsum([math.prod(grid) for grid in grids])
    return tuple(
        TubeTokens(str(tube), int(end) - math.prod(grid), int(end), grid)
        for tube, grid, end in zip(tubes.tubes, grids, ends)
    )
