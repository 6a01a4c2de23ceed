"""Tubes from a dense tubelet: what is exact, against clips that are cut, resized or repeated by hand."""

import numpy as np
import pytest
from flax import nnx

import tubevit
from tests.transfer.test_inflate import triangle
from tests.transfer.test_initialise import begin, flat, parameters_of
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head
from tubevit.models.position import index_embedding
from tubevit.transfer.dense import dense_positions, read_positions, sparse_config
from tubevit.transfer.inflate import inflate_kernel
from tubevit.transfer.sparsify import sparse_source, sparsify
from tubevit.tubes import Tube
from tubevit.zoo.names import open_checkpoint

DENSE = dict(depth=1, tubes="2x8x8/2x8x8", frames=8, size=32, class_token=True, pooling="cls", position="learned")
KERNEL = np.random.default_rng(0).normal(size=(2, 8, 8, 3, 6))


def token(window, kernel):
    return np.einsum("tyxc,tyxcd->d", window, kernel)


def window(*size, seed=1):
    return np.random.default_rng(seed).normal(size=(*size, 3))


def sparse(dense, tubes, folder):
    """The model of other tubes that the saved dense model gives."""
    tubevit.save_model(dense, folder / "dense")
    return sparsify(open_checkpoint(folder / "dense"), tubes)[0]


@pytest.mark.parametrize("position", ["learned", "learned_space", "learned_space_time", "index", "fixed"])
def test_other_strides_and_offsets_are_a_subset_of_the_tokens(tiny, tmp_path, position):
    dense = tiny({}, **DENSE | dict(position=position))
    model = sparse(dense, "2x8x8/4x16x16+2x8x8_2x8x8/2x8x24", tmp_path)
    clip = np.random.default_rng(2).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    (all_tokens, centres), (tokens, kept) = dense.tokenize(clip), model.tokenize(clip)
    rows = [np.flatnonzero((centres[1:] == centre).all(axis=1)) for centre in kept[1:]]
    assert len(rows) == 2 * 2 * 2 + 4 * 4 * 2 and model.config.class_token
    for i in "01":  # the products of other numbers of tokens are rounded otherwise, what they are made of is equal
        np.testing.assert_array_equal(model.tokenizer.tubes[i].kernel[...], dense.tokenizer.tubes["0"].kernel[...])
    at, all_at = model.position(model.config.tubes, (8, 32, 32)), dense.position(dense.config.tubes, (8, 32, 32))
    np.testing.assert_array_equal(at, all_at[np.concatenate(rows)])
    np.testing.assert_array_equal(tokens[:, 0], all_tokens[:, 0])
    np.testing.assert_allclose(tokens[:, 1:], all_tokens[:, np.concatenate(rows) + 1], atol=2e-5)


def test_the_same_tube_gives_the_same_model(tiny, tmp_path):
    heads = {"letters": Head(3, "video", ("a", "b", "c"))}
    dense = tiny(heads, **DENSE | dict(position="index", pooling="mean", class_token=False, final_norm="pooled"))
    model = sparse(dense, "2x8x8/2x8x8", tmp_path)
    clip = np.random.default_rng(2).integers(0, 256, (1, 8, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(model(clip), dense(clip))
    assert model.labels == dense.labels and model.config.final_norm == "pooled"


@pytest.mark.parametrize("frames, starts", [(8, (0, 2, 4, 6)), (4, (0, 2)), (3, (0, 1)), (5, (0, 2, 3))])
def test_more_frames_give_the_mean_of_the_dense_tokens(frames, starts):
    """Of those whose tubelets cover the window, evenly spread."""
    clip = window(frames, 8, 8)
    expected = np.mean([token(clip[start : start + 2], KERNEL) for start in starts], axis=0)
    np.testing.assert_allclose(token(clip, inflate_kernel(KERNEL, (frames, 8, 8))), expected, atol=1e-5)


def test_one_frame_is_exact_on_static_pairs():
    frame = window(1, 8, 8)
    found = token(frame, inflate_kernel(KERNEL, (1, 8, 8)))
    np.testing.assert_allclose(found, token(np.repeat(frame, 2, axis=0), KERNEL), atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (12, 6), (16, 5)])
def test_a_tube_sees_its_window_resized_to_the_tubelet(size):
    clip = window(2, *size)
    seen = np.einsum("ay,bx,tyxc->tabc", triangle(size[0], 8), triangle(size[1], 8), clip)
    np.testing.assert_allclose(token(clip, inflate_kernel(KERNEL, (2, *size))), token(seen, KERNEL), atol=2e-5)


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 12, 8), (8, 8, 16), (16, 4, 4)])
def test_a_constant_static_clip_keeps_its_token(size):
    colour = np.array([0.3, -1, 0.7])
    expected = np.einsum("c,tyxcd->d", colour, KERNEL)
    np.testing.assert_allclose(np.einsum("c,tyxcd->d", colour, inflate_kernel(KERNEL, size)), expected, atol=1e-5)


def test_positions_are_read_trilinearly(tiny):
    """What is affine in the centre is read exactly, up to the outermost centres; also for clips of other shapes."""
    dense = tiny({}, **DENSE).config
    slopes = np.random.default_rng(0).normal(size=(3, 24))
    table = (dense.tubes.centres(dense.shape) @ slopes).reshape(4, 4, 4, 24)
    tube = Tube((4, 3, 6), (2, 5, 9), (0, 1, 0))
    centres = tube.centres(dense.shape).clip((0.5, 3.5, 3.5), (6.5, 27.5, 27.5))
    found = read_positions(table, dense, dense.replace(tubes=tube), tube)
    np.testing.assert_allclose(found.reshape(-1, 24), centres @ slopes, atol=1e-5)
    twice = Tube((8, 6, 12), (4, 10, 18), (0, 2, 0))  # in a clip twice as long, high and wide
    again = read_positions(table, dense, dense.replace(tubes=twice, frames=16, size=64), twice)
    np.testing.assert_allclose(again, found, atol=1e-6)


