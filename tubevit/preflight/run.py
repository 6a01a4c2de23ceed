"""Compile an experiment for a described topology in separate processes, and search for settings that fit."""

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from tubevit.budget import shares
from tubevit.config import check_trains, load_config
from tubevit.config.derive import apply_recipe
from tubevit.errors import RunError, TookTooLong, UserError
from tubevit.preflight.bundles import DUMP_FLAGS
from tubevit.preflight.devices import ENVIRONMENT, compiler_version
from tubevit.preflight.report import completed
from tubevit.preflight.topology import Topology

TRAIN, REST = ("train",), ("eval", "tokenizer", "encoder")
FULL_EFFORT_LIMIT = 180  # seconds per process
_TIMEOUT = 1800
LOW_EFFORT = "compiled with low effort: cycles and bytes are far above those of training, which has full effort"


def notes_of(settings: ConfigDict) -> list[str]:
    """Say what the compiled step of an experiment leaves out."""
    notes = []
    if len(shares(settings.train.elastic)) > 1:
        notes.append(f"train.elastic={settings.train.elastic}: the step is the one with the two largest budgets")
    if settings.train.replay:
        notes.append("train.replay: a replayed step, which is not compiled, needs memory for another training state, "
                     "for two where several devices have mesh.data=1, and for the gradients of pixels")  # fmt: skip
    return notes


def compile_in_process(
    config: str,
    overrides: Mapping[str, str],
    topology: Topology,
    parts: Sequence[str],
    effort: str = "full",
    limit: float | None = FULL_EFFORT_LIMIT,
    execute=subprocess.run,
) -> dict:
    """Compile parts of an experiment in a process that `execute` runs; errors and arguments as in `preflight`.

    A compile for TPUs with full effort that takes longer than `limit` seconds is stopped and done with low effort; None
    does not fall back.
    """
    efforts = ("full", "low") if effort == "full" and limit is not None and not topology.is_gpu else (effort,)
    for tried in efforts:
        timeout = _TIMEOUT if limit is None or tried == efforts[-1] else limit
        try:
            result = _compile(config, overrides, topology, parts, tried, timeout, execute)
        except subprocess.TimeoutExpired:
            continue
        if tried != effort:
            note = f"{'+'.join(parts)} took more than {limit:g} s with full effort; {LOW_EFFORT}"
            result["notes"].append(note)
        return result
    raise TookTooLong(f"compiling {'+'.join(parts)} for {topology.name} took more than {_TIMEOUT} s")


