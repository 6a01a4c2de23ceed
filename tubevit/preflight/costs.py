"""Costs of a compiled program per device: FLOPs of matrix products, main memory traffic, collectives.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import functools
import math
import re

from tubevit.preflight.hlo import Array, Instruction, Program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
         "ragged-all-to-all")  # fmt: skip
# These move no memory themselves.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all",
         "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done", "iota",
         "add-dependency", "domain", "send-done", "recv-done"}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


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
                kind, size = between.group(1).lower().replace("_", "-"), _shape(body, instruction.operands[0])[0].bytes
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
            operands = sum(a.bytes for operand in instruction.operands for a in _shape(body, operand))
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


def flops(program: Program, multiply: bool = True) -> int:
    """Count the FLOPs of all matrix products and convolutions, 2 per multiply-add."""
    total = 0
    for name, times, _ in program.runs(multiply):
        body = program.computations[name]
        for instruction in body.values():
            is_cublas = instruction.opcode == "custom-call" and "__cublas" in instruction.attributes
            if instruction.opcode == "convolution":
                total += times * _convolution_flops(instruction, body)
            elif instruction.opcode == "dot" or is_cublas:
                total += times * _dot_flops(instruction, body)
    return total


def _shape(body: dict[str, Instruction], name: str) -> tuple[Array, ...]:
    return body[name].shape if name in body else ()


def _dot_flops(instruction: Instruction, body: dict[str, Instruction]) -> int:
    contracted = re.search(r'lhs_contracting_(?:dims=\{|dimensions":\[)([0-9,"]*)', instruction.attributes)
    left = _shape(body, instruction.operands[0])
    if not contracted or not left:
        return 0
    dims = [int(axis) for axis in re.findall(r"\d+", contracted.group(1))]
    return 2 * math.prod(instruction.shape[0].dims) * math.prod(left[0].dims[axis] for axis in dims)


def _convolution_flops(instruction: Instruction, body: dict[str, Instruction]) -> int:
    """Count as XLA does: window positions in the padding or between dilated inputs are free."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left, right = (_shape(body, name) for name in instruction.operands[:2])
    if not labels or not left or not right:
        return 0
    inputs, kernel, output = labels.groups()
    out = instruction.shape[0].dims
    total = 2 * out[output.index("b")] * out[output.index("f")] * right[0].dims[kernel.index("i")]
    total //= instruction.number("batch_group_count") or 1
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    for axis in range(len(output) - 2):
        label = str(axis)
        low = int(_field(fields, "pad", axis, "0_0").split("_")[0])
        sizes = (int(_field(fields, key, axis, "1")) for key in ("size", "stride", "lhs_dilate", "rhs_dilate"))
        total *= _valid(left[0].dims[inputs.index(label)], out[output.index(label)], low, *sizes)
    return total


def _field(fields: dict[str, str], key: str, axis: int, default: str) -> str:
    return fields[key].split("x")[axis] if key in fields else default


@functools.cache
def _valid(size: int, outputs: int, low: int, window: int, stride: int, dilation: int, kernel_dilation: int) -> int:
    """Count the pairs of output and window position that read an input."""
    count = 0
    for k in range(window):
        for o in range(outputs):
            position = o * stride + k * kernel_dilation - low
            count += position >= 0 and position % dilation == 0 and position // dilation < size
    return count


def hbm_bytes(program: Program, multiply: bool = True) -> int:
    """Count the bytes that all instructions read from and write to main memory; a fusion counts as one instruction.

    Arrays that are only sliced count with the size of the slices, arrays that are updated in place with the size of
    the update. Arrays in VMEM do not count. The count follows from the program text; it is not a measurement.
    """
    total = 0
    for name, times, fused in program.runs(multiply):
        if not fused:
            body = program.computations[name]
            total += times * sum(_moved(instruction, body, program) for instruction in body.values())
    return total


def _moved(instruction: Instruction, body: dict[str, Instruction], program: Program) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
        return 0
    operands = [_shape(body, name) for name in instruction.operands]
    written = sum(a.hbm for a in instruction.shape)
    if opcode == "copy-start":  # its result is (destination, source, context)
        return sum(a.hbm for a in instruction.shape[:2])
    if opcode in _SLICES:
        from_hbm = bool(operands) and operands[0][0].space == 0
        return written + (sum(a.bytes for a in instruction.shape) if from_hbm else 0)
    if opcode == "dynamic-update-slice":
        update = operands[1][0]
        return update.hbm + (update.bytes if instruction.shape[0].space == 0 else 0)
    called = program.computations.get(instruction.called("calls") or "") if opcode == "fusion" else None
    if not called:
        return written + sum(a.hbm for shape in operands for a in shape)
    return _fusion_read(operands, called, program) + _fusion_written(instruction, called, program)


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


def _fusion_written(instruction: Instruction, called: dict[str, Instruction], program: Program) -> int:
    updates = _updates(called, program)
    if len(updates) != len(instruction.shape):
        updates = [None] * len(instruction.shape)
    return sum((a.bytes if update is None else update) for update, a in zip(updates, instruction.shape) if a.space == 0)


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
