"""Where activations lie on several devices: split by their rows, in the mesh that is in use while a step is traced.

With parameters split over the devices that also split the batch, XLA would otherwise split some activations by
features, and move them between the two layouts in every block.
"""

import jax
from jax.sharding import PartitionSpec

# With `fsdp` the devices that share the parameters have different rows, so that a batch is split over both axes.
BATCH_AXES = ("data", "fsdp")


def place(array: jax.Array) -> jax.Array:
    """Keep an array (B, ...) of activations split by its rows, where a mesh with `BATCH_AXES` is in use."""
    if not set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().auto_axes):
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(BATCH_AXES))
