"""Abstract models: structure and parameter shapes without memory."""

import functools

import jax
from flax import nnx

from tubevit.models.config import ModelConfig
from tubevit.models.tubevit import TubeViT


def parameters(model: nnx.Module) -> dict:
    """Return the parameters as nested dicts of arrays, with their names on disk."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.lru_cache(maxsize=32)
def _structure(config: ModelConfig) -> tuple[nnx.GraphDef, dict]:
    model = nnx.eval_shape(lambda: TubeViT(config.replace(lora=None), rngs=nnx.Rngs(0)))
    return nnx.graphdef(model), parameters(model)


def graph_of(config: ModelConfig) -> nnx.GraphDef:
    """Return the structure of a model, for `nnx.merge` with parameters."""
    return _structure(config)[0]


def abstract_parameters(config: ModelConfig) -> dict:
    """Return the shapes and dtypes of a model's parameters as nested dicts of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf, _structure(config)[1])


def model_of(config: ModelConfig, params: dict) -> TubeViT:
    """Build a model from its configuration and given parameters, without initialising them."""
    return nnx.merge(graph_of(config), params)


def initial_parameters(config: ModelConfig, seed: int) -> dict:
    """Initialise the parameters of a model at random, as nested dicts of arrays."""
    return parameters(TubeViT(config, rngs=nnx.Rngs(seed)))