def test_the_number_of_a_token_is_never_a_fraction(tiny):
    """Between two rows VideoMAE's embedding is their mean, not that of tokens half a row further."""
    dense = tiny({}, **DENSE | dict(position="index")).config
    table = dense_positions(dense, {})
    tube = Tube((2, 8, 8), (2, 8, 8), (0, 4, 0))
    found = read_positions(table, dense, dense.replace(tubes=tube, position="learned"), tube)
    rows = index_embedding(64, 24).reshape(4, 4, 4, 24)
    np.testing.assert_allclose(found, (rows[:, :-1] + rows[:, 1:]) / 2, atol=1e-6)


def test_in_any_configuration(tiny, tmp_path):
    """`init.tubes=dense`: other statistics, other positions, space-to-depth and new heads."""
    dense = tiny({"letters": Head(3)}, **DENSE)
    tubevit.save_model(dense, tmp_path / "dense")
    other = DENSE | dict(tubes="2x8x8/4x16x16_2x8x8/4x8x8%1x2x1", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    model = tiny({"numbers": Head(4)}, seed=1, **other)
    _, after, notes = begin(model, str(tmp_path / "dense"), tubes="dense")
    begun = nnx.merge(nnx.graphdef(model), parameters_of(model, after))
    clip = np.random.default_rng(2).integers(0, 256, (1, 8, 32, 32, 3), np.uint8)
    subset = np.asarray(dense.tokenize(clip)[0])[:, 1:].reshape(1, 4, 4, 4, 24)[:, ::2, ::2, ::2].reshape(1, 8, 24)
    np.testing.assert_allclose(begun.tokenize(clip)[0][:, 1:9], subset, atol=2e-5)
    kernel = after["tokenizer/tubes/0/kernel"]
    np.testing.assert_allclose(after["tokenizer/tubes/1/kernel"], (kernel[..., :12] + kernel[..., 12:]) / 2, atol=1e-6)
    assert "new heads: numbers" in notes and "averaged for space-to-depth" in "; ".join(notes)
    fixed = tiny({"letters": Head(3)}, seed=1, **DENSE | dict(tubes="4x8x8/4x8x8", position="fixed"))
    _, after, notes = begin(fixed, str(tmp_path / "dense"), tubes="dense")
    assert "position/0" not in after and f"left out of {tmp_path}/dense: position/0" in notes


def test_the_source_says_what_it_was_made_of(tiny, tmp_path):
    origin = {"format": "hugging-face", "licence": "MIT", "preprocessing": {"interpolation": "bicubic"}}
    tubevit.save_model(tiny({}, **DENSE), tmp_path / "dense", metadata={"source": origin})
    source = sparse_source(open_checkpoint(tmp_path / "dense"))
    assert (source["format"], source["tubes"], source["licence"]) == ("sparsify", "2x8x8/2x8x8", "MIT")
    assert source["source"] == origin and source["name"] == str(tmp_path / "dense")


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(tubes="1x8x8/1x8x8", frames=1), "an image ViT, whose kernel init.tubes=inflate takes"),
        (dict(tubes="2x8x8/2x8x8_1x8x8/2x8x8"), "one tube without space-to-depth; found 2x8x8/2x8x8_1x8x8/2x8x8"),
        (dict(tubes="2x8x8/2x8x8%1x2x1"), "one tube without space-to-depth; found 2x8x8/2x8x8%1x2x1"),
        (dict(position="rope"), "position 'rope' belongs to the grid of its tube; expected one of learned, "),
        (dict(tubes="2x8x8/2x8x8%1x2x1", pattern="divided"), "found 2x8x8/2x8x8%1x2x1; .*'divided' .*expected 'joint'"),
    ],
)
def test_models_that_are_refused(tiny, tmp_path, fields, message):
    dense = tiny({}, **DENSE | fields)
    with pytest.raises(UserError, match=message):
        sparse_config(dense.config, "2x8x8/4x8x8")
    tubevit.save_model(dense, tmp_path / "dense")
    with pytest.raises(UserError, match=message):
        begin(tiny({}, **DENSE), str(tmp_path / "dense"), tubes="dense")


def test_what_does_not_fit(tiny, tmp_path):
    dense = tiny({}, **DENSE | dict(position="fixed"))
    with pytest.raises(UserError, match="a clip of 8x32x32 .* is too small for tube 16x8x8"):
        sparse_config(dense.config, "16x8x8/4x8x8")
    tubevit.save_model(dense, tmp_path / "dense")
    for fields, message in (
        (dict(position="learned"), "no table of positions to read: they are fixed; pass model.position=fixed"),
        (dict(position="learned_space"), "needs model.position=learned; found learned_space"),
        (dict(width=12, num_heads=1), "is 24 wide; expected the model's width, 12"),
    ):
        with pytest.raises(UserError, match=message):
            begin(tiny({}, **DENSE | fields), str(tmp_path / "dense"), tubes="dense")


def test_no_parameter_is_lost_or_random(tiny, tmp_path):
    dense = tiny(3, **DENSE)
    model = sparse(dense, "4x4x4/4x8x8_1x8x8/8x8x8", tmp_path)
    have, want = flat(parameters(dense)), flat(parameters(model))
    for path in want:
        if not path.startswith(("tokenizer/", "position/")):
            np.testing.assert_array_equal(want[path], have[path])
    np.testing.assert_array_equal(want["tokenizer/tubes/1/bias"], have["tokenizer/tubes/0/bias"])
