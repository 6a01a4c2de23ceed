"""Single bits that flip on one device: in its memory, or in what it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tubevit.sharding.mesh import AXES

CLEAN = (0, 0)  # (index, mask): nothing is flipped
ROWS = PartitionSpec(("data", "fsdp"))


def in_memory(array, device, index: int, bit: int):
    """An array whose copy on one device has one bit flipped; other devices and processes keep theirs."""

    def data(shard):
        if shard.device != device:
            return shard.data
        values = np.array(shard.data)
        raw = values.reshape(-1).view(np.uint8)
        place = (index * values.itemsize + bit // 8) % raw.size
        raw[place] ^= np.uint8(1 << bit % 8)
        return jax.device_put(values, device)

    shards = [data(shard) for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def codes(mesh, device_id: int, code) -> jax.Array:
    """(data, fsdp, tensor, n) uint32: `code` on one device of the mesh; zeros on the others, which flip nothing."""
    values = np.zeros((*mesh.devices.shape, len(code)), np.uint32)
    for part, device in np.ndenumerate(mesh.devices):
        if device.id == device_id:
            values[part] = code
    sharding = NamedSharding(mesh, PartitionSpec(*AXES))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def computed(array, code, mesh, spec=ROWS, backward=False):
    """The array, of which each device flips its bits by its code (..., 2): (index, mask); or its cotangent."""
    xor = functools.partial(_xor, code=code, mesh=mesh, spec=spec)

    @jax.custom_vjp
    def identity(x):
        return x if backward else xor(x)

    identity.defvjp(lambda x: (identity(x), None), lambda _, cotangent: (xor(cotangent) if backward else cotangent,))
    return identity(array)


def _xor(array, code, mesh, spec):
    def on_device(local, code):
        index, mask = code.reshape(-1)
        bits = jax.lax.bitcast_convert_type(local, jnp.uint32).reshape(-1)
        bits = bits.at[index % bits.size].set(bits[index % bits.size] ^ mask)
        return jax.lax.bitcast_convert_type(bits.reshape(local.shape), local.dtype)

    specs = (spec, PartitionSpec(*AXES))
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(array, code)
