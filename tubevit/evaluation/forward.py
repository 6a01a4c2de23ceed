"""The compiled forward pass of evaluation."""

import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from tubevit.models.abstract import graph_of
from tubevit.models.config import ModelConfig
from tubevit.sharding.mesh import batch_sharding, using
from tubevit.windows import TubeBatch


def make_forward(
    model: ModelConfig, head: str | None, mesh: Mesh | None = None, average: str = "probabilities"
) -> Callable:
    """Compile a forward pass: (params, pixels (B, views, ...)) -> outputs (B, views, classes or D).

    Args:
        model: configuration of the model.
        head: outputs are the probabilities of this head: softmax, or sigmoid for a multi-label head. With None they
            are the pooled features.
        mesh: splits the rows of the batch over its devices.
        average: what is averaged over views; with `logits`, outputs are the logits of the head.

    Returns:
        The function. Its pixels are clips, images or windows of tubes.
    """
    graph = graph_of(model)
    probabilities = None if head is None or average == "logits" else dict(model.heads)[head].probabilities

    def forward(params: dict, pixels: jax.Array | TubeBatch) -> jax.Array:
        rows = jax.tree.leaves(pixels)[0].shape[:2]
        with using(mesh):
            pixels = jax.tree.map(lambda x: x.reshape(math.prod(rows), *x.shape[2:]), pixels)
            merged = nnx.merge(graph, params)
            outputs = merged.features(pixels) if head is None else merged(pixels, head=head)
        return (outputs if probabilities is None else probabilities(outputs)).reshape(*rows, outputs.shape[-1])

    return jax.jit(forward, out_shardings=None if mesh is None else batch_sharding(mesh))
