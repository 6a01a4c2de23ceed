"""Count the instruction bundles that a TPU kernel runs, from the text in which libtpu dumps them. No JAX needed.

XLA estimates no cycles for a Pallas kernel. The chip issues one bundle of instructions per cycle unless it stalls, so
the number of bundles that run is a lower bound of the cycles. Which bundles run, and how often, depends on scalars
alone: the indices of the grid, and the counters of loops. This module runs that scalar part of the program.
"""

import dataclasses
import pathlib
import re

from tubevit.preflight.hlo import Instruction, Program, is_kernel, shape_of

# libtpu reads these flags when it is loaded. The folder gets one text per instruction of the program.
DUMP_FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false "
    "--xla_jf_dump_llo_pass_label_regex=^final_bundles"
)
_DUMP = re.compile(r"^\d+-(.+)-\d+-final_bundles\.txt$")
_BUNDLE = re.compile(r"^ *(0x[0-9a-f]+|0) +[A-Z]*: *[> ]*\{(.*)$")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_INSTRUCTION = re.compile(r"%(\S+) = (s[a-z0-9_.]+|p[a-z]+)\b(.*)")
_PREDICATE = re.compile(r"\((!?%p\w+)(?:, (%\w+))?\),?")
_DELAY = 4  # bundles after a branch that still run
_MOST_STEPS = 20_000_000


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """One scalar instruction; `only_if` is the predicate under which it runs, `otherwise` the value it keeps."""

    result: str
    opcode: str
    operands: tuple[str, ...]
    only_if: str = ""
    otherwise: str = ""


def kernel_bundles(program: Program, folder: pathlib.Path) -> dict[str, int | None]:
    """Return {kernel: bundles of one call, or None if unknown} of a program that was compiled with `DUMP_FLAGS`.

    The compiler dumps kernels that are the same only once.
    """
    dumps = {found.group(1): path for path in folder.iterdir() if (found := _DUMP.match(path.name))}
    kernels = {
        instruction.name: _code(instruction, body)
        for body in program.computations.values() for instruction in body.values() if is_kernel(instruction)
    }  # fmt: skip
    dumped = {code: name for name, code in kernels.items() if name in dumps}
    counts = {code: count_bundles(dumps[name].read_text()) for code, name in dumped.items()}
    return {name: counts.get(code) for name, code in kernels.items()}


def _code(kernel: Instruction, body: dict[str, Instruction]) -> tuple:
    """Return what the code of a kernel follows from: its source, and its arrays with the memories they are in."""
    source = re.search(r'"body":"([^"]*)"', kernel.attributes)
    arrays = (kernel.shape, *(shape_of(body, name) for name in kernel.operands))
    return source.group(1) if source else "", arrays


def count_bundles(text: str) -> int | None:
    """Count the bundles that run in one call of a kernel; None if a loop depends on data, or the format is unknown."""
    bundles, regions, last = _parse(text)
    return _Run(bundles, regions).count(last) if last else None


def _parse(text: str) -> tuple[dict[int, list[_Scalar]], dict[str, int], int]:
    """Return the scalar instructions by address, the addresses of regions, and the last address."""
    bundles: dict[int, list[_Scalar]] = {}
    regions: dict[str, int] = {}
    address = 0
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        address = int(found.group(1), 16)
        for region in _REGION.findall(line):
            regions.setdefault(region, address)
        parts = re.sub(r"/\*.*?\*/", "", found.group(2)).split(";;")
        scalars = [scalar for part in parts if (scalar := _scalar(part.strip(" {}")))]
        if scalars:  # a phi takes the value that its register has before the bundle
            bundles[address] = sorted(scalars, key=lambda scalar: scalar.opcode != "sphi")
    return bundles, regions, address


def _scalar(text: str) -> _Scalar | None:
    found = _INSTRUCTION.match(text)
    if not found:
        return None
    result, opcode, rest = found.groups()
    predicate = _PREDICATE.search(rest)
    rest = _PREDICATE.sub("", rest)
    if opcode in ("sst", "sld"):  # the address first
        address, _, value = rest.strip().partition("]] ")
        operands = (address.rstrip("]"), value.strip())
    else:
        operands = tuple(part.strip() for part in rest.split(","))
    if predicate is None:
        return _Scalar(result, opcode, operands)
    return _Scalar(result, opcode, operands, predicate.group(1), predicate.group(2) or "")


