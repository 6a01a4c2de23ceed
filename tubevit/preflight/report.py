"""The results of a preflight: figures derived from those of the compiler, and the report."""

import dataclasses
from collections.abc import Mapping, Sequence

from tubevit.preflight.costliest import costliest
from tubevit.preflight.topology import GIB, Chip, Topology

FORMULA = (
    "estimates, not measurements: between maximum and sum of matmul FLOPs / peak, HBM bytes / bandwidth and bytes sent "
    "/ network; MFU = model FLOPs / (time x peak)"
)


def estimate(part: Mapping, chip: Chip, model_flops: float | None = None) -> dict:
    """Estimate the step time in seconds from the published peaks of the chip; nothing is measured.

    Args:
        part: figures of a compiled part, see `worker`.
        chip: the peaks.
        model_flops: FLOPs of the model per device and step, without recomputation.

    Returns:
        The times "compute", "memory", "network" and "slices", "least" (all overlap) and "most" (none overlap), "bound"
        (the longest), and with `model_flops` the shares "mfu_most" and "mfu_least" of the peak. If the clock of the
        chip is known, also "xla", the time of the cycles that XLA expects, "kernels", that of the bundles of kernels,
        and with `model_flops` "mfu_by_cycles", the share of the peak in the sum of both.
    """
    sent = {between: 0.0 for between in (False, True)}
    for collective in part["collectives"]:
        sent[collective["between_slices"]] += collective["sent"]
    times = {
        "compute": part["flops"] / chip.flops, "memory": part["hbm_bytes"] / chip.bandwidth,
        "network": sent[False] / chip.network, "slices": sent[True] / (chip.slices_network or 1),
    }  # fmt: skip
    bound = max(times, key=times.__getitem__)
    result: dict = times | {"least": times[bound], "most": sum(times.values()), "bound": bound}
    if model_flops is not None:
        best = model_flops / chip.flops
        result["mfu_most"], result["mfu_least"] = (best / max(result[key], 1e-12) for key in ("least", "most"))
    if chip.clock:
        result |= {"xla": part["xla_cycles"] / chip.clock, "kernels": part["kernel_bundles"] / chip.clock}
        if model_flops is not None:
            cycles = result["xla"] + result["kernels"]
            result["mfu_by_cycles"] = model_flops / chip.flops / max(cycles, 1e-12)
    return result


def by_kind(collectives: list[Mapping]) -> dict[str, dict]:
    """Sum collectives by kind: {kind: {"instructions", "runs", "bytes" (of the arrays), "sent"}}."""
    kinds: dict[str, dict] = {}
    for c in collectives:
        name = f"{c['kind']} between slices" if c["between_slices"] else c["kind"]
        row = kinds.setdefault(name, {"instructions": 0, "runs": 0, "bytes": 0, "sent": 0.0})
        row["instructions"] += 1
        row["runs"] += c["times"]
        row["bytes"] += c["times"] * c["bytes"]
        row["sent"] += c["sent"]
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["bytes"]))


def completed(result: Mapping, topology: Topology, top: Mapping[str, int] | None = None) -> dict:
    """Complete the result of the compiler with derived figures; `--json` prints this.

    `top` is {"bytes" or "cycles": number of the costliest instructions of the training step that stay}.
    """
    chip, parts = topology.chip, {}
    for name, part in result["parts"].items():
        part = dict(part)
        if "flops" in part:
            part["intensity"] = part["flops"] / max(part["hbm_bytes"], 1)
            part["estimate"] = estimate(part, chip, result.get("model_flops") if name == "train" else None)
            part["collectives"] = by_kind(part["collectives"])
            instructions = part.pop("instructions")
            if name == "train":
                part["top"] = {key: costliest(instructions, key, count) for key, count in (top or {}).items() if count}
        parts[name] = part
    figures = {key: value for key, value in dataclasses.asdict(chip).items() if key != "platform"}
    return {
        **result, "topology": topology.name, "asked": topology.asked or topology.name, "chip": figures,
        "parts": parts, "fits": all(part["fits"] for part in parts.values()), "formula": FORMULA,
    }  # fmt: skip


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


_ROWS = (  # of the table: label, key, text
    ("arguments", "arguments", _size),
    ("outputs", "outputs", _size),
    ("temporaries", "temporaries", _size),
    ("program", "code", _size),
    ("peak", "peak", _size),
    ("TFLOPs", "flops", lambda x: f"{x / 1e12:.3f}"),
    ("HBM traffic", "hbm_bytes", lambda x: f"{x / 1e9:.2f} GB"),
    ("FLOPs/byte", "intensity", lambda x: f"{x:.0f}"),
    ("effort", "effort", str),
    ("compiled in", "seconds", lambda x: f"{x:.1f} s"),
)


