"""Parse the text of a compiled program (HLO): instructions, calls, and loops with their trip counts. No JAX needed."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_TABLE = re.compile(r"^(FileNames|FileLocations|StackFrames)\n((?:\d+ .*\n?)+)", re.MULTILINE)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape; `space` is 0 in main memory and otherwise a memory on the chip (VMEM, SMEM)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Size in bytes without padding."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"[0-9]+", self.dtype)
            bits = int(digits.group()) if digits else 32
        return math.prod(self.dims) * bits // 8

    @property
    def hbm(self) -> int:
        """Size in bytes if it is in main memory, else 0."""
        return self.bytes if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of the Python stack under which an instruction was traced."""

    file: str
    line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: `name = shape opcode(operands), attributes`."""

    name: str
    shape: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    def called(self, key: str) -> str | None:
        """Return the computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def text(self, key: str) -> str:
        """Return the quoted text that an attribute holds, such as `op_name`, or an empty text."""
        found = re.search(rf'\b{key}="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def number(self, key: str) -> int | None:
        """Return the whole number that an attribute holds, such as `channel_id`."""
        found = re.search(rf"\b{key}=(\d+)", self.attributes)
        return int(found.group(1)) if found else None


def arrays(text: str) -> tuple[Array, ...]:
    """Parse a shape, which is one array or a tuple of arrays."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Array(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    right = f" {right}"
    opcode = _OPCODE.search(right)
    if not equals or not opcode:
        return None
    depth, end = 1, opcode.end()
    while depth and end < len(right):
        depth += {"(": 1, ")": -1}.get(right[end], 0)
        end += 1
    inside = right[opcode.end() : end - 1]
    name = left.removeprefix("ROOT ").removeprefix("%")
    shape = arrays(right[: opcode.start()])
    operands = tuple(_NAME.findall(inside))
    return Instruction(name, shape, opcode.group(1), operands, inside, right[end:], left.startswith("ROOT "))


class Program:
    """The computations of a program, {name: {name: Instruction}} in order; `entry` is the name of the main one."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._tables = {name: _numbered(rows) for name, rows in _TABLE.findall(text)}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = _HEAD.match(line) if line and not line.startswith(" ") else None
            if head and "->" in line:
                current = self.computations.setdefault(head.group(2), {})
                self.entry = head.group(2) if head.group(1) else self.entry
            elif line.startswith(" "):
                found = _instruction(line)
                if found:
                    current[found.name] = found

    def stack(self, instruction: Instruction) -> list[Frame]:
        """Return the stack under which an instruction was traced, innermost frame first; empty if unknown."""
        frames, frame = [], instruction.number("stack_frame_id") or 0
        while row := self._tables.get("StackFrames", {}).get(frame):
            fields = _fields(row)
            location = _fields(self._tables["FileLocations"][fields["file_location_id"]])
            file = self._tables["FileNames"][location["file_name_id"]].strip('"')
            frames.append(Frame(file, location["line"]))
            frame = fields.get("parent_frame_id", 1) - 1  # 1 and no number stand for no parent
        return frames

    def trip_count(self, loop: Instruction, computation: str) -> int | None:
        """Return how often a loop runs, or None if unknown. JAX's scans count from one constant up to another."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations.get(loop.called("condition") or "", {})
        bounds = [int(i.literal) for i in condition.values() if i.opcode == "constant" and _whole(i)]
        if not bounds:
            return None
        return max(bounds) - self._start(loop, self.computations[computation], condition)

    def _start(self, loop: Instruction, scope: dict[str, Instruction], condition: dict[str, Instruction]) -> int:
        """Return the initial value of the counter, the element of the initial tuple that the condition reads."""
        initial = scope.get(loop.operands[0]) if loop.operands else None
        for element in (i for i in condition.values() if i.opcode == "get-tuple-element"):
            index = element.number("index")
            if initial is None or initial.opcode != "tuple" or index is None or element.shape[0].dims:
                continue
            value = scope.get(initial.operands[index])
            while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
                value = scope.get(value.operands[0])
            if value is not None and value.opcode == "constant" and _whole(value):
                return int(value.literal)
        return 0

    @functools.cached_property
    def unknown_loops(self) -> int:
        """The number of loops with unknown trip count; their bodies count once."""
        pairs = ((name, i) for name, body in self.computations.items() for i in body.values())
        return sum(i.opcode == "while" and self.trip_count(i, name) is None for name, i in pairs)

    def runs(self, multiply: bool = True) -> list[tuple[str, int, bool]]:
        """List (computation, number of runs, whether it is in a fusion); without `multiply` loop bodies count once."""
        counts: dict[tuple[str, bool], int] = collections.Counter()

        def visit(name: str, times: int, fused: bool) -> None:
            counts[name, fused] += times
            for instruction in self.computations.get(name, {}).values():
                for called, inside in self._calls(instruction):
                    trips = 1
                    if instruction.opcode == "while" and multiply:
                        trips = self.trip_count(instruction, name) or 1
                    visit(called, times * trips, fused or inside)

        visit(self.entry, 1, False)
        return [(name, times, fused) for (name, fused), times in counts.items()]

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, bool]]:
        """Yield the computations that an instruction runs and whether as a fusion, without scalar reducers."""
        opcode = instruction.opcode
        if opcode == "while":
            keys, fused = ("body",), False
        elif opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            yield from ((name, False) for name in _NAME.findall(branches.group(1) if branches else ""))
            keys, fused = ("true_computation", "false_computation"), False
        elif opcode in ("fusion", "custom-call"):
            keys, fused = ("calls", "called_computations"), True
        elif opcode in ("call", "async-start"):
            keys, fused = ("to_apply", "calls"), False
        else:
            return
        for key in keys:
            called = instruction.called(key)
            if called in self.computations:
                yield called, fused


def _whole(instruction: Instruction) -> bool:
    return bool(re.fullmatch(r"-?\d+", instruction.literal)) and instruction.shape[0].dtype[0] in "su"


def _numbered(rows: str) -> dict[int, str]:
    pairs = (row.split(" ", 1) for row in rows.splitlines())
    return {int(number): rest for number, rest in pairs}


def _fields(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}


def shape_of(body: dict[str, Instruction], name: str) -> tuple[Array, ...]:
    """Return the shape of an operand, empty if it is not in the text."""
    return body[name].shape if name in body else ()


def is_kernel(instruction: Instruction) -> bool:
    """Return whether an instruction calls a Pallas kernel for TPUs."""
    return instruction.opcode == "custom-call" and instruction.text("custom_call_target") == "tpu_custom_call"
