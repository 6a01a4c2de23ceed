import math

import numpy as np
import pytest
from flax import nnx

from tubevit.models.position import position_embedding
from tubevit.models.variants import create_model

CENTRES = np.array([[0.0, 0.0, 0.0], [3.5, 7.5, 219.5], [31.0, 219.5, 7.5], [-2.5, 0.5, 100.0]])


@pytest.mark.parametrize("width, spare", [(4, 4), (6, 0), (96, 0), (768, 0), (1024, 4), (1280, 2)])
def test_layout_frequencies_and_zero_fill(width, spare):
    found = position_embedding(CENTRES, width)
    assert found.dtype == np.float32 and found.shape == (4, width)
    assert not found[:, width - spare :].any()
    bands = (width - spare) // 6
    for j in {0, 1, bands // 2, bands - 1} if bands > 1 else range(bands):
        omega = 1 / 10_000 ** (j / bands)
        for row, (t, y, x) in zip(found, CENTRES * omega):
            expected = [math.sin(t), math.cos(t), math.sin(y), math.cos(y), math.sin(x), math.cos(x)]
            np.testing.assert_allclose(row[6 * j : 6 * j + 6], expected, rtol=0, atol=1e-7)
    if bands:  # no band is degenerate: the lowest frequency still tells frames and pixels apart
        assert len(np.unique(found[:, 6 * bands - 6 : 6 * bands], axis=0)) == len(CENTRES)


def test_never_among_the_parameters():
    """The exact set of parameters: a change of any name or shape breaks checkpoints."""
    model = nnx.eval_shape(lambda: create_model("tubevit_nano8", num_classes=8))
    assert {"/".join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))} == {
        "tokenizer/tubes/0/kernel": (4, 4, 4, 3, 48),
        "tokenizer/tubes/0/bias": (48,),
        "tokenizer/tubes/1/kernel": (8, 2, 2, 3, 24),
        "tokenizer/tubes/1/bias": (24,),
        "tokenizer/tubes/2/kernel": (2, 6, 6, 3, 96),
        "tokenizer/tubes/2/bias": (96,),
        "tokenizer/tubes/3/kernel": (1, 8, 8, 3, 96),
        "tokenizer/tubes/3/bias": (96,),
        "encoder/blocks/norm1/scale": (3, 96),
        "encoder/blocks/norm1/bias": (3, 96),
        "encoder/blocks/attention/qkv/kernel": (3, 96, 3, 3, 32),
        "encoder/blocks/attention/qkv/bias": (3, 3, 3, 32),
        "encoder/blocks/attention/out/kernel": (3, 3, 32, 96),
        "encoder/blocks/attention/out/bias": (3, 96),
        "encoder/blocks/norm2/scale": (3, 96),
        "encoder/blocks/norm2/bias": (3, 96),
        "encoder/blocks/mlp/up/kernel": (3, 96, 384),
        "encoder/blocks/mlp/up/bias": (3, 384),
        "encoder/blocks/mlp/down/kernel": (3, 384, 96),
        "encoder/blocks/mlp/down/bias": (3, 96),
        "encoder/norm/scale": (96,),
        "encoder/norm/bias": (96,),
        "pooling/score/kernel": (96, 1),
        "heads/default/kernel": (96, 8),
        "heads/default/bias": (8,),
    }


def test_rows_and_columns_of_a_frame_that_is_not_square(tiny):
    """Without kernels and biases tokens are the embedding alone: rows in the third and fourth channel of a band."""
    model = tiny(tubes="1x8x8/1x8x8", width=24)
    projection = model.tokenizer.tubes["0"]
    projection.kernel[...], projection.bias[...] = 0 * projection.kernel[...], 0 * projection.bias[...]
    tokens, centres = model.tokenize(np.zeros((1, 2, 24, 40, 3), np.uint8))
    tokens = np.asarray(tokens).reshape(2, 3, 5, 24)
    for t in range(2):
        for y in range(3):
            for x in range(5):
                expected = [f(c) for c in (t, 8 * y + 3.5, 8 * x + 3.5) for f in (math.sin, math.cos)]
                np.testing.assert_allclose(tokens[t, y, x, :6], expected, rtol=0, atol=1e-6)
    assert centres.tolist()[-1] == [1, 19.5, 35.5]
