"""The model in float64 NumPy by explicit loops, written from the paper's definitions; shares no code with tubevit."""

import dataclasses
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


def index_embedding(n, width):
    return np.array([(math.cos if j % 2 else math.sin)(n / 10_000 ** (2 * (j // 2) / width)) for j in range(width)])


def position_of(params, config, number, tube, index, centre, grid_numbers):
    """What is added to the token at `index` of its tube's grid; `grid_numbers` counts the indices in order."""
    kind = config.position
    if kind in ("none", "rope"):
        return np.zeros(config.width)
    if kind == "index":
        return index_embedding(grid_numbers[index], config.width)
    if kind == "learned_space":
        return params[f"position/{number}"][0, *index[1:]]
    if kind == "learned_space_time":
        return params[f"position/{number}"][0, *index[1:]] + params[f"position/{number}_time"][index[0]]
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
        grid_numbers = {index: n for n, index in enumerate(indices(tube, shape, padding))}
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
            tokens.append(made + position_of(params, config, number, tube, index, centres[-1], grid_numbers))
    return np.stack(tokens, axis=1), np.stack(centres)


def layer_norm(x, layer, name, config, epsilon=None):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    normed = (x - mean) / np.sqrt(variance + (config.norm_epsilon if epsilon is None else epsilon))
    return normed * layer[f"{name}/scale"] + layer[f"{name}/bias"]


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def rotated(x, index):
    """A query or key (d,) of V-JEPA 2 at an index (t, y, x) of the grid."""
    each = 2 * (len(x) // 3 // 2)
    result = x.copy()
    for axis in range(3):
        for channel in range(each):
            at = axis * each + channel
            angle = index[axis] / 10_000 ** ((channel % (each // 2)) / (each // 2))
            other = -x[at + 1] if channel % 2 == 0 else x[at - 1]
            result[at] = x[at] * math.cos(angle) + other * math.sin(angle)
    return result


def attend(x, layer, config, name="attention", sees=None, indices=None, record=None):
    """One clip (N, D): for each head and query a softmax over the tokens of `sees(n, head)`, by default all.

    It gives several lists of tokens for a token that gets the mean over them, and none for one that gets nothing.
    Rotary positions take the index of each token. A list `record` gets the weights (N, N), the mean over the heads; a
    token that gets nothing takes all of itself.
    """
    kernel, out = layer[f"{name}/qkv/kernel"], layer[f"{name}/out/kernel"]
    bias = layer[f"{name}/qkv/bias"] if config.qkv_bias else np.zeros(kernel.shape[1:])
    sees = sees or (lambda n, head: [list(range(len(x)))])
    result, taken = np.zeros_like(x), np.zeros((len(x), len(x)))
    for head in range(kernel.shape[2]):
        query, key, value = (x @ kernel[:, i, head] + bias[i, head] for i in range(3))
        if config.position == "rope" and indices is not None:
            query, key = (np.stack([rotated(*pair) for pair in zip(each, indices)]) for each in (query, key))
        for n in range(len(x)):
            for tokens in sees(n, head):
                scores = key[tokens] @ query[n] / math.sqrt(key.shape[1])
                if config.softcap is not None:
                    scores = config.softcap * np.tanh(scores / config.softcap)
                weights = softmax(scores) / len(sees(n, head))
                result[n] += weights @ value[tokens] @ out[head]
                taken[n, tokens] += weights / kernel.shape[2]
    for n in range(len(x)):
        taken[n, n] = taken[n, n] if sees(n, 0) else 1
        result[n] += layer[f"{name}/out/bias"] if sees(n, 0) else 0
    if record is not None:
        record.append(taken)
    return result


def gelu(x, kind):
    if kind == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(x, layer, config):
    hidden = gelu(x @ layer["mlp/up/kernel"] + layer["mlp/up/bias"], config.gelu)
    return hidden @ layer["mlp/down/kernel"] + layer["mlp/down/bias"]


def encode(params, config, tokens, grid=None):
    """(B, N, D) -> (B, M, D); patterns of attention need the `grid` (n_t, n_y, n_x) of the only tube."""
    if config.pattern == "factorised_encoder":
        return np.stack([encode_factorised(params, config, each, grid) for each in tokens])
    return np.stack([encode_clip(below(params, "encoder/"), config, each, grid) for each in tokens])


def encode_clip(encoder, config, start, grid=None, pattern=None, record=None):
    """One clip (N, D) through the blocks and the normalisation of an encoder."""
    blocks, added, first = below(encoder, "blocks/"), below(encoder, "added/"), int(config.class_token)
    first_added, pattern = config.depth - config.add_attention, pattern or config.pattern
    cells = list(product(*map(range, grid))) if grid else []
    times = range(grid[0]) if grid else ()
    frames = [[0] * first + [first + i for i, cell in enumerate(cells) if cell[0] == t] for t in times]
    places = {cell[1:]: [first + i for i, other in enumerate(cells) if other[1:] == cell[1:]] for cell in cells}

    def in_frame(n, head=0):
        return frames if n < first else [frames[cells[n - first][0]]]

    def over_time(n, head=0):
        return [] if n < first else [places[cells[n - first][1:]]]

    def halves(n, head):
        return over_time(n) if head < config.num_heads // 2 else in_frame(n)

    sees = {"joint": None, "divided": in_frame, "factorised_dot": halves}[pattern]
    rotary = [(0, 0, 0)] * first + cells if grid else None
    x = start
    for index in range(len(blocks["norm1/scale"])):
        if index >= first_added and added:
            layer = {name: value[index - first_added] for name, value in added.items()}
            x = x + attend(layer_norm(x, layer, "norm", config), layer, config, indices=rotary, record=record)
        layer = {name: value[index] for name, value in blocks.items()}
        scale1, scale2 = (layer["scale1"], layer["scale2"]) if config.layer_scale is not None else (1, 1)
        if pattern == "divided":
            normed = layer_norm(x, layer, "time_norm", config)
            x = x + attend(normed, layer, config, "time_attention", over_time, record=record)
        normed = layer_norm(x, layer, "norm1", config)
        x = x + scale1 * attend(normed, layer, config, sees=sees, indices=rotary, record=record)
        x = x + scale2 * mlp(layer_norm(x, layer, "norm2", config), layer, config)
        if index == config.gate_layer:  # equation 8
            x = x + np.tanh(encoder["gate"]) * start
    return layer_norm(x, encoder, "norm", config) if "norm/scale" in encoder else x


def new(lists):
    """A list that is appended to `lists`, or None."""
    return None if lists is None else lists.append([]) or lists[-1]


def encode_factorised(params, config, tokens, grid, in_frames=None, over_time=None):
    """One clip (N, D): each frame alone, then the second encoder over what is taken of each.

    Lists `in_frames` and `over_time` get the weights of the layers for each frame, and for each place or all frames.
    """
    first, places = int(config.class_token), grid[1] * grid[2]
    second, frames = below(params, "encoder/temporal/"), []
    for t in range(grid[0]):
        own = tokens[[*range(first), *range(first + t * places, first + (t + 1) * places)]]
        frames.append(encode_clip(below(params, "encoder/"), config, own, (1, *grid[1:]), "joint", new(in_frames)))
    frames = np.stack(frames)
    plain = dataclasses.replace(config, add_attention=0, gate_layer=None, position="none")
    position = second["position"]
    if config.frame_pooling == "none":
        columns = [
            encode_clip(second, plain, frames[:, s] + position, pattern="joint", record=new(over_time))
            for s in range(places)
        ]
        return np.stack(columns, axis=1).reshape(-1, config.width)
    taken = frames[:, 0] if config.frame_pooling == "cls" else frames[:, first:].mean(axis=1)
    start = np.concatenate(([second["class_token"][None]] if first else []) + [taken + position])
    return encode_clip(second, plain, start, pattern="joint", record=new(over_time))


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
    if config.pooling == "attentive":
        blocks = {f"blocks/{name}": leaf for name, leaf in below(part, "blocks/").items()}
        plain = dataclasses.replace(config, position="none", layer_scale=None, add_attention=0, gate_layer=None)
        x = layer_norm(encode_clip(blocks, plain, x, pattern="joint"), part, "token_norm", config)
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
        if config.pooling in ("query", "map", "attentive"):
            part = below(params, "pooling/")
            heads = [sum(head @ out for head, out in zip(heads, part["out/kernel"])) + part["out/bias"]]
        if config.pooling in ("map", "attentive"):
            heads = [heads[0] + mlp(layer_norm(heads[0], part, "norm", config), part, config)]
        if config.final_norm == "pooled":
            heads = [layer_norm(heads[0], params, "pooled_norm", config, config.pooled_norm_epsilon)]
        pooled.append(heads[0])
        all_weights.append(np.mean(weights, axis=0))
    return np.stack(pooled), np.stack(all_weights)


def classify(params, pooled, head):
    return pooled @ params[f"heads/{head}/kernel"] + params[f"heads/{head}/bias"]


def stages(params, config, video):
    """Tokens, their centres, encoded tokens, pooling weights, features and logits of the head `default`."""
    tokens, centres = tokenize(params, config, video)
    tube, shape = config.tubes.tubes[0], (1, *video.shape[1:])[-4:-1]
    grid = tuple(map(len, starts_along_axes(tube, shape, config.tubes.padding)))
    encoded = encode(params, config, tokens, grid if len(config.tubes.tubes) == 1 else None)
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
