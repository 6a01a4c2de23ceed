"""Low-rank adapters (LoRA, Hu et al., 2021) beside the linear layers of the encoder's blocks.

A layer x W + b with an adapter computes x W + b + alpha / rank (x A) B, so that W needs no gradient. A and B carry the
names `lora_a` and `lora_b` beside `kernel`, and have its axes: a kernel (L, D, 3, H, d) has A (L, D, r) and B
(L, r, 3, H, d). B starts from 0, and the model from its base. The model has no part in this: only the structure by
which the training step runs it has other layers.
"""

import functools
import math
import re
import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tubevit.models.abstract import abstract_parameters, graph_of
from tubevit.models.config import Lora, ModelConfig
from tubevit.models.tubevit import TubeViT

NAMES = ("lora_a", "lora_b")
_LAYERS = {"qkv": "attention/qkv", "out": "attention/out", "mlp": "mlp/(up|down)"}
_INPUTS = {"out": 2}  # axes that a kernel sums over, after that of the layers: heads and their channels
# As in PEFT and the original code: uniform up to 1 / sqrt(inputs).
_initial_a = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoraLinear(nnx.Module):
    """A linear layer with an adapter. Parameters: those of the layer, `lora_a` and `lora_b`.

    Args:
        layer: an `nnx.Linear` or `nnx.LinearGeneral`, whose parameters it takes over.
        a, b: the adapter; their values are those of the state that is merged with the graph.
        scale: factor of A B.
    """

    def __init__(self, layer: nnx.Linear | nnx.LinearGeneral, a, b, scale: float):
        self.kernel, self.bias = layer.kernel, layer.bias
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, layer.dtype
        self.lora_a, self.lora_b, self.scale = nnx.Param(a), nnx.Param(b), scale

    def __call__(self, x: Array) -> Array:
        cast = lambda param: jnp.asarray(param[...]).astype(self.dtype)  # noqa: E731
        x, a, b = x.astype(self.dtype), cast(self.lora_a), cast(self.lora_b)
        inputs = a.ndim - 1
        y = jnp.tensordot(x, cast(self.kernel), inputs)
        y = y if self.bias is None else y + cast(self.bias)
        return y + jnp.tensordot(jnp.tensordot(x, a, inputs) * jnp.asarray(self.scale, self.dtype), b, 1)


def adapter_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {path: shape and dtype} of the adapter of a model, {} if it has none."""
    lora, found = config.lora, {}
    if lora is None:
        return found
    for keys, kernel in jax.tree_util.tree_flatten_with_path(abstract_parameters(config))[0]:
        layer, _, last = jax.tree_util.keystr(keys, simple=True, separator="/").rpartition("/")
        for target in lora.targets if last == "kernel" else ():
            if re.search(rf"^encoder/(temporal/)?blocks/.*{_LAYERS[target]}$", layer):
                inputs, rank = 1 + _INPUTS.get(target, 1), lora.rank
                shapes = (*kernel.shape[:inputs], rank), (kernel.shape[0], rank, *kernel.shape[inputs:])
                found |= {f"{layer}/{name}": kernel.update(shape=shape) for name, shape in zip(NAMES, shapes)}
    return found


def add_adapter(params: dict, config: ModelConfig, seed: int) -> dict:
    """Add a new adapter to the parameters of a model, with B = 0; the names of A seed their values."""
    added = params
    for path, leaf in adapter_shapes(config).items():
        if path.endswith(NAMES[1]):
            values = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
            layers, *inputs, rank = leaf.shape
            initial = functools.partial(_initial_a, shape=(math.prod(inputs), rank), dtype=leaf.dtype)
            values = jax.vmap(initial)(jax.random.split(key, layers)).reshape(leaf.shape)
        added = _with(added, path.split("/"), values)
    return added


def training_shapes(config: ModelConfig) -> dict:
    """Return `abstract_parameters` with those of the adapter, if the model has one."""
    return jax.eval_shape(lambda params: add_adapter(params, config, 0), abstract_parameters(config))


def training_graph(config: ModelConfig) -> nnx.GraphDef:
    """Return the structure of the model that is trained: `graph_of`, with the adapter if there is one."""
    if config.lora is None:
        return graph_of(config)
    shapes, scale = adapter_shapes(config), config.lora.scale

    def make() -> TubeViT:
        model = TubeViT(config, rngs=nnx.Rngs(0))
        for path in (path for path in shapes if path.endswith(NAMES[0])):
            *parents, name, last = path.split("/")
            module = functools.reduce(getattr, parents, model)
            pair = (shapes[path], shapes[path.removesuffix(last) + NAMES[1]])
            a, b = (jnp.zeros(each.shape, each.dtype) for each in pair)
            setattr(module, name, LoraLinear(getattr(module, name), a, b, scale))
        return model

    return nnx.graphdef(nnx.eval_shape(make))


def merge_adapter(params: dict, lora: Lora | None) -> dict:
    """Return plain parameters: W + alpha / rank A B in place of each kernel W with an adapter."""
    if not isinstance(params, dict):
        return params
    merged = {name: merge_adapter(part, lora) for name, part in params.items() if name not in NAMES}
    if lora is not None and NAMES[0] in params:
        a, b, kernel = (params[name] for name in (*NAMES, "kernel"))
        layers, rank = b.shape[:2]
        a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        merged["kernel"] = kernel + jnp.float32(lora.scale) * product.reshape(kernel.shape)
    return merged


def _with(tree: dict, keys: list[str], leaf) -> dict:
    """Return a copy of nested dicts with one more leaf."""
    first, *rest = keys
    return tree | {first: _with(tree[first], rest, leaf) if rest else leaf}
