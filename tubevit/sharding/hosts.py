"""Several processes as one job: start-up, which one writes, and one end for all when one of them fails."""

import importlib.util
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import multihost

from tubevit.errors import RunError, UserError

# Seconds. A process that is killed or frozen ends the others after the first; the second is for the last goodbye.
HEARTBEAT, SHUTDOWN = 30, 60
_WAIT = 24 * 3600  # for another process; if that ends, the coordinator ends this one sooner
_GOODBYE = 2  # process 0 runs the coordinator and ends after the others, which would abort without it
_numbers = itertools.count()


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connect the processes of a job; do nothing in a process that runs alone.

    On a Cloud TPU VM a process finds the others by itself. Call it before anything asks JAX for devices.

    Args:
        coordinator: HOST:PORT of process 0; needed outside of Cloud TPU.
        processes: the number of processes.
        process: the index of this one, from 0.

    Raises:
        UserError: some of the three are missing or out of range.
    """
    given = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process}
    missing = [flag for flag, value in given.items() if value is None]
    timeouts: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": SHUTDOWN}
    if len(missing) == len(given):
        if _on_tpu_vm():
            jax.distributed.initialize(**timeouts)
        return
    if coordinator is None or processes is None or process is None:
        raise UserError(f"--coordinator, --num-processes and --process-id go together; missing {', '.join(missing)}")
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, the port 1 to 65535; found {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"--process-id must be 0 to --num-processes - 1; found {process} of {processes}")
    # On CPUs, two programs that run at once may receive each other's messages.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(coordinator, processes, process, **timeouts)
    if processes > 1 and jax.default_backend() == "cpu":
        # On CPUs the others cannot use the programs that process 0 compiled: their messages would not match.
        jax.config.update("jax_enable_compilation_cache", False)


def _on_tpu_vm() -> bool:
    """Whether this machine has TPUs that JAX will use."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    chips = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return chips and platforms in ("", "tpu", "tpu,cpu") and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """Whether this is the process that logs and writes."""
    return jax.process_index() == 0


def gather(value) -> list:
    """Collect a JSON value of each process in process 0, ordered by process; the others get [].

    A process that runs alone gets its own.

    Every process must call it. Values travel through the coordinator, in messages of at most 4 MB.
    """
    if jax.process_count() == 1:
        return [value]
    client, key = multihost.get_jax_distributed_client(), f"tubevit/{next(_numbers)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    if not is_main():
        return []
    wait = 1000 * _WAIT
    return [json.loads(client.blocking_key_value_get(f"{key}/{i}", wait)) for i in range(jax.process_count())]


def run_on_main(function: Callable):
    """Run a function in process 0 and return its value (of JSON), or raise its error, in every process.

    Every process must call it. The others wait at the coordinator instead of in a collective, which has a short time
    limit on some devices.

    Raises:
        UserError, RunError: raised by `function`; the text is the same in every process.
        Exception: any other error of `function`, in process 0; the other processes raise RunError.
    """
    if jax.process_count() == 1:
        return function()
    client, key = multihost.get_jax_distributed_client(), f"tubevit/{next(_numbers)}"
    if not is_main():
        kind, value = json.loads(client.blocking_key_value_get(key, 1000 * _WAIT))
        if kind == "value":
            return value
        raise _error(kind, value)
    try:
        value = function()
    except Exception as error:
        client.key_value_set(key, json.dumps(_outcome(error)))
        raise
    client.key_value_set(key, json.dumps(["value", value]))
    return value


def run_on_all(function: Callable) -> Any:
    """Run a function in every process and return its value; where it fails in one, it fails in all.

    Every process must call it, and the function must not talk to the other processes.

    Raises:
        UserError, RunError: raised by `function` in one of the processes, which the message names.
        Exception: any other error of `function` in this process; the other processes raise RunError.
    """
    if jax.process_count() == 1:
        return function()
    value, error = None, None
    try:
        value = function()
    except Exception as caught:
        error = caught
    outcomes = gather(error and _outcome(error))
    try:
        run_on_main(lambda: _raise_first(outcomes))
    except (UserError, RunError):
        if error is not None and not isinstance(error, UserError | RunError):
            raise error from None  # a defect, with its traceback
        raise
    finally:
        del error  # its traceback keeps what the function had on the devices
    return value


def _outcome(error: Exception) -> tuple[str, str]:
    """The kind and the text of an error, as they are sent to other processes."""
    if isinstance(error, UserError | RunError):
        return "user" if isinstance(error, UserError) else "run", str(error)
    return "run", f"process {jax.process_index()} failed: {type(error).__name__}: {error}"


def _error(kind: str, text: str) -> UserError | RunError:
    return UserError(text) if kind == "user" else RunError(text)


def _raise_first(outcomes: list) -> None:
    """Raise the first error of `run_on_all`; it names its process, unless all of them failed alike."""
    for process, outcome in enumerate(outcomes):
        if outcome:
            kind, text = outcome
            here = f"process {process}"
            raise _error(kind, text if outcomes.count(outcome) == len(outcomes) or here in text else f"{here}: {text}")


def end_at_once(code: int) -> None:
    """End this process if it is one of several, so that the others notice at once instead of waiting for it."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():
            time.sleep(_GOODBYE)
        os._exit(code)
