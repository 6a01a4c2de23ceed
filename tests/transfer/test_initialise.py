import jax
import numpy as np
import pytest
from flax import nnx

import tubevit
from tubevit.checkpoint.paths import unflatten
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head
from tubevit.models.position import resize_positions
from tubevit.models.tokenizer import as_windows
from tubevit.transfer.inflate import resize_patch
from tubevit.transfer.initialise import initialise

LETTERS, NUMBERS = Head(3, "any", ("a", "b", "c")), Head(4)


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """A saved model with heads `letters` and `numbers`, and its path."""
    model = tiny({"letters": LETTERS, "numbers": NUMBERS}, depth=1)
    path = tmp_path_factory.mktemp("source") / "model"
    tubevit.save_model(model, path)
    return model, str(path)


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def begin(model, path, **settings):
    """Parameters by path: before, after, and the notes."""
    before = parameters(model)
    after, notes = initialise(before, model.config, path, **settings)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    return flat(before), flat(after), notes


def test_all_is_taken_over_where_all_is_the_same(source, tiny):
    model, path = source
    other = tiny({"letters": LETTERS, "numbers": NUMBERS}, seed=1, depth=1, frames=8, size=32, dropout=0.1)
    _, after, notes = begin(other, path)
    expected = flat(parameters(model))
    assert notes == [] and after.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(after[name], expected[name])


@pytest.mark.parametrize("head", [Head(5), Head(3, "any", ("a", "c", "b")), Head(3)])
def test_heads_of_other_labels_stay_new(source, tiny, head):
    model, path = source
    before, after, notes = begin(tiny({"letters": head, "extra": Head(2)}, seed=1, depth=1), path)
    assert notes == ["new heads: letters, extra", f"heads of {path} left out: letters, numbers"]
    stored = flat(parameters(model))
    for name in after:
        expected = before if name.startswith("heads/") else stored
        np.testing.assert_array_equal(after[name], expected[name])


def test_skip(source, tiny):
    model, path = source
    other = tiny({"letters": LETTERS}, seed=1, depth=1)
    before, after, _ = begin(other, path, skip=["pooling", "heads/letters"])
    for name in ("pooling/score/kernel", "heads/letters/kernel"):
        np.testing.assert_array_equal(after[name], before[name])
    with pytest.raises(UserError, match="init.skip: no parameter begins with 'poling'"):
        begin(other, path, skip=["poling"])


def test_what_does_not_fit_is_listed(source, tiny):
    _, path = source
    with pytest.raises(UserError) as error:
        begin(tiny({"letters": LETTERS}, depth=1, mlp_dim=44, tubes="8x8x8/8x16x16"), path)
    message = str(error.value)
    assert "unexpected tokenizer/tubes/1-3/bias" in message and "unexpected tokenizer/tubes/1-3/kernel" in message
    assert "encoder/blocks/0/mlp/up/kernel: expected (24, 44), found (24, 40)" in message


def test_inflated_tubes_give_the_tokens_of_the_image(tiny, tmp_path):
    """A clip that repeats an image has, at each tube, the image's token."""
    image_model = tiny({}, depth=1, tubes="1x16x16/32x16x16", size=48, frames=1)
    tubevit.save_model(image_model, tmp_path / "image")
    model = tiny({}, seed=1, depth=1, tubes="4x16x16/4x16x16", size=48, frames=8)
    after, _ = initialise(parameters(model), model.config, str(tmp_path / "image"), tubes="inflate")
    inflated = nnx.merge(nnx.graphdef(model), after)
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
    kernel, bias = inflated.tokenizer.tubes["0"].kernel[...], inflated.tokenizer.tubes["0"].bias[...]
    clip = np.repeat(image[:, None], 8, axis=1)
    tokens = inflated.tokenizer(as_windows(clip, model.config.tubes))
    expected = image_model.tokenizer(as_windows(image[:, None], image_model.config.tubes))
    np.testing.assert_allclose(tokens.reshape(2, 2, 6, 24), np.stack([expected, expected], axis=1), atol=1e-5)
    assert kernel.shape == (4, 16, 16, 3, 24) and bias.shape == (24,)


def video_from_image(tiny, tmp_path, **settings):
    """A plain 48-pixel ViT, and what `begin` gives for a tube model of 8 frames."""
    fields = dict(position="learned", class_token=True, pooling="cls")
    image = tiny({}, depth=1, tubes="1x16x16/32x16x16", size=48, frames=1, **fields)
    tubevit.save_model(image, tmp_path / "image")
    model = tiny({}, seed=1, depth=1, tubes=TUBES, size=48, frames=8, **settings.pop("fields", {}))
    return image, model, begin(model, str(tmp_path / "image"), **settings)


