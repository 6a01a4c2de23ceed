"""The plain ViTs against a ViT as the textbook has it: patches by reshape, class token, positions, blocks."""

import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from tests.models.reference import assert_close, read_parameters
from tubevit.errors import UserError
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import model_config


def textbook(params, images, patch, heads, epsilon):
    """Images (B, H, W, 3) as the network gets them -> class tokens and logits; all images and heads at once."""

    def norm(x, name, layer=...):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * params[f"encoder/{name}/scale"][layer] + params[f"encoder/{name}/bias"][layer]

    def linear(x, name, layer=...):
        bias = params[f"{name}/bias"][layer]
        kernel = params[f"{name}/kernel"][layer]
        return x @ kernel.reshape(x.shape[-1], -1) + bias.reshape(-1)

    batch, height, width, _ = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, 3).swapaxes(2, 3)
    x = linear(x.reshape(batch, -1, patch * patch * 3), "tokenizer/tubes/0")
    dim = x.shape[-1]
    positions = np.concatenate([np.zeros((1, dim)), params["position/0"].reshape(-1, dim)])
    x = np.concatenate([np.tile(params["class_token"], (batch, 1, 1)), x], axis=1) + positions
    for layer in range(len(params["encoder/blocks/norm1/scale"])):
        qkv = linear(norm(x, "blocks/norm1", layer), "encoder/blocks/attention/qkv", layer)
        query, key, value = qkv.reshape(batch, -1, 3, heads, dim // heads).transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(2, 3) / np.sqrt(dim // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True) @ value).swapaxes(1, 2).reshape(batch, -1, dim)
        x = x + linear(out, "encoder/blocks/attention/out", layer)
        hidden = linear(norm(x, "blocks/norm2", layer), "encoder/blocks/mlp/up", layer)
        x = x + linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), "encoder/blocks/mlp/down", layer)
    features = norm(x, "norm")[:, 0]
    return features, linear(features, "heads/default")


@pytest.fixture(scope="module")
def vit(randomised):
    """`vit_nano8`, narrower, with the mean and standard deviation of ImageNet and the epsilon of Hugging Face."""
    colours = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    fields = dict(width=24, mlp_dim=40, size=40, num_classes=5, norm_epsilon=1e-12, **colours)
    config = model_config("vit_nano8", **fields)
    return randomised(lambda: TubeViT(config, rngs=nnx.Rngs(0)))


@nnx.jit
def outputs(model, pixels):
    return model.features(pixels), model(pixels)


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (3, *shape, 3), np.uint8)


def test_equals_the_textbook(vit):
    pixels, config = images(40, 40), vit.config
    values = (pixels / 255 - np.array(config.mean)) / np.array(config.std)
    expected = textbook(read_parameters(vit), values, 8, config.num_heads, 1e-12)
    for given in (pixels, pixels[:, None], np.float32(pixels / 127.5 - 1)):  # an image, a clip of one frame, floats
        for found, wanted in zip(outputs(vit, given), expected, strict=True):
            assert_close(found, wanted, 1e-5)


def test_exactly_the_parameters_of_a_vit(vit):
    assert {name: value.shape for name, value in read_parameters(vit).items() if not name.startswith("encoder")} == {
        "tokenizer/tubes/0/kernel": (1, 8, 8, 3, 24),
        "tokenizer/tubes/0/bias": (24,),
        "position/0": (1, 5, 5, 24),
        "class_token": (24,),
        "heads/default/kernel": (24, 5),
        "heads/default/bias": (5,),
    }


def test_a_clip_has_one_frame_read_and_other_sizes_are_refused(vit):
    tokens, centres = vit.tokenize(images(7, 40, 40))
    assert tokens.shape == (3, 26, 24)
    np.testing.assert_array_equal(tokens, vit.tokenize(images(7, 40, 40)[:, 0])[0])
    assert np.isnan(centres[0]).all() and centres[1].tolist() == [0, 3.5, 3.5]
    with pytest.raises(UserError, match="fit clips of 1x40x40 .*; found 1x40x48"):
        vit(images(40, 48))
    with pytest.raises(UserError, match="found 33x40x40"):
        vit(images(33, 40, 40))
