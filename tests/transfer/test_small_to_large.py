import dataclasses

import numpy as np
import pytest
from flax import nnx

import tubevit
from tests.models.reference import read_parameters, windows
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.config import Head, Lora
from tubevit.models.tokenizer import as_windows
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config
from tubevit.transfer.initialise import initialise
from tubevit.transfer.small_to_large import bootstrapped_config, inflated_config, widened_tube
from tubevit.tubes import Tube

VIT = dict(tubes="1x8x8/16x8x8", frames=1, size=64, position="learned", class_token=True, pooling="cls", depth=3)
STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, *shape, 3), np.uint8)


@pytest.fixture(scope="module")
def vit(tiny, tmp_path_factory):
    """A plain ViT, 48 wide, with pixel statistics of its own, and its path."""
    model = tiny({"image": Head(5, "image")}, seed=1, width=48, num_heads=4, **VIT, **STATISTICS)
    path = tmp_path_factory.mktemp("vit") / "vit"
    tubevit.save_model(model, path)
    return model, str(path)


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """A tube model, 24 wide, and its path."""
    model = tiny(depth=1)
    path = tmp_path_factory.mktemp("small") / "small"
    tubevit.save_model(model, path)
    return model, str(path)


@pytest.fixture(scope="module")
def bootstrapped(vit, small, randomised):
    """`bootstrapped(**changes)`: the model begun from both, with a head of its own, and notes."""

    def build(widen="concatenate", position="learned_2d", **changes):
        config = bootstrapped_config(small[0].config, vit[0].config, widen=widen, position=position)
        config = dataclasses.replace(config, heads=(("motion", Head(8, "video")),), **changes)
        fresh = randomised(lambda: TubeViT(config, rngs=nnx.Rngs(0)), 7)
        params, notes = initialise(parameters(fresh), config, vit[1], tubes=small[1])
        return nnx.merge(nnx.graphdef(fresh), params), notes

    return build


def test_carried_tubes_have_the_small_model_s_weights_and_sub_windows(bootstrapped, small):
    """The large token concatenates what the small kernel gives for windows that lie stride / f apart."""
    model, _ = bootstrapped()
    video = pixels(16, 64, 64)
    params = read_parameters(small[0])
    found = np.asarray(model.tokenizer(as_windows(video, model.config.tubes)))
    scaled, first = video / 127.5 - 1, 0
    for i, tube in enumerate(model.config.tubes.tubes[:3]):
        kernel, bias = (params[f"tokenizer/tubes/{i}/{leaf}"] for leaf in ("kernel", "bias"))
        assert tube.kernel == small[0].config.tubes.tubes[i].kernel
        for n, token in enumerate(windows(tube, (16, 64, 64), "valid")):
            inside = all(r.stop <= size for window in token for r, size in zip(window, (16, 64, 64)))
            if not inside:  # beyond the clip lies the mean, which the large model has its own of
                continue
            parts = [scaled[:, w[0].start : w[0].stop, w[1].start : w[1].stop, w[2].start : w[2].stop] for w in token]
            expected = np.concatenate([np.einsum("btyxc,tyxcd->bd", part, kernel) + bias for part in parts], axis=-1)
            assert expected.shape == (2, 48)
            np.testing.assert_allclose(found[:, first + n], expected, atol=2e-5)
        first += tube.num_tokens((16, 64, 64))


def test_at_alpha_0_it_is_the_large_vit_on_those_tokens(bootstrapped, vit):
    model, notes = bootstrapped(gate_layer=1, freeze_below=1)
    tokens, _ = model.tokenize(pixels(16, 64, 64))
    assert any(note.startswith("new: encoder/gate") for note in notes)
    model.encoder.gate[...] = np.float32(0)
    np.testing.assert_array_equal(model.encoder(tokens), vit[0].encoder(tokens))
    model.encoder.gate[...] = np.float32(0.3)
    assert np.abs(model.encoder(tokens) - vit[0].encoder(tokens)).max() > 1e-3


def test_images_give_the_vit_s_own_features(bootstrapped, vit):
    """Bit for bit: patch kernel, positions, class token and blocks are the ViT's."""
    model, _ = bootstrapped(pooling="cls", gate_layer=2, freeze_below=2)
    model.encoder.gate[...] = np.float32(0)
    image = pixels(64, 64)
    np.testing.assert_array_equal(model.features(image), vit[0].features(image))
    assert np.abs(model.features(image)).max() > 0.1


