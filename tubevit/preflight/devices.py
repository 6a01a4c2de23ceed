"""Descriptions of devices to compile for: TPU slices from libtpu, GPUs from XLA."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable

from tubevit.errors import UserError
from tubevit.preflight.topology import GPUS_A_HOST, Chip, Topology

# Without these, libtpu looks for a TPU host and locks out other processes.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
    "TPU_LIBRARY_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "2",
}  # fmt: skip
_GPU_PACKAGES = ("jax-cuda12-plugin", "jax-cuda12-pjrt")
# Published figures of compute capability 9.0 and of the two boards, by which XLA chooses kernels.
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_installed(package: str) -> bool:
    return _version(package) is not None or importlib.util.find_spec(package) is not None


def check_installed(topology: Topology, is_installed: Callable[[str], bool] = _is_installed) -> None:
    """Raise UserError, with the command to install it, if the compiler for a topology is missing."""
    packages = _GPU_PACKAGES if topology.is_gpu else ("libtpu",)
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        jax = importlib.metadata.version("jax")
        command = "'tubevit[tpu]'"
        if topology.is_gpu:  # within the environment, JAX would look for a GPU
            pinned = " ".join(f"{package}=={jax}" for package in packages)
            command = f"--no-deps --target gpu-compiler {pinned}, and set PYTHONPATH=gpu-compiler"
        raise UserError(f"topology {topology.name} needs the compiler {' and '.join(missing)}: pip install {command}")


def compiler_version(topology: Topology) -> str:
    """Return the name and version of the compiler."""
    package = _GPU_PACKAGES[1] if topology.is_gpu else "libtpu"
    return f"{package} {_version(package) or ''}".strip()


def described_devices(topology: Topology, slices: int) -> list:
    """Return the devices of all slices, only to compile for; `os.environ` must contain `ENVIRONMENT`."""
    from jax.experimental import topologies

    missing = [key for key in ENVIRONMENT if key not in os.environ]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} must be set before jax is imported")
    if topology.is_gpu:
        if slices > 1:
            raise UserError(f"mesh.slices={slices} is for TPUs; {topology.name} needs mesh.slices=1")
        hosts = max(topology.devices // GPUS_A_HOST, 1)
        shape, target = f"1x{hosts}x{topology.devices // hosts}", gpu_description(topology.chip)
        return list(topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape).devices)
    kind, _, shape = topology.name.partition(":")
    settings: dict = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":  # both cores of a chip as one device
        settings["chip_config_name"] = "megacore"
    if shape == "1x1":
        settings["chips_per_host_bounds"] = [1, 1, 1]
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **settings).devices)


def gpu_description(chip: Chip) -> str:
    """Return XLA's description of a GPU as text."""
    return _GPU.format(bandwidth=chip.bandwidth, memory=chip.hbm, name=_GPU_NAMES[chip.name])
