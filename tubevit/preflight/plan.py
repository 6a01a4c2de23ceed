"""Plan the training run of an experiment: which slice and settings, for which time and chip-hours."""

import dataclasses
import functools
import math
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tubevit.config import check_trains, flatten, load_config
from tubevit.config.resolve import Resolved, resolve
from tubevit.errors import RunError, UserError
from tubevit.preflight.candidates import Candidate, accelerator_type, candidates
from tubevit.preflight.devices import compiler_version
from tubevit.preflight.remembered import remembered
from tubevit.preflight.run import TRAIN, compile_in_process, notes_of, preflight
from tubevit.preflight.search import TOLERANCE, Found, OutOfTime, front, search, share_bound, shares_of
from tubevit.preflight.topology import CHIPS, Topology, find_topology
from tubevit.sharding.mesh import AXES

MINUTES = 15.0
_full_effort = remembered(functools.partial(compile_in_process, limit=None))  # low effort would misstate the time
_LISTED = 3  # slices in an error
_SCAN, _DATA = "model.scan", "mesh.data"
_PLACE = ("--name", "my-run", "--zone", "ZONE")  # for the user to fill in
_WORKDIR = "gs://BUCKET/my-run"


def plan(
    config: str,
    overrides: Mapping[str, str],
    slices: Sequence[Topology],
    minutes: float = MINUTES,
    report: Callable[[str], None] = lambda line: None,
    compiler: Callable[..., dict] = _full_effort,
    clock: Callable[[], float] = time.monotonic,
) -> dict:
    """Find the Pareto front of time and chip-hours of a whole training run, for each generation of chips.

    It varies the slice, `mesh.fsdp`, gradient accumulation, remat and attention, but no key that the user set; the
    global batch stays. Times of steps are the larger of the compiler's cycles and the roofline. Generations are
    searched at the same time.

    Args:
        config: `FILE[:arg=value,...]`, see `load_config`.
        overrides: {key: text}, which all candidates keep.
        slices: the slices that may be used, see `slices_of`.
        minutes: no compile begins after so many minutes, or that would end later if it takes as long as the longest.
        report: gets a line for each compiled candidate.
        compiler: function with the arguments and the result of `compile_in_process`.
        clock: seconds, from any beginning.

    Returns:
        The plan: "generations" is {chip: rows "front", "compiled" and "open", and the numbers of candidates};
        "left_out" is {slice without a candidate: the reason}.

    Raises:
        UserError: the configuration or a topology is invalid, the compiler is missing, or no candidate can be formed.
    """
    start = clock()
    # A size of the mesh that the file sets is searched, one that the user sets is not; only one of them may be -1.
    freed = {} if _DATA in overrides or overrides.get("mesh.fsdp") == "-1" else {_DATA: "-1"}
    overrides_of_all = {**overrides, **freed}
    settings = load_config(config, overrides_of_all)
    check_trains(settings)
    resolved = resolve(settings, assume_missing=True)
    looped = resolved
    if _SCAN not in overrides and not resolved.model.scan:  # unrolled steps take many minutes to compile
        looped = dataclasses.replace(resolved, model=resolved.model.replace(scan=True))
    fixed = {**overrides_of_all, _SCAN: str(looped.model.scan)}
    notes = [*resolved.notes, *notes_of(settings)]
    if looped is not resolved:
        notes.append(
            "compiled with model.scan=True; the runs have model.scan=False, which takes fewer cycles and other memory"
        )
    found, without = candidates(looped, slices, overrides)
    if not found:
        listed = [f"{name}: {why}" for name, why in without.items()]
        raise UserError(
            f"no slice can be planned: {'; '.join([*listed[:_LISTED], *(['...'] * (len(listed) > _LISTED))])}"
        )
    steps = _Steps(config, fixed, compiler, report, clock, start + 60 * minutes)
    chosen = {chip: [c for c in found if c.chip == chip] for chip in dict.fromkeys(c.chip for c in found)}
    with ThreadPoolExecutor(len(chosen)) as pool:  # the compilers are processes of their own
        searched = pool.map(lambda chip: search(chosen[chip], steps.compiled, CHIPS[chip].hbm, steps.late), chosen)
        try:
            results = dict(zip(chosen, searched))
        except BaseException:  # Ctrl-C reaches the compilers, and an error should not wait for more of them
            steps.end = -math.inf
            raise
    launched = functools.partial(_launch, config, overrides, freed, resolved)
    make = functools.partial(_row, launched, resolved.config.train.steps, steps.parts)
    generations = {chip: _generation(result, chosen[chip], make) for chip, result in results.items()}
    best = front({c: s for result in results.values() for c, s in result.seconds.items()})
    for rows in generations.values():
        for row in rows["front"]:
            row["best_of_all"] = row["topology"] in {c.topology for c in best}
    return {
        "config": config, "overrides": dict(overrides), "model": resolved.model.name, "notes": notes,
        "batch": {name: dataset.batch_size for name, dataset in resolved.config.data.train.items()},
        "steps": resolved.config.train.steps, "tolerance": TOLERANCE, "seconds": clock() - start,
        "compiler": compiler_version(slices[0]), "generations": generations, "left_out": without,
    }  # fmt: skip


