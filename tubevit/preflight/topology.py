"""Names of TPU slices and GPUs, gcloud's accelerator types, and published figures of the chips."""

import dataclasses
import math
import re

from tubevit.errors import UserError, closest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one device as a program sees it; a TPU7x chip is two devices, any other chip one.

    Attributes:
        name: the name in topologies.
        hbm: memory in bytes that a program may use; for TPUs the compiler's limit, slightly below the data sheet.
        flops: dense bfloat16 peak in FLOP/s.
        bandwidth: memory bandwidth in bytes/s.
        network: bytes/s to other devices (ICI, NVLink), all links together.
        slices_network: bytes/s to other slices; 0 if there are no slices.
        clock: cycles/s of a TensorCore; 0 if unknown.
        platform: `tpu` or `cuda`.
    """

    name: str
    hbm: int
    flops: float
    bandwidth: float
    network: float
    slices_network: float = 0
    clock: float = 0
    platform: str = "tpu"


# Published figures per device; slices_network of v4 and TPU7x is that of v5p. The clock is the peak over the FLOPs that
# the matrix units do per cycle: 2 x 128 x 128 in each of 4 (v5e) or 8 (v4, v5p), 2 x 256 x 256 in each of 4 (v6e, where
# Google's page lists 2 units, but libtpu's estimates exceed the FLOPs of 2).
CHIPS = {
    "v4": Chip("v4", int(30.75 * GIB), 275e12, 1.228e12, 300e9, 6.25e9, 1.05e9),
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 0.819e12, 200e9, 3.125e9, 1.5e9),
    "v5p": Chip("v5p", int(95.74 * GIB), 459e12, 2.765e12, 600e9, 6.25e9, 1.75e9),
    "v6e": Chip("v6e", int(31.25 * GIB), 918e12, 1.638e12, 400e9, 12.5e9, 1.75e9),
    "tpu7x": Chip("tpu7x", int(94.75 * GIB), 1153.5e12, 3.69e12, 300e9, 6.25e9),
    "h100": Chip("h100", 84_942_979_072, 989e12, 3.35e12, 450e9, platform="cuda"),
    "h200": Chip("h200", 150_110_011_392, 989e12, 4.8e12, 450e9, platform="cuda"),
}
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16",
       "16x16x16", "16x16x24")  # fmt: skip
SHAPES = {"v4": _3D[:-1], "v5e": _2D, "v5p": _3D, "v6e": _2D, "tpu7x": _3D}
# The number in gcloud's names counts chips, or TensorCores, of which a chip has two.
_ACCELERATORS = {"v5litepod": ("v5e", 1), "v6e": ("v6e", 1), "v4": ("v4", 2), "v5p": ("v5p", 2)}
_GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: for example `v5e:16x16` or `cuda:h100x8`.
        chip: the figures of a device.
        devices: number of devices per slice; TPU7x has two per chip.
        shape: shape of the slice in chips.
        asked: the accelerator type that the user gave instead of the name, or None.
    """

    name: str
    chip: Chip
    devices: int
    shape: tuple[int, ...]
    asked: str | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self.chip.platform == "cuda"


def accelerator_types() -> dict[str, str]:
    """Return {gcloud's accelerator type: topology}, e.g. v5litepod-256: v5e:16x16."""
    return {
        f"{kind}-{cores * math.prod(_sizes(shape))}": f"{chip}:{shape}"
        for kind, (chip, cores) in _ACCELERATORS.items()
        for shape in SHAPES[chip]
    }


def topologies() -> list[str]:
    """List the names of all topologies."""
    tpus = [f"{chip}:{shape}" for chip, shapes in SHAPES.items() for shape in shapes]
    gpus = [chip.name for chip in CHIPS.values() if chip.platform == "cuda"]
    return [*tpus, *(f"cuda:{name}" + (f"x{n}" if n > 1 else "") for name in gpus for n in _GPUS)]


def find_topology(text: str) -> Topology:
    """Find a topology by name, `v5e:16x16` or `cuda:h100x8`, or by gcloud's accelerator type, `v5litepod-256`.

    Raises UserError if there is no such name; the message contains the closest one.
    """
    name = text.strip().lower()
    types = accelerator_types()
    translated = types.get(name)
    name = translated or re.sub(r"^(cuda:\w+?)x1$", r"\1", name)
    if name not in topologies():
        raise _unknown(text, name, types)
    kind, _, shape = name.partition(":")
    asked = text if translated else None
    if kind == "cuda":
        model, _, count = shape.partition("x")
        return Topology(name, CHIPS[model], int(count or 1), (int(count or 1),), asked)
    sizes = _sizes(shape)
    return Topology(name, CHIPS[kind], math.prod(sizes) * (2 if kind == "tpu7x" else 1), sizes, asked)


def _sizes(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def _unknown(text: str, name: str, types: dict[str, str]) -> UserError:
    """Make the error with the closest name: for a known chip, the slice with the closest number of chips."""
    ((kind, separator, rest),) = re.findall(r"^([a-z0-9]*)(\W?)(.*)", name)
    kind = {"v5lite": "v5e", "v5litepod": "v5e", "v6lite": "v6e"}.get(kind, kind)
    numbers = [int(n) for n in re.findall(r"\d+", rest)]
    if kind in SHAPES and numbers:
        if separator == "-":  # an accelerator type: chips or TensorCores
            known = {a: int(a.rpartition("-")[2]) for a, topology in types.items() if topology.startswith(f"{kind}:")}
            near = min(known, key=lambda a: abs(known[a] - numbers[0])) if known else f"{kind}:{SHAPES[kind][0]}"
            near = f"{near} ({types[near]})" if near in types else near
        else:
            shape = min(SHAPES[kind], key=lambda shape: abs(math.prod(_sizes(shape)) - math.prod(numbers)))
            near = f"{kind}:{shape}"
        return UserError(f"unknown topology {text!r}; did you mean {near}? Valid: {kind}:" + ", ".join(SHAPES[kind]))
    examples = ["v5e:16x16", "v6e:16x16", "v5p:4x8x8", "v4:4x4x8", "tpu7x:2x2x1", "cuda:h100x8", "v5litepod-256"]
    hint = closest(name, [*topologies(), *types])
    hint = hint if hint.startswith("did you") else "for example " + ", ".join(examples)
    return UserError(f"unknown topology {text!r}; {hint}")
