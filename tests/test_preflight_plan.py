"""Plans of real experiments with a compiler in place of libtpu: candidates, bounds, report and launch commands."""

import argparse
import csv
import json
import os
import re
import shlex
import threading
import time

import jax
import pytest
from jax.sharding import AbstractMesh

from tests.scripts import ROOT, script
from tests.test_preflight import part, result
from tubevit.cli import main
from tubevit.cli import preflight as cli_preflight
from tubevit.config import experiments_folder, load_config
from tubevit.config.compare import changes_results
from tubevit.config.resolve import resolve
from tubevit.errors import RunError, TookTooLong, UserError
from tubevit.preflight.bounds import bounds, sizes_of, work_of
from tubevit.preflight.candidates import PARTS, accelerator_type, candidates, slices_of
from tubevit.preflight.plan import plan
from tubevit.preflight.plan_report import plan_report
from tubevit.preflight.program import step_flops
from tubevit.preflight.remembered import remembered
from tubevit.preflight.topology import CHIPS, GIB, find_topology
from tubevit.sharding.mesh import AXES, make_mesh, mesh_shape
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import initial_state

CONFIG = "imagenet:model=tubevit_ti16"


def compiler(config, overrides, topology, parts, effort):
    """A compiler by the overrides: 4 devices need 16 GiB; a second over the devices, and a little more."""
    fsdp, count = int(overrides["mesh.fsdp"]), int(overrides[PARTS])
    cycles = int((1 / topology.devices + 0.02 * count + 0.01 / fsdp) * topology.chip.clock)
    figures = {"flops": 1, "hbm_bytes": 1, "collectives": [], "xla_cycles": cycles, "kernel_bundles": 0}
    peak = 64 * GIB // topology.devices
    made = part(peak, **figures) | {"fits": peak <= topology.chip.hbm}
    return result(train=made) | {"memory_of_compiler": 1, "model_flops": 1}


def planned(**changes):
    """A plan for v5e and v6e of up to 8 chips."""
    return plan(CONFIG, {}, **{"slices": slices_of("v5e,v6e", 8), "compiler": compiler} | changes)


@pytest.fixture(scope="module")
def found():
    return planned()


def test_slices():
    assert [t.name for t in slices_of("v5e", 8)] == ["v5e:1x1", "v5e:2x2", "v5e:2x4"]
    assert [t.name for t in slices_of("v6e:4x4, v5litepod-8", 4)] == ["v6e:4x4", "v5e:2x4"]
    assert len(slices_of("v5e,v6e", 256)) == 16
    assert accelerator_type("v6e:2x4") == "v6e-8" and accelerator_type("v5p:2x2x2") == "v5p-16"
    for names, text in (("cuda:h100", "known for v4, v5e"), ("v9", "unknown topology 'v9'"), (",", "has no slice")):
        with pytest.raises(UserError, match=text):
            slices_of(names, 256)


