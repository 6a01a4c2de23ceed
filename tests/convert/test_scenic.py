"""ViViT as scenic writes it, against the same models composed of flax.linen's layers; files that are refused."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx, serialization

import tubevit
from tubevit.cli import main
from tubevit.convert import convert, scenic
from tubevit.convert.files import read_arrays
from tubevit.convert.foreign import Options
from tubevit.errors import UserError

WIDTH, HEADS, MLP, DEPTH, CLASSES = 24, 3, 40, 2, 5
TUBELET, CLIP = (2, 8, 8), (6, 24, 24)  # 3 x 3 x 3 tokens
SIZES = Options(frames=6, size=24)


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(MLP)(x))
        return nn.Dense(WIDTH)(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x))


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))


class Transformer(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        x = Positions(name="posembed_input")(x)
        for i in range(self.depth):
            x = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class ViViT(nn.Module):
    """Model 1 of the paper, or model 2 if it has temporal blocks; pools the class token or all tokens."""

    temporal: int
    token: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(WIDTH, TUBELET, TUBELET, "VALID", name="embedding")(x)
        stages = [("", DEPTH, (-1,))]
        if self.temporal:
            stages = [("Spatial", DEPTH, (x.shape[1], -1)), ("Temporal", self.temporal, (-1,))]
        batch = len(x)
        for kind, depth, tokens in stages:
            x = x.reshape(batch * (tokens[0] if len(tokens) > 1 else 1), -1, WIDTH)
            if self.token:
                name = f"cls_{kind}Transformer" if kind else "cls"
                token = self.param(name, nn.initializers.normal(), (1, 1, WIDTH))
                x = jax.numpy.concatenate([jax.numpy.tile(token, (len(x), 1, 1)), x], axis=1)
            x = Transformer(depth, name=f"{kind}Transformer")(x)
            x = x[:, 0] if self.token else x.mean(axis=1)
        return nn.Dense(CLASSES, name="output_projection")(x)


def made(temporal, token):
    """A model and random parameters, none of them 0 or 1."""
    model, rng = ViViT(temporal, token), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *CLIP, 3), np.float32))["params"]
    draw = lambda path, leaf: rng.normal("scale" in str(path[-1]), 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def write(path, **tree):
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


MODELS = {  # temporal blocks, class token, and how the file holds the parameters
    "model 1": (0, True, lambda params: {"optimizer": {"target": params, "state": {"step": 3}}, "global_step": 3}),
    "model 2": (
        3,
        True,
        lambda params: {"params": params, "opt_state": {"0": np.ones(2)}, "rng": np.ones(2, np.uint32)},
    ),
    "model 2, mean": (1, False, lambda params: {"optimizer": {"target": {"params": params}}}),
}


@pytest.mark.parametrize("case", MODELS)
def test_logits_are_those_of_the_definition(case, tmp_path):
    temporal, token, tree = MODELS[case]
    model, params = made(temporal, token)
    options = Options(size=24) if temporal else SIZES  # a table over time says the number of frames
    done = convert(write(tmp_path / "checkpoint", **tree(params)), tmp_path / "ours", options=options)
    assert done.format == "scenic" and done.notes == () and done.config.temporal_depth == temporal
    assert (done.config.frames, done.config.gelu, done.config.class_token) == (6, "tanh", token)
    videos = np.random.default_rng(1).integers(0, 256, (2, *CLIP, 3), np.uint8)
    with jax.enable_x64(True):  # exact, so that the tolerance is for our rounding alone
        exact = jax.tree.map(np.float64, params)
        expected = jax.jit(model.apply)({"params": exact}, videos.astype(np.float64) / 127.5 - 1)
    assert np.abs(expected).mean() > 0.1
    found = nnx.jit(lambda model, videos: model(videos))(tubevit.load_model(tmp_path / "ours"), videos)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temporal, options, note", [
    (0, Options(), "the clip: assumed to be 32 frames of 224 pixels, see --frames and --size"),
    (0, Options(size=24), "all of the clip: assumed to be 32 frames, see --frames"),
    (0, Options(frames=6), "all of the clip: assumed to be 224 pixels, see --size"),
    (2, Options(), "all of the clip: assumed to be 224 pixels, see --size"),
    (2, Options(frames=6, size=24), None),
])  # fmt: skip
def test_what_a_file_does_not_say_of_the_clip(temporal, options, note, tmp_path):
    """The note names the options that the file leaves open, and no other."""
    file = write(tmp_path / "checkpoint", params=made(temporal, True)[1])
    notes = scenic.read(file, read_arrays(file), options).notes
    assert notes == (() if note is None else (f"{file} does not say {note}",))


def test_frames_that_the_file_contradicts(tmp_path):
    file = write(tmp_path / "checkpoint", params=made(2, True)[1])
    with pytest.raises(UserError, match="positions for 6 frames; found --frames 8"):
        convert(file, tmp_path / "ours", options=Options(frames=8, size=24))


def test_all_that_does_not_fit_is_listed(tmp_path, capsys):
    """Model 1 stores its positions as one list: no number of frames is read from it."""
    _, params = made(0, True)
    del params["Transformer"]["encoderblock_1"]["LayerNorm_0"]["scale"]
    params["Transformer"]["encoderblock_0"]["LayerNorm_0"]["bias"] = np.ones(7, np.float32)
    params["pre"] = {"kernel": np.ones((2, 2), np.float32)}
    file = write(tmp_path / "checkpoint", params=params)
    assert main(["convert", str(file), str(tmp_path / "ours"), "--frames", "12", "--size", "24"]) == 2
    line = capsys.readouterr().err
    for part in (
        "clips of 12x24x24", "missing Transformer/encoderblock_1/LayerNorm_0/scale", "unexpected pre/kernel",
        "encoderblock_0/LayerNorm_0/bias: expected (24,), found (7,)",
        "pos_embedding: expected (1, 55, 24), found (1, 28, 24)",
    ):  # fmt: skip
        assert part in line
    assert line.count("\n") == 1 and line.count(";") == 3 and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("change, text", [
    (lambda params: params.pop("embedding"), "must hold a ViViT of scenic, embedding/kernel below"),
    (lambda params: params["TemporalTransformer"].pop("encoderblock_0"), "missing TemporalTransformer/encoderblock_0"),
    (lambda params: params.update(pre_logits={"kernel": np.ones((2, 2))}), "--headless leaves both out"),
    (lambda params: params["embedding"].update(kernel=np.ones((8, 8, 3, 24))), "expected 5 axes, found"),
])  # fmt: skip
def test_what_is_no_vivit(change, text, tmp_path):
    _, params = made(1, True)
    change(params)
    with pytest.raises(UserError, match=text):
        convert(write(tmp_path / "checkpoint", params=params), tmp_path / "ours", options=SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_damaged_files(tmp_path):
    whole = write(tmp_path / "checkpoint", params=made(0, True)[1]).read_bytes()
    for content in (whole[:-100], whole[:50], b"\x81\xa6params\xc1", b"\x81\xa1a\xc7\x02\x01\x90\x00"):
        (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(UserError, match="checkpoint is damaged or incomplete"):
            convert(tmp_path / "checkpoint", tmp_path / "ours", options=SIZES)
