"""Several processes as one job: start-up, who writes, and an end for all when one fails."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable

import jax
from orbax.checkpoint import multihost

from tubevit.errors import RunError, UserError

# Seconds. A process that is killed or frozen ends the others after the first; the second is for the last goodbye.
HEARTBEAT, SHUTDOWN = 30, 60
_WAIT = 24 * 3600  # for process 0, of which they would learn sooner if it ended
_numbers = itertools.count()


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects the processes of a job; does nothing for a process alone.

    On a Cloud TPU VM it finds the others by itself. It has to come before anything asks JAX for devices.

    Args:
        coordinator: HOST:PORT of process 0, elsewhere.
        processes: their number.
        process: the number of this one, from 0.

    Raises:
        UserError: some of the three are missing, or out of range.
    """
    given = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if _on_tpu_vm():
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
        return
    if coordinator is None or processes is None or process is None:
        raise UserError(f"--coordinator, --num-processes and --process-id go together; missing {', '.join(missing)}")
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UserError(f"--coordinator must be HOST:PORT; found {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"--process-id must be 0 to --num-processes - 1; found {process} of {processes}")
    # On CPUs two programs that run at once may exchange their messages with each other's.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
    )
    if processes > 1 and jax.default_backend() == "cpu":
        # Process 0's programs are no good to the others there: their messages would not match.
        jax.config.update("jax_enable_compilation_cache", False)


def _on_tpu_vm() -> bool:
    """Whether this machine has TPUs that JAX will use."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    chips = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return chips and platforms in ("", "tpu", "tpu,cpu") and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """Whether this is the process that logs and writes."""
    return jax.process_index() == 0


def run_on_main(function: Callable):
    """`function()`, run by process 0 alone, whose outcome all processes get; every process must call it.

    The others wait at the coordinator, not in a collective, which has a short time limit on some devices.

    Args:
        function: returns a JSON value.

    Raises:
        UserError, RunError: `function` did, in every process with the same text.
        Exception: whatever else it raised, in process 0; RunError in the others.
    """
    if jax.process_count() == 1:
        return function()
    client, key = multihost.get_jax_distributed_client(), f"tubevit/first/{next(_numbers)}"
    if jax.process_index() != 0:
        kind, value = json.loads(client.blocking_key_value_get(key, _WAIT * 1000))
        if kind == "value":
            return value
        raise {"user": UserError, "run": RunError}[kind](value)
    try:
        value = function()
    except Exception as error:
        kind = "user" if isinstance(error, UserError) else "run"
        known = isinstance(error, UserError | RunError)
        text = str(error) if known else f"process 0 failed: {type(error).__name__}: {error}"
        client.key_value_set(key, json.dumps([kind, text]))
        raise
    client.key_value_set(key, json.dumps(["value", value]))
    return value


def end_at_once(code: int) -> None:
    """Ends this process if it is one of several: the others learn of it at once instead of waiting for it."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
