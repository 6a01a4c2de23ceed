"""Costs of a compiled program per device: main memory traffic, cycles, collectives.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from tubevit.preflight.hlo import Instruction, Program, is_kernel, shape_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
         "ragged-all-to-all")  # fmt: skip
# These move no memory themselves.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all",
         "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done", "iota",
         "add-dependency", "domain", "send-done", "recv-done"}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
# Custom calls that move nothing: they name memory, or end an exchange that has been counted where it starts.
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AsyncCollectiveDone"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: one of `KINDS`.
        bytes: size of the whole array on a device that is reduced, gathered or sent in each run.
        group: number of devices that exchange data with each other.
        times: how often it runs per step.
        between_slices: whether it uses the data-centre network.
    """

    kind: str
    bytes: int
    group: int
    times: int
    between_slices: bool = False

    @property
    def sent(self) -> float:
        """Total bytes that a device sends: on a ring (n - 1) / n of the array, twice that for all-reduce; between
        slices the array."""
        if self.between_slices:
            return float(self.times * self.bytes)
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / max(self.group, 1)
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(program: Program, devices: int) -> list[Collective]:
    """List all collectives, each `channel_id` once; `devices` is the group of a collective that names none."""
    found, seen = [], set()
    for name, times, _ in program.runs():
        body = program.computations[name]
        for instruction in body.values():
            opcode = instruction.opcode.removesuffix("-start")
            between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
            if opcode == "send" and between:
                kind = between.group(1).lower().replace("_", "-")
                size = shape_of(body, instruction.operands[0])[0].bytes
                found.append(Collective(kind, size, 0, times, between_slices=True))
            if opcode not in KINDS:
                continue
            channel = instruction.number("channel_id")
            key = (name, instruction.name) if channel is None else channel
            if key in seen:
                continue
            seen.add(key)
            # TPUs write a reduce-scatter as a fusion of this name: an all-reduce of which each device keeps a part.
            kind = "reduce-scatter" if opcode == "all-reduce" and "all-reduce-scatter" in name else opcode
            operands = sum(a.bytes for operand in instruction.operands for a in shape_of(body, operand))
            result = sum(a.bytes for a in instruction.shape)
            if instruction.opcode.endswith("-start") and opcode != "all-reduce":
                result -= operands  # a start instruction returns its operands as well
            found.append(Collective(kind, max(operands, result), group_size(instruction, devices), times))
    return found


def group_size(instruction: Instruction, devices: int) -> int:
    """Return the number of devices in a group of `replica_groups`, which has three notations."""
    text = instruction.attributes
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:  # axes of a mesh, or parts of them: 'axis':(before)size
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if tiled:
        return int(tiled.group(2))
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", text)
    return len(listed.group(1).split(",")) if listed else devices


def cycles(program: Program, bundles: Mapping[str, int | None]) -> tuple[int, int, int]:
    """Return the cycles that XLA expects, the bundles of all kernels, and the number of kernels without a count.

    XLA writes its expectation, which it also schedules by, on each instruction. `bundles` is {kernel: bundles of a
    call or None}, see `bundles.kernel_bundles`.
    """
    expected, of_kernels, uncounted = 0, 0, 0
    for name, times, fused in program.runs():
        for instruction in () if fused else program.computations[name].values():
            expected += times * estimated_cycles(instruction)
            if is_kernel(instruction):
                counted = bundles.get(instruction.name)
                of_kernels += times * (counted or 0)
                uncounted += counted is None
    return expected, of_kernels, uncounted