def test_fixed_positions_drop_the_vit_s(bootstrapped):
    model, notes = bootstrapped(position="fixed")
    assert not model.config.class_token and "position" not in parameters(model)
    assert any("left out" in note and "position/0" in note for note in notes)
    assert any("left out: class_token" in note for note in notes)


@pytest.mark.parametrize("widen, kept", [("zero_pad", 24), ("linear", 48)])
def test_other_ways_to_widen(bootstrapped, small, widen, kept):
    model, notes = bootstrapped(widen)
    video = pixels(16, 64, 64)
    tokens = np.asarray(model.tokenizer(as_windows(video, model.config.tubes)))[:, :3]  # of the first tube
    before = np.asarray(small[0].tokenizer(as_windows(video, small[0].config.tubes)))[:, :3]
    if widen == "zero_pad":
        np.testing.assert_allclose(tokens[..., :24], before, atol=2e-5)
        assert not tokens[..., 24:].any()
    else:
        kernel = model.tokenizer.tubes["0"].widen.kernel[...]
        np.testing.assert_allclose(tokens, before @ kernel, atol=5e-5)
        assert any("tokenizer/tubes/0/widen" in note for note in notes)
    assert (np.abs(tokens).max(axis=(0, 1)) > 0).sum() == kept


def test_widths_that_do_not_divide_are_cut_off(vit, small, tiny, tmp_path):
    wide = dataclasses.replace(vit[0].config, width=32, num_heads=4)
    config = bootstrapped_config(small[0].config, wide)
    assert config.tube_width == 48 and [t.sub_windows for t in config.tubes.tubes] == [4, 8, 2, 1]
    fresh = randomised_like(tiny, config)
    assert fresh.tokenize(pixels(16, 64, 64))[0].shape[-1] == 32


@pytest.mark.parametrize(
    "text, ratio, factors",
    [
        ("8x8x8/16x32x32%2x1x1", 2, (4, 1, 1)),
        ("16x4x4/6x32x32+4x8x8%1x2x2", 4, (1, 4, 4)),
        ("4x12x12/16x32x32", 2, (2, 1, 1)),
        ("8x2x2/3x16x16+2x4x4%1x2x2", 2, (1, 4, 2)),  # 3 frames do not divide by 2
        ("4x4x4/8x9x8", 4, (2, 1, 2)),
        ("4x4x4/8x9x7", 3, (1, 3, 1)),
        ("4x4x4/7x9x8%1x1x2", 1, (1, 1, 2)),
    ],
)
def test_widened_tubes(text, ratio, factors):
    tube = Tube.from_text(text)
    wide = widened_tube(tube, ratio)
    assert wide == dataclasses.replace(tube, space_to_depth=factors)
    assert wide.grid((32, 96, 96)) == tube.grid((32, 96, 96))


def test_tiny_to_base_and_base_to_huge():
    """The paper's widths: 192 to 768 exactly, 768 to 1280 by 2 and cut off; no token more or less."""
    exact = bootstrapped_config(model_config("tubevit_ti16"), model_config("vit_b16"))
    assert exact.tube_width is None and [t.sub_windows for t in exact.tubes.tubes] == [8, 16, 4, 1]
    cut = bootstrapped_config(model_config("tubevit_b16"), model_config("vit_h14"))
    assert cut.tube_width == 1536 and cut.tubes.tubes[3].kernel == (1, 14, 14)
    assert exact.tubes.num_tokens((32, 224, 224)) == 539 and exact.frames == 32
    linear = bootstrapped_config(model_config("tubevit_b16"), model_config("vit_h14"), widen="linear")
    assert linear.tube_width == 768 and linear.tube_linear


def test_inflated_config():
    config = inflated_config(model_config("vit_l16", mean=(0.1, 0.2, 0.3)))
    assert str(config.tubes) == str(tubevit.tubes.PRESETS["paper_no_s2d"]) and config.frames == 32
    assert (config.position, config.class_token, config.pooling) == ("fixed", False, "linear")
    assert config.mean == (0.1, 0.2, 0.3) and config.width == 1024
    assert inflated_config(model_config("vit_nano8")).frames == 16