TUBES = "4x8x8/4x16x16_2x4x4/2x16x16%2x1x1_1x16x16/8x16x16"


def test_a_plain_vit_is_inflated_by_itself(tiny, tmp_path):
    image, model, (before, after, notes) = video_from_image(tiny, tmp_path)
    source = flat(parameters(image))
    np.testing.assert_array_equal(after["tokenizer/tubes/2/kernel"], source["tokenizer/tubes/0/kernel"])
    np.testing.assert_array_equal(after["encoder/blocks/mlp/up/kernel"], source["encoder/blocks/mlp/up/kernel"])
    np.testing.assert_array_equal(after["pooling/score/kernel"], before["pooling/score/kernel"])
    assert after["tokenizer/tubes/1/kernel"].shape == (2, 4, 4, 3, 12)
    text = "; ".join(notes)
    assert "tube 4x8x8/4x16x16 starts from the 2D kernel" in text and "position/0" in text
    assert "left out: class_token" in text and "new: pooling/score/kernel" in text
    static = np.broadcast_to(np.array([30, 200, 120], np.uint8), (1, 8, 48, 48, 3))
    tokens = nnx.merge(nnx.graphdef(model), parameters_of(model, after)).tokenizer(
        as_windows(static, model.config.tubes)
    )
    np.testing.assert_allclose(tokens[0, : 2 * 9], np.broadcast_to(tokens[0, -1], (18, 24)), atol=1e-5)


def parameters_of(model, after):
    """The tree of a model with these parameters by path."""
    return unflatten({path: jax.numpy.asarray(leaf) for path, leaf in after.items()})


@pytest.mark.parametrize("how", ["zero", "random"])
def test_other_beginnings_of_tubes(tiny, tmp_path, how):
    _, _, (before, after, notes) = video_from_image(tiny, tmp_path, tubes=how)
    for i in (0, 1):
        for leaf in ("kernel", "bias"):
            path = f"tokenizer/tubes/{i}/{leaf}"
            expected = before[path] if how == "random" else np.zeros_like(before[path])
            np.testing.assert_array_equal(after[path], expected)
    assert any(("starts from 0" if how == "zero" else "new: tokenizer/tubes/0") in note for note in notes)


def test_positions_and_class_token_can_be_kept_and_are_resized(tiny, tmp_path):
    fields = dict(position="learned_2d", class_token=True, pooling="cls")
    image, model, (_, after, _) = video_from_image(tiny, tmp_path, fields=fields)
    source = flat(parameters(image))
    np.testing.assert_array_equal(after["position/2"], source["position/0"])
    np.testing.assert_array_equal(after["class_token"], source["class_token"])
    whole = nnx.merge(nnx.graphdef(model), parameters_of(model, after))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    np.testing.assert_array_equal(whole.features(pixels), image.features(pixels))
    # A grid of 5 x 2, of patches of 9 x 20 pixels: neither is that of the source.
    other = tiny({}, seed=1, depth=1, tubes="1x9x20/8x9x20", size=48, frames=8, **fields)
    _, after, notes = begin(other, str(tmp_path / "image"))
    assert after["position/0"].shape == (1, 5, 2, 24) and "patches of 16x16 pixels resized to 9x20" in notes
    np.testing.assert_allclose(after["position/0"], resize_positions(source["position/0"], (1, 5, 2)), atol=1e-6)
    expected = resize_patch(source["tokenizer/tubes/0/kernel"], (9, 20))
    np.testing.assert_allclose(after["tokenizer/tubes/0/kernel"], expected, atol=1e-6)


def test_interpolated_kernels(tiny, tmp_path):
    """From a plain ViT, to other kernels, and to tubes with kernels of their own."""
    shared = dict(tubes="4x4x4/8x16x16_2x8x8/8x16x16_1x8x8/16x8x8", interpolated=True)
    source = tiny({}, depth=1, **shared)
    tubevit.save_model(source, tmp_path / "shared")
    stored = flat(parameters(source))
    longer = tiny({}, seed=1, depth=1, tubes="8x4x4/8x16x16_2x9x9/8x16x16_1x8x8/16x8x8", interpolated=True)
    _, after, notes = begin(longer, str(tmp_path / "shared"))
    assert [note.split()[:2] for note in notes] == [["tube", "8x4x4/8x16x16"], ["tube", "2x9x9/8x16x16"]]
    assert after.keys() == stored.keys()
    for path in after:
        np.testing.assert_allclose(after[path], stored[path], atol=1e-6)
    own = tiny({}, seed=1, depth=1, tubes=shared["tubes"])
    _, after, _ = begin(own, str(tmp_path / "shared"), skip=["tokenizer/kernel"])
    video = np.random.default_rng(0).integers(0, 256, (1, 16, 64, 64, 3), np.uint8)
    after = nnx.merge(nnx.graphdef(own), parameters_of(own, after))
    tokens = after.tokenizer(as_windows(video, own.config.tubes))
    np.testing.assert_allclose(tokens, source.tokenizer(as_windows(video, source.config.tubes)), atol=2e-5)


