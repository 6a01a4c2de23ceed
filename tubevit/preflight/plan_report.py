"""The report of a plan."""

from collections.abc import Mapping

from tubevit.preflight.topology import GIB

LABEL = (
    "Estimates, not measurements; nothing has run on a TPU. ms: a step, by the larger of the compiler's cycles and the "
    "roofline, which is the longest of matmul FLOPs, HBM bytes and bytes sent, over the published peaks. Hours and "
    "chip-hours: all steps, without input, evaluation and saving. GiB: peak of the training step, by the compiler. "
    "Differences of less than {tolerance:.0%} count as equal."
)
_HEADER = ("slice", "data x fsdp x tensor", "parts", "remat", "attention", "rows", "GiB", "of", "ms", "cycles",
           "roofline", "hours", "chip-hours")  # fmt: skip


def plan_report(found: Mapping) -> str:
    """Write the report of a plan, see `plan.plan`: for each generation of chips the front, with commands."""
    batch = ", ".join(f"{name} {size}" for name, size in found["batch"].items())
    lines = [
        f"{found['config']}: {found['model']}, {found['steps']} steps, batch: {batch}; {found['compiler']}",
        *(f"note: {note}" for note in found["notes"]),
        *(f"left out: {name}: {reason}" for name, reason in found["left_out"].items()),
    ]
    for chip, generation in found["generations"].items():
        compiled = len(generation["front"]) + len(generation["compiled"]) + len(generation["misfits"])
        lines += [
            "",
            f"{chip}: {generation['candidates']} candidates, {compiled} compiled ({len(generation['misfits'])} do not "
            f"fit); {generation['too_large']} need too much memory, {generation['bounded']} cannot be better by their "
            f"bounds, {generation['uncompiled']} stay open",
            *(f"failed: {candidate}: {reason}" for candidate, reason in generation["failed"].items()),
        ]
        if rows := generation["front"]:
            lines += _table(rows)
            lines += filter(None, map(_uncounted, rows))
            lines += ["launch with, in this order:", *(f"  {row['launch']}" for row in rows)]
        if rows := generation["open"]:
            lines += ["not compiled; ms by the share that the compiled steps suggest at most, GiB by arithmetic; "
                      "the first of each slice:"]  # fmt: skip
            lines += _table(rows)
        if row := generation["smallest"]:
            lines.append(f"nothing fits; {row['settings']} needs the least: {needed(row)}")
    several = len(found["generations"]) > 1
    marked = " * is on the front of all chips together, whose hours do not cost the same." if several else ""
    return "\n".join([*lines, "", LABEL.format(tolerance=found["tolerance"]) + marked, f"{found['seconds']:.0f} s"])


def _uncounted(row: Mapping) -> str | None:
    kernels, loops = row["uncounted_kernels"], row["unknown_loops"]
    missing = f"{row['settings']}: the cycles of {kernels} kernels and of {loops} loops are unknown"
    return f"note: {missing}, so that ms is too low" if kernels or loops else None


def needed(row: Mapping) -> str:
    """Say what a row that does not fit needs; the compiler does not always tell."""
    least, of = row["peak"] / GIB, row["hbm"] / GIB
    if row["peak"] <= row["hbm"]:
        return f"more than the {of:.2f} GiB of a device"
    return f"at least {least:.2f} GiB, and a device has {of:.2f} GiB"


def _table(rows: list[Mapping]) -> list[str]:
    cells = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    marks = [" ", *("*" if row.get("best_of_all") else " " for row in rows)]
    return [
        f"{mark} " + "  ".join(cell.ljust(width) if i < 5 else cell.rjust(width) for i, (cell, width) in pairs)
        for mark, pairs in zip(marks, (list(enumerate(zip(row, widths))) for row in cells))
    ]


def _cells(row: Mapping) -> tuple[str, ...]:
    least = "" if row["compiled"] else ">"
    return (
        row["topology"], " x ".join(map(str, row["mesh"].values())), str(row["grad_accum_steps"]), row["remat"],
        row["attention"], str(row["rows"]), f"{least}{row['peak'] / GIB:.2f}", f"{row['hbm'] / GIB:.2f}",
        f"{least}{1e3 * row['seconds']:.1f}",
        f"{1e3 * row['cycles_seconds']:.1f}" if row["compiled"] else "",
        f"{1e3 * row['roofline_seconds']:.1f}" if row["compiled"] else f"{1e3 * row['bound_seconds']:.1f}",
        f"{least}{row['hours']:.1f}", f"{least}{row['chip_hours']:.0f}",
    )  # fmt: skip
