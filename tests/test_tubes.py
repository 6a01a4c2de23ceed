import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.models.reference import inside, positions, windows
from tubevit.errors import UserError
from tubevit.tubes import PADDINGS, PRESETS, Tube, TubeSet, as_tube_set, list_tubes

PAPER_STRIDE_16 = "8x8x8/16x32x32_16x4x4/6x32x32+4x8x8_4x12x12/16x32x32+0x16x16_1x16x16/16x16x16"


def random_tubes(count, seed):
    """Tubes of all kinds, overlapping and with gaps, with a clip that each fits."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        factor = rng.integers(1, 4, 3)
        tube = Tube(rng.integers(1, 6, 3), factor * rng.integers(1, 4, 3), rng.integers(0, 4, 3), factor)
        yield tube, tuple(int(n) for n in rng.integers(0, 9, 3) + tube.smallest_shape())


# paper.md section 1.3, both tables; None: too small for a tube.
@pytest.mark.parametrize(
    "preset, shape, valid, same",
    [
        ("paper", (8, 224, 224), None, 343),
        ("paper", (16, 112, 112), None, 106),
        ("paper", (16, 224, 224), None, 392),
        ("paper", (24, 224, 224), 441, 588),
        ("paper", (32, 112, 112), 147, 179),
        ("paper", (32, 160, 160), 275, 325),
        ("paper", (32, 192, 192), 396, 468),
        ("paper", (32, 224, 224), 539, 637),
        ("paper", (32, 256, 256), 704, 832),
        ("paper", (32, 320, 320), 1100, 1300),
        ("paper", (64, 224, 224), 1176, 1274),
        ("paper", (64, 320, 320), 2400, 2600),
        ("paper", (128, 224, 224), 2499, 2597),
        ("charades", (128, 224, 224), 2248, 2597),
        ("core", (32, 224, 224), 784, 784),
        ("table14_7", (32, 224, 224), 882, 882),
        ("table14_7", (64, 224, 224), 1764, 1764),
        ("image_2d", (1, 224, 224), 196, 196),
        ("image_2d_stride16", (32, 224, 224), 392, 392),
        ("dense_2x16x16", (16, 224, 224), 1568, 1568),
        ("small", (16, 64, 64), 176, None),
        (PAPER_STRIDE_16, (32, 224, 224), 735, None),
    ],
)
def test_token_counts_of_the_paper(preset, shape, valid, same):
    if valid is None:
        with pytest.raises(UserError, match="too small for tube 16x4x4"):
            as_tube_set(preset).num_tokens(shape)
    else:
        assert as_tube_set(preset).num_tokens(shape) == valid == len(as_tube_set(preset).centres(shape))
    if same is not None:
        assert as_tube_set(preset, "same").num_tokens(shape) == same


def test_grids_and_same_padding_of_the_paper():
    shape = (32, 224, 224)
    assert PRESETS["paper"].grid(shape) == ((2, 7, 7), (3, 7, 7), (2, 7, 7), (1, 14, 14))
    assert as_tube_set("paper", "same").grid(shape)[1] == (5, 7, 7)
    assert PRESETS["paper_no_s2d"].tubes[1].starts(shape, "same")[0][:, 0].tolist() == [-2, 4, 10, 16, 22]
    assert PRESETS["paper"].for_images().num_tokens((1, 224, 224)) == 196


@pytest.mark.parametrize("preset, share, values", [("paper_no_s2d", 0.105, 583_296), ("paper", 0.175, 1_072_512)])
def test_share_of_pixels_read(preset, share, values):
    assert round(PRESETS[preset].pixels_read((32, 224, 224)), 3) == share
    assert PRESETS[preset].values_read((32, 224, 224)) == values


@pytest.mark.parametrize("padding", PADDINGS)
def test_geometry_equals_brute_force(padding):
    for tube, shape in random_tubes(30, seed=0):
        tokens = windows(tube, shape, padding)
        assert tube.num_tokens(shape, padding) == len(tokens)
        centres = [np.mean(positions(token), axis=0) for token in tokens]
        for found in (tube.centres(shape, padding), TubeSet((tube,), padding).centres(shape)):
            np.testing.assert_allclose(found, centres, rtol=0, atol=1e-12)
        read = {p for token in tokens for p in positions(token) if inside(p, tube, shape)}
        assert TubeSet((tube,), padding).pixels_read(shape) == pytest.approx(len(read) / np.prod(shape), abs=1e-12)
        assert TubeSet((tube,), padding).values_read(shape) == 3 * sum(len(positions(token)) for token in tokens)


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_that_of_a_convolution_and_space_to_depth_keeps_the_grid(padding):
    for tube, shape in random_tubes(30, seed=1):
        rest = [size - offset for size, offset in zip(shape, tube.offset)]
        convolved = jax.eval_shape(
            lambda x, k: jax.lax.conv_general_dilated(x, k, tube.stride, padding.upper()),
            jax.ShapeDtypeStruct((1, 1, *rest), "float32"),
            jax.ShapeDtypeStruct((1, 1, *tube.kernel), "float32"),
        )
        assert tube.grid(shape, padding) == convolved.shape[2:]
        left = [low for low, _ in jax.lax.padtype_to_pads(rest, tube.kernel, tube.stride, padding.upper())]
        assert tube.origin(shape, padding) == tuple(o - low for o, low in zip(tube.offset, left))
        assert tube.grid(tube.smallest_shape(padding), padding) == (1, 1, 1)
        for axis in range(3):
            smaller = np.subtract(tube.smallest_shape(padding), np.eye(3, dtype=int)[axis])
            assert tube.num_tokens(smaller, padding) == 0


@pytest.mark.parametrize("name", list_tubes())
def test_text_round_trip_of_every_preset(name):
    tubes, text = PRESETS[name], str(PRESETS[name])
    assert TubeSet.from_text(text, tubes.padding, tubes.interpolated) == tubes
    assert as_tube_set(text, interpolated=tubes.interpolated) == tubes == as_tube_set(name)
    assert TubeSet.from_text(text) == as_tube_set(text) == as_tube_set(name, interpolated=False)
    assert tubes.interpolated == (name == "interpolated")


def test_paper_preset_is_table_12():
    assert PRESETS["paper"].tubes == (
        Tube((8, 8, 8), (16, 32, 32), space_to_depth=(2, 1, 1)),
        Tube((16, 4, 4), (6, 32, 32), (4, 8, 8), (1, 2, 2)),
        Tube((4, 12, 12), (16, 32, 32), (0, 16, 16)),
        Tube((1, 16, 16), (32, 16, 16)),
    )
    assert str(PRESETS["paper"].tubes[1]) == "16x4x4/6x32x32+4x8x8%1x2x2"
    # `small` is the same with every length halved, rounded up to 1.
    for tube, half in zip(PRESETS["paper"].tubes, PRESETS["small"].tubes, strict=True):
        assert half.kernel == tuple(max(k // 2, 1) for k in tube.kernel)
        assert (half.stride, half.offset) == tuple(tuple(v // 2 for v in t) for t in (tube.stride, tube.offset))
        assert half.space_to_depth == tube.space_to_depth


def test_interpolated_preset_is_the_papers_without_space_to_depth():
    """Table 7e: another way to make the kernels, on the same grids."""
    assert PRESETS["interpolated"].tubes == PRESETS["paper_no_s2d"].tubes
    assert PRESETS["interpolated"].num_tokens((32, 224, 224)) == 539
    assert as_tube_set("interpolated", "same") == TubeSet(PRESETS["paper_no_s2d"].tubes, "same", True)
    assert as_tube_set(PRESETS["charades"], interpolated=True).interpolated  # appendix B
    assert as_tube_set(as_tube_set("interpolated", "same")) == as_tube_set("interpolated", "same")


def test_sets_of_2d_tubes():
    assert PRESETS["image_2d"].is_2d and not PRESETS["core"].is_2d and PRESETS["core"].for_images().is_2d


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: as_tube_set("paper", interpolated=True), ["no space-to-depth", "8x8x8/16x32x32%2x1x1", "expected"]),
        (lambda: TubeSet(PRESETS["small"].tubes, "valid", True), ["found 4x4x4/8x16x16%2x1x1", "4x4x4/8x16x16"]),
        (lambda: Tube.from_text("8x8/16x32x32"), ["'8x8/16x32x32'", "KERNEL/STRIDE"]),
        (lambda: as_tube_set("8x8x8/16x32x32%2x1x1+0x0x0"), ["%2x1x1+0x0x0'", "KERNEL/STRIDE"]),
        (lambda: TubeSet.from_text("8x8x8/16x32x32_"), ["''", "KERNEL/STRIDE"]),
        (lambda: Tube.from_text("8x0x8/16x32x32"), ["kernel", "at least 1", "(8, 0, 8)"]),
        (lambda: Tube((8, 8, 8), (2.5, 8, 8)), ["stride", "integers"]),
        (lambda: Tube((8, 8, 8), (8, 8, 8), (-1, 0, 0)), ["offset", "at least 0"]),
        (lambda: Tube((4, 4, 4), (8, 9, 8), (0, 0, 0), (1, 2, 1)), ["stride 9 along y", "factor 2", "8x9x8%1x2x1"]),
        (lambda: as_tube_set("papr"), ["'papr'", "did you mean 'paper'"]),
        (lambda: as_tube_set("paper", "sme"), ["padding 'sme'", "'same'"]),
        (lambda: as_tube_set(3), ["TubeSet", "3"]),
        (lambda: TubeSet(()), ["at least one Tube"]),
        (lambda: TubeSet.from_text("1x8x8/8x8x8_1x8x8/8x8x8"), ["none twice"]),
        (lambda: TubeSet.from_text("8x8x8/16x32x32").for_images(), ["no images", "temporal size 1"]),
        (lambda: PRESETS["paper"].grid((1, 2, 2)), ["no preset fits"]),
        (lambda: PRESETS["paper"].grid((32, 224)), ["shape of a clip", "(32, 224)"]),
        (lambda: PRESETS["image_2d"].fits((224, 224)), ["shape of a clip", "(224, 224)"]),
        (lambda: Tube((1, 16, 16), (32, 16, 16)).num_tokens((224, 224)), ["shape of a clip", "(224, 224)"]),
        (lambda: Tube((1, 16, 16), (32, 16, 16)).centres((224, 224)), ["shape of a clip", "(224, 224)"]),
    ],
)
def test_errors_say_what_is_expected(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert not [word for word in words if word not in str(error.value)], str(error.value)


def test_too_small_a_clip_names_tube_smallest_size_and_presets_that_fit():
    with pytest.raises(UserError) as error:
        PRESETS["paper"].centres((19, 224, 224))
    text, fitting = str(error.value).split("presets that fit: ")
    assert "19x224x224" in text and "16x4x4/6x32x32+4x8x8%1x2x2, which needs at least 20x12x12" in text
    assert set(fitting.split(", ")) == {name for name, tubes in PRESETS.items() if tubes.fits((19, 224, 224))}
    assert "core" in fitting and "paper" not in fitting


def test_geometry_needs_no_jax():
    code = "import sys, tubevit.tubes; sys.exit(bool({'jax', 'flax', 'tensorflow'} & set(sys.modules)))"
    root = pathlib.Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
