"""Eight fake devices on the CPU for all tests; random modules and strict dtypes for those of the model; a tiny run."""

import atexit
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile

# All are read when jax is first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# What is not optimised, and in one piece, compiles in two thirds of the time.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that jaxlib does not know ends the process
    # With the older emitter of fusions, a gradient compiles in a fifth of the time.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# What several tests compile alike is compiled once, also by the workers of pytest-xdist together.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tubevit-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jaxtyping
import numpy as np
import pytest

from tests.logs import logged

# Shapes and types in signatures are checked in tests only. An int is a float, as for type checkers.
MODELS = ("block", "encoder", "patterns", "pooling", "position", "tokenizer", "tubevit")
jaxtyping.install_import_hook(
    ["tubevit.windows", "tubevit.training.losses", *(f"tubevit.models.{name}" for name in MODELS)],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "standard_promotion: may mix dtypes (bfloat16 does so inside JAX)")


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that the workers of pytest-xdist end together."""
    longest = ("test_readme.py", "test_loop.py", "test_step_budget.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Our float32 code casts explicitly: under tests/models an implicit cast is an error."""
    if request.path.parent.name != "models" or request.node.get_closest_marker("standard_promotion"):
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def said():
    """The list of what the package logs during the test."""
    with logged() as lines:
        yield lines


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty `HubServer` in place of the Hub, for a user who is not logged in, and an empty cache."""
    from huggingface_hub import constants

    from tests.zoo.hub_server import HubServer

    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):  # the tests of peers set the latter
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has no Xet
    yield server
    server.close()


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

    from tubevit.models.config import Head, ModelConfig
    from tubevit.models.tubevit import TubeViT

    def build(heads=5, seed=0, **fields):
        heads = {"default": Head(heads)} if isinstance(heads, int) else heads
        sizes = dict(width=24, depth=2, num_heads=2, mlp_dim=40, tubes="small", frames=16, size=64)
        config = ModelConfig(name="tiny", heads=tuple(heads.items()), **{**sizes, **fields})
        return randomised(lambda: TubeViT(config, rngs=nnx.Rngs(0)), seed)

    return build


TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory):
    """The folder of the embedded data where the sources look: 24 training clips, 2 digits of val and of test."""
    from tubevit.data.moving_digits import make_moving_digits
    from tubevit.data.sources.embedded import embedded_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUBEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        make_moving_digits(embedded_folder(), train_clips=24, train_digits=20, held_out_digits=2)
        yield embedded_folder()


@pytest.fixture(scope="session")
def tiny_config(digits_cache):
    """`tiny_config({"train.steps": "3"})`: the experiment tests/tiny.py."""
    from tubevit.config import load_config

    return lambda changes=(): load_config(TINY, dict(changes))


@pytest.fixture(scope="session")
def train_command(digits_cache):
    """`train_command(workdir, **{"train.steps": 3})`: arguments of the command line that train tests/tiny.py."""

    def arguments(workdir, **changes):
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        return ["train", "--config", TINY, "--workdir", str(workdir), *flags]

    return arguments


@pytest.fixture(scope="session")
def train_tiny(tiny_config):
    """`train_tiny(workdir, parts=..., profile=..., **{"train.steps": 3})`: train tests/tiny.py, its log on stderr.

    Without `parts` it skips evaluation.
    """
    from tubevit.cli.logs import logging_installed
    from tubevit.training.loop import Parts, train

    def run(workdir, parts=None, profile=None, allow_change=(), **changes):
        config = tiny_config({key: str(value) for key, value in changes.items()})
        parts = parts or Parts(make_evaluation=lambda experiment, mesh: lambda state: {})
        with logging_installed():
            return train(config, workdir, allow_change, profile, parts)

    return run


@pytest.fixture(scope="session")
def read_metrics():
    """`read_metrics(workdir)`: the lines of metrics.jsonl without what depends on the clock."""

    def read(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]

    return read


@pytest.fixture(scope="session")
def tiny_run(train_command, tmp_path_factory):
    """The workdir of a tiny run of 9 steps with checkpoints 6 and 9, trained once; not to be changed."""
    from tubevit.cli import main

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(train_command(workdir)) == 0
    return workdir


@pytest.fixture(scope="session")
def read_arrays():
    """`read_arrays(workdir, step)`: names and bytes of all arrays of a checkpoint, read by Orbax alone."""

    def read(workdir, step):
        import jax
        from orbax.checkpoint import v1 as ocp

        trees = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
        flat = jax.tree_util.tree_flatten_with_path({name: trees[name] for name in ("params", "optimizer")})[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in flat}

    return read
