"""Budgets of training steps: bytes, exchanges, memory and kernels of each experiment, compiled for TPU slices.

    python benchmarks/step_budgets.py                        # compiles all rows and lists what exceeds its budget
    python benchmarks/step_budgets.py --only k600 --update   # makes what is compiled now the budget

Each compiler of constraints.txt has its own budgets: run --update with Python 3.11 and with Python 3.12 or newer.
tests/extras/test_step_budget.py compiles the rows, too, and fails where a figure exceeds its budget by 5 %. A row has
one block, or a frozen and a trained one, not in a loop, and low effort of the compiler, so that it takes about a
minute; most have the width of B. Bytes and cycles are not those of a run, but what a block moves, exchanges and keeps
changes as it does in a run. k400 and k700 are the program of k600, table6 and table9 those of bootstrap and k600, and
the sparse rows of table5 that of k600; its dense one has a row, of 8 frames.
Nothing runs on a TPU.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import re
from collections.abc import Callable, Mapping

import jax

from tubevit.errors import RunError, TubeViTError
from tubevit.preflight.run import compile_in_process, preflight
from tubevit.preflight.topology import find_topology

CSV = pathlib.Path(__file__).with_suffix(".csv")
CONSTRAINTS = CSV.parent.parent / "constraints.txt"
KEYS, FIGURES = ("experiment", "changes", "topology", "compiler"), ("hbm_mb", "sent_mb", "peak_mib", "kernel_kcycles")
FIELDS = ["experiment", "changes", "topology", *FIGURES, "compiler", "jax"]
ABOVE = 1.05  # times a budget is too much
ONE = {"model.depth": 1, "model.scan": False}
FROZEN = ONE | {"model.depth": 2, "train.freeze_below": 1}
ROWS = [  # experiment, changes, topology
    ("k600", {"mesh.fsdp": 4} | ONE, "v5e:8x8"),
    ("k600", {"mesh.fsdp": 4, "train.elastic": "75%,100%"} | ONE, "v5e:8x8"),
    ("k600:model=tubevit_l16", {"mesh.fsdp": 4} | ONE, "v6e:4x4"),
    ("ssv2:model=tubevit_b16", ONE, "v5e:8x8"),
    ("charades:model=tubevit_b16", ONE, "v5e:8x8"),
    ("imagenet", ONE, "v5e:2x4"),
    ("bootstrap:small=tubevit_s16,large=vit_b16,train_last=1", FROZEN, "v5e:2x4"),
    ("quickstart", ONE, "v5e:1x1"),
    ("table5:row=inflated_3d", ONE | {"input.frames": 8}, "v5e:8x8"),
]


def key_of(experiment: str, changes: Mapping, topology: str) -> tuple[str, str, str]:
    """Return what identifies a row except the compiler."""
    return experiment, " ".join(f"{key}={value}" for key, value in changes.items()), topology


def figures(train: Mapping) -> dict[str, float]:
    """Return the figures of a compiled step, see `preflight`, that have a budget.

    Raises RunError if the compiler found that the step needs more memory than the chip has.
    """
    if "peak" not in train:
        needed = "more memory than the chip has" if train["needed"] is None else f"{train['needed'] / 2**20:,.0f} MiB"
        raise RunError(f"the step does not fit: it needs {needed} ({train['message']})")
    return {
        "hbm_mb": round(train["hbm_bytes"] / 1e6, 2),
        "sent_mb": round(sum(kind["sent"] for kind in train["collectives"].values()) / 1e6, 3),
        "peak_mib": round(train["peak"] / 2**20, 2),
        "kernel_kcycles": round(train["kernel_bundles"] / 1e3, 1),
    }


def measure(experiment: str, changes: Mapping, topology: str, compiler: Callable = compile_in_process) -> dict:
    """Compile a step; returns a row of the csv."""
    overrides = {key: str(value) for key, value in changes.items()}
    found = preflight(experiment, overrides, find_topology(topology), ("train",), "low", compiler=compiler)
    train = found["parts"]["train"]
    key = dict(zip(KEYS, (*key_of(experiment, changes, topology), found["compiler"])))
    return key | figures(train) | {"jax": jax.__version__}


def exceeded(found: Mapping, budget: Mapping) -> dict[str, tuple[float, float]]:
    """Return {figure: (found, budget)} where a budget is exceeded by 5 %."""
    pairs = {name: (float(found[name]), float(budget[name])) for name in FIGURES}
    return {name: (value, limit) for name, (value, limit) in pairs.items() if value > ABOVE * limit}


def pinned_compilers() -> list[str]:
    """List the compilers of constraints.txt, each of which has its own budgets."""
    return [f"libtpu {name}" for name in re.findall(r"^libtpu==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)]


def read() -> dict[tuple[str, ...], dict]:
    """Read the budgets by what identifies them."""
    if not CSV.exists():
        return {}
    with CSV.open() as file:
        return {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}


def main(arguments: list[str] | None = None, compiler: Callable = compile_in_process) -> int:
    """Compile the rows, compare them with their budgets, and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="compile only rows that contain this text")
    parser.add_argument("--update", action="store_true", help="write what is compiled into the csv")
    args = parser.parse_args(arguments)
    if not any(args.only in " ".join(key_of(*entry)) for entry in ROWS):
        parser.error(f"no row contains {args.only!r}; rows:\n" + "\n".join(" ".join(key_of(*entry)) for entry in ROWS))
    known, failed, above_any = read(), False, False
    for entry in ROWS:
        key = key_of(*entry)
        if args.only not in " ".join(key):
            continue
        try:
            found = measure(*entry, compiler)
        except TubeViTError as error:
            print(f"{' '.join(key)}: {error}", flush=True)
            failed = True
            continue
        key = (*key, found["compiler"])
        above = exceeded(found, known[key]) if key in known else {}
        above_any |= bool(above) or key not in known
        verdict = f"exceeds {above}" if above else "" if key in known else "has no budget"
        print(*key, *(f"{name} {found[name]:g}" for name in FIGURES), verdict, flush=True)
        if args.update:
            known[key] = {name: str(value) for name, value in found.items()}
            with CSV.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                compilers = dict.fromkeys([*pinned_compilers(), found["compiler"]])
                keys = [(*key_of(*row), name) for name in compilers for row in ROWS]
                writer.writerows(known[key] for key in keys if key in known)
    return int(failed or (above_any and not args.update))


if __name__ == "__main__":
    raise SystemExit(main())
