"""TubeViT in PyTorch, whole in one file that needs only torch, and safetensors to read parameters.

`tubevit export NAME DIR --format torch` puts this file beside `config.json` and `model.safetensors`:

    from tubevit_torch import load_model

    model = load_model("DIR")  # in evaluation mode
    logits = model(clips)  # uint8 (B, T, H, W, 3) -> float32 (B, classes)
    logits = model(images, head="digit")  # uint8 (B, H, W, 3); a head is named where there are several
    print(model.labels["digit"][logits[0].argmax()])

`torch.save(model.state_dict(), "DIR/trained.pt")` and `tubevit convert DIR/trained.pt NEW` make a checkpoint of tubevit
again. Axes are ordered (t, y, x): frames, rows, columns. N tokens have D channels. Sections and equations are those of
"Rethinking Video ViTs: Sparse Video Tubes for Joint Image and Video Learning" (CVPR 2023).
"""

import json
import math
import pathlib
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARED_KERNEL = (8, 8, 8)  # section 3.4
MAX_PERIOD = 10_000.0  # tau of equation 3


def load_model(folder):
    """Load a model in evaluation mode from a folder with `config.json` and `model.safetensors`."""
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    with torch.device("meta"):  # takes no memory: the file has all parameters
        model = TubeViT(json.loads((folder / "config.json").read_text("utf-8"))["model"])
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    return model.eval()


