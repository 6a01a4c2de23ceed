"""Described devices, in a process that will not use any: libtpu's slices and XLA's GPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

from tubevit.errors import UserError
from tubevit.preflight.topology import GPUS_A_HOST, Chip, Topology

# libtpu looks for a TPU host otherwise, and keeps other processes out.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LIBRARY_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
_GPU_PACKAGES = ("jax-cuda12-plugin", "jax-cuda12-pjrt")
# What NVIDIA publishes of compute capability 9.0 and of the two boards; XLA chooses kernels by it.
_GPU_NAMES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 device_memory_size: {memory} device_address_bits: 64
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def check_installed(topology: Topology) -> None:
    """Raises UserError, with what to install, unless the compiler of a topology is there."""
    if topology.is_gpu:
        missing = [name for name in _GPU_PACKAGES if not _version(name)]
        if missing:
            jax = importlib.metadata.version("jax")
            raise UserError(
                f"topology {topology.name} needs {' and '.join(missing)}: pip install --no-deps "
                + " ".join(f"{name}=={jax}" for name in _GPU_PACKAGES)
            )
    elif importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology {topology.name} needs libtpu, the compiler for TPUs: pip install 'tubevit[tpu]'")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler_version(topology: Topology) -> str:
    """The compiler and its version."""
    package = _GPU_PACKAGES[1] if topology.is_gpu else "libtpu"
    return f"{package} {_version(package) or ''}".strip()


def described_devices(topology: Topology, slices: int) -> list:
    """The devices of all slices, to compile for, not to run on; `os.environ` must hold `ENVIRONMENT`.

    Args:
        topology: of a slice, or of GPUs on hosts of 8.
        slices: of TPUs; joined by a data-centre network.

    Raises:
        UserError: GPUs in slices.
    """
    from jax.experimental import topologies

    missing = [key for key in ENVIRONMENT if key not in os.environ]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} must be set before jax is imported")
    if topology.is_gpu:
        if slices > 1:
            raise UserError(f"mesh.slices={slices} is for TPUs; {topology.name} has none")
        hosts = max(topology.devices // GPUS_A_HOST, 1)
        description = topologies.get_topology_desc(
            platform="cuda",
            target_config=gpu_description(topology.chip),
            topology=f"1x{hosts}x{topology.devices // hosts}",
        )
        return list(description.devices)
    kind, _, shape = topology.name.partition(":")
    settings: dict = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":  # both cores of a chip as one device
        settings["chip_config_name"] = "megacore"
    if shape == "1x1":
        settings["chips_per_host_bounds"] = [1, 1, 1]
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **settings).devices)


def gpu_description(chip: Chip) -> str:
    """XLA's description of a GPU, as text."""
    return _GPU.format(bandwidth=chip.bandwidth, memory=chip.hbm, name=_GPU_NAMES[chip.name])
