"""Names of TPU slices and GPUs, gcloud's accelerator types, and the public figures of the chips."""

from __future__ import annotations

import dataclasses
import math
import re

from tubevit.errors import UserError, closest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one device as a program sees it (a TPU7x chip is two devices; a chip of the others is one).

    Attributes:
        name: as in topologies.
        hbm: bytes that a program may use; of TPUs what the compiler checks against, a little below the data sheet.
        flops: peak bfloat16 FLOP/s, dense.
        bandwidth: of the memory, bytes/s.
        network: bytes/s that it can send to the others (ICI, NVLink), all links together.
        slices_network: bytes/s that it can send to another slice; 0 where there are none.
        platform: `tpu` or `cuda`.
    """

    name: str
    hbm: int
    flops: float
    bandwidth: float
    network: float
    slices_network: float = 0
    platform: str = "tpu"

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which matrix units, not memory, bound a program."""
        return self.flops / self.bandwidth


CHIPS = {  # figures as their makers publish them, per device; between slices v4's and TPU7x's are taken as v5p's
    "v4": Chip("v4", int(30.75 * GIB), 275e12, 1.228e12, 300e9, 6.25e9),
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 0.819e12, 200e9, 3.125e9),
    "v5p": Chip("v5p", int(95.74 * GIB), 459e12, 2.765e12, 600e9, 6.25e9),
    "v6e": Chip("v6e", int(31.25 * GIB), 918e12, 1.638e12, 400e9, 12.5e9),
    "tpu7x": Chip("tpu7x", int(94.75 * GIB), 1153.5e12, 3.69e12, 300e9, 6.25e9),
    "h100": Chip("h100", 84_942_979_072, 989e12, 3.35e12, 450e9, platform="cuda"),
    "h200": Chip("h200", 150_110_011_392, 989e12, 4.8e12, 450e9, platform="cuda"),
}
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16",
       "16x16x16", "16x16x24")  # fmt: skip
SHAPES = {"v4": _3D[:-1], "v5e": _2D, "v5p": _3D, "v6e": _2D, "tpu7x": _3D}
# gcloud's names count chips, or TensorCores, two a chip.
_ACCELERATORS = {"v5litepod": ("v5e", 1), "v6e": ("v6e", 1), "v4": ("v4", 2), "v5p": ("v5p", 2)}
_GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: `v5e:16x16`, `cuda:h100x8`.
        chip: its figures.
        devices: of one slice; TPU7x has two on a chip.
        shape: of the slice, in chips.
        asked: what the user wrote, where it is another name for it.
    """

    name: str
    chip: Chip
    devices: int
    shape: tuple[int, ...]
    asked: str | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is of GPUs."""
        return self.chip.platform == "cuda"

    @property
    def attention(self) -> str:
        """What attention `auto` is there, see `tubevit.models.block.attention`: XLA's."""
        return "xla"


def accelerator_types() -> dict[str, str]:
    """{gcloud's accelerator type: topology}, e.g. v5litepod-256: v5e:16x16."""
    types = {}
    for kind, (chip, cores) in _ACCELERATORS.items():
        for shape in SHAPES[chip]:
            types[f"{kind}-{cores * math.prod(_sizes(shape))}"] = f"{chip}:{shape}"
    return types


def topologies() -> list[str]:
    """Every name of a topology."""
    tpus = [f"{chip}:{shape}" for chip, shapes in SHAPES.items() for shape in shapes]
    gpus = [chip.name for chip in CHIPS.values() if chip.platform == "cuda"]
    return [*tpus, *(f"cuda:{name}" + (f"x{n}" if n > 1 else "") for name in gpus for n in _GPUS)]


def find_topology(text: str) -> Topology:
    """The topology of a name, `v5e:16x16` or `cuda:h100x8`, or of gcloud's accelerator type, `v5litepod-256`.

    Raises:
        UserError: no such name; it names the closest.
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
    """Names the closest: of the same chip where the chip is known, by the number of its chips."""
    kind, separator, rest = re.match(r"([a-z0-9]*)(\W?)(.*)", name).groups()
    kind = {"v5lite": "v5e", "v5litepod": "v5e", "v6lite": "v6e"}.get(kind, kind)
    numbers = [int(n) for n in re.findall(r"\d+", rest)]
    if kind in SHAPES and numbers:
        if separator == "-":  # an accelerator type: chips or TensorCores
            known = {a: int(a.rpartition("-")[2]) for a, topology in types.items() if topology.startswith(f"{kind}:")}
            near = min(known, key=lambda a: abs(known[a] - numbers[0])) if known else f"{kind}:{SHAPES[kind][0]}"
            near = f"{near} ({types[near]})" if near in types else near
        else:
            near = min(SHAPES[kind], key=lambda shape: abs(math.prod(_sizes(shape)) - math.prod(numbers)))
            near = f"{kind}:{near}"
        return UserError(f"unknown topology {text!r}; did you mean {near}? Valid: {kind}:" + ", ".join(SHAPES[kind]))
    examples = ["v5e:16x16", "v6e:16x16", "v5p:4x8x8", "v4:4x4x8", "tpu7x:2x2x1", "cuda:h100x8", "v5litepod-256"]
    hint = closest(name, [*topologies(), *types])
    hint = hint if hint.startswith("did you") else "for example " + ", ".join(examples)
    return UserError(f"unknown topology {text!r}; {hint}")
