"""Time TubeViT-B and the video ViTs that it is compared with, in this package and in Hugging Face's transformers.

    python benchmarks/peers.py     # 15 to 20 minutes on 2 quiet cores, 24 GB; needs pip install -e '.[peers]'
    python benchmarks/peers.py --libraries tubevit --what forward --rounds 3     # about 3 minutes
    python benchmarks/peers.py --page        # writes the page and its figure only, from the csv (extra `plot`)

Times the forward pass and a training step (with Adam) of one clip in float32, with random parameters and 400 classes.
Each model has a process of its own, whose peak memory is reported. The processes take turns; every other round runs in
the reverse order; for training steps one library follows the other, which saves memory. The rates of a matrix product
and of attention alone are measured in the same rounds. transformers uses torch's `scaled_dot_product_attention`, but
computes TimeSformer step by step; it has neither TubeViT nor the factorised encoder. Other work on the machine spoils
the times. Rows replace those of the same model in benchmarks/peers.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import textwrap
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the other files of this folder

from benchmarks.results import read, replace, svg_pyplot, write  # noqa: E402
from tubevit.preflight.worker import peak_memory  # noqa: E402

CSV = pathlib.Path(__file__).with_suffix(".csv")
PAGE = CSV.parent.parent / "docs/peers.md"
FIGURE = PAGE.parent / "figures/peers.svg"
BEGIN = "<!-- results: written by benchmarks/peers.py -->\n"
MODELS = {  # ours, its name, and the class in transformers
    "tubevit_b16": ("TubeViT-B, paper's tubes", None),
    "videomae_b16": ("VideoMAE-B", "VideoMAE"),
    "timesformer_b16": ("TimeSformer-B", "Timesformer"),
    "vivit_fe_b16x2": ("ViViT-B, factorised encoder", None),
    "vivit_b16x2": ("ViViT-B, joint", "Vivit"),
}
LIBRARIES = {"tubevit": "this package", "torch": "transformers"}
WHAT = {"forward": "forward pass", "step": "training step"}
RATES = ("matmul", "attention")
RATE_SIZES = {False: (2048, 1568), True: (64, 16)}  # side of the matrices and tokens; those of tests
REMAT = ("vivit_b16x2",)  # its scores of all blocks would take 11 GiB in a training step
CLASSES = 400
TINY = dict(width=24, depth=1, num_heads=2, mlp_dim=48, size=32)  # for tests
KEY = ("what", "model", "library")
FIELDS = [
    *KEY, "frames", "tokens", "parameters", "gflop", "wall_s", "wall_s_least", "wall_s_most", "cpu_s", "import_mib",
    "peak_mib", "remat", "matmul_gflop_s", "attention_gflop_s", "rounds", "load", "threads", "processor", "versions",
    "date",
]  # fmt: skip


def our_call(name: str, what: str, tiny: bool):
    """Return a call of one of our models, and what is known about it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from tubevit.config import dataset_config, default_config
    from tubevit.models.abstract import graph_of, initial_parameters
    from tubevit.models.flops import count, count_flops, num_tokens, training_flops
    from tubevit.models.variants import model_config
    from tubevit.training.optimizer import make_optimizer
    from tubevit.training.step import initial_state, make_step

    remat = "full" if what == "step" and name in REMAT else "none"
    model = model_config(name, num_classes=CLASSES, remat=remat, **TINY if tiny else {})
    clip = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, *model.shape, 3), np.uint8))
    params = jax.eval_shape(lambda: initial_parameters(model, 0))
    known = {"tokens": num_tokens(model, model.shape), "parameters": count(params), "frames": model.frames}
    if what == "forward":
        params = jax.jit(lambda: initial_parameters(model, 0))()
        forward = jax.jit(lambda params, clip: nnx.merge(graph_of(model), params)(clip))
        known["gflop"] = count_flops(model, model.shape, "default").total / 1e9
        return lambda: jax.block_until_ready(forward(params, clip)), known
    config = default_config()
    config.data.train.clips = dataset_config(source="clips", head="default", batch_size=1)
    optimizer = make_optimizer(config)
    step = make_step(graph_of(model), optimizer, config)
    states = [jax.jit(lambda: initial_state(model, optimizer, 0))()]
    batch = {"clips": {"pixels": clip, "label": jnp.zeros(1, jnp.int32)}}

    def call():
        states[0] = jax.block_until_ready(step(states[0], batch)[0])

    known |= {"gflop": training_flops(model, model.shape, "default") / 1e9, "remat": remat}
    return call, known