@pytest.mark.parametrize(
    "small, large, settings, words",
    [
        ("tubevit_b16", "vit_b16", dict(widen="repeat"), ["'repeat'", "concatenate"]),
        ("tubevit_b16", "vit_b16", dict(position="learned"), ["'learned'", "did you mean 'learned_2d'"]),
        ("vit_ti16", "vit_b16", {}, ["small model vit_ti16 has no 3D tubes"]),
        ("tubevit_ti16", "tubevit_b16", {}, ["large model tubevit_b16 must be a plain ViT"]),
        ("tubevit_b16", "vit_ti16", {}, ["768 wide", "192", "exchange"]),
    ],
)
def test_errors(small, large, settings, words):
    with pytest.raises(UserError) as error:
        bootstrapped_config(model_config(small), model_config(large), **settings)
    assert not [word for word in words if word not in str(error.value)], str(error.value)
    with pytest.raises(UserError, match="cannot take 5 times as many sub-windows"):
        widened_tube(Tube.from_text("4x4x4/8x8x8"), 5)


def test_an_architecture_is_no_checkpoint(small, tiny):
    model = tiny(depth=1)
    with pytest.raises(UserError, match="vit_b16 is an architecture without parameters"):
        initialise(parameters(model), model.config, "vit_b16")


def test_tubes_of_one_kernel_and_a_2d_tube_first(vit, tiny, tmp_path):
    """Each keeps its own kernel, wherever the large model has it."""
    model = tiny({}, depth=1, tubes="1x8x8/8x8x8_4x4x4/4x16x16_4x4x4/4x16x16+0x8x8")
    tubevit.save_model(model, tmp_path / "small")
    config = bootstrapped_config(model.config, vit[0].config)
    fresh = randomised_like(tiny, config)
    params, notes = initialise(parameters(fresh), config, vit[1], tubes=str(tmp_path / "small"))
    for i, j in ((0, 1), (1, 2)):
        expected = read_parameters(model)[f"tokenizer/tubes/{j}/bias"]
        found = np.asarray(params["tokenizer"]["tubes"][str(i)]["bias"])
        scale = np.abs(expected).max()  # statistics differ, which moves biases: the kernels tell
        assert found.shape == expected.shape and scale > 0
        kernel = np.asarray(params["tokenizer"]["tubes"][str(i)]["kernel"])
        before = read_parameters(model)[f"tokenizer/tubes/{j}/kernel"]
        np.testing.assert_allclose(kernel, before * (np.array(vit[0].config.std) / 0.5)[:, None], rtol=1e-5, atol=1e-7)
    assert not any("left out of" in note and "small" in note for note in notes)


def randomised_like(tiny, config):
    """A model of a configuration with random parameters."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return tiny(dict(fields.pop("heads")), seed=3, **{key: fields[key] for key in fields if key != "name"})


def test_nothing_random_is_frozen(vit, small, tiny):
    """A table, a tube, a block, a token or a gate that no checkpoint gave would stay as it is for good."""
    config = bootstrapped_config(small[0].config, vit[0].config).replace(freeze_below=2)
    fresh = randomised_like(tiny, config)
    for settings, words in (
        (dict(tubes="random"), "tokenizer/tubes/0-2/kernel"),
        (dict(tubes="zero"), "tokenizer/tubes/0-2/kernel"),
        (dict(tubes=small[1], skip=["encoder/blocks/1"]), "encoder/blocks/1"),
    ):
        with pytest.raises(UserError, match=f"frozen by train.freeze_below=2, but not in a checkpoint: .*{words}"):
            initialise(parameters(fresh), config, vit[1], **settings)
    gated = config.replace(gate_layer=0)  # a frozen block follows
    with pytest.raises(UserError, match="frozen by train.freeze_below=2, .*: encoder/gate; .* or train.freeze_below=0"):
        initialise(parameters(randomised_like(tiny, gated)), gated, vit[1], tubes=small[1])
    adapted = config.replace(freeze_below=0, lora=Lora())
    with pytest.raises(UserError, match="frozen by train.adapter=lora, .*encoder/blocks/2; .* or train.adapter=none"):
        initialise(parameters(fresh), adapted, vit[1], tubes=small[1], skip=["encoder/blocks/2"])
    initialise(parameters(fresh), config, vit[1], tubes=small[1], skip=["encoder/blocks/2"])
    with pytest.raises(UserError, match="has fixed positions instead of learned ones: pass position=fixed"):
        bootstrapped_config(small[0].config, vit[0].config.replace(position="fixed"))
    with pytest.raises(UserError, match="because a linear layer follows"):
        bootstrapped_config(small[0].config.replace(tube_linear=True), vit[0].config)
    with pytest.raises(UserError, match="unknown init.tubes 'inflat'; did you mean 'inflate'"):
        initialise(parameters(fresh), config, vit[1], tubes="inflat")
