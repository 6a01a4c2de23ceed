"""Compile parts of an experiment for described devices: `python -m tubevit.preflight.worker REQUEST RESULT PARENT`.

This runs in a separate process with `devices.ENVIRONMENT`, because a compiler can abort its process.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
import resource
import sys
import time

UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# For TPUs: "low" is XLA's level O0, by its number, which JAX 0.10 and 0.12 both understand. It compiles several times
# faster, into several times the cycles and more bytes.
_EFFORT = {"full": {}, "low": {"optimization_level": 9}}
# For GPUs: Triton's matrix products must be tuned on a GPU; without Triton XLA uses cuBLAS.
_GPU = {"xla_gpu_enable_triton_gemm": False}


def main(request_file: str, result_file: str, parent: str) -> None:
    """Read the request, see `_run`; write {"parts": {part: figures}, ...}, {"error"}, or {"failed"} for a RunError.

    `parent` is the id of the process that waits for the result; this one ends with it.
    """
    from tubevit.data.workers import end_with_parent

    end_with_parent(int(parent))
    from tubevit.errors import RunError, UserError

    request = json.loads(pathlib.Path(request_file).read_text())
    try:
        result: dict = _run(**request)
    except UserError as error:
        result = {"error": str(error)}
    except RunError as error:
        result = {"failed": str(error)}
    result["memory_of_compiler"] = peak_memory()
    pathlib.Path(result_file).write_text(json.dumps(result))


def peak_memory() -> int:
    """Return the peak memory of this process in bytes; `ru_maxrss` would include the caller's process."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _run(config: str, overrides: dict, topology: str, parts: list[str], effort: str, dump: str) -> dict:
    """Compile parts with `full` or `low` effort; `dump` is the folder of `bundles.DUMP_FLAGS`."""
    from tubevit.config import load_config
    from tubevit.config.resolve import resolve
    from tubevit.preflight import program
    from tubevit.preflight.devices import check_installed, described_devices
    from tubevit.preflight.topology import find_topology
    from tubevit.training.automatic_fsdp import training_mesh

    target, settings = find_topology(topology), load_config(config, overrides)
    check_installed(target)
    plan = resolve(settings, assume_missing=True)
    plan = program.without_cudnn(plan) if target.is_gpu else plan
    devices = described_devices(target, settings.mesh.slices)
    mesh, notes = training_mesh(plan.config, plan.model, devices, target.chip.hbm)
    result = {
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()}, "devices": int(mesh.size),
        "notes": [*plan.notes, *notes], "model": plan.model.name,
        "batch": {name: dataset.batch_size for name, dataset in plan.config.data.train.items()}, "parts": {},
    }  # fmt: skip
    compiled = functools.partial(compile_part, mesh=mesh, target=target, effort=effort, dump=pathlib.Path(dump))
    if "train" in parts:
        result["model_flops"] = program.step_flops(plan) / mesh.size
        result["parts"]["train"] = compiled(*program.train_program(plan, mesh))
    if "eval" in parts and (found := program.eval_program(plan, mesh)):
        function, arguments, views = found
        result["parts"]["eval"] = compiled(function, arguments) | {"views": views}
    if "tokenizer" in parts or "encoder" in parts:
        for part, (function, arguments) in program.part_programs(plan, mesh).items():
            result["parts"][part] = compiled(function, arguments)
    return result


def compile_part(function, arguments, mesh, target, effort: str, dump: pathlib.Path) -> dict:
    """Compile a jitted function for abstract arguments and return its figures; arguments as in `_run`."""
    import jax

    from tubevit.preflight import costs
    from tubevit.preflight.bundles import kernel_bundles
    from tubevit.preflight.costliest import instructions
    from tubevit.preflight.flops import flops
    from tubevit.preflight.hlo import Program

    for old in dump.iterdir():  # of another part
        old.unlink()
    start = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile(compiler_options=_GPU if target.is_gpu else _EFFORT[effort])
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        failed = out_of_memory(message, target.chip.hbm)
        if failed["needed"] is not None and "for HLO temporaries" in message:  # without the arguments
            leaves = jax.tree.leaves(arguments)
            failed["needed"] += sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
        return {"fits": False, **failed, "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    bundles = kernel_bundles(program, dump)
    xla_cycles, of_kernels, uncounted = costs.cycles(program, bundles)
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # Aliased outputs reuse the memory of arguments.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    peak = sum(sizes.values())
    return {
        "fits": peak <= target.chip.hbm, **sizes, "peak": peak, "flops": flops(program),
        "hbm_bytes": costs.hbm_bytes(program), "xla_cycles": xla_cycles, "kernel_bundles": of_kernels,
        "uncounted_kernels": uncounted, "instructions": instructions(program, bundles),
        "collectives": [dataclasses.asdict(c) | {"sent": c.sent} for c in costs.collectives(program, mesh.size)],
        "unknown_loops": program.unknown_loops, "seconds": seconds, "effort": effort,
    }  # fmt: skip


def out_of_memory(message: str, hbm: int) -> dict:
    """Parse the message of a RESOURCE_EXHAUSTED error: {"needed": bytes or None, "message": the start of it}.

    Some messages contain only by how much the memory of the chip, `hbm` bytes, is exceeded.
    """
    number = r"([0-9.]+)([BKMGT]?)"
    message = " ".join(message.split())
    for pattern in (rf"required for .*?\({number}\)", rf"Used {number} of", rf"Exceeded .*?by {number}"):
        found = re.search(pattern, message)
        if found:
            needed = float(found.group(1)) * UNITS[found.group(2) or "B"]
            needed += hbm if pattern.startswith("Exceeded") else 0
            return {"needed": int(needed), "message": message[:200]}
    return {"needed": None, "message": message[:200]}


if __name__ == "__main__":
    main(*sys.argv[1:])
