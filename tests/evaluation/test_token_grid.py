"""Where tokens lie: against ramps of colour, whose mean over what a token reads is its place."""

import numpy as np
import pytest

from tubevit.data.decode import Decoded
from tubevit.errors import UserError
from tubevit.evaluation.token_grid import token_grid
from tubevit.models.config import ModelConfig

TUBES = "4x8x8/8x16x16+2x4x4_2x6x4/5x8x12+0x4x0%1x2x1_1x8x8/16x16x8"

TOKENS = 2 * 4 * 4 + 3 * 7 * 6 + 4 * 8


def config(**fields):
    sizes = dict(width=24, depth=1, num_heads=2, mlp_dim=40, tubes=TUBES, frames=16, size=64, fps=8.0)
    return ModelConfig(name="tiny", **sizes | fields)


def ramps(*shape):
    """Frames (T, H, W) whose red, green and blue grow from 16 to 235 over time, rows and columns; and the slopes."""
    slopes = 219 / (np.array(shape) - 1)
    return list((16 + np.moveaxis(np.indices(shape), 0, -1) * slopes).round().astype(np.uint8)), slopes


@pytest.mark.parametrize("height, width", [(64, 64), (96, 160), (192, 96), (192, 320), (101, 77), (50, 71)])
@pytest.mark.parametrize("first, step, fps", [(3.0, 0.125, 8.0), (3.05, 0.1, None)])
def test_centres_are_the_means_of_what_is_read(height, width, first, step, fps):
    """Each of the tubes' offsets, sub-windows and orders of tokens would shift them."""
    model, (frames, slopes) = config(fps=fps), ramps(16, height, width)
    start, end = (3.0, 5.0) if fps else (3.0, 4.6)
    clip = Decoded("video", frames, 60.0, start, end, first, step)
    grid = token_grid(model, clip, model.tubes.num_tokens(model.shape))
    windows = clip.pixels(64, model.tubes).windows
    means = np.concatenate([each[0].reshape(each.shape[1], -1, 3).mean(axis=1, dtype=np.float64) for each in windows])
    read = (means - 16) / slopes
    read[:, 0] = first + step * read[:, 0] - start
    rounding = 0.4 / slopes  # of levels
    np.testing.assert_allclose(grid.centres[:, 0], read[:, 0], atol=step * rounding[0])
    moved = 0 if min(height, width) % 32 == 0 else 0.8  # pixels: the crop is rounded to whole ones
    np.testing.assert_allclose(grid.centres[:, 1], read[:, 1], atol=rounding[1] + moved)
    np.testing.assert_allclose(grid.centres[:, 2], read[:, 2], atol=rounding[2] + moved)
    assert (grid.start, grid.end, grid.picture) == (start, end, (height, width))


def test_square_videos_of_the_size_of_the_model_have_the_centres_of_the_tubes():
    model, (frames, _) = config(), ramps(16, 64, 64)
    grid = token_grid(model, Decoded("video", frames, 60.0, 1.0, 3.0, 1.0, 0.125), TOKENS)
    expected = model.tubes.centres(model.shape) * [0.125, 1, 1]
    np.testing.assert_allclose(grid.centres, expected, atol=1e-12)
    first = 0
    for tube, tokens in zip(model.tubes.tubes, grid.tubes, strict=True):
        assert (tokens.tube, tokens.grid) == (str(tube), tube.grid(model.shape)) and tokens.first == first
        first = tokens.end
        assert tokens.end - tokens.first == np.prod(tokens.grid)
    assert first == TOKENS


@pytest.mark.parametrize(
    "fps, first, step, seconds, expected",
    [
        (8.0, 14.0, 0.125, 30.0, (14.0, 16.0)),  # the clip from the middle
        (8.0, 0.0, 0.125, 1.2, (0.0, 1.2)),  # a video that is shorter than a clip
        (None, 0.25, 0.5, 8.0, (0.0, 8.0)),  # spread over all of the video
    ],
)
def test_a_clip_that_stands_for_the_whole_video_has_its_times(fps, first, step, seconds, expected):
    clip = Decoded("video", ramps(16, 64, 64)[0], seconds, first=first, step=step)
    grid = token_grid(config(fps=fps), clip, TOKENS)
    assert (grid.start, grid.end) == pytest.approx(expected)
    in_middle = 7.5 if fps else 8.0  # frames lie at the beginnings or in the middles of their parts
    assert grid.centres[0, 0] == pytest.approx((3.5 - 7.5 + in_middle) * step)


def test_images_class_tokens_and_a_token_per_frame():
    grid = token_grid(config(), Decoded("image", [np.zeros((64, 96, 3), np.uint8)]), 32)
    assert (grid.start, grid.end, grid.picture) == (None, None, (64, 96)) and grid.tubes[0].grid == (1, 4, 8)
    assert (grid.centres[:, 0] == 0).all() and grid.centres[0, 1:].tolist() == [3.5, 19.5] and len(grid.tubes) == 1

    video = config(tubes="2x8x8/2x16x16", class_token=True)
    clip = Decoded("video", ramps(16, 128, 64)[0], 60.0, 0.0, 2.0, 0.0, 0.125)
    grid = token_grid(video, clip, 1 + 128)
    assert np.isnan(grid.centres[0]).all() and np.isfinite(grid.centres[1:]).all()
    assert [(t.first, t.end, t.grid) for t in grid.tubes] == [(1, 129, (8, 4, 4))]
    by_frame = token_grid(video, clip, 1 + 8)
    assert [(t.first, t.end, t.grid) for t in by_frame.tubes] == [(1, 9, (8, 1, 1))]
    np.testing.assert_allclose(by_frame.centres[1:], grid.centres[1:].reshape(8, 16, 3).mean(axis=1))
    with pytest.raises(UserError, match="128 tokens, and the encoder returns 50"):
        token_grid(video, clip, 50)


def test_a_budget_has_no_grid():
    clip = Decoded("video", ramps(16, 64, 64)[0], 60.0, 1.0, 3.0, 1.0, 0.125)
    for budget in ("50%", "50%:motion"):
        model = config(tubes="2x8x8/2x16x16", budget=budget)
        for count in (8, 64):  # 8 would pass for one token per frame
            with pytest.raises(UserError, match=f"whole grids; found budget {budget}"):
                token_grid(model, clip, count)