def _compile(
    config: str,
    overrides: Mapping[str, str],
    topology: Topology,
    parts: Sequence[str],
    effort: str,
    timeout: float,
    execute: Callable,
) -> dict:
    """Compile in a process; raises subprocess.TimeoutExpired after `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("request.json", "result.json")]
        dump = pathlib.Path(folder) / "bundles"
        dump.mkdir()
        request = {
            "config": config, "overrides": dict(overrides), "topology": topology.name, "parts": list(parts),
            "effort": effort, "dump": str(dump),
        }  # fmt: skip
        files[0].write_text(json.dumps(request))
        command = [sys.executable, "-m", "tubevit.preflight.worker", *map(str, files), str(os.getpid())]
        # The worker finds the package where this process did, in any working directory.
        path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {DUMP_FLAGS.format(folder=dump)}".strip()
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "LIBTPU_INIT_ARGS": flags}
        environment.pop("XLA_FLAGS", None)  # they are for the devices of this process
        done = execute(command, env=environment, capture_output=True, text=True, timeout=timeout)
        if not files[1].exists():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if re.search(r"Error: |^F\d{4}", line)]
            reason = (errors or lines or [f"exit status {done.returncode}"])[-1][:300]
            raise RunError(f"the compiler for {topology.name} failed on {'+'.join(parts)}: {reason}")
        result = json.loads(files[1].read_text())
    if "error" in result:
        raise UserError(result["error"])
    if "failed" in result:
        raise RunError(result["failed"])
    return result


def preflight(
    config: str,
    overrides: Mapping[str, str],
    topology: Topology,
    parts: Sequence[str] = (*TRAIN, *REST),
    effort: str = "full",
    top: Mapping[str, int] | None = None,
    compiler: Callable[..., dict] = compile_in_process,
) -> dict:
    """Compile the steps of an experiment for a topology; see `completed` for the result.

    Args:
        config: `FILE[:arg=value,...]`, see `load_config`.
        overrides: {key: text}.
        topology: see `find_topology`.
        parts: some of `train`, `eval`, `tokenizer`, `encoder`.
        effort: of the compiler for TPUs: `full` is that of training; `low` is faster, with far more cycles and bytes.
        top: {"bytes" or "cycles": number of the costliest instructions of the training step to list}.
        compiler: function with the arguments and the result of `compile_in_process`.

    Raises:
        UserError: the configuration is invalid or does not divide over the devices; the compiler is not installed;
            `top` asks for cycles on GPUs.
        RunError: the compiler failed for a reason other than memory.
    """
    settings = load_config(config, overrides)
    check_trains(settings)
    if topology.is_gpu and (top or {}).get("cycles"):
        raise UserError(f"--top-cycles is for TPUs, as XLA states no cycles for {topology.name}; use --top-bytes")
    effort = "full" if topology.is_gpu else effort  # that of GPUs has no setting
    # In separate processes, because a failing compiler may abort its process.
    groups = [[part for part in group if part in parts] for group in (TRAIN, REST)]
    results = [compiler(config, overrides, topology, group, effort) for group in groups if group]
    merged = {key: value for result in reversed(results) for key, value in result.items()}
    merged["parts"] = {part: figures for result in results for part, figures in result["parts"].items()}
    noted = (note for result in results for note in result["notes"])
    merged["notes"] = [*dict.fromkeys(noted), *notes_of(settings)]
    if effort == "low" and not topology.is_gpu:
        merged["notes"].append(LOW_EFFORT)
    merged["memory_of_compiler"] = max(result["memory_of_compiler"] for result in results)
    merged |= {"config": config, "compiler": compiler_version(topology), "overrides": dict(overrides)}
    return completed(merged, topology, top or {})


def changes(config: str, overrides: Mapping[str, str], devices: int, fsdp: int = 1) -> list[dict[str, str]]:
    """List overrides that save memory, cheapest first: recomputation, sharded parameters, both, smaller batch parts.

    `fsdp` is the size with which the steps do not fit.
    """
    settings, *_ = apply_recipe(load_config(config, overrides))
    remat = {} if settings.model.remat == "full" else {"model.remat": "full"}
    sizes = [n for n in (4, 8, 16, 32) if devices % n == 0 and n > fsdp]
    splits = [{"mesh.fsdp": str(n)} for n in dict.fromkeys([*sizes[:1], *sizes[-1:]])]
    tries = [remat, *splits, *(remat | split for split in splits)]
    best, batches = tries[-1], {name: dataset.batch_size for name, dataset in settings.data.train.items()}
    for factor in (2, 4, 8):
        tries.append(best | {"train.grad_accum_steps": str(settings.train.grad_accum_steps * factor)})
    for factor in (2, 4, 8):
        if all(size % factor == 0 for size in batches.values()):
            tries.append(best | {f"data.train.{name}.batch_size": str(n // factor) for name, n in batches.items()})
    return list({json.dumps(change, sort_keys=True): change for change in tries if change}.values())


def suggest(
    config: str,
    overrides: Mapping[str, str],
    topology: Topology,
    mesh: Mapping[str, int],
    report: Callable[[str], None],
    compiler: Callable[..., dict] = compile_in_process,
) -> dict[str, str] | None:
    """Return the first of `changes` with which the training step fits, or None; `report` gets a line for each try.

    Each try is compiled with low effort, which needs about as much memory. One that fits is compiled again with full
    effort. `mesh` has the sizes of the axes with which the step does not fit.
    """
    for change in changes(config, overrides, math.prod(mesh.values()), mesh["fsdp"]):
        flags = " ".join(f"--config.{key}={value}" for key, value in change.items())
        compiled = functools.partial(preflight, config, {**overrides, **change}, topology, TRAIN, compiler=compiler)
        try:
            part = compiled(effort="low")["parts"]["train"]
            part = compiled(effort="full")["parts"]["train"] if part["fits"] and not topology.is_gpu else part
        except UserError as error:  # for example, the batch is not divisible
            report(f"  {flags}: {error}")
            continue
        needed = part.get("peak", part.get("needed"))
        text = "the compiler runs out of memory" if needed is None else f"{needed / 2**30:.2f} GiB"
        if part["fits"]:
            e = part["estimate"]
            report(f"  {flags}: fits, {text}; {1e3 * e['least']:.1f} to {1e3 * e['most']:.1f} ms per step (estimate)")
            return change
        report(f"  {flags}: {text}")
    return None