def test_interpolated_kernels_from_an_image_vit(tiny, tmp_path):
    """Only with their gain normalised do they give a constant clip the token that the 2D tube gives."""
    tubevit.save_model(tiny({}, depth=1, tubes="1x8x8/16x8x8", frames=1), tmp_path / "image")
    fields = dict(depth=1, tubes="16x16x16/16x16x16_1x8x8/16x8x8", interpolated=True)
    with pytest.raises(UserError, match="pass --config.model.gain_norm=true"):
        begin(tiny({}, seed=1, **fields), str(tmp_path / "image"))
    model = tiny({}, seed=1, gain_norm=True, **fields)
    _, after, _ = begin(model, str(tmp_path / "image"))
    static = np.broadcast_to(np.array([30, 200, 120], np.uint8), (1, 16, 64, 64, 3))
    tokens = nnx.merge(nnx.graphdef(model), parameters_of(model, after)).tokenizer(
        as_windows(static, model.config.tubes)
    )[0]
    np.testing.assert_allclose(tokens[:16], np.broadcast_to(tokens[-1], (16, 24)), atol=0.05 * np.abs(tokens).max())


def test_other_depth_is_refused_until_it_is_named(source, tiny):
    model, path = source
    heads = {"letters": LETTERS, "numbers": NUMBERS}
    deeper = tiny(heads, seed=1, depth=3)
    with pytest.raises(UserError, match="does not fit.*: missing encoder/blocks/1-2; init.skip"):
        begin(deeper, path)
    before, after, notes = begin(deeper, path, skip=["encoder/blocks/1-2"])
    stored = flat(parameters(model))
    for name in after:
        if name.startswith("encoder/blocks/"):
            np.testing.assert_array_equal(after[name][0], stored[name][0])
            np.testing.assert_array_equal(after[name][1:], before[name][1:])
    assert "neither loaded nor required: encoder/blocks/1-2" in notes
    _, after, _ = begin(deeper, path, renamed=[("encoder/blocks/0", "encoder/blocks/2")], skip=["encoder/blocks/0-1"])
    np.testing.assert_array_equal(after["encoder/blocks/mlp/up/kernel"][2], stored["encoder/blocks/mlp/up/kernel"][0])


def test_a_shallower_model(tiny, tmp_path):
    tubevit.save_model(tiny({}, depth=4), tmp_path / "deep")
    model = tiny({}, seed=1, depth=2)
    with pytest.raises(UserError, match="unexpected encoder/blocks/2-3; init.skip"):
        begin(model, str(tmp_path / "deep"))
    _, after, _ = begin(model, str(tmp_path / "deep"), skip=["encoder/blocks/2-3"])
    deep = flat(parameters(tubevit.load_model(tmp_path / "deep")))
    np.testing.assert_array_equal(after["encoder/blocks/norm1/bias"], deep["encoder/blocks/norm1/bias"][:2])


def test_what_behaves_otherwise_is_said_or_refused(source, tiny, tmp_path):
    model, path = source
    heads = {"letters": LETTERS, "numbers": NUMBERS}
    _, _, notes = begin(tiny(heads, depth=1, position="none", padding="same"), path)
    assert f"position none instead of fixed of {path}" in notes and f"padding same instead of valid of {path}" in notes
    _, _, notes = begin(tiny(heads, depth=1, tubes=str(model.config.tubes).replace("8x16x16%", "4x16x16%")), path)
    assert notes == [f"tube 4x4x4/4x16x16%2x1x1 has the kernel of 4x4x4/8x16x16%2x1x1 of {path}"]
    _, _, notes = begin(tiny(heads, depth=1, tubes=str(model.config.tubes).replace("%2x1x1", "%1x2x1")), path)
    assert f"tube 4x4x4/8x16x16%1x2x1 has the kernel of 4x4x4/8x16x16%2x1x1 of {path}" in notes
    flat = dict(depth=1, tubes="4x8x8/4x8x8", frames=8, class_token=True)
    tubevit.save_model(tiny({}, pooling="mean", position="index", size=32, **flat), tmp_path / "mean")
    _, _, notes = begin(tiny({}, pooling="cls", position="index", size=48, **flat), str(tmp_path / "mean"))
    assert f"pooling cls instead of mean of {tmp_path / 'mean'}" in notes
    assert f"positions 'index' give the tokens other numbers than those of {tmp_path / 'mean'}" in notes
    _, _, notes = begin(tiny({}, pooling="mean", position="index", size=32, **flat), str(tmp_path / "mean"))
    assert notes == []
    tubevit.save_model(tiny({}, depth=2, gate_layer=0), tmp_path / "gated")
    with pytest.raises(UserError, match="another gate_layer: pass --config.model.gate_layer=0"):
        begin(tiny({}, depth=2, gate_layer=1), str(tmp_path / "gated"))
    shared = dict(tubes="4x4x4/8x16x16_1x8x8/16x8x8", interpolated=True, depth=1)
    tubevit.save_model(tiny({}, **shared), tmp_path / "shared")
    with pytest.raises(UserError, match="another gain_norm: pass --config.model.gain_norm=False"):
        begin(tiny({}, gain_norm=True, **shared), str(tmp_path / "shared"))


