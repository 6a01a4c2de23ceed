"""The instructions of a compiled step with their place in the source, their direction, bytes and cycles."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from tubevit.preflight.costs import bytes_moved, estimated_cycles
from tubevit.preflight.hlo import Instruction, Program, is_kernel

PACKAGE = pathlib.Path(__file__).parents[1]
_SUMS = ("times", "bytes", "cycles")
_USERS = 8  # the compiler's own copies lie at most so far from what uses them
_PRODUCTS = {"convolution", "dot"}
_LAYOUT = {"bitcast", "concatenate", "constant", "copy", "pad", "parameter", "reshape", "slice", "transpose", "tuple"}


def instructions(program: Program, bundles: Mapping[str, int | None], package: pathlib.Path = PACKAGE) -> list[dict]:
    """List what moves bytes or takes cycles, with alike instructions of one source line as one entry.

    Args:
        program: the step.
        bundles: {kernel: bundles of one call}, see `bundles.kernel_bundles`.
        package: the folder whose files are named; other frames of a stack are passed over where possible.

    Returns:
        Entries {"what", "direction": `forward`, `recomputed`, `backward` or `optimiser`, "source": file and line,
        "result": shape, "times", "bytes", "cycles"}; the last three are sums per step.
    """
    entries: dict[tuple, dict] = {}
    for name, times, fused in program.runs():
        body = program.computations[name]
        users = _users(body)
        for instruction in () if fused else body.values():
            moved = bytes_moved(instruction, body, program)
            cycles = estimated_cycles(instruction) + (bundles.get(instruction.name) or 0)
            if not moved and not cycles:
                continue
            described = _described(instruction, users, program, package)
            entry = entries.setdefault(tuple(described.values()), described | dict.fromkeys(_SUMS, 0))
            for key, value in zip(_SUMS, (1, moved, cycles)):
                entry[key] += times * value
    return list(entries.values())


def _described(
    instruction: Instruction, users: Mapping[str, Instruction], program: Program, package: pathlib.Path
) -> dict[str, str]:
    inner = list(_inner(instruction, program))
    traced = _traced(instruction, users, program)
    started = instruction.opcode in ("copy-start", "slice-start")  # the result comes with source and context
    shapes = instruction.shape[1:2] if started else instruction.shape
    shape = max(shapes, key=lambda array: array.bytes, default=None)
    return {
        "what": _what(instruction, {each.opcode for each in inner[1:]}),
        "direction": _direction(traced.text("op_name")) if traced else "",
        "source": _source(traced, program, package) if traced else "",
        "result": f"{shape.dtype}[{','.join(map(str, shape.dims))}]" if shape else "",
    }


def _traced(instruction: Instruction, users: Mapping[str, Instruction], program: Program) -> Instruction | None:
    """Return the traced instruction that best describes this one: its product, or itself, or what uses its result."""
    for _ in range(_USERS):
        traced = [each for each in _inner(instruction, program) if each.number("stack_frame_id") is not None]
        if traced:
            return next((each for each in traced if each.opcode in _PRODUCTS), traced[0])
        if instruction.name not in users:
            break
        instruction = users[instruction.name]
    return None


def _users(body: Mapping[str, Instruction]) -> dict[str, Instruction]:
    """Return the first user of each result."""
    users: dict[str, Instruction] = {}
    for instruction in body.values():
        for operand in instruction.operands:
            users.setdefault(operand, instruction)
    return users


def costliest(entries: Sequence[Mapping], key: str, count: int) -> list[dict]:
    """Return the `count` entries with the largest `key`, each with its "share" of the sum of all entries."""
    total = sum(entry[key] for entry in entries) or 1
    ordered = sorted(entries, key=lambda entry: -entry[key])[:count]
    return [{**entry, "share": entry[key] / total} for entry in ordered]


def _inner(instruction: Instruction, program: Program) -> Iterator[Instruction]:
    """Yield an instruction and those that are fused into it."""
    yield instruction
    called = instruction.called("calls") if instruction.opcode == "fusion" else None
    for each in program.computations.get(called or "", {}).values():
        yield from _inner(each, program)


def _what(instruction: Instruction, inner: set[str]) -> str:
    if is_kernel(instruction):
        return f"kernel {instruction.text('op_name').rpartition('/pallas_call')[0].rpartition('/')[2]}".strip()
    if instruction.opcode != "fusion":
        return instruction.opcode
    if inner & _PRODUCTS:
        return "fused product"
    if "dynamic-update-slice" in inner:
        return "fused update"
    if inner & {"reduce", "reduce-window"}:
        return "fused reduction"
    layout = inner <= _LAYOUT | {"fusion", "dynamic-slice", "convert", "broadcast"}
    return "fused layout" if layout else "fused elementwise"


def _direction(op_name: str) -> str:
    """Read the direction from the transformations in which JAX names an operation."""
    if "rematted_computation" in op_name:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "optimiser" if op_name else ""


def _source(instruction: Instruction, program: Program, package: pathlib.Path) -> str:
    """Return file and line of the innermost frame in the package, else of the innermost frame."""
    stack = program.stack(instruction)
    frame = next((f for f in stack if pathlib.PurePath(f.file).is_relative_to(package)), stack[0] if stack else None)
    if frame is None:
        return ""
    file = pathlib.PurePath(frame.file)
    return f"{file.relative_to(package) if file.is_relative_to(package) else file.name}:{frame.line}"
