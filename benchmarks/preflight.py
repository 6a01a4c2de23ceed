"""Compile every experiment for TPU slices: does it fit, and how long would a step take.

    python benchmarks/preflight.py [--only TEXT]      # about 90 minutes on 2 cores; needs pip install -e '.[tpu]'
    python benchmarks/preflight.py --page             # only writes the table of docs/preflight.md from the csv

Rows with `cuda:` need the two packages that `tubevit preflight` names; rows whose compiler is missing keep their values
in the csv. Nothing runs on an accelerator: times are the estimates of `tubevit preflight`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import pathlib

import jax

from tubevit.errors import UserError
from tubevit.preflight.report import FORMULA
from tubevit.preflight.run import compile_in_process, preflight
from tubevit.preflight.topology import GIB, find_topology

CSV = pathlib.Path(__file__).with_suffix(".csv")
# Four of the steps as they were at commit 76d898f, before the attention kernel: its checkout with this script and
# tubevit/preflight of today. With model.remat=full where the step did not fit otherwise.
BEFORE = CSV.with_name("preflight_before.csv")
PAGE = pathlib.Path(__file__).parent.parent / "docs/preflight.md"
BEGIN, END = "<!-- written by benchmarks/preflight.py -->\n", "<!-- end -->\n"
FULL_EFFORT_LIMIT = 3600  # seconds: no row has low effort, however slow or busy the machine is
FSDP = {"mesh.fsdp": 16}
TWO_SLICES = {"mesh.slices": 2, "data.train.k600.batch_size": 512, "data.train.imagenet.batch_size": 512}
FULL = {"model.remat": "full"}
ROWS = [  # experiment, changes, topology
    ("k600", {"mesh.fsdp": 4}, "v5e:4x4"),
    ("k600", {"mesh.fsdp": 8}, "v5e:8x8"),
    ("k600:model=tubevit_l16", {"mesh.fsdp": 4, "model.scan": False}, "v6e:4x4"),
    ("k600:model=tubevit_h16", FSDP, "v5e:16x16"),
    ("k600:model=tubevit_h16", FSDP, "v6e:16x16"),
    ("k600:model=tubevit_h16", {}, "v5p:4x8x8"),
    ("k600:model=tubevit_h16", FSDP | TWO_SLICES, "v5e:16x16"),
    ("k600:model=tubevit_l16", {"mesh.fsdp": 4}, "v6e:4x4"),
    ("k600:model=tubevit_l16", {}, "v6e:16x16"),
    ("k600", FULL | {"train.grad_accum_steps": 8}, "v5e:2x2"),
    ("k600", {}, "v5e:8x8"),
    ("k400", {}, "v6e:8x8"),
    ("k700", {}, "v5p:2x4x4"),
    ("imagenet", {}, "v5e:2x4"),
    ("ssv2", {}, "v6e:8x8"),
    ("charades", {}, "v6e:8x8"),
    ("table5:row=joint", {}, "v5e:16x16"),
    ("table5:row=inflated_3d", FULL, "v5p:4x8x8"),
    ("bootstrap", {}, "v5e:16x16"),
    ("table6:row=full", FSDP, "v5e:16x16"),
    ("table6:row=last_8_gate", {}, "v5e:16x16"),
    ("table9:row=full", {}, "v5e:8x8"),
    ("quickstart", {}, "v5e:1x1"),
    ("moving_digits", {}, "v5e:1x1"),
    ("digits_bootstrap:stage=scratch", {}, "v5e:1x1"),
    ("finetune", {}, "v5e:1x1"),
    ("k600", FULL, "cuda:h100x8"),
]
FIELDS = [
    "experiment", "changes", "topology", "devices", "fits", "arguments_gib", "temporaries_gib", "train_peak_gib",
    "eval_peak_gib", "hbm_gib", "tflops", "hbm_gb", "sent_gb", "sent_between_slices_gb", "flops_per_byte",
    "step_ms_least", "step_ms_most", "mfu_least", "mfu_most", "xla_ms", "kernel_ms", "mfu_by_cycles", "effort",
    "compile_s", "compiler_gb", "compiler", "jax", "date",
]  # fmt: skip


def row(experiment: str, changes: dict, topology: str) -> dict:
    """Compile training and evaluation; returns a row of the csv."""
    overrides = {key: str(value) for key, value in changes.items()}
    compiler = functools.partial(compile_in_process, limit=FULL_EFFORT_LIMIT)
    result = preflight(experiment, overrides, find_topology(topology), ("train", "eval"), compiler=compiler)
    train, evaluation = result["parts"]["train"], result["parts"].get("eval", {})
    values = {
        **key_of(experiment, changes, topology),
        "devices": result["devices"],
        "fits": result["fits"],
        "train_peak_gib": _gib(train.get("needed") or 0),
        "eval_peak_gib": _gib(evaluation.get("peak", evaluation.get("needed") or 0)),
        "hbm_gib": _gib(result["chip"]["hbm"]),
        "compile_s": round(sum(part["seconds"] for part in result["parts"].values()), 1),
        "compiler_gb": round(result["memory_of_compiler"] / 1e9, 2),
        "compiler": result["compiler"],
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    return values | train_figures(train) if "flops" in train else values


def train_figures(train: dict) -> dict:
    """Return the columns of a training step that was compiled."""
    e = train["estimate"]
    between_slices = sum(row["sent"] for kind, row in train["collectives"].items() if "slices" in kind)
    within_slice = sum(row["sent"] for kind, row in train["collectives"].items() if "slices" not in kind)
    values = {
        "arguments_gib": _gib(train["arguments"]),
        "temporaries_gib": _gib(train["temporaries"]),
        "train_peak_gib": _gib(train["peak"]),
        "tflops": round(train["flops"] / 1e12, 3),
        "hbm_gb": round(train["hbm_bytes"] / 1e9, 2),
        "sent_gb": round(within_slice / 1e9, 3),
        "sent_between_slices_gb": round(between_slices / 1e9, 3),
        "flops_per_byte": round(train["intensity"]),
        "step_ms_least": round(1e3 * e["least"], 1),
        "step_ms_most": round(1e3 * e["most"], 1),
        "mfu_least": round(e["mfu_least"], 3),
        "mfu_most": round(e["mfu_most"], 3),
        "effort": train["effort"],
    }
    if "xla" in e:
        values |= {
            "xla_ms": round(1e3 * e["xla"], 1),
            "kernel_ms": round(1e3 * e["kernels"], 1),
            "mfu_by_cycles": round(e["mfu_by_cycles"], 3),
        }
    return values


def key_of(experiment: str, changes: dict, topology: str) -> dict:
    """Return the columns that identify a row."""
    text = " ".join(f"{key}={value}" for key, value in changes.items())
    return {"experiment": experiment, "changes": text, "topology": topology}


def _gib(count: float) -> float:
    return round(count / GIB, 2)


def page(rows: list[dict]) -> str:
    """Write the table of the documentation."""
    lines = [
        "| experiment | changes | topology | peak of training, evaluation, GiB | of | TFLOPs | HBM GB | sent GB |"
        " roofline, ms | MFU | cycles of XLA + kernels, ms | MFU by cycles |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        between = float(r["sent_between_slices_gb"] or 0)
        slices = f" + {r['sent_between_slices_gb']} between slices" if between else ""
        topology = f"2 x {r['topology']}" if "mesh.slices=2" in r["changes"] else r["topology"]
        changes = ", ".join(f"`{change}`" for change in r["changes"].split())
        fits = "" if str(r["fits"]) == "True" else " (does not fit)"
        lines.append(
            f"| `{r['experiment']}` | {changes} | `{topology}` | {r['train_peak_gib']}, {r['eval_peak_gib']}{fits} "
            f"| {r['hbm_gib']} | {r['tflops']} | {r['hbm_gb']} | {r['sent_gb']}{slices} "
            f"| {r['step_ms_least']} to {r['step_ms_most']} | {_percent(r['mfu_least'])} to {_percent(r['mfu_most'])} "
            f"| {_cycles(r)} |"
        )
    lines += ["", *comparison(rows)]
    compilers = ", ".join(dict.fromkeys(f"jax {r['jax']} and {r['compiler']}" for r in rows))
    return "\n".join([*lines, "", f"Figures per device and step, compiled with {compilers}. Times are {FORMULA}.", ""])


def comparison(rows: list[dict]) -> list[str]:
    """Write a table of the rows of `BEFORE`, each beside the first row of its experiment and topology."""
    lines = [
        "Steps before attention was a kernel and activations were kept by name → now:", "",
        "| experiment | topology | changes | peak of training, GiB | HBM GB | sent GB | cycles, ms | MFU by cycles |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for old in read(BEFORE).values():
        new = next(
            r for r in rows if r["xla_ms"] and (r["experiment"], r["topology"]) == (old["experiment"], old["topology"])
        )
        cells = [f"`{old['experiment']}`", f"`{old['topology']}`", _pair(old, new, "changes")]
        cells += [_pair(old, new, key) for key in ("train_peak_gib", "hbm_gb", "sent_gb")]
        times = (f"{float(r['xla_ms']) + float(r['kernel_ms']):.1f}" for r in (old, new))
        shares = (_percent(r["mfu_by_cycles"]) for r in (old, new))
        lines.append(f"| {' | '.join([*cells, ' → '.join(times), ' → '.join(shares)])} |")
    return lines


def _pair(old: dict, new: dict, key: str) -> str:
    return " → ".join(r[key].replace(" ", ", ") or "none" for r in (old, new))


def _cycles(r: dict) -> str:
    """Write the cells of the cycles, empty where the clock is unknown or the row is older than the columns."""
    if not r.get("xla_ms"):
        return "| "
    low = " (low effort)" if r["effort"] == "low" else ""
    return f"{r['xla_ms']} + {r['kernel_ms']}{low} | {_percent(r['mfu_by_cycles'])}"


def _percent(share) -> str:
    """Write a share with the digits of the csv, which are rounded already."""
    return f"{float(share or 0):.1%}"


def write_page(rows: list[dict]) -> None:
    """Replace the table in the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + page(rows) + END + rest.partition(END)[2])


def read(path: pathlib.Path = CSV) -> dict[tuple, dict]:
    """Read the rows of a csv by the columns that identify them."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {(r["experiment"], r["changes"], r["topology"]): r for r in csv.DictReader(file)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="compile only rows that contain this text")
    parser.add_argument("--page", action="store_true", help="only write the table of the documentation")
    args = parser.parse_args(arguments)
    known = read()
    keys = [tuple(key_of(*entry).values()) for entry in ROWS]
    for key, entry in zip(keys, ROWS):
        if args.page or args.only not in " ".join(key):
            continue
        try:
            known[key] = {name: str(value) for name, value in row(*entry).items()}
        except UserError as error:
            print(f"{' '.join(key)}: {error}", flush=True)
            continue
        found = known[key]
        print(*key, found["fits"], found["train_peak_gib"], found["eval_peak_gib"], found["compile_s"], flush=True)
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known[k] for k in keys if k in known)
    write_page([known[k] for k in keys if k in known])


if __name__ == "__main__":
    main()
