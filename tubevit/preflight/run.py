"""Compiles an experiment for a described topology in processes of their own, and tries what would make it fit."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from tubevit.config import load_config
from tubevit.config.resolve import apply_recipe
from tubevit.errors import RunError, UserError
from tubevit.preflight.devices import ENVIRONMENT, check_installed, compiler_version
from tubevit.preflight.report import completed
from tubevit.preflight.topology import Topology

TRAIN, REST = ("train",), ("eval", "tokenizer", "encoder")
_TIMEOUT = 1800  # seconds a process


def preflight(config: str, overrides: Mapping[str, str], topology: Topology, parts=(*TRAIN, *REST)) -> dict:
    """Compiles the steps of an experiment for a topology.

    Args:
        config: `FILE[:arg=value,...]`, see `load_config`.
        overrides: {key: text}.
        topology: see `find_topology`.
        parts: of `train`, `eval`, `tokenizer`, `encoder`.

    Returns:
        See `completed`.

    Raises:
        UserError: the configuration is not valid or does not divide over the devices; the compiler is not installed.
        RunError: the compiler failed for a reason other than memory.
    """
    check_installed(topology)
    load_config(config, overrides)
    results = []
    for group in (TRAIN, REST):  # apart, as one that fails may take its process with it
        wanted = [part for part in group if part in parts]
        if wanted:
            results.append(_compile(config, overrides, topology, wanted))
    merged = {key: value for result in reversed(results) for key, value in result.items()}
    merged["parts"] = {part: figures for result in results for part, figures in result["parts"].items()}
    merged["memory_of_compiler"] = max(result["memory_of_compiler"] for result in results)
    merged["config"], merged["compiler"] = config, compiler_version(topology)
    merged["overrides"] = dict(overrides)
    return completed(merged, topology)


def _compile(config: str, overrides: Mapping[str, str], topology: Topology, parts: list[str]) -> dict:
    request = {"config": config, "overrides": dict(overrides), "topology": topology.name, "parts": parts}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(pathlib.Path(folder) / name) for name in ("request.json", "result.json")]
        pathlib.Path(files[0]).write_text(json.dumps(request))
        command = [sys.executable, "-m", "tubevit.preflight.worker", *files]
        # The worker finds the package where this process did, whatever its working directory.
        path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
        environment.pop("XLA_FLAGS", None)  # of this process's devices
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"compiling {'+'.join(parts)} for {topology.name} took more than {_TIMEOUT} s") from error
        result = pathlib.Path(files[1])
        if not result.exists():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if re.search(r"Error: |^F\d{4}", line)]
            why = (errors or lines or [f"exit status {done.returncode}"])[-1][:300]
            raise RunError(f"the compiler for {topology.name} failed on {'+'.join(parts)}: {why}")
        found = json.loads(result.read_text())
    if "error" in found:
        raise UserError(found["error"])
    return found


def changes(config: str, overrides: Mapping[str, str], devices: int) -> list[dict[str, str]]:
    """What to try, from what costs least: recomputation, parameters split, both, then half of each batch and so on.

    Args:
        config, overrides: see `preflight`.
        devices: of the topology, all slices.

    Returns:
        Overrides, each in addition to those given.
    """
    settings, *_ = apply_recipe(load_config(config, overrides))
    remat = {} if settings.model.remat == "full" else {"model.remat": "full"}
    splits = [n for n in (4, 8, 16, 32) if devices % n == 0 and n > settings.mesh.fsdp]
    splits = splits[:1] + splits[-1:] if len(splits) > 1 else splits
    tries = [remat]
    tries += [{"mesh.fsdp": str(n)} for n in splits]
    tries += [remat | {"mesh.fsdp": str(n)} for n in splits]
    best, sizes = tries[-1] if splits else remat, {n: d.batch_size for n, d in settings.data.train.items()}
    for factor in (2, 4, 8):
        tries.append(best | {"train.grad_accum_steps": str(settings.train.grad_accum_steps * factor)})
    for factor in (2, 4, 8):
        if all(size % factor == 0 for size in sizes.values()):
            tries.append(best | {f"data.train.{n}.batch_size": str(size // factor) for n, size in sizes.items()})
    unique = {json.dumps(change, sort_keys=True): change for change in tries if change}
    return list(unique.values())


def suggest(
    config: str, overrides: Mapping[str, str], topology: Topology, devices: int, say: Callable[[str], None]
) -> dict[str, str] | None:
    """The first of `changes` with which the training step fits; each try is told to `say`. None: none does."""
    for change in changes(config, overrides, devices):
        flags = " ".join(f"--config.{key}={value}" for key, value in change.items())
        try:
            found = preflight(config, {**overrides, **change}, topology, TRAIN)
        except UserError as error:  # it does not divide so
            say(f"  {flags}: {error}")
            continue
        part = found["parts"]["train"]
        needed = part.get("peak", part.get("needed"))
        text = "does not compile in the memory" if needed is None else f"{needed / 2**30:.2f} GiB"
        if part["fits"]:
            e = part["estimate"]
            say(f"  {flags}: fits, {text}; {1e3 * e['least']:.1f} to {1e3 * e['most']:.1f} ms a step (estimate)")
            return change
        say(f"  {flags}: {text}")
    return None