class _UnknownLoop(Exception):
    pass


class _Run:
    """The state of the scalar unit. A value that depends on data or addresses is None."""

    def __init__(self, bundles: dict[int, list[_Scalar]], regions: dict[str, int]):
        self.bundles, self.regions = bundles, regions
        self.values: dict[str, int | None] = {}
        self.registers: dict[str, int | None] = {}  # the last value of each, which is that of a phi
        self.memory: dict[str, int | None] = {}

    def count(self, last: int) -> int | None:
        """Run from the first bundle to the last; returns the number of bundles, or None for an unknown loop."""
        stops = sorted({0, *self.bundles, *self.regions.values(), last})  # what lies between them has no scalars
        following = dict(zip(stops, stops[1:]))
        position, total, leave, target = 0, 0, None, 0
        for _ in range(_MOST_STEPS):
            try:
                jump = self._execute(position)
            except _UnknownLoop:
                return None
            if jump is not None:
                leave, target = position + _DELAY, jump
            after = following.get(position, last + 1)
            if leave is not None and after > leave:
                total += leave + 1 - position
                position, leave = target, None
            else:
                total += after - position
                position = after
            if position > last:
                return total
        return None

    def _execute(self, address: int) -> int | None:
        """Run the scalar instructions of a bundle and return the address that it jumps to, or None."""
        target = None
        for scalar in self.bundles.get(address, ()):
            runs = self._value(scalar.only_if) if scalar.only_if else 1
            if scalar.opcode.startswith("sbr"):
                to = self.regions.get(scalar.operands[-1].rpartition("$region")[2])
                if runs is None and to is not None and to <= address:
                    raise _UnknownLoop
                target = to if runs else target  # after an unknown forward branch, all code runs
                continue
            if runs == 0 and not scalar.otherwise:
                continue
            value = self._value(scalar.otherwise) if runs == 0 else self._result(scalar) if runs else None
            if scalar.opcode == "sst":
                self.memory[scalar.operands[0]] = value
            else:
                self.values[scalar.result] = value
                self.registers[scalar.result.rpartition("_")[2]] = value
        return target

    def _value(self, text: str) -> int | None:
        if text.startswith("!"):
            value = self._value(text[1:])
            return None if value is None else int(not value)
        if text.startswith("%"):
            return self.values.get(text[1:])
        return _wrapped(int(text, 0)) if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text) else None

    def _result(self, scalar: _Scalar) -> int | None:
        opcode = scalar.opcode
        if opcode == "sphi":
            return self.registers.get(scalar.result.rpartition("_")[2])
        if opcode == "sld":
            return self.memory.get(scalar.operands[0])
        if opcode == "sst":
            return self._value(scalar.operands[1])
        values = [self._value(operand) for operand in scalar.operands]
        if opcode == "scalar_select" and len(values) == 3:
            condition, yes, no = values
            return None if condition is None else yes if condition else no
        if opcode == "por" and 1 in values:
            return 1
        if opcode in ("pand", "pnand") and 0 in values:
            return int(opcode == "pnand")
        if None in values:
            return None
        return _computed(opcode, [value for value in values if value is not None])


def _computed(opcode: str, values: list[int]) -> int | None:
    name, _, kind = opcode.partition(".")
    if name == "scmp" and len(values) == 2:
        relation, _, kind = kind.partition(".")
        a, b = (value % 2**32 if kind.startswith("u32") else value for value in values)
        known = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
        return int(known[relation]) if relation in known else None
    if len(values) == 1:
        return {"smov": values[0], "pmov": values[0], "pneg": int(not values[0])}.get(name)
    if len(values) != 2:
        return None
    a, b = values
    whole = {
        "sadd": a + b, "ssub": a - b, "smul": a * b, "sand": a & b, "sor": a | b, "sxor": a ^ b,
        "sshll": a << (b & 31), "sshra": a >> (b & 31), "sshrl": (a % 2**32) >> (b & 31),
        "smax": max(a, b), "smin": min(a, b), "por": a | b, "pand": a & b, "pnand": int(not a & b), "pxor": a ^ b,
    }.get(name)  # fmt: skip
    return None if whole is None else _wrapped(whole)


def _wrapped(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31
