"""Accelerator types as gcloud names them: their hosts and their software."""

from __future__ import annotations

RUNTIMES = {  # the TPU software version of each family
    "v4": "tpu-ubuntu2204-base",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
}


def accelerator_types() -> dict[str, int]:
    """Return the number of hosts of each accelerator type.

    v4 and v5p types count cores, 8 per host; v5litepod and v6e types count chips, 4 per host.
    """
    types = {f"{family}-{n}": n // 8 for family in ("v4", "v5p") for n in (8, 16, 32, 64)}
    types |= {f"v4-{n}": n // 8 for n in range(128, 8192 + 1, 128)}
    types |= {f"v5p-{n}": n // 8 for n in range(128, 12288 + 1, 128)}
    for family in ("v5litepod", "v6e"):
        types |= {f"{family}-{n}": 1 for n in (1, 4, 8)} | {f"{family}-{n}": n // 4 for n in (16, 32, 64, 128, 256)}
    return types
