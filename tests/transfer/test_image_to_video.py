"""An image ViT as the beginning of video models whose tokens attend apart over time and over space."""

import re

import numpy as np
import pytest
from flax import nnx

import tubevit
from tests.transfer.test_initialise import begin, flat, parameters_of
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.models.tubevit import TubeViT


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        ("joint", dict(position="learned")),
        ("divided", dict(position="learned_space")),
        ("factorised_encoder", dict(position="learned_space", temporal_depth=1)),
    ],
)
def test_an_image_vit_begins_the_patterns_of_attention(tiny, tmp_path, pattern, fields):
    """A clip that repeats an image has its tokens at all times; only the layers over time are new."""
    kept = dict(class_token=True, pooling="cls", size=48, depth=2)
    image = tiny({}, tubes="1x16x16/32x16x16", frames=1, position="learned", **kept)
    tubevit.save_model(image, tmp_path / "image")
    model = tiny({}, seed=1, tubes="4x16x16/4x16x16", frames=8, pattern=pattern, **fields, **kept)
    before, after, notes = begin(model, str(tmp_path / "image"))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), np.uint8)
    whole = nnx.merge(nnx.graphdef(model), parameters_of(model, after))
    tokens = whole.tokenize(np.repeat(pixels[:, None], 8, axis=1))[0]
    expected = image.tokenize(pixels)[0]
    np.testing.assert_allclose(tokens[:, 1:].reshape(2, 9, 24), np.stack([expected[0, 1:]] * 2), 2e-6, 1e-5)
    np.testing.assert_array_equal(tokens[:, 0], expected[:, 0])
    stored, over_time = flat(parameters(image)), re.compile("encoder/(temporal|blocks/time)")
    new = [path for path in after if over_time.match(path)]
    assert bool(new) == (pattern != "joint") and any("new: " in note for note in notes) == bool(new)
    for path in after:
        if not path.startswith(("tokenizer/", "position/")):
            np.testing.assert_array_equal(after[path], before[path] if path in new else stored[path])


@pytest.mark.parametrize("tubes", ["4x16x16/4x16x16", "1x16x16/2x16x16"])
def test_divided_attention_starts_as_the_image_vit(tiny, tmp_path, tubes):
    """A clip that repeats an image has, at all times, the encoded tokens of the image: attention over time adds 0."""
    kept = dict(class_token=True, pooling="cls", size=48, depth=2)
    image = tiny({}, tubes="1x16x16/32x16x16", frames=1, position="learned", **kept)
    tubevit.save_model(image, tmp_path / "image")
    fields = dict(tubes=tubes, frames=4, pattern="divided", position="learned_space_time")
    model = TubeViT(image.config.replace(**fields), rngs=nnx.Rngs(0))
    _, after, notes = begin(model, str(tmp_path / "image"))
    assert any("new: position/0_time, " in note and "time_attention" in note for note in notes)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), np.uint8)
    whole = nnx.merge(nnx.graphdef(model), parameters_of(model, after))
    times = model.config.tubes.grid(model.config.shape)[0][0]
    encoded, expected = whole.encode(np.repeat(pixels[:, None], 4, axis=1)), image.encode(pixels)
    np.testing.assert_allclose(encoded[:, 1:].reshape(times, 9, 24), np.stack([expected[0, 1:]] * times), 2e-5, 2e-5)
    np.testing.assert_allclose(encoded[:, 0], expected[:, 0], 2e-5, 2e-5)


def test_only_an_image_vit_lacks_the_layers_over_time(tiny, tmp_path):
    fields = dict(tubes="4x16x16/4x16x16", frames=8, size=48, depth=1)
    tubevit.save_model(tiny({}, **fields), tmp_path / "joint")
    with pytest.raises(UserError, match="missing encoder/blocks/0/time_attention/out/bias"):
        begin(tiny({}, pattern="divided", **fields), str(tmp_path / "joint"))
