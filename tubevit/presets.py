"""The texts of the tube presets. NumPy only."""

import re

# Table 12, with its space-to-depth ("2x temporal" and "4x spatial", paper.md section 8, rows 7 and 8).
_PAPER = "8x8x8/16x32x32%2x1x1_16x4x4/6x32x32+4x8x8%1x2x2_4x12x12/16x32x32+0x16x16_1x16x16/32x16x16"
_PLAIN_PAPER = re.sub(r"%\d+x\d+x\d+", "", _PAPER)
# Vocabulary of Table 14.
_KERNELS = dict(a="1x16x16", b="4x32x32", c="4x4x4", d="4x12x12", e="8x8x8", f="16x4x4", g="16x16x16", h="32x8x8")
_STRIDES = dict(i="4x16x16", ii="8x8x8", iii="8x32x32", iv="16x16x16", v="32x32x32")
_TABLE_14 = (
    "a+iv b+v f+iv", "c+iv e+v g+iv", "a+iv e+v g+iv", "b+iv e+v g+iv",
    "a+iv d+v e+iv h+v", "a+iv b+v c+iv h+v", "a+iv d+v e+iv f+v",
)  # fmt: skip


def _table_14(row: str) -> str:
    pairs = (pair.split("+") for pair in row.split())
    return "_".join(f"{_KERNELS[kernel]}/{_STRIDES[stride]}" for kernel, stride in pairs)


TEXTS = {
    "paper": _PAPER,
    "paper_no_s2d": _PLAIN_PAPER,
    "interpolated": _PLAIN_PAPER,  # Table 7e
    "core": "1x16x16/16x16x16_8x8x8/16x16x16",  # section 3.4
    "image_2d": "1x16x16/32x16x16",
    "image_2d_stride16": "1x16x16/16x16x16",  # section 3.2
    # Appendix B gives only kernels and says that the strides are unchanged: each tube keeps that of Table 12.
    "charades": "16x16x16/16x32x32_32x8x8/6x32x32+4x8x8_4x32x32/16x32x32+0x16x16_1x16x16/32x16x16",
    **{f"table14_{i}": _table_14(row) for i, row in enumerate(_TABLE_14, 1)},
    "small": "4x4x4/8x16x16%2x1x1_8x2x2/3x16x16+2x4x4%1x2x2_2x6x6/8x16x16+0x8x8_1x8x8/16x8x8",
    "dense_2x16x16": "2x16x16/2x16x16",
    "dense_1x16x16": "1x16x16/1x16x16",
}
INTERPOLATED = ("interpolated",)  # presets whose 3D tubes share a kernel