def their_call(name: str, what: str, tiny: bool):
    """Return a call of a model of transformers, and what is known about it."""
    import numpy as np
    import torch

    model = their_model(name, tiny, "eager" if MODELS[name][1] == "Timesformer" else "sdpa")
    config = model.config
    shape = (1, config.num_frames, 3, config.image_size, config.image_size)
    clip = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))
    known = {"parameters": sum(p.numel() for p in model.parameters()), "frames": config.num_frames}
    known |= {"gflop": their_flop(name, what, tiny, shape) / 1e9}
    if what == "forward":
        model.eval()

        def forward():
            with torch.inference_mode():
                model(clip)

        return forward, known
    optimizer, label = torch.optim.Adam(model.train().parameters(), lr=5e-5), torch.zeros(1, dtype=torch.long)

    def step():
        optimizer.zero_grad()
        model(clip, labels=label).loss.backward()
        optimizer.step()

    return step, known


def their_model(name: str, tiny: bool, attention: str):
    """Make a model of transformers with random parameters."""
    import torch
    import transformers

    theirs = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
    sizes = dict(zip(theirs, TINY.values())) if tiny else {}
    config = getattr(transformers, f"{MODELS[name][1]}Config")(
        num_labels=CLASSES, attn_implementation=attention, **sizes
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{MODELS[name][1]}ForVideoClassification")(config)


def their_flop(name: str, what: str, tiny: bool, shape: tuple[int, ...]) -> int:
    """Count the FLOP of the model in matrix products, which torch counts; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, clip, label = their_model(name, tiny, "eager"), torch.zeros(shape), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            loss = model(clip, labels=label).loss
            if what == "step":
                loss.backward()
    return counter.get_total_flops()


def rate_flop(rate: str, tiny: bool) -> int:
    """Count the FLOP of `rate_call`."""
    side, tokens = RATE_SIZES[tiny]
    return {"matmul": 2 * side**3, "attention": 4 * tokens**2 * 12 * 64}[rate]


def rate_call(library: str, rate: str, tiny: bool):
    """Return a call of a matrix product, or of attention with the sizes of VideoMAE-B."""
    side, tokens = RATE_SIZES[tiny]
    shape = (1, tokens, 12, 64)
    if library == "tubevit":
        import jax
        import jax.numpy as jnp

        from tubevit.models.attention import attention

        square, heads = jnp.ones((side, side)), jax.random.normal(jax.random.key(0), shape)
        product = jax.jit(lambda a: a @ a)
        attend = jax.jit(lambda x: attention(x, x, x, "einsum"))
        call = {"matmul": lambda: product(square), "attention": lambda: attend(heads)}[rate]
        return lambda: jax.block_until_ready(call())
    import torch

    square, heads = torch.ones(side, side), torch.randn(shape).transpose(1, 2).contiguous()
    attend = torch.nn.functional.scaled_dot_product_attention
    return {"matmul": lambda: square @ square, "attention": lambda: attend(heads, heads, heads)}[rate]


def work(library: str, name: str, what: str, threads: int, tiny: bool) -> None:
    """Make a call for each line of the input, `model` or one of the rates; write its times as a line of JSON."""
    out, sys.stdout = sys.stdout, sys.stderr  # the libraries may print
    if library == "torch":
        import torch
        import transformers  # noqa: F401

        torch.set_num_threads(threads)
    else:
        import jax

        jax.block_until_ready(jax.numpy.zeros(1))
    before = _peak_mib()
    model, known = (our_call if library == "tubevit" else their_call)(name, what, tiny)
    calls = {"model": model} | {rate: rate_call(library, rate, tiny) for rate in RATES}
    print(json.dumps(known | {"import_mib": before}), file=out, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        calls[line.strip()]()
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_mib": _peak_mib()}
        print(json.dumps(spent), file=out, flush=True)


def _peak_mib() -> int:
    return round(peak_memory() / 2**20)


class Worker:
    """A process that times one model of one library."""

    def __init__(self, library: str, name: str, what: str, threads: int, tiny: bool):
        self.library, self.name, self.what = library, name, what
        self.spent: dict[str, list[dict]] = {}
        command = [sys.executable, __file__, "--work", library, name, what, "--threads", str(threads)]
        root = str(CSV.parent.parent)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [*command, *["--tiny"] * tiny],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.known = self._read()

    def _read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.library} {self.name} {self.what} ended with {self.process.wait()}")
        return json.loads(line)

    def call(self, name: str, counted: bool) -> None:
        """Make one call of the model or of a rate; keep its times unless it only warms up."""
        time.sleep(0.3)  # the threads of the last process stop spinning
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        spent = self._read()
        if counted:
            self.spent.setdefault(name, []).append(spent)

    def median(self, key: str, name: str = "model") -> float:
        """Return the median over the rounds."""
        return statistics.median(each[key] for each in self.spent[name])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(what: str, models: list[str], libraries: list[str], rounds: int, threads: int, tiny: bool) -> list[dict]:
    """Time all models in alternating order, after one round of warm-up; return the rows of the csv."""
    cases = [(library, name) for name in models for library in libraries if library == "tubevit" or MODELS[name][1]]
    loads = []
    with contextlib.ExitStack() as stack:
        workers = []
        for library, name in cases:
            workers.append(Worker(library, name, what, threads, tiny))
            stack.callback(workers[-1].close)
        first = {worker.library: worker for worker in workers[::-1]}  # they also measure the rates
        calls = [(worker, "model") for worker in workers]
        calls += [(first[library], rate) for rate in RATES for library in first]
        for i in range(-1, rounds):
            for worker, name in calls if i % 2 else calls[::-1]:
                worker.call(name, counted=i >= 0)
            loads.append(os.getloadavg()[0])
            print(f"{what}: round {i + 1} of {rounds}, load {loads[-1]:.2f}", flush=True)
    speeds = {
        (library, rate): rate_flop(rate, tiny) / 1e9 / worker.median("wall_s", rate)
        for library, worker in first.items() for rate in RATES
    }  # fmt: skip
    about = {
        "rounds": rounds, "load": round(statistics.median(loads), 2), "threads": threads, "processor": _processor(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    return [_row(worker, speeds, about) for worker in workers]


def _row(worker: Worker, speeds: dict, about: dict) -> dict:
    known, walls = worker.known, [each["wall_s"] for each in worker.spent["model"]]
    row = {"what": worker.what, "model": worker.name, "library": worker.library, **known, **about}
    row |= {"gflop": round(known["gflop"], 1), "wall_s": round(worker.median("wall_s"), 3)}
    row |= {"wall_s_least": round(min(walls), 3), "wall_s_most": round(max(walls), 3)}
    row |= {"cpu_s": round(worker.median("cpu_s"), 3), "peak_mib": worker.spent["model"][-1]["peak_mib"]}
    row |= {f"{rate}_gflop_s": round(speeds[worker.library, rate]) for rate in RATES}
    packages = ("jax", "flax") if worker.library == "tubevit" else ("torch", "transformers")
    return row | {"versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def table(rows: list[dict], what: str) -> list[str]:
    """Return the table of forward passes or training steps, both libraries of a model in one row."""
    found = {(row["model"], row["library"]): row for row in rows if row["what"] == what}
    if not found:
        return ["Not measured yet."]
    heads = ["model", "frames", "tokens", "parameters, M", "GFLOP"]
    heads += [f"{library}: {text}" for library in LIBRARIES.values() for text in ("s", "CPU s", "peak, MiB")]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, (label, _) in MODELS.items():
        both = [found.get((name, library)) for library in LIBRARIES]
        if not any(both):
            continue
        first = next(row for row in both if row)
        cells = [label, first["frames"], _each(both, lambda row: f"{int(row['tokens']):,}" if row["tokens"] else "")]
        cells += [_each(both, lambda row: f"{int(row['parameters']) / 1e6:.1f}")]
        cells += [_each(both, lambda row: f"{float(row['gflop']):,.1f}")]
        for row in both:
            cells += _times(row) if row else ["-"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _each(both: list, text) -> str:
    """Write a value of both libraries: once, if they agree."""
    return " / ".join(dict.fromkeys(filter(None, (text(row) for row in both if row))))


def _times(row: dict) -> list[str]:
    least, middle, most = (float(row[key]) for key in ("wall_s_least", "wall_s", "wall_s_most"))
    note = ", remat" if row["remat"] == "full" else ""
    return [
        f"{middle:.2f} ({least:.2f} to {most:.2f}){note}", f"{float(row['cpu_s']):.2f}", f"{int(row['peak_mib']):,}"
    ]  # fmt: skip


def findings(rows: list[dict], what: str) -> list[str]:
    """Return what the rows say: how much faster TubeViT is, and the rates of the libraries."""
    ours = {row["model"]: row for row in rows if (row["what"], row["library"]) == (what, "tubevit")}
    lines, fast = [], ours.get("tubevit_b16")
    if fast and len(ours) > 1:
        ratios = {
            name: (float(row["wall_s"]) / float(fast["wall_s"]), float(row["gflop"]) / float(fast["gflop"]))
            for name, row in ours.items() if row is not fast
        }  # fmt: skip
        texts = [f"{time:.1f} times for {MODELS[name][0]} ({flops:.1f})" for name, (time, flops) in ratios.items()]
        lines += [
            f"In this package, TubeViT-B's {WHAT[what]} is faster than the others by these factors (in brackets, the "
            f"ratio of the FLOPs): {'; '.join(texts)}."
        ]
    for library, label in LIBRARIES.items():
        row = next((row for row in rows if (row["what"], row["library"]) == (what, library)), None)
        if row:
            lines.append(
                f"In {label} ({row['versions']}; {row['rounds']} rounds on {row['threads']} threads of an "
                f"{row['processor']}, load {row['load']}, {row['date']}), a matrix product alone reached "
                f"{row['matmul_gflop_s']} GFLOP/s and attention alone {row['attention_gflop_s']}."
            )
    return [line for text in lines for line in (textwrap.fill(text, 120), "")]


def page(text: str, rows: list[dict]) -> str:
    """Replace the results in the documentation."""
    lines = []
    for what, label in WHAT.items():
        runs = {(row["date"], row["processor"]) for row in rows if row["what"] == what}
        if len(runs) > 1:  # the page compares their times
            raise SystemExit(f"the rows of {what!r} are of several runs, {sorted(runs)}: measure them in one")
        lines += [f"### {label.capitalize()}", "", *table(rows, what), "", *findings(rows, what)]
    return replace(text, BEGIN, lines[:-1])


def plot(rows: list[dict]) -> None:
    """Plot the median seconds, a panel for the forward pass and one for the training step."""
    pyplot = svg_pyplot()
    figure, panels = pyplot.subplots(1, len(WHAT), figsize=(9, 3.6), sharey=True)
    for axes, (what, title) in zip(panels, WHAT.items()):
        for shift, (library, label) in zip((-0.2, 0.2), LIBRARIES.items()):
            found = {row["model"]: row for row in rows if (row["what"], row["library"]) == (what, library)}
            places = [i + shift for i, name in enumerate(MODELS) if name in found]
            values = [[float(row[f"wall_s{end}"]) for end in ("", "_least", "_most")]
                      for row in (found[name] for name in MODELS if name in found)]  # fmt: skip
            spread = [[middle - least for middle, least, _ in values], [most - middle for middle, _, most in values]]
            axes.barh(places, [middle for middle, *_ in values], 0.38, xerr=spread, label=label)
        axes.set_yticks(range(len(MODELS)), [label for label, _ in MODELS.values()])
        axes.set(xlabel="seconds for one clip", title=title)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch; XLA takes all cores")
    parser.add_argument("--tiny", action="store_true", help="models of one narrow block on 32x32 pixels, to test this")
    parser.add_argument("--out", type=pathlib.Path, default=CSV)
    parser.add_argument("--page", action="store_true", help="only write the page and its figure, from the csv")
    parser.add_argument("--work", nargs=3, metavar=("LIBRARY", "MODEL", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        return work(*args.work, args.threads, args.tiny)
    if not args.page:
        # All training steps at once need more than 24 GB.
        together = [("forward", args.libraries), *(("step", [library]) for library in args.libraries)]
        for what, libraries in together:
            if what not in args.what:
                continue
            new = measure(what, args.models, libraries, args.rounds, args.threads, args.tiny)
            rows = {tuple(row[key] for key in KEY): row for row in [*read(args.out), *new]}
            write(args.out, FIELDS, rows.values())
    if args.out == CSV:
        rows = read(CSV)
        PAGE.write_text(page(PAGE.read_text(), rows))
        plot(rows)


if __name__ == "__main__":
    main()
