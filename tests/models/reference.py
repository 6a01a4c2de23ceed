"""The model in float64 NumPy by explicit loops, written from the paper's definitions; shares no code with tubevit."""

import math
from itertools import product

import numpy as np
from flax import nnx


def read_parameters(model):
    """Float64 copies of a model's parameters by path, such as `encoder/norm/scale`."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf[...], np.float64) for path, leaf in flat}


def first_positions(size, kernel, stride, offset, padding):
    """Where the windows of the plain tube start along one axis."""
    rest = size - offset
    if padding == "valid":
        return [offset + i for i in range(0, rest - kernel + 1, stride)]
    count = math.ceil(rest / stride)
    missing = max((count - 1) * stride + kernel - rest, 0)
    return [offset + i * stride - missing // 2 for i in range(count)]


def windows(tube, shape, padding):
    """A list of tokens; a token is a list of sub-windows, a sub-window its frames, rows and columns."""
    starts = [first_positions(*axis, padding) for axis in zip(shape, tube.kernel, tube.stride, tube.offset)]
    steps = [stride // factor for stride, factor in zip(tube.stride, tube.space_to_depth)]
    tokens = []
    for start in product(*starts):
        token = []
        for j in product(*map(range, tube.space_to_depth)):
            low = [a + b * step for a, b, step in zip(start, j, steps)]
            token.append([range(a, a + k) for a, k in zip(low, tube.kernel)])
        tokens.append(token)
    return tokens


def positions(token):
    """All positions (t, y, x) that the windows of a token cover, padding too."""
    return [position for window in token for position in product(*window)]


def inside(position, tube, shape):
    """Whether it is a pixel of the clip sliced at the tube's offset; all else reads 0 after normalisation."""
    return all(offset <= p < size for p, offset, size in zip(position, tube.offset, shape))


def position_embedding(centre, width):
    embedding = np.zeros(width)
    for j in range(width // 6):
        omega = 10_000 ** (-j / (width // 6))
        for axis in range(3):
            embedding[6 * j + 2 * axis] = math.sin(centre[axis] * omega)
            embedding[6 * j + 2 * axis + 1] = math.cos(centre[axis] * omega)
    return embedding


def tokenize(params, config, video):
    """(B, T, H, W, 3) or (B, H, W, 3) -> tokens (B, N, D) with position, centres (N, 3)."""
    images = video.ndim == 4
    video = video[:, None] if images else video
    shape = video.shape[1:4]
    pixels = video / 127.5 - 1 if video.dtype == np.uint8 else video.astype(np.float64)
    tokens, centres = [], []
    for number, tube in enumerate(config.tubes.tubes):
        if images and tube.kernel[0] > 1:
            continue
        kernel, bias = (params[f"tokenizer/tubes/{number}/{name}"] for name in ("kernel", "bias"))
        for token in windows(tube, shape, config.tubes.padding):
            parts = []
            for window in token:
                patch = np.zeros((len(video), *tube.kernel, 3))
                for at, position in zip(product(*map(range, tube.kernel)), product(*window)):
                    if inside(position, tube, shape):
                        patch[:, *at] = pixels[:, *position]
                parts.append(patch.reshape(len(video), -1) @ kernel.reshape(-1, kernel.shape[-1]) + bias)
            centres.append(np.mean(positions(token), axis=0))
            tokens.append(np.concatenate(parts, axis=-1) + position_embedding(centres[-1], config.width))
    return np.stack(tokens, axis=1), np.stack(centres)


def layer_norm(x, scale, bias):
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-6) * scale + bias


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attend(x, layer):
    """One clip (N, D): for each head and query a softmax over all tokens."""
    kernel, bias, out = layer["attention/qkv/kernel"], layer["attention/qkv/bias"], layer["attention/out/kernel"]
    result = np.zeros_like(x) + layer["attention/out/bias"]
    for head in range(kernel.shape[2]):
        query, key, value = (x @ kernel[:, i, head] + bias[i, head] for i in range(3))
        for n in range(len(x)):
            result[n] += softmax(key @ query[n] / math.sqrt(key.shape[1])) @ value @ out[head]
    return result


def mlp(x, layer):
    hidden = x @ layer["mlp/up/kernel"] + layer["mlp/up/bias"]
    gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return gelu @ layer["mlp/down/kernel"] + layer["mlp/down/bias"]


def encode(params, tokens):
    """(B, N, D) -> (B, N, D)."""
    prefix, result = "encoder/blocks/", []
    blocks = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
    for x in tokens:
        for index in range(len(blocks["mlp/up/bias"])):
            layer = {name: value[index] for name, value in blocks.items()}
            x = x + attend(layer_norm(x, layer["norm1/scale"], layer["norm1/bias"]), layer)
            x = x + mlp(layer_norm(x, layer["norm2/scale"], layer["norm2/bias"]), layer)
        result.append(layer_norm(x, params["encoder/norm/scale"], params["encoder/norm/bias"]))
    return np.stack(result)


def pool(params, tokens):
    """(B, N, D) -> pooled (B, D), weights (B, N)."""
    weights = np.stack([softmax(x @ params["pooling/score/kernel"][:, 0]) for x in tokens])
    return np.stack([w @ x for w, x in zip(weights, tokens)]), weights


def classify(params, pooled, head):
    return pooled @ params[f"heads/{head}/kernel"] + params[f"heads/{head}/bias"]


def assert_close(found, expected, tolerance):
    """Every element within `tolerance` of the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst <= tolerance, f"off by {worst:.2e} of the largest magnitude, allowed {tolerance:.0e}"
