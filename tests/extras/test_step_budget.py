"""Four training steps, compiled for TPU slices: bytes, memory and cycles stay within benchmarks/preflight.csv."""

import functools
import re

import pytest

from benchmarks import preflight as benchmark
from tubevit.preflight.run import compile_in_process, preflight
from tubevit.preflight.topology import find_topology

BUDGETS = ["hbm_gb", "train_peak_gib", "sent_gb", "xla_ms", "kernel_ms"]
HUGE = "k600:model=tubevit_h16"
STEPS = [
    (HUGE, "v5e:16x16"),
    ("k600:model=tubevit_l16", "v6e:4x4"),
    ("k600", "v5e:4x4"),
    ("k600", "v5e:8x8"),
]


def entry(experiment, topology):
    """Experiment, changes and topology as the benchmark has them."""
    return next(row for row in benchmark.ROWS if (row[0], row[2]) == (experiment, topology))


@pytest.fixture(scope="module")
def compiled():
    """{(experiment, topology): the result of `preflight`}, with full effort.

    One after the other: the compiler uses one core, and pytest-xdist the other.
    """
    compiler = functools.partial(compile_in_process, limit=benchmark.FULL_EFFORT_LIMIT)

    def run(step):
        experiment, changes, topology = entry(*step)
        overrides = {key: str(value) for key, value in changes.items()}
        top = {"bytes": 5, "cycles": 5}
        return preflight(experiment, overrides, find_topology(topology), ("train",), top=top, compiler=compiler)

    return {step: run(step) for step in STEPS}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step))
def test_the_step_stays_within_its_budget(compiled, step):
    """No figure exceeds its row by 5 %; `python benchmarks/preflight.py --only ...` writes the row anew."""
    budget = benchmark.read()[tuple(benchmark.key_of(*entry(*step)).values())]
    found = benchmark.train_figures(compiled[step]["parts"]["train"])
    assert compiled[step]["parts"]["train"]["effort"] == budget["effort"] == "full"
    above = {key: (found[key], budget[key]) for key in BUDGETS if found[key] > 1.05 * float(budget[key])}
    assert not above, above


def test_figures_of_the_huge_step(compiled):
    """FLOPs follow from the model, state and exchanges from its parameters."""
    found = compiled[HUGE, "v5e:16x16"]
    train = found["parts"]["train"]
    assert found["fits"] and found["memory_of_compiler"] < 4e9
    scores = 32 * 2 * (1176**2 + 196**2) * 1280  # the kernel computes them again in the backward pass
    again = 32 * 2 * (1176 + 196) * 1280 * 3 * 1280  # so are q, k and v
    assert train["flops"] == pytest.approx(found["model_flops"] + scores + again, rel=1e-3)
    assert 0 < train["kernel_bundles"] < train["xla_cycles"] and train["uncounted_kernels"] == 0
    for key, rows in train["top"].items():
        assert [row[key] for row in rows] == sorted((row[key] for row in rows), reverse=True)
        assert all(re.fullmatch(r"\w+/\w+\.py:\d+", row["source"]) and row["direction"] for row in rows)
    state = 3 * 4 * 636e6 / 16  # a TPU pads the 80 numbers of a head to 128
    assert state < train["arguments"] < 1.3 * state
    in_bfloat16 = 2 * 632e6
    gathered = train["collectives"]["all-gather"]["bytes"]
    assert 0.95 * 2 * in_bfloat16 < gathered < 1.1 * 2 * in_bfloat16  # forward and backward
    assert 0.95 * in_bfloat16 < train["collectives"]["reduce-scatter"]["bytes"] < 1.1 * in_bfloat16