class _Steps:
    """Compiles the steps of candidates, at most one per core at a time, until a deadline, and keeps the results."""

    def __init__(
        self, config: str, fixed: Mapping[str, str], compiler: Callable, report: Callable, clock: Callable, end: float
    ):
        self.config, self.fixed, self.compiler = config, fixed, compiler
        self.report, self.clock, self.end = report, clock, end
        self.parts: dict[Candidate, dict] = {}
        self.longest = 0.0  # seconds of a compile that succeeded
        self._core = threading.Semaphore(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)

    def late(self) -> bool:
        """Whether another compile would probably end after the deadline."""
        return self.clock() + self.longest > self.end

    def compiled(self, candidate: Candidate) -> float | None:
        """Return the larger of a step's cycles and the least time of its roofline; None if it does not fit.

        Raises `OutOfTime` if the deadline was reached while other compiles had the cores, RunError if the compiler
        failed for a reason other than memory.
        """
        changed, topology = {**self.fixed, **candidate.overrides}, find_topology(candidate.topology)
        with self._core:
            if self.late():
                raise OutOfTime
            begun = self.clock()
            try:
                found = preflight(self.config, changed, topology, TRAIN, compiler=self.compiler)
            except RunError as error:
                self.report(f"  {candidate}: {error}")
                raise
            self.longest = max(self.longest, self.clock() - begun)
        part = self.parts[candidate] = found["parts"]["train"]
        if not part["fits"]:
            self.report(f"  {candidate}: does not fit")
            return None
        e = part["estimate"]
        seconds = max(e["least"], e["xla"] + e["kernels"])
        self.report(f"  {candidate}: {1e3 * seconds:.1f} ms")
        return seconds


def _generation(result: Found, ours: Sequence[Candidate], make: Callable[..., dict]) -> dict:
    """Return the rows of a generation of chips; of what was not compiled, only the first candidate of each slice."""
    best = front(result.seconds)
    firsts = {c.topology: c for c in reversed(result.open)}
    shares = shares_of(result.seconds)
    least = {c: c.bounds.seconds / share_bound(c.attention, c.rows, shares) for c in firsts.values()}
    unclear = best or least or result.failed  # or it fits
    return {
        "front": [make(c, result.seconds[c]) for c in best],
        "compiled": [make(c, s) for c, s in result.seconds.items() if c not in best],
        "misfits": [make(c, None) for c in result.misfits],
        "smallest": None if unclear else make(min(result.misfits or ours, key=lambda c: c.bounds.memory), None),
        "open": [make(c, s) for c, s in least.items()],
        "candidates": len(ours), "too_large": result.too_large, "bounded": result.bounded,
        "failed": {str(c): reason for c, reason in result.failed.items()}, "uncompiled": len(result.open),
    }  # fmt: skip


def _row(
    launched: Callable[[Candidate], str],
    steps: int,
    parts: Mapping[Candidate, Mapping],
    candidate: Candidate,
    seconds: float | None,
) -> dict:
    """Return the figures of a candidate; without a compiled part, `seconds` is by `share_bound`."""
    part, bound = parts.get(candidate), candidate.bounds
    row = {
        "settings": str(candidate), "topology": candidate.topology,
        "accelerator_type": accelerator_type(candidate.topology),
        "devices": candidate.devices, "mesh": dict(zip(AXES, candidate.mesh)), "remat": candidate.remat,
        "grad_accum_steps": candidate.grad_accum_steps, "attention": candidate.attention, "rows": candidate.rows,
        "compiled": part is not None, "hbm": CHIPS[candidate.chip].hbm, "bound_seconds": bound.seconds,
        "peak": _peak(part or {}) or bound.memory,
    }  # fmt: skip
    if seconds is None:
        return row
    hours = seconds * steps / 3600
    if part:
        e = part["estimate"]
        row |= {"cycles_seconds": e["xla"] + e["kernels"], "roofline_seconds": e["least"]}
        row |= {key: part[key] for key in ("uncounted_kernels", "unknown_loops")}
    return row | {
        "seconds": seconds, "hours": hours, "chip_hours": hours * candidate.devices,
        "launch": launched(candidate),
    }  # fmt: skip


def _peak(part: Mapping) -> int | None:
    """Return the bytes that a compiled step needs, None if the compiler does not tell."""
    return part["peak"] if "peak" in part else part.get("needed")


def _launch(
    config: str, overrides: Mapping[str, str], freed: Mapping[str, str], resolved: Resolved, candidate: Candidate
) -> str:
    """Return the command that launches a candidate, to be completed by the user's names."""
    own = flatten(resolved.config.to_dict()) | {key: flatten(load_config(config, overrides))[key] for key in freed}
    found = {**freed, **candidate.overrides}
    changed = {k: v for k, v in found.items() if k not in overrides and v != str(own[k])}
    keys = [f"--config.{key}={value}" for key, value in {**overrides, **changed}.items()]
    slices = resolved.config.mesh.slices
    several = ["--slices", str(slices)] if slices > 1 else []
    queued = ["python3", "launch/tpu.py", "queued", *_PLACE, "--type", accelerator_type(candidate.topology), *several]
    return shlex.join([*queued, "--", "train", "--config", config, "--workdir", _WORKDIR, *keys])