def report(found: Mapping) -> str:
    """Write the report of a completed result."""
    chip, compiled = found["chip"], {name: part for name, part in found["parts"].items() if "flops" in part}
    translation = f"{found['asked']} is {found['topology']}: " if found["asked"] != found["topology"] else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    batch = ", ".join(f"{name} {size}" for name, size in found["batch"].items())
    lines = [
        f"{translation}{found['topology']}, {found['devices']} devices, mesh {mesh}; {found['compiler']}",
        *(f"note: {note}" for note in found["notes"]), f"{found['model']}, batch: {batch}", "",
    ]  # fmt: skip
    if compiled:
        lines.append(f"{'per device':12s}" + "".join(f"{name:>14s}" for name in compiled))
        for label, key, text in _ROWS:
            lines.append(f"{label:12s}" + "".join(f"{text(part[key]):>14s}" for part in compiled.values()))
        lines.append("")
        for name, part in compiled.items():
            lines.append(f"collectives of {name}:" if part["collectives"] else f"collectives of {name}: none")
            for kind, row in part["collectives"].items():
                size, sent = _size(row["bytes"]), _size(row["sent"])
                lines.append(f"  {kind:32s}{row['runs']:6d} runs {size:>12s}   {sent} sent")
        ridge = chip["flops"] / chip["bandwidth"]
        lines.append(f"{chip['name']}: {_size(chip['hbm'])} HBM; compute bound above {ridge:.0f} FLOPs/byte")
        lines += _estimates(compiled)
        if loops := sum(part["unknown_loops"] for part in compiled.values()):
            lines.append(f"note: {loops} loops of unknown length are counted once")
        if kernels := sum(part["uncounted_kernels"] for part in compiled.values()):
            lines.append(f"note: the cycles of {kernels} kernels are unknown and not counted")
        for key, rows in compiled.get("train", {}).get("top", {}).items():
            lines += ["", *_table(key, rows, chip["clock"])]
    return "\n".join([*lines, *verdicts(found)])


def _estimates(compiled: Mapping) -> list[str]:
    names = {"compute": "compute", "memory": "memory", "network": "the network", "slices": "the network between slices"}
    lines = []
    for name, part in compiled.items():
        e = part["estimate"]
        mfu = f", MFU {e['mfu_least']:.0%} to {e['mfu_most']:.0%}" if "mfu_most" in e else ""
        lines.append(f"{name}: {1e3 * e['least']:.1f} to {1e3 * e['most']:.1f} ms, bound by {names[e['bound']]}{mfu}")
        if "xla" in e:
            mfu = f", MFU by cycles {e['mfu_by_cycles']:.0%}" if "mfu_by_cycles" in e else ""
            kernels = f" + {1e3 * e['kernels']:.1f} ms in kernels by their bundles" if part["kernel_bundles"] else ""
            lines.append(f"{name} by cycles: {1e3 * e['xla']:.1f} ms by XLA's count{kernels}{mfu}")
    return [*lines, f"({FORMULA})"]


def _table(key: str, rows: Sequence[Mapping], clock: float) -> list[str]:
    """Write the costliest instructions, one line each."""
    header = ("share", "GB", "ms" if clock else "cycles", "runs", "direction", "what", "source", "result")
    cells = [
        (
            f"{row['share']:.1%}", f"{row['bytes'] / 1e9:.3f}",
            f"{1e3 * row['cycles'] / clock:.3f}" if clock else str(row["cycles"]), str(row["times"]),
            row["direction"], row["what"], row["source"], row["result"],
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    lines = [
        "  ".join(cell.rjust(width) if i < 4 else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in (header, *cells)
    ]
    return [f"costliest instructions of train by {key}:", *(line.rstrip() for line in lines)]


def verdicts(found: Mapping) -> list[str]:
    """Return a line for each part that does not fit and one of advice, or one line if all parts fit."""
    hbm, lines = found["chip"]["hbm"], []
    for name, part in found["parts"].items():
        needed = part.get("peak", part.get("needed"))
        if needed is None:
            lines.append(f"DOES NOT FIT: {name}: {part['message']}")
        elif not part["fits"]:
            lines.append(f"DOES NOT FIT: {name} needs {_size(needed)} of {_size(hbm)}, {_size(needed - hbm)} too much")
    if lines:
        advice = "model.remat=full, mesh.fsdp=N, train.grad_accum_steps=N, smaller batches, more chips"
        return [*lines, f"to save memory: {advice}; --suggest tries them"]
    peak = max(part["peak"] for part in found["parts"].values())
    return [f"FITS: at most {_size(peak)} of {_size(hbm)} ({peak / hbm:.0%})"]
