import io

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from tubevit.errors import UserError
from tubevit.models.tokenizer import resize_trilinear
from tubevit.visualize import kernels
from tubevit.visualize.page import gif


def test_kernels_of_a_tube_fall_in_norm(tiny):
    model = tiny()
    stored = np.asarray(model.tokenizer.tubes["1"].kernel[...])
    found = kernels.tube_kernels(model, 1)
    assert found.shape == (6, 8, 2, 2, 3)  # 24 wide, 4 windows a token
    norms = np.sqrt((found**2).sum(axis=(1, 2, 3, 4)))
    assert (np.diff(norms) <= 0).all() and norms[0] > norms[-1]
    columns = {stored[..., i].tobytes() for i in range(6)}
    assert {each.tobytes() for each in found} == columns
    with pytest.raises(UserError, match="tubes 0 to 3; found 4"):
        kernels.tube_kernels(model, 4)


def test_the_shared_kernel_is_resized(tiny):
    model = tiny(tubes="4x4x4/8x16x16_1x8x8/16x8x8", interpolated=True)
    shared = resize_trilinear(model.tokenizer.kernel[...], (4, 4, 4), False, False)
    found = kernels.tube_kernels(model, 0)
    assert {each.tobytes() for each in found} == {np.asarray(shared[..., i]).tobytes() for i in range(24)}


@pytest.mark.parametrize("shape", [(40, 1, 4, 4, 3), (10, 2, 3, 4, 3)])
def test_principal_components(shape):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) * np.linspace(0.1, 2, shape[3])[:, None] + 1).astype(np.float32)
    components, shares = kernels.principal_components(values, 8)
    flat = values.reshape(len(values), -1).astype(np.float64)
    expected = PCA(8).fit(flat)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, rtol=1e-6)
    agreement = np.abs((components.reshape(8, -1) * expected.components_).sum(axis=1))
    np.testing.assert_allclose(agreement, 1, atol=1e-6)  # but for the sign
    rows = components.reshape(8, -1)
    assert (rows[np.arange(8), np.abs(rows).argmax(axis=1)] > 0).all()
    assert len(kernels.principal_components(values, 100)[0]) == min(len(values) - 1, flat.shape[1])


def test_colours_and_strips():
    values = np.zeros((3, 2, 4, 4, 3), np.float32)
    values[0, 0, 0, 0] = (2, -2, 0)
    values[1, 1, 3, 3] = (-1, 0.5, 0)
    colours = kernels.as_colours(values)
    np.testing.assert_allclose(colours[0, 0, 0, 0], (1, 0, 0.5))
    np.testing.assert_allclose(colours[1, 1, 3, 3], (0, 0.75, 0.5))
    assert (colours[2] == 0.5).all()  # a kernel of zeros
    sheet = kernels.kernel_sheet(values, 2)  # pixels of 8, frames 3 apart, strips 10 apart
    assert sheet.shape == (2 * 32 + 10, 2 * 67 + 10, 3)
    np.testing.assert_allclose(sheet[0, 0], (1, 0, 0.5))
    np.testing.assert_allclose(sheet[31, 77 + 66], (0, 0.75, 0.5))  # the last frame of the second
    np.testing.assert_allclose(sheet[10, 32], 1)  # white between frames


def test_animations_move_as_the_kernels_do(tiny):
    model = tiny()
    frames = kernels.kernel_animation(model, 0)
    found = kernels.as_colours(kernels.tube_kernels(model, 0))
    assert len(frames) == 4
    for t in range(4):
        np.testing.assert_array_equal(frames[t][0, 0], np.round(255 * found[0, t, 0, 0]).astype(np.uint8))
    image = Image.open(io.BytesIO(gif(frames)))
    assert image.n_frames == 4 and image.info["loop"] == 0 and image.size == frames.shape[2:0:-1]
    for t in range(4):
        image.seek(t)
        shown = np.asarray(image.convert("RGB"), int)
        assert np.abs(shown - frames[t]).mean() < 8  # a GIF has 256 colours a frame


def test_figures_say_how_many_are_shown(tiny):
    model = tiny(width=96)
    title = kernels.kernel_figure(model, 3).axes[0].get_title()
    assert title == "1×8×8: 64 of 96 kernels"
    figure = kernels.component_figure(model, 1)
    assert "8×2×2: components 1 to 8" in figure.axes[0].get_title() and figure.axes[0].texts[0].get_text() == "time →"