def estimated_cycles(instruction: Instruction) -> int:
    """Return the cycles of one run that XLA expects, 0 where it has no estimate."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 0


def hbm_bytes(program: Program, multiply: bool = True) -> int:
    """Count the bytes that all instructions read from and write to main memory; a fusion counts as one instruction.

    Arrays that are only sliced count with the size of the slices, arrays that are updated in place with the size of
    the update. Arrays in VMEM do not count. The count follows from the program text; it is not a measurement.
    """
    total = 0
    for name, times, fused in program.runs(multiply):
        if not fused:
            body = program.computations[name]
            total += times * sum(bytes_moved(instruction, body, program) for instruction in body.values())
    return total


def bytes_moved(instruction: Instruction, body: dict[str, Instruction], program: Program) -> int:
    """Count the bytes that one run of an instruction of computation `body` reads from and writes to main memory."""
    opcode = instruction.opcode
    called = program.computations.get(instruction.called("calls") or "") if opcode == "fusion" else None
    if opcode in _FREE or opcode.endswith("-done") or not _FREE_CALLS.isdisjoint(_calls(instruction, called)):
        return 0
    names = instruction.operands
    if is_kernel(instruction):  # it may read parts of one array through several operands
        names = tuple(dict.fromkeys(names))
    operands = [shape_of(body, name) for name in names]
    written = sum(a.hbm for a in instruction.shape)
    if opcode == "copy-start" or "AsyncCollectiveStart" in _calls(instruction, called):
        # The result holds destination and source, or source and destination, before what waits for them.
        return sum(a.hbm for a in instruction.shape[:2])
    if opcode == "slice-start":  # its result is ((source), slice, context)
        source, part = instruction.shape[0], instruction.shape[1]
        return part.hbm + (part.bytes if source.space == 0 else 0)
    if opcode in _SLICES:
        from_hbm = bool(operands) and operands[0][0].space == 0
        return written + (sum(a.bytes for a in instruction.shape) if from_hbm else 0)
    if opcode == "dynamic-update-slice":
        update = operands[1][0]
        return update.hbm + (update.bytes if instruction.shape[0].space == 0 else 0)
    if not called:
        return written + sum(a.hbm for shape in operands for a in shape)
    passed = _passed(instruction, called)
    operands = [() if i in passed.values() else shape for i, shape in enumerate(operands)]
    return _fusion_read(operands, called, program) + _fusion_written(instruction, called, program, set(passed))


def _calls(instruction: Instruction, called: dict[str, Instruction] | None) -> set[str]:
    """Return the targets of a custom call, or of those in a fusion."""
    every = called.values() if called else (instruction,)
    return {each.text("custom_call_target") for each in every if each.opcode == "custom-call"}


def _passed(instruction: Instruction, called: dict[str, Instruction]) -> dict[int, int]:
    """Return {result: operand} of what a fusion carries along for an exchange that runs beside it."""
    root = next(each for each in called.values() if each.root)
    if root.opcode != "tuple" or not any(each.opcode in KINDS for each in called.values()):
        return {}
    carried = {i for i, name in enumerate(root.operands) if called[name].opcode in ("parameter", *KINDS)}
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", instruction.attributes.partition("calls=")[0])
    return {int(result): int(operand) for result, operand in pairs if int(result) in carried}


def _users(name: str, body: dict[str, Instruction]) -> list[tuple[Instruction, int]]:
    """List the instructions that use a value, with the index of the operand; bitcasts are looked through."""
    users = []
    for instruction in body.values():
        for i, operand in enumerate(instruction.operands):
            if operand == name:
                users += _users(instruction.name, body) if instruction.opcode == "bitcast" else [(instruction, i)]
    return users


def _fusion_read(operands, called: dict[str, Instruction], program: Program) -> int:
    total = 0
    for parameter in (i for i in called.values() if i.opcode == "parameter"):
        shape = operands[int(parameter.literal)]
        whole = sum(a.hbm for a in shape)
        total += min(whole, _read(parameter, called, program)) if whole else 0
    return total


def _read(value: Instruction, body: dict[str, Instruction], program: Program) -> int:
    """Count the bytes of a value that a fused computation reads."""
    total, whole = 0, sum(a.bytes for a in value.shape)
    for user, i in _users(value.name, body):
        inner = program.computations.get(user.called("calls") or "")
        if user.opcode in _SLICES:
            total += sum(a.bytes for a in user.shape)
        elif user.opcode == "fusion" and inner:
            parameter = next(p for p in inner.values() if p.opcode == "parameter" and int(p.literal) == i)
            total += _read(parameter, inner, program)
        elif user.opcode != "dynamic-update-slice" or i:  # the updated array itself is not read
            return whole
    return min(total, whole)


def _fusion_written(instruction: Instruction, called: dict[str, Instruction], program: Program, skip: set[int]) -> int:
    updates = _updates(called, program)
    if len(updates) != len(instruction.shape):
        updates = [None] * len(instruction.shape)
    results = [(i, update, a) for i, (update, a) in enumerate(zip(updates, instruction.shape)) if a.space == 0]
    return sum((a.bytes if update is None else update) for i, update, a in results if i not in skip)


def _updates(body: dict[str, Instruction], program: Program) -> list[int | None]:
    """Return for each result of a fused computation the bytes that are updated in place, or None for all of it."""
    root = next(i for i in body.values() if i.root)
    return [_update(name, body, program) for name in (root.operands if root.opcode == "tuple" else [root.name])]


def _update(name: str, body: dict[str, Instruction], program: Program) -> int | None:
    value, index = body[name], 0
    while value.opcode in ("bitcast", "get-tuple-element"):
        if value.opcode == "get-tuple-element":
            index = value.number("index") or 0
        value = body[value.operands[0]]
    if value.opcode == "dynamic-update-slice":
        return body[value.operands[1]].shape[0].bytes
    inner = program.computations.get(value.called("calls") or "") if value.opcode == "fusion" else None
    updates = _updates(inner, program) if inner else []
    return updates[index] if index < len(updates) else None