def test_candidates_keep_the_batch():
    """Devices, parts and rows of each make up the batch, each once, and only such keys differ."""
    config = load_config("k600", {"mesh.slices": "2"})
    resolved = resolve(config, assume_missing=True)
    given, without = candidates(resolved, slices_of("v6e", 256), {})
    listed = "256 of imagenet and 256 of k600"
    assert without == {"v6e:16x16": f"the batches, {listed}, do not divide over its 512 devices"}
    assert len(given) == len(set(given)) and {c.devices for c in given} == {8, 16, 32, 64, 128, 256, 2}
    for c in given:
        data, fsdp, tensor = c.mesh
        assert data * fsdp * tensor == c.devices and tensor == 1 and data % 2 == 0
        assert c.rows * data * fsdp * c.grad_accum_steps == 256 + 256
        assert {key for key in c.overrides if changes_results(key)} <= {PARTS}
    for c in given[:: len(given) // 5]:
        settings = load_config("k600", {"mesh.slices": "2", **c.overrides})
        assert mesh_shape(settings.mesh, c.devices) == c.mesh
    assert {c.remat for c in given} == {"names", "full"} and {c.attention for c in given} == {"auto", "einsum"}


def test_keys_of_the_user_stay():
    fixed = {"mesh.fsdp": "2", PARTS: "2", "model.remat": "full", "model.attention": "xla"}
    resolved = resolve(load_config("k600", fixed), assume_missing=True)
    given, without = candidates(resolved, slices_of("v5e", 8), fixed)
    assert without.keys() == {"v5e:1x1"} and "2 does not divide" in without["v5e:1x1"]
    _, without = candidates(resolved, slices_of("v5e", 256), fixed)
    assert without["v5e:16x16"].endswith("do not divide over its 256 devices in 2 parts")
    assert [(c.mesh, c.grad_accum_steps, c.remat, c.attention) for c in given] == [
        ((2, 2, 1), 2, "full", "xla"), ((4, 2, 1), 2, "full", "xla"),
    ]  # fmt: skip


def compiled_rows():
    """Rows of the benchmark for TPUs, {experiment: rows}, without those of earlier recipes of the embedded data."""
    rows = {}
    with (ROOT / "benchmarks/preflight.csv").open() as file:
        for row in csv.DictReader(file):
            if row["xla_ms"] and not row["experiment"].startswith(("quickstart", "moving", "digits", "finetune")):
                rows.setdefault(row["experiment"], []).append(row)
    return rows


def test_most_experiments_are_compiled_for_tpus():
    assert len(compiled_rows()) >= 14 and {"k600:model=tubevit_h16", "bootstrap", "ssv2"} <= compiled_rows().keys()


@pytest.mark.parametrize("config", compiled_rows())
def test_bounds_are_below_what_was_compiled(config):
    """Memory and time of every row of the benchmark for TPUs. The FLOPs agree, the bytes sent nearly."""
    for row in compiled_rows()[config]:
        overrides = dict(change.split("=") for change in row["changes"].split())
        resolved, topology = (
            resolve(load_config(config, overrides), assume_missing=True),
            find_topology(row["topology"]),
        )
        fsdp, slices = int(overrides.get("mesh.fsdp", 1)), resolved.config.mesh.slices
        mesh = AbstractMesh((int(row["devices"]) // fsdp, fsdp, 1), AXES)
        state = jax.eval_shape(lambda: initial_state(resolved.model, make_optimizer(resolved.config), 0))  # noqa: B023
        work, parts = work_of(resolved.config, resolved.model), resolved.config.train.grad_accum_steps
        found = bounds(work, sizes_of(state, mesh), mesh, parts, topology.chip)
        seconds = max(float(row["step_ms_least"]), float(row["xla_ms"]) + float(row["kernel_ms"])) / 1e3
        assert 0.185 * seconds < found.seconds < 0.625 * seconds, row  # docs/preflight.md has the range
        assert 0.45 * float(row["train_peak_gib"]) < found.memory / GIB < float(row["train_peak_gib"]), row
        least = 0.77 if "inflated_3d" in config else 0.97  # its attention, most of the step, is computed again
        assert least < found.compute * topology.chip.flops / (float(row["tflops"]) * 1e12) < 1.001, row
        sent = found.network * topology.chip.network / 1e9
        assert slices > 1 or 0.6 < sent / float(row["sent_gb"]) < 1.1, row


def test_the_plan_of_the_benchmark(found):
    """Its rows are those of the plan, and the page shows them; the search of H ends by itself within 15 minutes."""
    benchmark = script("benchmarks/plan.py")
    rows = benchmark.rows_of(found, "1", "today")
    for chip, generation in found["generations"].items():
        own = [row for row in rows if row["chip"] == chip]
        fronts = [(row["slice"], row["ms"]) for row in own if row["front"] == "yes"]
        assert fronts == [(row["topology"], round(1e3 * row["seconds"], 1)) for row in generation["front"]]
        assert len(own) == len(generation["front"]) + len(generation["compiled"])
        (counts,) = {tuple(row[key] for key in benchmark.COUNTS) for row in own}
        assert counts[0] == generation["candidates"] == sum(counts[1:])
    rows = benchmark.read(benchmark.CSV)
    assert benchmark.page(text := benchmark.PAGE.read_text(), rows) == text
    resolved = resolve(load_config(benchmark.CONFIG, {"mesh.data": "-1"}), assume_missing=True)
    given, _ = candidates(resolved, slices_of(benchmark.TOPOLOGY, benchmark.CHIPS), {})
    for chip in ("v5e", "v6e"):
        (counts,) = {(row["candidates"], row["open"]) for row in rows if row["chip"] == chip}
        assert counts == (str(sum(c.chip == chip for c in given)), "0")
    assert all(float(row["seconds"]) < 15 * 60 for row in rows)


def test_work_of_elastic_training_is_that_of_the_two_largest_budgets():
    plans = [
        resolve(load_config("k600", {"train.elastic": shares}), assume_missing=True)
        for shares in ("", "25%", "50%", "25%,50%", "10%,25%,50%")
    ]
    whole, quarter, half, both, three = (work_of(plan.config, plan.model) for plan in plans)
    assert 0.4 < half.flops / whole.flops < 0.5 and half.kept < whole.kept
    assert both == three and both.flops == quarter.flops + half.flops and both.kept == half.kept
    flops = list(map(step_flops, plans))
    assert flops[3] == flops[4] == flops[1] + flops[2] and 0.4 < flops[2] / flops[0] < 0.5


def test_the_front(found):
    for chip, generation in found["generations"].items():
        front = generation["front"]
        assert [row["devices"] for row in front] == sorted((row["devices"] for row in front), reverse=True)
        assert all(a["chip_hours"] > b["chip_hours"] for a, b in zip(front, front[1:]))
        assert not generation["open"] and generation["candidates"] == (
            len(front) + len(generation["compiled"]) + len(generation["misfits"]) + generation["too_large"]
            + generation["bounded"]
        )  # fmt: skip
        steps = load_config(CONFIG).train.steps
        for row in front:
            assert row["peak"] <= row["hbm"] == CHIPS[chip].hbm and row["seconds"] >= row["bound_seconds"]
            assert row["hours"] == pytest.approx(row["seconds"] * steps / 3600)
            assert row["chip_hours"] == pytest.approx(row["hours"] * row["devices"])
    assert found["generations"]["v5e"]["misfits"] and json.dumps(found)


def test_launch_commands_are_valid(found):
    """They name a slice of that many chips, and train on the mesh of their row with the batch of the experiment."""
    tpu = script("launch/tpu.py")
    rows = [row for generation in found["generations"].values() for row in generation["front"]]
    assert rows
    for row in rows:
        program, *arguments = shlex.split(row["launch"])[1:]
        assert program == "launch/tpu.py"
        args = tpu.parse(arguments)
        assert find_topology(args.type).name == row["topology"] and args.run[0] == "train"
        overrides = dict(re.findall(r"--config\.(\S+?)=(\S+)", " ".join(args.run)))
        settings = load_config(args.run[args.run.index("--config") + 1], overrides)
        assert dict(zip(AXES, mesh_shape(settings.mesh, row["devices"]))) == row["mesh"]
        assert settings.train.grad_accum_steps == row["grad_accum_steps"] and settings.model.remat == row["remat"]
        assert settings.data == load_config(CONFIG).data
        if row["devices"] <= jax.device_count():
            assert make_mesh(settings.mesh, jax.devices()[: row["devices"]]).size == row["devices"]


def test_report(found):
    text = plan_report(found)
    lines = text.splitlines()
    assert "Estimates, not measurements; nothing has run on a TPU." in text and "* is on the front of all" in text
    header = next(i for i, line in enumerate(lines) if "chip-hours" in line)
    assert "v5e:2x4 " in lines[header + 1]
    rows = [line for line in lines if re.match(r"^[* ] v[56]e:\dx\d ", line)]
    assert sum("launch/tpu.py queued" in line for line in lines) == len(rows) and any(row[0] == "*" for row in rows)


def test_what_the_compiler_does_not_count(found):
    def uncounted(*given):
        result = compiler(*given)
        result["parts"]["train"] |= {"uncounted_kernels": 3}
        return result

    assert "so that ms is too low" not in plan_report(found)
    text = plan_report(planned(compiler=uncounted))
    assert "model.attention=auto: the cycles of 3 kernels and of 0 loops are unknown, so that ms is too low" in text


def test_an_interruption_ends_all_searches(monkeypatch):
    """Ctrl-C, or an error of one generation of chips; what is being compiled is waited for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    calls, both = [], threading.Barrier(2, timeout=60)

    def interrupted(config, overrides, topology, parts, effort):
        calls.append(topology.chip.name)
        both.wait()
        if topology.chip.name == "v5e":
            raise KeyboardInterrupt
        time.sleep(0.5)
        return compiler(config, overrides, topology, parts, effort)

    with pytest.raises(KeyboardInterrupt):
        planned(compiler=interrupted)
    assert sorted(calls) == ["v5e", "v6e"]


def call(compiler, **changes):
    """Run the verb."""
    given = dict(config=CONFIG, topology="v5e", config_overrides={}, suggest=False, json=False, plan=True)
    given |= dict(effort="full", top_bytes=0, top_cycles=0, chips=8, minutes=15.0) | changes
    cli_preflight.run(argparse.Namespace(**given), compiler)


def test_what_time_does_not_suffice_for(capsys):
    """What was not compiled has bounds alone, and says so."""
    call(compiler, minutes=1e-9, json=True)
    generation = json.loads(capsys.readouterr().out)["generations"]["v5e"]
    assert not generation["front"] and generation["uncompiled"] >= len(generation["open"]) > 0
    for row in generation["open"]:
        assert not row["compiled"] and row["seconds"] == row["bound_seconds"] and "cycles_seconds" not in row
    ticks = iter(range(0, 10**6, 60))
    text = plan_report(planned(minutes=5, clock=lambda: next(ticks), slices=slices_of("v5e", 8)))
    assert "launch with" in text and "not compiled; ms by the share that the compiled steps suggest" in text
    assert re.search(r"^  v5e:1x1 .* >[\d.]+ ", text, re.MULTILINE)


def test_what_was_compiled_is_remembered(monkeypatch, tmp_path):
    """By settings; results come back as they were, and a damaged one is compiled again."""
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path))
    calls, topology, own = [], find_topology("v5e:2x2"), {"mesh.fsdp": "1", PARTS: "1"}
    compiled = remembered(lambda *given: calls.append(given) or compiler(*given))
    first = compiled(CONFIG, own, topology, ("train",))
    assert compiled(CONFIG, own, topology, ("train",)) == first and len(calls) == 1
    for given in (
        (CONFIG, own | {"model.remat": "full"}, topology, ("train",)),
        (CONFIG, own, find_topology("v5e:2x4"), ("train",)), (CONFIG, own, topology, ("train",), "low"),
    ):  # fmt: skip
        compiled(*given)
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # the compiler's process has it, too
    compiled(CONFIG, own, topology, ("train",))
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION")
    assert len(calls) == 5
    assert len(list((tmp_path / "preflight").iterdir())) == 5
    for path in (tmp_path / "preflight").iterdir():
        path.write_bytes(path.read_bytes()[:9])
    assert compiled(CONFIG, own, topology, ("train",)) == first and len(calls) == 6


def test_a_compile_that_took_too_long_is_not_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path))
    calls, given = [], (CONFIG, {"mesh.fsdp": "1", PARTS: "1"}, find_topology("v5e:2x2"), ("train",))

    def slow(*given):
        calls.append(given)
        raise TookTooLong("compiling train took more than 1800 s")

    for _ in range(2):
        with pytest.raises(RunError, match=r"took more than 1800 s \(remembered in .*json; remove it"):
            remembered(slow)(*given)
    assert len(calls) == 1

    def broken(*given):
        raise RunError("no memory for the compiler")

    with pytest.raises(RunError, match="no memory"):
        remembered(broken)(CONFIG, {"mesh.fsdp": "2", PARTS: "1"}, *given[2:])
    assert len(list((tmp_path / "preflight").iterdir())) == 1


def test_what_the_compiler_fails_for():
    """The search goes on without it, and the report says so."""
    failed = []

    def failing(config, overrides, topology, parts, effort):
        if topology.name == "v5e:2x4" and not failed:
            failed.append(f"v5e:2x4 mesh.fsdp={overrides['mesh.fsdp']} ")
            raise RunError("compiling took too long")
        return compiler(config, overrides, topology, parts, effort)

    result = planned(compiler=failing)
    found = result["generations"]["v5e"]
    ((name, reason),) = found["failed"].items()
    assert name.startswith(failed[0]) and reason == "compiling took too long" and found["front"]
    assert name not in {row["settings"] for row in found["front"]} and f"failed: {failed[0]}" in plan_report(result)


def test_a_compiler_that_always_fails(capsys):
    """The search stops early, and does not say that nothing fits."""

    def failing(config, overrides, topology, parts, effort):
        raise RunError("the compiler is broken")

    found = planned(compiler=failing)["generations"]
    assert all(len(each["failed"]) == 3 and each["uncompiled"] and not each["smallest"] for each in found.values())
    with pytest.raises(
        RunError, match=r"^no step was compiled that fits: v5e:\S+ mesh.* failed: the compiler is broken"
    ):
        call(failing)
    assert "nothing fits" not in capsys.readouterr().out


def test_steps_that_take_too_long_do_not_stop_the_search():
    """Others may be smaller."""
    slow = []

    def half(config, overrides, topology, parts, effort):
        if len(slow) < 4 and topology.chip.name == "v5e":
            slow.append(topology.name)
            raise TookTooLong("compiling took more than 1800 s")
        return compiler(config, overrides, topology, parts, effort)

    found = planned(compiler=half)["generations"]["v5e"]
    assert len(found["failed"]) == 4 and found["front"]


def test_a_mesh_of_the_experiment_s_file(tmp_path):
    """Its sizes are searched, too, and the commands say so; those that the user sets on the command line stay."""
    text = (experiments_folder() / "imagenet.py").read_text()
    (tmp_path / "four.py").write_text(text.replace("    return config", "    config.mesh.data = 4\n    return config"))
    seen = []

    def watched(config, overrides, topology, parts, effort):
        seen.append(overrides.get("mesh.data", "4"))
        return compiler(config, overrides, topology, parts, effort)

    config = f"{tmp_path}/four.py:model=tubevit_ti16"
    found = plan(config, {}, slices_of("v5e", 8), compiler=watched)["generations"]["v5e"]
    assert set(seen) == {"-1"} and "--config.mesh.data=-1" in found["front"][0]["launch"]
    seen.clear()
    found = plan(config, {"mesh.data": "8"}, slices_of("v5e", 8), compiler=watched)["generations"]["v5e"]
    assert set(seen) == {"8"} and found["front"][0]["mesh"]["data"] == 8
    for fsdp, data in (("2", "-1"), ("-1", "4")):
        seen.clear()
        (row, *_) = plan(config, {"mesh.fsdp": fsdp}, slices_of("v5e", 8), compiler=watched)["generations"]["v5e"][
            "front"
        ]
        assert set(seen) == {data} and ("--config.mesh.data=-1" in row["launch"]) == (data == "-1")


def test_what_fits_nowhere(capsys):
    needed = 40 * GIB

    def full(config, overrides, topology, parts, effort):
        failed = {"fits": False, "needed": needed, "message": "", "seconds": 1.0}
        return result(train=failed) | {"memory_of_compiler": 1}

    with pytest.raises(RunError, match=r"nothing fits: v5e:\S+ mesh.fsdp=.* is nearest and needs at least 40.00 GiB"):
        call(full)
    assert "nothing fits; v5e:" in capsys.readouterr().out
    needed = None
    with pytest.raises(RunError, match=r"nothing fits: v5e:\S+ .* needs more than the 15.75 GiB of a device"):
        call(full)


def test_what_cannot_be_planned(capsys):
    for flags in (["--chips", "8"], ["--minutes", "3"]):
        assert main(["preflight", "--config", CONFIG, "--topology", "v5e:2x2", *flags]) == 2
        assert f"{flags[0]} goes with --plan" in capsys.readouterr().err
    for flags, text in (
        (["--topology", "v5e", "--suggest"], "--suggest is for a single topology"),
        (["--topology", "tpu7x"], "found tpu7x:2x2x1"),
        (
            ["--topology", "v5e", "--config.data.train.imagenet.batch_size=1", "--config.mesh.fsdp=2"],
            "no slice can be planned: v5e:1x1: mesh data=-1, fsdp=2, tensor=1: 2 does not divide",
        ),
        (["--topology", "v5e:2x2", "--config.mesh.tensor=5"], "v5e:2x2: "),
        (["--topology", "v5e:2x2", "--config.mesh.data=3"], "make a mesh of 3 of its 4 devices"),
    ):
        assert main(["preflight", "--config", CONFIG, "--plan", *flags]) == 2
        assert text in capsys.readouterr().err
