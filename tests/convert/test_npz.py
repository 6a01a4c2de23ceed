"""vision_transformer's and big_vision's .npz against a ViT written in float64 NumPy from its definition."""

import math

import ml_dtypes
import numpy as np
import pytest

import tubevit
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.cli import main
from tubevit.convert import convert
from tubevit.convert.foreign import Options
from tubevit.errors import UserError

WIDTH, HEADS, MLP, DEPTH, PATCH, SIDE, CLASSES = 24, 3, 40, 3, 4, 3, 5
# How vision_transformer and big_vision call the modules of a block.
AUGREG = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
BIG_VISION = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


class Maker:
    """Random arrays by name, as flax.linen has them."""

    def __init__(self, seed=0):
        self.rng, self.arrays = np.random.default_rng(seed), {}

    def array(self, name, *shape, mean=0.0):
        self.arrays[name] = self.rng.normal(mean, 0.3, shape).astype(np.float32)

    def norm(self, name):
        self.array(f"{name}/scale", WIDTH, mean=1)
        self.array(f"{name}/bias", WIDTH)

    def attention(self, name):
        for part in ("query", "key", "value"):
            self.array(f"{name}/{part}/kernel", WIDTH, HEADS, WIDTH // HEADS)
            self.array(f"{name}/{part}/bias", HEADS, WIDTH // HEADS)
        self.array(f"{name}/out/kernel", HEADS, WIDTH // HEADS, WIDTH)
        self.array(f"{name}/out/bias", WIDTH)

    def mlp(self, name):
        for layer, sizes in (("Dense_0", (WIDTH, MLP)), ("Dense_1", (MLP, WIDTH))):
            self.array(f"{name}/{layer}/kernel", *sizes)
            self.array(f"{name}/{layer}/bias", sizes[1])

    def vit(self, names, position, rows, class_token=False, probe=False, head=True):
        self.array("embedding/kernel", PATCH, PATCH, 3, WIDTH)
        self.array("embedding/bias", WIDTH)
        self.array(position, 1, rows, WIDTH)
        if class_token:
            self.array("cls", 1, 1, WIDTH)
        norm1, attention, norm2, mlp = names
        for i in range(DEPTH):
            block = f"Transformer/encoderblock_{i}"
            self.norm(f"{block}/{norm1}")
            self.attention(f"{block}/{attention}")
            self.norm(f"{block}/{norm2}")
            self.mlp(f"{block}/{mlp}")
        self.norm("Transformer/encoder_norm")
        if probe:
            self.array("MAPHead_0/probe", 1, 1, WIDTH)
            self.attention("MAPHead_0/MultiHeadDotProductAttention_0")
            self.norm("MAPHead_0/LayerNorm_0")
            self.mlp("MAPHead_0/MlpBlock_0")
        if head:
            self.array("head/kernel", WIDTH, CLASSES)
            self.array("head/bias", CLASSES)
        return self.arrays


def augreg(**options):
    position = "Transformer/posembed_input/pos_embedding"
    return Maker().vit(AUGREG, position, SIDE * SIDE + 1, class_token=True, **options)


def tower(rows=SIDE * SIDE, **options):
    return Maker().vit(BIG_VISION, "pos_embedding", rows, **options)


def forward(arrays, names, images, pool):
    """Logits, or features without a head, of uint8 images (B, H, W, 3), one image and one head at a time."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    norm1, attention, norm2, mlp = names
    position = next(array for name, array in arrays.items() if name.endswith("pos_embedding"))[0]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / scale * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def dense(x, name):
        return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]

    def perceptron(x, name):
        x = dense(x, f"{name}/Dense_0")
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return dense(x, f"{name}/Dense_1")

    def attend(queries, x, name):
        result = np.zeros_like(queries) + arrays[f"{name}/out/bias"]
        for head in range(HEADS):
            parts = []
            for part, tokens in (("query", queries), ("key", x), ("value", x)):
                kernel, bias = arrays[f"{name}/{part}/kernel"], arrays[f"{name}/{part}/bias"]
                parts.append(tokens @ kernel[:, head] + bias[head])
            query, key, value = parts
            weights = np.exp(query @ key.T / math.sqrt(WIDTH // HEADS))
            result += weights / weights.sum(-1, keepdims=True) @ value @ arrays[f"{name}/out/kernel"][head]
        return result

    outputs = []
    for image in images / 127.5 - 1:
        x = []
        for row in range(0, PATCH * SIDE, PATCH):
            for column in range(0, PATCH * SIDE, PATCH):
                patch = image[row : row + PATCH, column : column + PATCH]
                x.append(np.tensordot(patch, arrays["embedding/kernel"], 3) + arrays["embedding/bias"])
        x = np.stack(x)
        if "cls" in arrays and len(position) == len(x) + 1:  # older: the class token has a position
            x = np.concatenate([arrays["cls"][0], x]) + position
        else:
            x = x + position
            x = np.concatenate([arrays["cls"][0], x]) if "cls" in arrays else x
        for i in range(DEPTH):
            block = f"Transformer/encoderblock_{i}"
            y = norm(x, f"{block}/{norm1}")
            x = x + attend(y, y, f"{block}/{attention}")
            x = x + perceptron(norm(x, f"{block}/{norm2}"), f"{block}/{mlp}")
        x = norm(x, "Transformer/encoder_norm")
        if pool == "map":
            y = attend(arrays["MAPHead_0/probe"][0], x, "MAPHead_0/MultiHeadDotProductAttention_0")
            y = (y + perceptron(norm(y, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0"))[0]
        else:
            y = x[0] if pool == "cls" else x.mean(axis=0)
        outputs.append(dense(y, "head") if "head/kernel" in arrays else y)
    return np.stack(outputs)


def scanned(arrays):
    """Blocks stacked, as big_vision's scan has them."""
    apart = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in [name for name in arrays if "encoderblock_0/" in name]:
        layers = [arrays[name.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(DEPTH)]
        apart[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return apart


def below(prefix, arrays):
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


LIT = {"params/txt/head/kernel": np.ones((3, 3), np.float32), "params/t": np.ones(1, np.float32)}
CASES = {  # what is written, the arrays themselves, names of modules, pooling, arguments, format
    "augreg": (augreg(), augreg(), AUGREG, "cls", {}, "augreg"),
    "gap": (tower(), tower(), BIG_VISION, "mean", {}, "big-vision"),
    "tok": (tower(class_token=True), tower(class_token=True), BIG_VISION, "cls", {}, "big-vision"),
    "old_tok": (
        below("params", tower(SIDE * SIDE + 1, class_token=True)), tower(SIDE * SIDE + 1, class_token=True),
        BIG_VISION, "cls", {}, "big-vision",
    ),
    "scanned": (scanned(tower()), tower(), BIG_VISION, "mean", {}, "big-vision"),
    "map": (
        below("params/img", tower(probe=True, head=False)) | LIT, tower(probe=True, head=False), BIG_VISION, "map",
        {"prefix": "params/img"}, "big-vision",
    ),
}  # fmt: skip


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (2, PATCH * SIDE, PATCH * SIDE, 3), np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_definition(case, images, tmp_path):
    stored, arrays, names, pool, arguments, kind = CASES[case]
    np.savez(tmp_path / "theirs.npz", **stored)
    done = convert(tmp_path / "theirs.npz", tmp_path / "ours", options=Options(**arguments))
    assert done.format == kind and done.config.pooling == pool
    model = tubevit.load_model(tmp_path / "ours")
    expected = forward(arrays, names, images, pool)
    assert np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(model(images), expected, rtol=0, atol=1e-5)


def test_what_stands_in_the_metadata(tmp_path):
    np.savez(tmp_path / "theirs.npz", **augreg())
    convert(tmp_path / "theirs.npz", tmp_path / "ours")
    source = Checkpoint(tmp_path / "ours").metadata["source"]
    assert source["format"] == "augreg" and source["name"] == "theirs.npz"
    assert len(source["sha256"]["theirs.npz"]) == 64
    assert source["preprocessing"] == {
        "mean": [0.5] * 3, "std": [0.5] * 3, "range": [0, 1], "interpolation": "bilinear", "size": PATCH * SIDE
    }  # fmt: skip
    config = tubevit.load_model(tmp_path / "ours").config
    assert (config.gelu, config.norm_epsilon, config.num_heads) == ("tanh", 1e-6, HEADS)


def test_other_statistics(tmp_path, images):
    arrays = tower()
    np.savez(tmp_path / "theirs.npz", **arrays)
    convert(tmp_path / "theirs.npz", tmp_path / "a")
    convert(tmp_path / "theirs.npz", tmp_path / "b", options=Options(mean=(0.25, 0.5, 0.75), std=(0.125, 0.25, 0.5)))
    one, other = (tubevit.load_model(tmp_path / name) for name in "ab")
    shown = images[:1, :, :, :].astype(np.float32) / 127.5 - 1
    standardised = ((shown + 1) / 2 - np.float32([0.25, 0.5, 0.75])) / np.float32([0.125, 0.25, 0.5])
    np.testing.assert_allclose(other(shown), one(standardised), rtol=0, atol=1e-5)


def test_bfloat16(tmp_path):
    """NumPy stores its numbers without their type."""
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in augreg().items()}
    np.savez(tmp_path / "theirs.npz", **half)
    assert np.load(tmp_path / "theirs.npz")["head/kernel"].dtype == "V2"
    convert(tmp_path / "theirs.npz", tmp_path / "ours")
    found = tubevit.load_model(tmp_path / "ours").heads["default"].kernel[...]
    np.testing.assert_array_equal(found, half["head/kernel"].astype(np.float32))


def test_representation_layers(tmp_path, images):
    arrays = augreg()
    layer = {"pre_logits/kernel": np.ones((WIDTH, WIDTH), np.float32), "pre_logits/bias": np.ones(WIDTH, np.float32)}
    np.savez(tmp_path / "theirs.npz", **arrays, **layer)
    with pytest.raises(UserError, match="representation layer, pre_logits, .*--headless leaves both out"):
        convert(tmp_path / "theirs.npz", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    done = convert(tmp_path / "theirs.npz", tmp_path / "ours", options=Options(headless=True))
    assert done.notes == ("left out: head/bias, head/kernel, pre_logits/bias, pre_logits/kernel",)
    bare = {name: array for name, array in arrays.items() if not name.startswith("head")}
    model = tubevit.load_model(tmp_path / "ours")
    np.testing.assert_allclose(model(images), forward(bare, AUGREG, images, "cls"), rtol=0, atol=1e-5)


def test_several_towers_need_a_prefix(tmp_path):
    np.savez(tmp_path / "theirs.npz", **below("params/img", tower()), **below("opt/mu/img", tower()))
    with pytest.raises(UserError, match="several: pass --prefix, one of 'opt/mu/img', 'params/img'"):
        convert(tmp_path / "theirs.npz", tmp_path / "ours")
    with pytest.raises(UserError, match="unknown prefix .* 'params/image'; did you mean 'params/img'"):
        convert(tmp_path / "theirs.npz", tmp_path / "ours", options=Options(prefix="params/image"))
    assert (
        convert(tmp_path / "theirs.npz", tmp_path / "ours", options=Options(prefix="params/img/")).notes[0]
        == "left out: opt/mu"
    )


def test_all_that_does_not_fit_is_listed(tmp_path, capsys):
    arrays = augreg()
    del arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias"], arrays["Transformer/encoder_norm/scale"]
    for i in range(DEPTH):
        arrays[f"Transformer/encoderblock_{i}/LayerNorm_2/scale"] = np.ones(WIDTH + 1, np.float32)
    del arrays["cls"]
    arrays["conv_root/kernel"] = np.ones((7, 7), np.float32)
    arrays["head/bias"] = np.ones(CLASSES, np.int32)
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert main(["convert", str(tmp_path / "theirs.npz"), str(tmp_path / "ours")]) == 2
    line = capsys.readouterr().err
    for part in (
        "missing cls", "missing Transformer/encoder_norm/scale",
        "missing Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias",
        "unexpected conv_root/kernel", "Transformer/encoderblock_0-2/LayerNorm_2/scale: expected (24,), found (25,)",
        "head/bias: expected floating point, found int32",
    ):  # fmt: skip
        assert part in line
    assert line.count("\n") == 1 and line.count(";") == 5  # six problems and no more
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("change, text", [
    (lambda arrays: arrays.pop("pos_embedding"), r"no learned positions, pos_embedding; fixed ones \(sincos2d\)"),
    (lambda arrays: arrays.pop("embedding/kernel"), "found none: no embedding/kernel; it holds .*head"),
    (lambda arrays: arrays.update(pos_embedding=np.ones((1, 8, WIDTH))), "8 patches, which form no square"),
    (lambda arrays: arrays.pop("Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"), "missing .*Dense_0/kernel"),
    (lambda arrays: arrays.update({"embedding/kernel": np.ones((4, 4, 24))}), "expected 4 axes, found"),
])  # fmt: skip
def test_what_is_no_vit(change, text, tmp_path):
    arrays = tower()
    change(arrays)
    np.savez(tmp_path / "theirs.npz", **arrays)
    with pytest.raises(UserError, match=text):
        convert(tmp_path / "theirs.npz", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
