"""The model in float64 NumPy by explicit loops, written from the paper's definitions; shares no code with tubevit."""

import math
from itertools import product

import numpy as np
from flax import nnx


def read_parameters(model):
    """Float64 copies of a model's parameters by path, such as `encoder/norm/scale`."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf[...], np.float64) for path, leaf in flat}


def below(params, prefix):
    """The parameters of a part of the model, by the rest of their paths."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def first_positions(size, kernel, stride, offset, padding):
    """Where the windows of the plain tube start along one axis."""
    rest = size - offset
    if padding == "valid":
        return [offset + i for i in range(0, rest - kernel + 1, stride)]
    count = math.ceil(rest / stride)
    missing = max((count - 1) * stride + kernel - rest, 0)
    return [offset + i * stride - missing // 2 for i in range(count)]


def starts_along_axes(tube, shape, padding):
    """Three lists: where the windows of the plain tube start along each axis."""
    return [first_positions(*axis, padding) for axis in zip(shape, tube.kernel, tube.stride, tube.offset)]


def windows(tube, shape, padding):
    """A list of tokens; a token is a list of sub-windows, a sub-window its frames, rows and columns."""
    steps = [stride // factor for stride, factor in zip(tube.stride, tube.space_to_depth)]
    tokens = []
    for start in product(*starts_along_axes(tube, shape, padding)):
        token = []
        for j in product(*map(range, tube.space_to_depth)):
            low = [a + b * step for a, b, step in zip(start, j, steps)]
            token.append([range(a, a + k) for a, k in zip(low, tube.kernel)])
        tokens.append(token)
    return tokens


def indices(tube, shape, padding):
    """Where each token stands in the grid of its tube."""
    return list(product(*(range(len(starts)) for starts in starts_along_axes(tube, shape, padding))))


def positions(token):
    """All positions (t, y, x) that the windows of a token cover, padding too."""
    return [position for window in token for position in product(*window)]


def inside(position, tube, shape):
    """Whether it is a pixel of the clip sliced at the tube's offset; all else reads 0 after normalisation."""
    return all(offset <= p < size for p, offset, size in zip(position, tube.offset, shape))


def resized(kernel, size, antialias):
    """(k_t, k_y, k_x, 3, D) -> (*size, 3, D), one axis after the other.

    The centre of output i of n lies at (i + 1/2) old / n - 1/2, or on the rim where that lies beyond it; it reads its
    two neighbours linearly. With antialias the triangle is as wide as the step where an axis shrinks.
    """
    for axis, new in enumerate(size):
        old = kernel.shape[axis]
        outputs = []
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            if antialias and new < old:
                weights = [max(0, 1 - abs(j - centre) / (old / new)) for j in range(old)]
            else:
                centre = min(max(centre, 0), old - 1)
                weights = [max(0, 1 - abs(j - centre)) for j in range(old)]
            outputs.append(sum(w * kernel.take(j, axis) for j, w in enumerate(weights)) / sum(weights))
        kernel = np.stack(outputs, axis)
    return kernel


def kernel_of(params, config, number, tube):
    """A tube's own kernel, or the shared one resized: never for a 2D tube."""
    if not config.interpolated or tube.kernel[0] == 1:
        return params[f"tokenizer/tubes/{number}/kernel"]
    shared = params["tokenizer/kernel"]
    kernel = resized(shared, tube.kernel, config.antialias)
    return kernel * np.prod(shared.shape[:3]) / np.prod(tube.kernel) if config.gain_norm else kernel


def at_width(params, config, number, tube, token):
    """The channels of a tube brought to the width: by a matrix, or cut off or filled up with 0."""
    if config.tube_linear and tube.kernel[0] > 1:
        return token @ params[f"tokenizer/tubes/{number}/widen/kernel"]
    filled = np.zeros((len(token), config.width))
    for channel in range(min(token.shape[1], config.width)):
        filled[:, channel] = token[:, channel]
    return filled


def position_embedding(centre, width, literal=False):
    embedding = np.zeros(width)
    for j in range(width // 6):
        omega = 1 / 10_000 ** (j if literal else j / (width // 6))
        for axis in range(3):
            embedding[6 * j + 2 * axis] = math.sin(centre[axis] * omega)
            embedding[6 * j + 2 * axis + 1] = math.cos(centre[axis] * omega)
    return embedding


def position_of(params, config, number, tube, index, centre):
    """What is added to the token at `index` of its tube's grid."""
    kind = config.position
    if kind == "none":
        return np.zeros(config.width)
    if kind == "learned" or (kind == "learned_2d" and tube.kernel[0] == 1):
        return params[f"position/{number}"][index]
    return position_embedding(index if kind == "fixed_no_stride" else centre, config.width, kind == "fixed_literal")


def tokenize(params, config, video):
    """(B, T, H, W, 3) or (B, H, W, 3) -> tokens (B, N, D) with position, centres (N, 3)."""
    images = video.ndim == 4
    video = video[:, None] if images else video
    shape = video.shape[1:4]
    pixels = video / 255 if video.dtype == np.uint8 else (video.astype(np.float64) + 1) / 2
    pixels = (pixels - np.array(config.mean)) / np.array(config.std)
    tokens, centres = [], []
    if config.class_token:
        tokens.append(np.repeat(params["class_token"][None], len(video), axis=0))
        centres.append(np.full(3, np.nan))
    for number, tube in enumerate(config.tubes.tubes):
        if images and tube.kernel[0] > 1:
            continue
        kernel, bias = kernel_of(params, config, number, tube), params[f"tokenizer/tubes/{number}/bias"]
        padding = config.tubes.padding
        for index, token in zip(indices(tube, shape, padding), windows(tube, shape, padding), strict=True):
            parts = []
            for window in token:
                patch = np.zeros((len(video), *tube.kernel, 3))
                for at, position in zip(product(*map(range, tube.kernel)), product(*window)):
                    if inside(position, tube, shape):
                        patch[:, *at] = pixels[:, *position]
                parts.append(patch.reshape(len(video), -1) @ kernel.reshape(-1, kernel.shape[-1]) + bias)
            centres.append(np.mean(positions(token), axis=0))
            made = at_width(params, config, number, tube, np.concatenate(parts, axis=-1))
            tokens.append(made + position_of(params, config, number, tube, index, centres[-1]))
    return np.stack(tokens, axis=1), np.stack(centres)


def layer_norm(x, layer, name, config):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + config.norm_epsilon) * layer[f"{name}/scale"] + layer[f"{name}/bias"]


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def attend(x, layer, config):
    """One clip (N, D): for each head and query a softmax over all tokens."""
    kernel, out = layer["attention/qkv/kernel"], layer["attention/out/kernel"]
    bias = layer["attention/qkv/bias"] if config.qkv_bias else np.zeros(kernel.shape[1:])
    result = np.zeros_like(x) + layer["attention/out/bias"]
    for head in range(kernel.shape[2]):
        query, key, value = (x @ kernel[:, i, head] + bias[i, head] for i in range(3))
        for n in range(len(x)):
            result[n] += softmax(key @ query[n] / math.sqrt(key.shape[1])) @ value @ out[head]
    return result


def gelu(x, kind):
    if kind == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(x, layer, config):
    hidden = gelu(x @ layer["mlp/up/kernel"] + layer["mlp/up/bias"], config.gelu)
    return hidden @ layer["mlp/down/kernel"] + layer["mlp/down/bias"]


def encode(params, config, tokens):
    """(B, N, D) -> (B, N, D)."""
    blocks, added, result = below(params, "encoder/blocks/"), below(params, "encoder/added/"), []
    first_added = config.depth - config.add_attention
    for start in tokens:
        x = start
        for index in range(config.depth):
            if index >= first_added:
                layer = {name: value[index - first_added] for name, value in added.items()}
                x = x + attend(layer_norm(x, layer, "norm", config), layer, config)
            layer = {name: value[index] for name, value in blocks.items()}
            scale1, scale2 = (layer["scale1"], layer["scale2"]) if config.layer_scale is not None else (1, 1)
            x = x + scale1 * attend(layer_norm(x, layer, "norm1", config), layer, config)
            x = x + scale2 * mlp(layer_norm(x, layer, "norm2", config), layer, config)
            if index == config.gate_layer:  # equation 8
                x = x + np.tanh(params["encoder/gate"]) * start
        result.append(layer_norm(x, below(params, "encoder/"), "norm", config))
    return np.stack(result)


def pooling_weights(params, config, x):
    """One clip (N, D) -> (heads, N) and the values (heads, N, d) that they weigh; one head but for query and map."""
    first = int(config.class_token)
    if config.pooling == "linear":
        return [softmax(x @ params["pooling/score/kernel"][:, 0])], [x]
    if config.pooling == "mean":
        return [np.array([0.0] * first + [1 / (len(x) - first)] * (len(x) - first))], [x]
    if config.pooling == "cls":
        return [np.array([1.0] + [0.0] * (len(x) - 1))], [x]
    part, weights, values = below(params, "pooling/"), [], []
    for head in range(config.num_heads):
        query = part["probe"] @ part["query/kernel"][:, head] + part["query/bias"][head]
        key, value = (x @ part["key_value/kernel"][:, i, head] + part["key_value/bias"][i, head] for i in range(2))
        weights.append(softmax(key @ query / math.sqrt(len(query))))
        values.append(value)
    return weights, values


def pool(params, config, tokens):
    """(B, N, D) -> pooled (B, D), weights (B, N)."""
    pooled, all_weights = [], []
    for x in tokens:
        weights, values = pooling_weights(params, config, x)
        heads = [weight @ value for weight, value in zip(weights, values, strict=True)]
        if config.pooling in ("query", "map"):
            part = below(params, "pooling/")
            heads = [sum(head @ out for head, out in zip(heads, part["out/kernel"])) + part["out/bias"]]
        if config.pooling == "map":
            heads = [heads[0] + mlp(layer_norm(heads[0], part, "norm", config), part, config)]
        pooled.append(heads[0])
        all_weights.append(np.mean(weights, axis=0))
    return np.stack(pooled), np.stack(all_weights)


def classify(params, pooled, head):
    return pooled @ params[f"heads/{head}/kernel"] + params[f"heads/{head}/bias"]


def stages(params, config, video):
    """Tokens, their centres, encoded tokens, pooling weights, features and logits of the head `default`."""
    tokens, centres = tokenize(params, config, video)
    encoded = encode(params, config, tokens)
    pooled, weights = pool(params, config, encoded)
    return tokens, centres, encoded, weights, pooled, classify(params, pooled, "default")


def difference(found, expected):
    """The largest error in units of the largest magnitude; NaN must stand at the same places."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    missing = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), missing)
    return np.abs(found - expected)[~missing].max() / np.abs(expected[~missing]).max()


def assert_close(found, expected, tolerance):
    """Every element within `tolerance` of the largest magnitude."""
    worst = difference(found, expected)
    assert worst <= tolerance, f"off by {worst:.2e} of the largest magnitude, allowed {tolerance:.0e}"