def indices(*counts):
    """Return the indices of all places of a grid, in row-major order: (N, axes), float64."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in counts))


def sines(centres, width, literal):
    """Compute the embedding (N, D) of centres (N, 3); channels beyond 6 (D // 6) are 0 (equations 3 to 7)."""
    bands = width // 6
    frequencies = MAX_PERIOD ** (-torch.arange(bands, dtype=torch.float64) / (1 if literal else max(bands, 1)))
    angles = centres[:, None] * frequencies[:, None]  # (N, bands, 3)
    return F.pad(torch.stack([angles.sin(), angles.cos()], -1).flatten(1), (0, width - 6 * bands))


def resizing(size, new, antialias, gain_norm):
    """Return the matrix (new, size) of linear interpolation at half-pixel centres; `antialias` filters shrunk axes."""
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * (size / new) - 0.5
    distances = (places[:, None] - torch.arange(size)).abs() / (max(size / new, 1) if antialias else 1)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(1, keepdim=True) * (size / new if gain_norm else 1)


class Tube(nn.Module):
    """A tube: a 3D convolution with a large stride, and the positions of its tokens (sections 3.2 to 3.4).

    With space-to-depth, a token concatenates several windows along each axis, `stride / space_to_depth` apart, and each
    of them gives a part of the channels. An interpolated tube has no kernel of its own.
    """

    def __init__(self, tube, c):
        super().__init__()
        self.c, self.kernel, self.stride, self.offset = c, tube["kernel"], tube["stride"], tube["offset"]
        self.parts, self.is_2d = tube["space_to_depth"], self.kernel[0] == 1
        self.steps = [stride // parts for stride, parts in zip(self.stride, self.parts)]
        channels = c.width if self.is_2d or c.tube_width is None else c.tube_width
        features = channels // math.prod(self.parts)
        if self.is_2d or not c.interpolated:
            self.weight = nn.Parameter(torch.zeros(features, 3, *self.kernel))
        self.bias = nn.Parameter(torch.zeros(features))
        self.widen = nn.Linear(channels, c.width, bias=False) if c.tube_linear and not self.is_2d else None
        self.learned = c.position.startswith("learned") and (self.is_2d or c.position != "learned_2d")
        if self.learned:
            times, *places = self.grid((c.frames, c.size, c.size))
            frames = 1 if c.position.startswith("learned_space") else times
            self.position = nn.Parameter(torch.zeros(frames, *places, c.width))
        if c.position == "learned_space_time":
            self.time_position = nn.Parameter(torch.zeros(times, c.width))

    def grid(self, shape):
        """Return the numbers of tokens along t, y and x in a clip of `shape` (T, H, W)."""
        needed = self.kernel if self.c.padding == "valid" else (1, 1, 1)
        axes = zip(shape, self.offset, needed, self.stride)
        counts = tuple((size - offset - need) // stride + 1 for size, offset, need, stride in axes)
        if min(counts) < 1:
            raise ValueError(f"a clip of {tuple(shape)} (T, H, W) is too small for the tube of kernel {self.kernel}")
        return counts

    def padded(self, shape):
        """Return how far the first window begins before the offset along t, y and x: the padding of `same`."""
        axes = zip(self.grid(shape), self.stride, self.kernel, shape, self.offset)
        missing = [(n - 1) * stride + kernel - (size - offset) for n, stride, kernel, size, offset in axes]
        return [max(each, 0) // 2 for each in missing]  # windows of `valid` miss nothing

    def centres(self, shape):
        """Return the centres (t, y, x) of what each token reads, in frames and pixels: (N, 3), float64."""
        axes = list(zip(self.offset, self.padded(shape), self.steps, self.parts, self.kernel))
        first = [offset - low + (step * (parts - 1) + kernel - 1) / 2 for offset, low, step, parts, kernel in axes]
        return indices(*self.grid(shape)) * torch.tensor(self.stride) + torch.tensor(first, dtype=torch.float64)

    def forward(self, clip, shared=None):
        """Project a standardised clip (B, 3, T, H, W) to tokens (B, N, D); 3D tubes may share a kernel."""
        shape, edges = clip.shape[2:], []
        grid, weight = self.grid(shape), self.weight if shared is None or self.is_2d else self.resized(shared)
        axes = zip(grid, self.padded(shape), self.offset, self.steps, self.parts, self.kernel)
        for axis, (n, low, offset, step, parts, kernel) in enumerate(axes, 2):
            length = (n * parts - 1) * step + kernel - low  # from the offset to the end of the last window
            clip = clip.narrow(axis, offset, min(length, clip.shape[axis] - offset))
            edges = [low, length - clip.shape[axis], *edges]
        clip = F.pad(clip, edges) if any(edges) else clip  # 0 is the mean colour
        x = F.conv3d(clip, weight, self.bias, stride=self.steps)
        for axis in (4, 3, 2):
            x = x.unflatten(axis, (grid[axis - 2], self.parts[axis - 2]))
        x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)  # B, t, y, x, and the windows' parts of channels
        x = F.pad(x, (0, self.c.width - x.shape[-1])) if self.widen is None else self.widen(x)  # padded or cut
        return x + self.positions(shape, grid).to(x)

    def resized(self, shared):
        """Resize the shared kernel (C, 3, 8, 8, 8) to the tube's size (section 3.4)."""
        axes, options = zip(SHARED_KERNEL, self.kernel), (self.c.antialias, self.c.gain_norm)
        matrices = [resizing(old, new, *options).to(shared) for old, new in axes]
        return torch.einsum("cptyx,at,by,dx->cpabd", shared, *matrices)

    def positions(self, shape, grid):
        """Return the position embedding (N, D) in a clip of `shape`; fixed ones are computed in float64."""
        kind, width = self.c.position, self.c.width
        if self.learned:
            table = self.position.expand(grid[0], -1, -1, -1) if kind == "learned_space" else self.position
            if kind == "learned_space_time":
                table = table + self.time_position[:, None, None]
            table = table[:1] if shape[0] == 1 and self.is_2d else table  # an image is the first frame
            if tuple(table.shape[:3]) != grid:
                raise ValueError(f"learned positions of a grid {tuple(table.shape[:3])} do not fit tokens of {grid}")
            return table.flatten(0, 2)
        if kind in ("none", "rope"):
            return torch.zeros(math.prod(grid), width)
        if kind == "index":  # by the number of the token, sine and cosine interleaved (VideoMAE)
            channels = torch.arange(width)
            angles = torch.arange(math.prod(grid))[:, None] / MAX_PERIOD ** (2 * (channels // 2).double() / width)
            return torch.where(channels % 2 == 1, angles.cos(), angles.sin())
        centres = indices(*grid) if kind == "fixed_no_stride" else self.centres(shape)
        return sines(centres, width, literal=kind == "fixed_literal")


class Layout(NamedTuple):
    """Where the tokens of a single tube lie: T frames of S places in a grid (T, y, x), after the class tokens."""

    grid: tuple
    first: int  # number of class tokens

    def by_frame(self, x):
        """Arrange (B, N, ...) as (B T, first + S, ...): each frame after a copy of the class token."""
        frames = x[:, self.first :].unflatten(1, (self.grid[0], -1)).flatten(0, 1)
        return torch.cat([x[:, : self.first].repeat_interleave(self.grid[0], 0), frames], 1)

    def over_space(self, function, x):
        """Apply a function in each frame; the class token gets the mean over the frames."""
        y = function(self.by_frame(x)).unflatten(0, (-1, self.grid[0]))
        return torch.cat([y[:, :, : self.first].mean(1), y[:, :, self.first :].flatten(1, 2)], 1)

    def over_time(self, function, x):
        """Apply a function at each place to tokens (B, T S, ...) without the class token."""
        x = x.unflatten(1, (self.grid[0], -1)).transpose(1, 2)
        return function(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(1, 2)

    def rotate(self, x):
        """Rotate pairs of channels of (B, N, 2, heads, d): a third of d for each of t, y and x (V-JEPA 2)."""
        each = x.shape[-1] // 3 // 2 * 2
        frequencies = MAX_PERIOD ** (-torch.arange(each // 2, dtype=torch.float64) / max(each / 2, 1))
        angles = (indices(*self.grid)[:, :, None] * frequencies).repeat(1, 1, 2).flatten(1)
        angles = F.pad(angles, (0, x.shape[-1] - 3 * each, self.first, 0))[:, None, None]
        return x * angles.cos().to(x) + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * angles.sin().to(x)


def attend(query, key, value, softcap=None):
    """Compute softmax(q k / sqrt(d)) v for (B, N, heads, d), with scores s capped to softcap * tanh(s / softcap)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    scores = softcap * torch.tanh(query @ key.mT * query.shape[-1] ** -0.5 / softcap)
    return (scores.softmax(-1) @ value).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention of tokens (B, N, D); `factorised_dot` splits the heads between time and space."""

    def __init__(self, c):
        super().__init__()
        self.qkv, self.out = nn.Linear(c.width, 3 * c.width, bias=c.qkv_bias), nn.Linear(c.width, c.width)
        self.heads, self.softcap = c.num_heads, c.softcap
        self.rotary, self.split = c.position == "rope", c.pattern == "factorised_dot"

    def forward(self, x, layout=None):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if self.rotary:
            qkv = torch.cat([layout.rotate(qkv[:, :, :2]), qkv[:, :, 2:]], 2)
        attended = lambda part: attend(*part.unbind(2), self.softcap)  # noqa: E731
        if not self.split:
            return self.out(attended(qkv).flatten(2))
        time, space = qkv.chunk(2, dim=3)
        return self.out(torch.cat([layout.over_time(attended, time), layout.over_space(attended, space)], 2).flatten(2))


def mlp(c):
    """Make the MLP of a block: two linear layers with GELU."""
    gelu = nn.GELU("tanh" if c.gelu == "tanh" else "none")
    up, down = nn.Linear(c.width, c.mlp_dim), nn.Linear(c.mlp_dim, c.width)
    return nn.Sequential(OrderedDict(up=up, gelu=gelu, dropout=nn.Dropout(c.dropout), down=down))


class Block(nn.Module):
    """x + MSA(LN(x)), then x + MLP(LN(x)) (equations 1 and 2); `divided` first attends over time, then in frames."""

    def __init__(self, c, drop_path):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(c.width, c.norm_epsilon), Attention(c)
        self.norm2, self.mlp = nn.LayerNorm(c.width, c.norm_epsilon), mlp(c)
        self.divided = c.pattern == "divided"
        if self.divided:
            self.time_norm, self.time_attention = nn.LayerNorm(c.width, c.norm_epsilon), Attention(c)
        scaled = c.layer_scale is not None
        self.scale1, self.scale2 = (nn.Parameter(torch.zeros(c.width)) if scaled else 1.0 for _ in range(2))
        self.dropout, self.drop_path = nn.Dropout(c.dropout), drop_path

    def forward(self, x, layout=None):
        if self.divided:
            first, x = x[:, : layout.first], x[:, layout.first :]
            y = layout.over_time(lambda places: self.time_attention(self.time_norm(places)), x)
            x = torch.cat([first, x + self.branch(y)], 1)
            y = layout.over_space(lambda frames: self.attention(self.norm1(frames)), x)
        else:
            y = self.attention(self.norm1(x), layout)
        x = x + self.branch(y, self.scale1)
        return x + self.branch(self.mlp(self.norm2(x)), self.scale2)

    def branch(self, y, scale=1.0):
        """Apply dropout, LayerScale, and stochastic depth, which leaves out the branch for a sample."""
        return F.dropout2d((self.dropout(y) * scale)[None], self.drop_path, self.training)[0]


class Encoder(nn.Module):
    """Blocks, a layer normalisation, and where a model has them, a gate (equation 8) and a second encoder over time."""

    def __init__(self, c, tube):
        super().__init__()
        rates = [c.stochastic_depth * i / max(c.depth - 1, 1) for i in range(c.depth)]
        self.blocks, self.gate_layer = nn.ModuleList(Block(c, rate) for rate in rates), c.gate_layer
        layer = lambda: dict(norm=nn.LayerNorm(c.width, c.norm_epsilon), attention=Attention(c))  # noqa: E731
        self.added = nn.ModuleList(nn.ModuleDict(layer()) for _ in range(c.add_attention))  # Table 8
        self.dropout = nn.Dropout(c.dropout)
        if c.gate_layer is not None:
            self.gate = nn.Parameter(torch.zeros(c.width if c.gate_per_channel else ()))
        self.norm = nn.LayerNorm(c.width, c.norm_epsilon) if c.final_norm == "tokens" else nn.Identity()
        self.temporal = TemporalEncoder(c, tube) if c.pattern == "factorised_encoder" else None

    def forward(self, x, layout):
        if self.temporal is None:
            return self.run(x, layout)
        return self.temporal.encode_frames(self.run(layout.by_frame(x)), layout)

    def run(self, tokens, layout=None):
        """Run the blocks over tokens (B, N, D); each of the last ones comes after an added layer."""
        x, plain = self.dropout(tokens), len(self.blocks) - len(self.added)
        for i, block in enumerate(self.blocks):
            if i >= plain:
                x = x + self.added[i - plain]["attention"](self.added[i - plain]["norm"](x), layout)
            x = block(x, layout)
            if i == self.gate_layer:
                x = x + self.gate.tanh() * tokens
        return self.norm(x)


class TemporalEncoder(Encoder):
    """The second encoder of ViViT's model 2: over time, of one token of each frame, or at each place by itself."""

    def __init__(self, c, tube):
        own = dict(pattern="joint", depth=c.temporal_depth, final_norm="tokens")
        super().__init__(SimpleNamespace(**vars(c) | own), tube)
        self.frame_pooling, self.is_2d = c.frame_pooling, tube.is_2d
        self.position = nn.Parameter(torch.zeros(tube.grid((c.frames, c.size, c.size))[0], c.width))
        self.class_token = nn.Parameter(torch.zeros(c.width)) if c.class_token else None

    def encode_frames(self, x, layout):
        """Encode what is taken of frames (B T, M, D): (B, m * places, D), in the order of the clip's tokens."""
        if self.frame_pooling != "none":
            x = x[:, :1] if self.frame_pooling == "cls" else x[:, layout.first :].mean(1, keepdim=True)
        x = x.unflatten(0, (-1, layout.grid[0])).transpose(1, 2)  # (B, places, T, D)
        position = self.position[:1] if layout.grid[0] == 1 and self.is_2d else self.position  # an image: the first
        if len(position) != layout.grid[0]:
            raise ValueError(f"learned positions of {len(position)} times do not fit {layout.grid[0]} times of tokens")
        places, x = x.shape[1], x.flatten(0, 1) + position
        x = x if self.class_token is None else torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1)
        return self.run(x).unflatten(0, (-1, places)).transpose(1, 2).flatten(1, 2)


class Pooling(nn.Module):
    """Pool tokens (B, N, D) to (B, D).

    The kind is `cls`, `mean` (without the class token), `linear` (weighted by softmax(token . score)), or the attention
    of one learned query: `query`, `map` with an MLP behind it (SigLIP), `attentive` with blocks before it (V-JEPA 2).
    """

    def __init__(self, c):
        super().__init__()
        self.kind, self.heads, self.first = c.pooling, c.num_heads, int(c.class_token)
        own = dict(pattern="joint", position="none", mlp_dim=4 * c.width) if self.kind == "attentive" else {}
        c = SimpleNamespace(**vars(c) | own | dict(dropout=0.0))
        if self.kind == "linear":
            self.score = nn.Linear(c.width, 1, bias=False)
        if self.kind in ("query", "map", "attentive"):
            self.probe, self.query = nn.Parameter(torch.zeros(c.width)), nn.Linear(c.width, c.width)
            self.key_value, self.out = nn.Linear(c.width, 2 * c.width), nn.Linear(c.width, c.width)
        if self.kind in ("map", "attentive"):
            self.norm, self.mlp = nn.LayerNorm(c.width, c.norm_epsilon), mlp(c)
        if self.kind == "attentive":
            self.blocks = nn.Sequential(*(Block(c, drop_path=0.0) for _ in range(3)))
            self.token_norm = nn.LayerNorm(c.width, c.norm_epsilon)

    def forward(self, x):
        if self.kind in ("cls", "mean"):
            return x[:, 0] if self.kind == "cls" else x[:, self.first :].mean(1)
        if self.kind == "linear":
            return (self.score(x).softmax(1) * x).sum(1)
        if self.kind == "attentive":
            x = self.token_norm(self.blocks(x))
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query(self.probe).unflatten(0, (self.heads, -1)).expand(x.shape[0], 1, -1, -1)
        pooled = self.out(attend(query, key, value).flatten(1))
        return pooled if self.kind == "query" else pooled + self.mlp(self.norm(pooled))


class TubeViT(nn.Module):
    """A backbone for videos and images, with its heads (figures 1 and 2), from the `model` of `config.json`."""

    def __init__(self, config):
        super().__init__()
        self.config = c = SimpleNamespace(**config)
        self.tubes = nn.ModuleList(Tube(tube, c) for tube in c.tubes)
        if c.interpolated and not all(tube.is_2d for tube in self.tubes):
            self.shared_kernel = nn.Parameter(torch.zeros(c.tube_width or c.width, 3, *SHARED_KERNEL))
        if c.class_token:
            self.class_token = nn.Parameter(torch.zeros(c.width))  # includes its position
        self.encoder, self.pooling = Encoder(c, self.tubes[0]), Pooling(c)
        if c.final_norm == "pooled":
            self.pooled_norm = nn.LayerNorm(c.width, c.pooled_norm_epsilon or c.norm_epsilon)
        self.labels = {name: tuple(head["labels"]) for name, head in c.heads.items()}  # () where they are unknown
        self.heads = nn.ModuleList(nn.Linear(c.width, head["classes"]) for head in c.heads.values())

    def forward(self, pixels: Tensor, head: str | None = None) -> Tensor:
        """Compute the logits (B, classes) of a head, or pooled features if there is none; see `encode`."""
        if not self.labels and head is None:
            return self.features(pixels)
        head = next(iter(self.labels)) if head is None and len(self.labels) == 1 else head
        if head not in self.labels:
            raise ValueError(f"expected head=, one of {', '.join(map(repr, self.labels))}; found {head!r}")
        expected, found = self.config.heads[head]["modality"], "image" if pixels.ndim == 4 else "video"
        if expected not in ("any", found):
            raise ValueError(f"head {head!r} takes batches of {expected}s; found a batch of {found}s")
        return self.heads[list(self.labels).index(head)](self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Compute pooled features (B, D); see `encode`."""
        pooled = self.pooling(self.encode(pixels))
        return self.pooled_norm(pooled) if self.config.final_norm == "pooled" else pooled

    def encode(self, pixels: Tensor) -> Tensor:
        """Compute the tokens (B, N, D) after the encoder, the class token first.

        Pixels are uint8 0..255 or float -1..1: clips (B, T, H, W, 3), or images (B, H, W, 3), which go through the
        tubes of temporal size 1 only (section 3.5).
        """
        is_uint8, found = pixels.dtype == torch.uint8, f"{pixels.dtype} {tuple(pixels.shape)}"
        if not (is_uint8 or pixels.is_floating_point()) or pixels.ndim not in (4, 5) or pixels.shape[-1] != 3:
            raise ValueError(f"expected uint8 or float (B, T, H, W, 3) or (B, H, W, 3); found {found}")
        c, tubes = self.config, list(self.tubes)
        if pixels.ndim == 4:
            pixels, tubes = pixels[:, None], [tube for tube in tubes if tube.is_2d]
        if not tubes:
            raise ValueError("the model takes no images: no tube has a temporal size of 1")
        pixels = pixels.float() / 127.5 - 1 if is_uint8 else pixels.float()
        scale, shift = [0.5 / std for std in c.std], [(0.5 - mean) / std for mean, std in zip(c.mean, c.std)]
        pixels = pixels * torch.tensor(scale).to(pixels) + torch.tensor(shift).to(pixels)  # (p - mean) / std
        clip = pixels.movedim(-1, 1).to(tubes[0].bias.dtype)
        x = torch.cat([tube(clip, getattr(self, "shared_kernel", None)) for tube in tubes], 1)
        kept = c.budget and c.budget["tokens"].get("x".join(map(str, clip.shape[2:])))
        assert kept or not c.budget, f"the budget is for {list(c.budget['tokens'])} (TxHxW); found {clip.shape[2:]}"
        x = x[:, kept] if kept else x
        x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1) if c.class_token else x
        grid = tubes[0].grid(clip.shape[2:]) if len(self.tubes) == 1 else None
        return self.encoder(x, Layout(grid, int(c.class_token)))
