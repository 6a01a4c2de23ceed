import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp


@pytest.fixture(scope="session")
def read_arrays():
    """`read_arrays(workdir, step)`: names and bytes of all arrays of a checkpoint, read by Orbax alone."""

    def read(workdir, step):
        import jax

        trees = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
        flat = jax.tree_util.tree_flatten_with_path({name: trees[name] for name in ("params", "optimizer")})[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in flat}

    return read
