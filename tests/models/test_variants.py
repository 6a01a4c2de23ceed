import jax
import numpy as np
import pytest
from flax import nnx

from tubevit import list_models
from tubevit.errors import UserError
from tubevit.models import variants
from tubevit.models.config import Head
from tubevit.models.flops import count_parameters
from tubevit.models.variants import create_model, model_config
from tubevit.tubes import PRESETS

VOLUMES = {"8x8x8": 512, "16x4x4": 256, "4x12x12": 576, "1x16x16": 256}  # Table 12


def parameters(width, depth, mlp_dim, parts, classes):
    """By hand: each tube's kernel and bias make width / part channels."""
    tubes = sum((3 * volume + 1) * width // part for volume, part in zip(VOLUMES.values(), parts))
    attention = 4 * width**2 + 4 * width
    mlp = 2 * width * mlp_dim + width + mlp_dim
    encoder = depth * (attention + mlp + 4 * width) + 2 * width
    return tubes + encoder + width + classes * (width + 1)  # pooling has one vector


@pytest.mark.parametrize(
    "name, sizes, default, plain",
    [
        ("tubevit_b16", (768, 12, 3072), 88.2, 89.2),
        ("tubevit_l16", (1024, 24, 4096), 306.5, 307.8),
        ("tubevit_h16", (1280, 32, 5120), 634.9, 636.6),
    ],
)
def test_parameter_counts(name, sizes, default, plain):
    for tubes, parts, millions in (("paper", (2, 4, 1, 1), default), ("paper_no_s2d", (1, 1, 1, 1), plain)):
        model = nnx.eval_shape(lambda tubes=tubes: create_model(name, tubes=tubes, num_classes=600))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
        assert count == parameters(*sizes, parts, 600)
        assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("name", [*list_models("tubevit*"), *list_models("vit*")])
def test_builds_with_every_preset_that_fits(name):
    config = model_config(name)
    shape = (config.frames, config.size, config.size)
    fitting = {preset: tubes for preset, tubes in PRESETS.items() if tubes.fits(shape)}
    if config.frames == 1:  # a plain ViT reads one frame
        assert set(fitting) == {preset for preset, tubes in PRESETS.items() if tubes.is_2d}
    else:
        assert len(fitting) >= 10
    for preset, tubes in fitting.items():
        model = nnx.eval_shape(lambda preset=preset: create_model(name, tubes=preset, num_classes=3))
        own = [i for i, tube in enumerate(tubes.tubes) if tube.is_2d or not tubes.interpolated]
        kernels = [model.tokenizer.tubes[str(i)].kernel.shape for i in own]
        assert kernels == [(*tubes.tubes[i].kernel, 3, config.width // tubes.tubes[i].sub_windows) for i in own] and (
            len(own) == len(tubes.tubes) or preset == "interpolated"
        )
    clip = jax.ShapeDtypeStruct((2, *shape, 3), np.uint8)
    assert jax.eval_shape(lambda clip: create_model(name, num_classes=3)(clip), clip).shape == (2, 3)
    image = jax.ShapeDtypeStruct((2, *shape[1:], 3), np.uint8)
    assert jax.eval_shape(lambda image: create_model(name)(image), image).shape == (2, config.width)


PEERS = [name for family in ("vivit", "timesformer", "videomae", "vjepa2") for name in list_models(f"{family}_*")]


@pytest.mark.parametrize("name", PEERS)
def test_peers_read_every_pixel_once(name):
    config = model_config(name)
    (tube,) = config.tubes.tubes
    assert tube.kernel == tube.stride and config.tubes.pixels_read(config.shape) == 1
    clip = jax.ShapeDtypeStruct((2, *config.shape, 3), np.uint8)
    assert jax.eval_shape(lambda clip: create_model(name, num_classes=3)(clip), clip).shape == (2, 3)


def test_peers_have_the_published_sizes():
    """Tokens without the class token, millions of parameters with 400 classes; sources in docs/zoo.md."""
    published = {
        "vivit_b16x2": (3136, 89.0), "vivit_fe_b16x2": (3136, 115.1), "timesformer_b16": (1568, 114.5),
        "videomae_b16": (1568, 86.5), "videomae_s16": (1568, 22.0), "videomae_l16": (1568, 304.3),
        "timesformer_hr_b16": (12544, 114.9), "timesformer_l_b16": (18816, 114.5), "videomae_h16": (1568, 632.2),
    }  # fmt: skip
    for name, (tokens, millions) in published.items():
        config = model_config(name, num_classes=400)
        assert config.tubes.num_tokens(config.shape) == tokens
        assert round(count_parameters(config) / 1e6, 1) == millions, name


def test_families_stand_together():
    families = [name.split("_")[0] for name in list_models()]
    assert families[0] == "tubevit" and len(set(families)) == sum(a != b for a, b in zip(families, [None, *families]))
    assert list_models("videomae_*16") == [f"videomae_{size}16" for size in ("s", "b", "l", "h")]


def test_names():
    assert list_models("tubevit_b16*") == ["tubevit_b16"]
    assert {f"tubevit_{size}16" for size in ("ti", "s", "b", "l", "h")} < set(list_models())
    assert {"tubevit_h14", "tubevit_nano8", "tubevit_ti8"} < set(list_models())
    assert model_config("tubevit_h14").tubes.grid((32, 224, 224)) == ((2, 8, 8), (3, 8, 8), (2, 8, 8), (1, 16, 16))
    assert model_config("tubevit_nano8").tubes.num_tokens((16, 64, 64)) == 176


# Those of ViTs with a class token and a head of 1,000 classes, in millions (timm's vit_*_patch*_224 with their heads).
@pytest.mark.parametrize(
    "name, millions",
    [
        ("vit_ti16", 5.72), ("vit_s16", 22.05), ("vit_s32", 22.88), ("vit_b16", 86.57), ("vit_b32", 88.22),
        ("vit_l16", 304.33), ("vit_l32", 306.54), ("vit_h14", 632.05),
    ],
)  # fmt: skip
def test_plain_vits_have_the_parameters_of_vits(name, millions):
    width, depth, mlp_dim = (getattr(model_config(name), field) for field in ("width", "depth", "mlp_dim"))
    patch = int(name[-2:])
    count = count_parameters(model_config(name, num_classes=1000))
    block = 4 * width**2 + 4 * width + 2 * width * mlp_dim + width + mlp_dim + 4 * width
    embedding = (3 * patch**2 + 1) * width + (224 // patch) ** 2 * width + width
    assert count == embedding + depth * block + 2 * width + 1000 * (width + 1)
    # Theirs count the class token's position apart from the class token.
    assert round((count + width) / 1e6, 2) == millions


def test_plain_vits():
    sizes = [f"vit_{size}{patch}" for size in ("ti", "s", "b", "l", "h") for patch in (14, 16, 32)]
    assert set(list_models("vit_*")) == {*sizes, "vit_nano8", "vit_ti8"}
    for name in list_models("vit_*"):
        config = model_config(name, num_classes=2)
        patch = 8 if name.endswith("8") else int(name[-2:])
        assert [tube.kernel for tube in config.tubes.tubes] == [(1, patch, patch)]
        assert config.tubes.tubes[0].stride[1:] == (patch, patch)
        assert (config.position, config.pooling, config.class_token) == ("learned", "cls", True)
        assert config.shape == ((1, 64, 64) if patch == 8 else (1, 224, 224))
        assert config.heads == (("default", Head(2, "any")),)
    for small, large in (("vit_b16", "tubevit_b16"), ("vit_nano8", "tubevit_nano8")):
        fields = ("width", "depth", "num_heads", "mlp_dim")
        assert [getattr(model_config(small), f) for f in fields] == [getattr(model_config(large), f) for f in fields]


def test_heads():
    assert model_config("tubevit_b16", num_classes=400).heads == (("default", Head(400, "video")),)
    assert model_config("tubevit_b16", num_classes=9, tubes="image_2d").heads == (("default", Head(9, "any")),)
    assert model_config("tubevit_b16").heads == model_config("tubevit_b16", num_classes=0).heads == ()
    heads = {"k600": 600, "imagenet": (1000, "image"), "both": {"classes": 2, "labels": ["a", "b"]}, "x": Head(3)}
    expected = (Head(600), Head(1000, "image"), Head(2, labels=("a", "b")), Head(3))
    assert model_config("tubevit_b16", heads=heads).heads == tuple(zip(heads, expected))


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numbers_of_numpy_become_those_of_python(kind):
    given = dict(depth=kind(3), freeze_below=kind(1), dropout=np.float32(0.5), fps=kind(8))
    config = model_config("tubevit_nano8", num_classes=kind(5), **given)
    assert config == model_config("tubevit_nano8", num_classes=5, depth=3, freeze_below=1, dropout=0.5, fps=8)
    assert [type(getattr(config, name)) for name in given] == [int, int, float, float]
    assert type(config.heads[0][1].classes) is int
    assert model_config("tubevit_nano8", heads={"a": kind(5), "b": (kind(2), "image")}).heads[0][1] == Head(5)


def test_fields_and_seed(monkeypatch):
    monkeypatch.setattr(variants, "TubeViT", lambda config, rngs: (config, rngs.params.key[...]))
    config, key = create_model("tubevit_nano8", seed=3, width=48, precision="bfloat16")
    assert (config.width, config.precision, config.depth) == (48, "bfloat16", 3)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(nnx.Rngs(3).params.key[...]))


@pytest.mark.parametrize(
    "name, fields, words",
    [
        ("tubevit_b61", {}, ["model 'tubevit_b61'", "'tubevit_b16'"]),
        ("tubevit_b16", dict(num_clases=3), ["keyword 'num_clases'", "'num_classes'"]),
        ("tubevit_b16", dict(precison="bfloat16"), ["'precison'", "'precision'"]),
        ("tubevit_b16", dict(num_classes=3, heads={"a": 3}), ["num_classes= or heads="]),
        ("tubevit_b16", dict(num_classes=-1), ["at least 1 class", "-1"]),
        ("tubevit_b16", dict(heads={"a": "3"}), ["head 'a'", "'3'"]),
        ("tubevit_b16", dict(heads={"a": {"clases": 5}}), ["keyword of head 'a' 'clases'", "'classes'"]),
        ("tubevit_b16", dict(heads={"a": {"modality": "video"}}), ["head 'a'", "a dict with `classes`"]),
        ("tubevit_b16", dict(heads={"a": True}), ["head 'a'", "True"]),
        ("tubevit_b16", dict(depth=np.float64(3)), ["depth", "a whole number"]),
    ],
)
def test_errors_name_the_closest(name, fields, words):
    with pytest.raises(UserError) as error:
        model_config(name, **fields)
    assert not [word for word in words if word not in str(error.value)], str(error.value)


def test_a_vit_of_another_size_needs_all_of_them():
    sizes = dict(width=1152, depth=27, num_heads=16, mlp_dim=4304, tubes="1x14x14/32x14x14")
    assert model_config("vit", **sizes).mlp_dim == 4304
    for name, given in (("vit", sizes.keys() - {"tubes"}), ("vit_so400m", sizes.keys())):
        with pytest.raises(UserError, match=f"unknown model '{name}'"):
            model_config(name, **{key: sizes[key] for key in given})