def test_a_video_model_of_2d_tubes_is_no_plain_vit(tiny, tmp_path):
    """It keeps its pooling, and has no 3D tubes that could be inflated unasked."""
    tubevit.save_model(tiny({}, depth=1, tubes="1x8x8/4x8x8"), tmp_path / "flat")
    model = tiny({}, depth=1, tubes="4x4x4/8x16x16_1x8x8/4x8x8", pooling="mean")
    with pytest.raises(UserError, match="missing tokenizer/tubes/0/bias.*unexpected pooling/score/kernel"):
        begin(model, str(tmp_path / "flat"))


def test_a_block_can_take_the_place_of_another(tiny, tmp_path):
    tubevit.save_model(tiny({}, depth=3), tmp_path / "three")
    stored = flat(parameters(tubevit.load_model(tmp_path / "three")))
    model = tiny({}, seed=1, depth=2)
    _, after, notes = begin(model, str(tmp_path / "three"), renamed=[("encoder/blocks/2", "encoder/blocks/1")])
    np.testing.assert_array_equal(after["encoder/blocks/norm1/bias"], stored["encoder/blocks/norm1/bias"][[0, 2]])
    assert "left out, replaced by renamed parameters: encoder/blocks/1" in notes


def test_renamed_heads(source, tiny):
    model, path = source
    other = tiny({"alphabet": LETTERS}, seed=1, depth=1)
    with pytest.raises(UserError, match="missing pooling/score/kernel; unexpected pool/score/kernel"):
        begin(other, path, renamed=[("pooling", "pool")])
    _, after, _ = begin(other, path, renamed=[("heads/letters", "heads/alphabet")])
    np.testing.assert_array_equal(after["heads/alphabet/kernel"], flat(parameters(model))["heads/letters/kernel"])


def test_new_layers_keep_what_the_model_gave(source, tiny):
    """Gate and added attention are not in the checkpoint; alpha = 0 begins as the model that it was."""
    model, path = source
    heads = {"letters": LETTERS, "numbers": NUMBERS}
    gated = tiny(heads, seed=1, depth=1, gate_layer=0, add_attention=1)
    _, after, notes = begin(gated, path)
    assert notes[-1].startswith("new: encoder/added/attention/out/bias") and notes[-1].endswith("encoder/gate")


def test_what_was_trained_otherwise_is_refused(source, tiny):
    _, path = source
    model = tiny({"letters": LETTERS}, depth=1, gelu="tanh", norm_epsilon=1e-12)
    with pytest.raises(UserError, match="another gelu and norm_epsilon: pass --config.model.gelu=exact .*=1e-06"):
        begin(model, path)


def test_other_statistics_change_no_token(source, tiny):
    model, path = source
    heads = {"letters": LETTERS, "numbers": NUMBERS}
    other = tiny(heads, seed=1, depth=1, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    _, after, _ = begin(other, path)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    found = nnx.merge(nnx.graphdef(other), parameters_of(other, after)).tokenize(image)[0]
    np.testing.assert_allclose(found, model.tokenize(image)[0], atol=2e-5)


def test_no_2d_tube_to_begin_from(tiny, tmp_path):
    model = tiny({}, depth=1, tubes="2x8x8/2x8x8", size=48, frames=8)
    tubevit.save_model(model, tmp_path / "dense")
    other = tiny({}, depth=1, tubes="4x8x8/2x8x8", size=48, frames=8)
    with pytest.raises(UserError, match="has no 2D tube of width 24 .*init.tubes=random"):
        begin(other, str(tmp_path / "dense"), tubes="inflate")
