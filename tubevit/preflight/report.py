"""What a preflight found: figures that follow from those of the compiler, and the text."""

from __future__ import annotations

from collections.abc import Mapping

from tubevit.preflight.topology import GIB, Chip, Topology

FORMULA = (
    "estimates, nothing measured: between max and sum of matmul FLOPs / peak, HBM bytes / bandwidth and bytes sent / "
    "network; MFU = model FLOPs / (time x peak)"
)


def estimate(part: Mapping, chip: Chip, model_flops: float | None = None) -> dict:
    """Step time by the chip's published peaks, in seconds; an estimate with nothing measured in it.

    Args:
        part: figures of a compiled part, see `worker`.
        chip: its peaks.
        model_flops: FLOPs of a device that the step is worth, without what is recomputed.

    Returns:
        {"compute", "memory", "network", "slices", "least" (all overlap), "most" (none does), "mfu_most", "mfu_least",
        "bound"}: seconds, and shares of the peak if `model_flops` is given.
    """
    exchanges = part["collectives"]
    times = {
        "compute": part["flops"] / chip.flops,
        "memory": part["hbm_bytes"] / chip.bandwidth,
        "network": sum(c["sent"] for c in exchanges if not c["between_slices"]) / chip.network,
        "slices": sum(c["sent"] for c in exchanges if c["between_slices"]) / (chip.slices_network or 1),
    }
    result = {**times, "least": max(times.values()), "most": sum(times.values())}
    result["bound"] = max(times, key=times.get)
    if model_flops is not None:
        result["mfu_most"], result["mfu_least"] = (
            model_flops / chip.flops / max(result[key], 1e-12) for key in ("least", "most")
        )
    return result


def by_kind(exchanges: list[Mapping]) -> dict[str, dict]:
    """{kind: {"instructions", "runs", "bytes"}} of the exchanges of a step; bytes are those of the arrays."""
    kinds: dict[str, dict] = {}
    for c in exchanges:
        name = f"{c['kind']} between slices" if c["between_slices"] else c["kind"]
        row = kinds.setdefault(name, {"instructions": 0, "runs": 0, "bytes": 0, "sent": 0.0})
        for key, value in (("instructions", 1), ("runs", c["times"]), ("bytes", c["times"] * c["bytes"])):
            row[key] += value
        row["sent"] += c["sent"]
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["bytes"]))


def completed(result: Mapping, topology: Topology) -> dict:
    """The result of `compile_parts` with what follows from it; this is what `--json` prints."""
    chip, parts = topology.chip, {}
    for name, part in result["parts"].items():
        part = dict(part)
        if "flops" in part:
            part["intensity"] = part["flops"] / max(part["hbm_bytes"], 1)
            part["estimate"] = estimate(part, chip, result.get("model_flops") if name == "train" else None)
            part["collectives"] = by_kind(part["collectives"])
        parts[name] = part
    chip_figures = {"name": chip.name, "hbm": chip.hbm, "flops": chip.flops, "bandwidth": chip.bandwidth}
    chip_figures |= {"network": chip.network, "slices_network": chip.slices_network}
    return {
        **result,
        "topology": topology.name,
        "asked": topology.asked or topology.name,
        "chip": chip_figures,
        "parts": parts,
        "fits": all(part["fits"] for part in parts.values()),
        "formula": FORMULA,
    }


def report(found: Mapping) -> str:
    """The text of a completed result."""
    chip, lines = found["chip"], []
    translation = f"{found['asked']} is {found['topology']}: " if found["asked"] != found["topology"] else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    lines.append(f"{translation}{found['topology']}, {found['devices']} devices, mesh {mesh}; {found['compiler']}")
    lines += [f"note: {note}" for note in found["notes"]]
    batch = ", ".join(f"{name} {size}" for name, size in found["batch"].items())
    lines += [f"{found['model']}, batch: {batch}", ""]
    compiled = {name: part for name, part in found["parts"].items() if "flops" in part}
    if compiled:
        lines.append(f"{'of a device':12s}" + "".join(f"{name:>14s}" for name in compiled))
        for label, key in (
            ("arguments", "arguments"), ("outputs", "outputs"), ("temporaries", "temporaries"), ("program", "code"),
            ("peak", "peak"),
        ):  # fmt: skip
            lines.append(f"{label:12s}" + "".join(f"{_size(part[key]):>14s}" for part in compiled.values()))
        for label, key, text in (
            ("TFLOPs", "flops", lambda x: f"{x / 1e12:.3f}"),
            ("HBM traffic", "hbm_bytes", lambda x: f"{x / 1e9:.2f} GB"),
            ("FLOPs/byte", "intensity", lambda x: f"{x:.0f}"),
            ("compiled in", "seconds", lambda x: f"{x:.1f} s"),
        ):
            lines.append(f"{label:12s}" + "".join(f"{text(part[key]):>14s}" for part in compiled.values()))
        lines += ["", *(line for name, part in compiled.items() for line in _exchanges(name, part))]
        ridge = chip["flops"] / chip["bandwidth"]
        lines.append(f"{chip['name']}: {_size(chip['hbm'])} HBM; matrix units bound from {ridge:.0f} FLOPs/byte on")
        lines += _estimates(compiled)
        loops = sum(part["unknown_loops"] for part in compiled.values())
        lines += [f"note: {loops} loops of unknown length are counted once"] * bool(loops)
    return "\n".join([*lines, *verdicts(found)])


def _exchanges(name: str, part: Mapping) -> list[str]:
    rows = part["collectives"]
    if not rows:
        return [f"collectives of {name}: none"]
    return [f"collectives of {name}:"] + [
        f"  {kind:32s}{row['runs']:6d} runs {_size(row['bytes']):>12s}   {_size(row['sent'])} sent"
        for kind, row in rows.items()
    ]


def _estimates(compiled: Mapping) -> list[str]:
    names = {"compute": "matrix units", "memory": "memory", "network": "the network", "slices": "the slices' network"}
    lines = []
    for name, part in compiled.items():
        e = part["estimate"]
        text = f"{name}: {1e3 * e['least']:.1f} to {1e3 * e['most']:.1f} ms, bound by {names[e['bound']]}"
        if "mfu_most" in e:
            text += f", MFU {e['mfu_least']:.0%} to {e['mfu_most']:.0%}"
        lines.append(text)
    return [*lines, f"({FORMULA})"]


def verdicts(found: Mapping) -> list[str]:
    """A line for each part that does not fit, or the one that all do."""
    chip, lines = found["chip"], []
    for name, part in found["parts"].items():
        if part["fits"]:
            continue
        needed = part.get("peak", part.get("needed"))
        if needed is None:
            lines.append(f"DOES NOT FIT: {name}: {part['message']}")
            continue
        more = _size(needed - chip["hbm"])
        lines.append(f"DOES NOT FIT: {name} needs {_size(needed)} of {_size(chip['hbm'])}, {more} too much")
    if lines:
        room = "model.remat=full, mesh.fsdp=N, train.grad_accum_steps=N, smaller batches, more chips"
        return [*lines, f"what makes room: {room}; --suggest tries them"]
    peak = max(part["peak"] for part in found["parts"].values())
    return [f"FITS: at most {_size(peak)} of {_size(chip['hbm'])} ({peak / chip['hbm']:.0%})"]


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
