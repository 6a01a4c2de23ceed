"""Eight fake devices on the CPU for all tests; random modules and strict dtypes for those of the model."""

import os

# Both are read when jax is first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import numpy as np
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "standard_promotion: may mix dtypes (bfloat16 does so inside JAX)")


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Our float32 code casts explicitly: under tests/models an implicit cast is an error."""
    if "models" not in request.path.parts or request.node.get_closest_marker("standard_promotion"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def randomised():
    """`randomised(make, seed=0)`: the module that `make` builds, every parameter random, biases and norms too.

    The module is built abstractly, because compiling the initialisers takes longer than all that is tested here.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    def build(make, seed=0):
        graph, state = nnx.split(nnx.eval_shape(make))
        rng = np.random.default_rng(seed)

        def fill(path, leaf):
            mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
            return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), leaf.dtype)

        return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))

    return build


@pytest.fixture(scope="session")
def tiny(randomised):
    """`tiny(heads=5, seed=0, **fields)`: a small TubeViT with random parameters."""
    from flax import nnx

    from tubevit.models.tubevit import Head, ModelConfig, TubeViT

    def build(heads=5, seed=0, **fields):
        heads = {"default": Head(heads)} if isinstance(heads, int) else heads
        sizes = dict(width=24, depth=2, num_heads=2, mlp_width=40, tubes="small", frames=16, size=64)
        config = ModelConfig(name="tiny", heads=tuple(heads.items()), **{**sizes, **fields})
        return randomised(lambda: TubeViT(config, rngs=nnx.Rngs(0)), seed)

    return build
