"""FLOPs of a compiled program per device.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs.
"""

import functools
import math
import re

from tubevit.preflight.hlo import Instruction, Program, is_kernel, shape_of

# Products of all queries with all keys in each of its kernels; both backward ones compute the scores again.
_SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


def flops(program: Program, multiply: bool = True) -> int:
    """Count the FLOPs of all matrix products and convolutions, 2 per multiply-add.

    Kernels count with the FLOPs that their authors declare, see `cost_estimate` of `pallas_call`; those of splash
    attention, which declare none, with their products.
    """
    total = 0
    for name, times, _ in program.runs(multiply):
        body = program.computations[name]
        for instruction in body.values():
            is_cublas = instruction.opcode == "custom-call" and "__cublas" in instruction.attributes
            if instruction.opcode == "convolution":
                total += times * _convolution_flops(instruction, body)
            elif instruction.opcode == "dot" or is_cublas:
                total += times * _dot_flops(instruction, body)
            elif is_kernel(instruction):
                total += times * _kernel_flops(instruction, body)
    return total


def _kernel_flops(instruction: Instruction, body: dict[str, Instruction]) -> int:
    declared = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes)
    if declared:
        return int(declared.group(1))
    splash = re.search(r"splash_mha_(fwd|dkv|dq)_", instruction.name)
    if not splash:
        return 0
    arrays = [shape_of(body, name)[0] for name in instruction.operands]
    query = next(array.dims for array in arrays if array.dtype in ("bf16", "f32"))  # masks are integers
    return _SPLASH_PRODUCTS[splash.group(1)] * 2 * math.prod(query) * query[-2]  # ([B,] heads, tokens, width)


def _dot_flops(instruction: Instruction, body: dict[str, Instruction]) -> int:
    contracted = re.search(r'lhs_contracting_(?:dims=\{|dimensions":\[)([0-9,"]*)', instruction.attributes)
    left = shape_of(body, instruction.operands[0])
    if not contracted or not left:
        return 0
    dims = [int(axis) for axis in re.findall(r"\d+", contracted.group(1))]
    return 2 * math.prod(instruction.shape[0].dims) * math.prod(left[0].dims[axis] for axis in dims)


def _convolution_flops(instruction: Instruction, body: dict[str, Instruction]) -> int:
    """Count as XLA does: window positions in the padding or between dilated inputs are free."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left, right = (shape_of(body, name) for name in instruction.operands[:2])
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
