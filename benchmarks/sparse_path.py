"""Compare whole clips with windows of tubes on TPUs, compiled ahead of time: memory traffic and estimated step time.

    python benchmarks/sparse_path.py [--only TEXT]    # about 10 minutes on 2 cores; needs pip install -e '.[tpu]'
    python benchmarks/sparse_path.py --page        # writes the tables of docs/sparse_input.md only, from the csv files

Compiles training steps of the experiment `ssv2` in bfloat16 with 16 clips of 32x224x224 per chip, with and without its
mixup, which converts all pixels to floats. Nothing runs on an accelerator: times are estimates by `tubevit preflight`.
The tables of the input pipeline are made from benchmarks/input_pipeline.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import pathlib

import jax

from tubevit.preflight.report import FORMULA
from tubevit.preflight.run import compile_in_process, preflight
from tubevit.preflight.topology import find_topology
from tubevit.tubes import PRESETS
from tubevit.zoo.describe import sent_bytes

CSV = pathlib.Path(__file__).with_suffix(".csv")
PIPELINE = CSV.with_name("input_pipeline.csv")
PAGE = CSV.parent.parent / "docs/sparse_input.md"
MARKS = {name: (f"<!-- {name}: written by benchmarks/sparse_path.py -->\n", f"<!-- end of {name} -->\n")
         for name in ("bytes", "pipeline", "device")}  # fmt: skip
CLIPS = 16  # per chip
PATHS = ("dense", "tubes")
ROWS = [  # topology, model, mixup
    ("v5e:2x2", "tubevit_b16", 0.0),
    ("v5e:2x2", "tubevit_l16", 0.0),
    ("v6e:2x2", "tubevit_b16", 0.0),
    ("v6e:2x2", "tubevit_l16", 0.0),
    ("v5e:2x2", "tubevit_b16", 0.3),
    ("v5e:2x2", "tubevit_l16", 0.3),
]
KEY = ("topology", "model", "mixup", "path")
FIELDS = [
    *KEY, "remat", "fits", "peak_gib", "tokenizer_gb", "encoder_gb", "step_gb", "tokenizer_ms", "step_ms_least",
    "step_ms_most", "compile_s", "compiler", "jax", "date",
]  # fmt: skip


def row(topology: str, model: str, mixup: float, path: str) -> dict:
    """Compile a training step and the forward passes of tokenizer and encoder; return the row of the csv."""
    where, remat = find_topology(topology), {"model.remat": "full"} if model == "tubevit_l16" else {}
    changes = {
        "input.path": path,
        "data.train.ssv2.batch_size": CLIPS * where.devices,
        "train.mixup": mixup,
        "init.checkpoint": "",
        **remat,
    }
    overrides = {key: str(value) for key, value in changes.items()}
    compiler = functools.partial(compile_in_process, limit=None)  # both paths with full effort
    parts = ("train", "tokenizer", "encoder")
    found = preflight(f"ssv2:model={model}", overrides, where, parts, compiler=compiler)
    train, tokenizer, encoder = (found["parts"][part] for part in ("train", "tokenizer", "encoder"))
    values = {
        "remat": "".join(remat.values()),
        "fits": found["fits"],
        "compiler": found["compiler"],
        "jax": jax.__version__,
    }
    values |= {"compile_s": round(sum(part["seconds"] for part in found["parts"].values()), 1)}
    values |= {"peak_gib": round(train.get("peak", train.get("needed") or 0) / 2**30, 2)}
    values |= {"tokenizer_gb": _gb(tokenizer), "encoder_gb": _gb(encoder), "date": datetime.date.today().isoformat()}
    values["tokenizer_ms"] = round(1e3 * tokenizer["estimate"]["least"], 2)
    if "estimate" in train:
        values["step_gb"] = _gb(train)
        values |= {f"step_ms_{end}": round(1e3 * train["estimate"][end], 1) for end in ("least", "most")}
    return {**dict(zip(KEY, (topology, model, mixup, path))), **values}


def _gb(part: dict) -> float:
    return round(part["hbm_bytes"] / 1e9, 3)


def device_table(rows: list[dict]) -> list[str]:
    """Return the table of the device, with both paths of a case in one row."""
    lines = [
        "| topology | model | mixup | tokenizer, GB | encoder, GB | whole step, GB | tokenizer's share | step, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cases: dict[tuple, dict] = {}
    for r in rows:
        cases.setdefault((r["topology"], r["model"], r["mixup"]), {})[r["path"]] = r
    for (topology, model, mixup), case in cases.items():
        if set(case) != set(PATHS):
            continue
        both = [case[path] for path in PATHS]
        share = [f"{float(r['tokenizer_gb']) / float(r['step_gb']):.1%}" for r in both]
        times = [f"{r['step_ms_least']} to {r['step_ms_most']}" for r in both]
        cells = [" → ".join(r[key] for r in both) for key in ("tokenizer_gb", "encoder_gb", "step_gb")]
        cells += [" → ".join(share), " → ".join(times)]
        lines.append(f"| `{topology}` | `{model}` | {float(mixup) or 'none'} | " + " | ".join(cells) + " |")
    compilers = ", ".join(dict.fromkeys(f"jax {r['jax']} and {r['compiler']}" for r in rows))
    return [*lines, "", f"Dense → tubes, of a device and a step; compiled with {compilers}. Times are {FORMULA}."]


def bytes_table() -> list[str]:
    """Return the table of bytes per uint8 clip for every preset, at 32 and 64 frames of 224x224."""
    lines = [
        "| tubes | 32 frames: dense, tubes, kB | share | 64 frames: dense, tubes, kB | share |",
        "|---|---|---|---|---|",
    ]
    for name, tubes in PRESETS.items():
        cells = []
        for frames in (32, 64):
            size = sent_bytes(tubes, (frames, 224, 224))["clip"]
            cells += [f"{size['dense'] / 1e3:,.0f}, {size['tubes'] / 1e3:,.0f}", f"{size['tubes'] / size['dense']:.1%}"]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def pipeline_table(rows: list[dict]) -> list[str]:
    """Return the table of speed with the latest row of each case, followed by the memory."""
    lines = [
        "| key frame every | clip | augmentation | decoding | dense | tubes | tubes / dense | took the dense path |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for case, r in {(r["gop"], r["sampling"], r["augment"]): r for r in rows if r["tubes"]}.items():
        paths = (("pipeline", "share_of_decoding"), ("tubes", "tubes_share_of_decoding"))
        cells = [*case, r["decoding"], *(f"{r[rate]} ({float(r[share]):.0%})" for rate, share in paths)]
        cells += [f"{float(r['tubes_to_pipeline']):.2f}", f"{float(r['dense_clips']):.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    memory = {r["path"]: int(r["highest_mib"]) - int(r["before_mib"]) for r in rows if r["before_mib"]}
    if memory:
        dense, tubes = memory["pipeline"], memory["tubes"]
        lines += ["", "Loading batches of 32 clips of 64 frames in 4 threads raises the memory of a process by"]
        lines += [f"{dense} MiB on the dense path and by {tubes} MiB with tubes ({tubes / dense:.0%})."]
    return lines


def read(path: pathlib.Path) -> list[dict]:
    """Read the rows of a csv file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def page(text: str) -> str:
    """Replace the tables in the documentation."""
    tables = {"bytes": bytes_table(), "pipeline": pipeline_table(read(PIPELINE)), "device": device_table(read(CSV))}
    for name, lines in tables.items():
        begin, end = MARKS[name]
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="compile only the rows that contain this text")
    parser.add_argument("--page", action="store_true", help="only write the tables of the documentation")
    args = parser.parse_args(arguments)
    known = {tuple(r[key] for key in KEY): r for r in read(CSV)} if CSV.exists() else {}
    keys = [tuple(map(str, (*case, path))) for case in ROWS for path in PATHS]
    for key, entry in zip(keys, [(*case, path) for case in ROWS for path in PATHS]):
        if args.page or args.only not in " ".join(key):
            continue
        known[key] = {name: str(value) for name, value in row(*entry).items()}
        print(known[key], flush=True)
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known[k] for k in keys if k in known)
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
