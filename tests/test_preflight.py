"""Preflight without a compiler for TPUs: names, programs, reports. Extras compile."""

import argparse
import dataclasses
import json
import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp
import pytest

from tests import gcs
from tests.scripts import ROOT, script
from tubevit import storage
from tubevit.cli import main
from tubevit.cli import preflight as cli_preflight
from tubevit.cli.logs import logging_installed
from tubevit.config import experiments_folder, load_config
from tubevit.config.resolve import resolve
from tubevit.errors import RunError, UserError
from tubevit.preflight import devices, program, run, worker
from tubevit.preflight.candidates import slices_of
from tubevit.preflight.report import completed, estimate, report
from tubevit.preflight.topology import CHIPS, GIB, accelerator_types, find_topology, topologies
from tubevit.sharding.mesh import make_mesh
from tubevit.windows import window_shapes


def test_names():
    slice_ = find_topology("v5e:16x16")
    assert (slice_.devices, slice_.shape, slice_.chip, slice_.asked) == (256, (16, 16), CHIPS["v5e"], None)
    assert find_topology(" V5E:16x16").name == "v5e:16x16" and find_topology("tpu7x:2x2x1").devices == 8
    assert find_topology("cuda:h200x8").devices == 8 and find_topology("cuda:h100").is_gpu
    assert all(find_topology(name).name == name for name in topologies())


@pytest.mark.parametrize(
    "kind, name, devices",
    [
        ("v5litepod-256", "v5e:16x16", 256), ("v5litepod-4", "v5e:2x2", 4), ("v6e-256", "v6e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8), ("v4-512", "v4:4x8x8", 256), ("v4-8", "v4:2x2x1", 4), ("v5p-512", "v5p:4x8x8", 256),
        ("v5p-12288", "v5p:16x16x24", 6144),
    ],
)  # fmt: skip
def test_accelerator_types(kind, name, devices):
    found = find_topology(kind)
    assert (found.name, found.devices, found.asked) == (name, devices, kind)


def test_accelerator_types_are_unique():
    types, shapes = accelerator_types(), [name for name in topologies() if not name.startswith(("cuda", "tpu7x"))]
    assert len(types) == len(set(types.values())) and sorted(types.values()) == sorted(shapes)


@pytest.mark.parametrize(
    "name, part",
    [
        ("v5e-256", "did you mean v5litepod-256 (v5e:16x16)?"),
        ("v5e:16x17", "did you mean v5e:16x16? Valid: v5e:1x1, 2x2"),
        ("v5litepod-12", "did you mean v5litepod-8"),
        ("v5p:4x8", "did you mean v5p:2x4x4?"),
        ("cuda:h300", "did you mean 'cuda:h200'"),
        ("pod", "for example v5e:16x16"),
    ],
)
def test_bad_names(capsys, name, part):
    assert f"unknown topology {name!r}; " in refused(capsys, name) and part in refused(capsys, name)


def refused(capsys, topology):
    """The one line of an error that the user can mend."""
    assert main(["preflight", "--config", "k600", "--topology", topology]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err


def test_compilers_that_are_missing():
    for topology, command in (
        ("cuda:h100", "pip install --no-deps --target gpu-compiler jax-cuda12-plugin=="),
        ("v5e:2x2", "needs the compiler libtpu: pip install 'tubevit[tpu]'"),
    ):
        with pytest.raises(UserError, match=re.escape(command)):
            devices.check_installed(find_topology(topology), is_installed=lambda package: False)


def test_out_of_memory():
    whole = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (77.58G) exceeds available HBM (15.75G)."  # noqa: E501
    assert worker.out_of_memory(whole, 0)["needed"] == int(77.58 * GIB)
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."  # noqa: E501
    assert worker.out_of_memory(used, 0)["needed"] == int(20.5 * GIB)
    more = "RESOURCE_EXHAUSTED: Exceeded hbm capacity by 512.0M."
    assert worker.out_of_memory(more, GIB)["needed"] == int(1.5 * GIB)
    assert worker.out_of_memory("RESOURCE_EXHAUSTED: no more", 1) == {
        "needed": None, "message": "RESOURCE_EXHAUSTED: no more",
    }  # fmt: skip


def part(peak=4 * GIB, **changes):
    sizes = {"arguments": GIB, "outputs": 0, "temporaries": peak - GIB, "code": 0, "peak": peak}
    exchange = {
        "kind": "all-gather",
        "bytes": 2**30,
        "group": 4,
        "times": 2,
        "between_slices": False,
        "sent": 3 * 2**29,
    }
    entry = {"what": "copy", "direction": "backward", "source": "a.py:1", "result": "f32[2]", "times": 12}
    figures = {
        "flops": 197e9, "hbm_bytes": 819e6, "collectives": [exchange], "unknown_loops": 0, "seconds": 1.5,
        "effort": "full", "xla_cycles": 4_500_000, "kernel_bundles": 1_500_000, "uncounted_kernels": 0,
        "instructions": [entry | {"bytes": 10, "cycles": 30}, entry | {"what": "fusion", "bytes": 30, "cycles": 10}],
    }  # fmt: skip
    return {"fits": peak <= CHIPS["v5e"].hbm, **sizes, **figures, **changes}


def result(**parts):
    return {
        "mesh": {"data": 2, "fsdp": 2, "tensor": 1}, "devices": 4, "notes": ["k600 is not here"],
        "model": "tubevit_b16", "batch": {"k600": 8}, "model_flops": 98.5e9, "compiler": "libtpu 1", "parts": parts,
    }  # fmt: skip


def test_estimates():
    found = estimate(part(), CHIPS["v5e"], 98.5e9)
    assert found["compute"] == pytest.approx(1e-3) and found["memory"] == pytest.approx(1e-3)
    assert found["network"] == pytest.approx(3 * 2**29 / 200e9) and found["bound"] == "network"
    assert found["least"] == found["network"] and found["most"] == pytest.approx(2e-3 + found["network"])
    assert found["mfu_most"] == pytest.approx(0.5e-3 / found["least"]) and found["mfu_least"] < found["mfu_most"]
    # Of 1.5 GHz.
    assert found["xla"] == pytest.approx(3e-3) and found["kernels"] == pytest.approx(1e-3)
    assert found["mfu_by_cycles"] == pytest.approx(0.5 / 4)
    assert "xla" not in estimate(part(), CHIPS["h100"], 98.5e9)


def test_report():
    found = completed(result(train=part(), eval=part(2 * GIB)), find_topology("v5litepod-4"))
    text = report(found)
    assert found["fits"] and text.startswith(
        "v5litepod-4 is v5e:2x2: v5e:2x2, 4 devices, mesh data=2, fsdp=2, tensor=1"
    )
    assert "note: k600 is not here" in text and "estimates, not measurements" in text
    assert re.search(r"^peak +4.00 GiB +2.00 GiB$", text, re.MULTILINE)
    assert re.search(r"^  all-gather +2 runs +2.00 GiB +1.50 GiB sent$", text, re.MULTILINE)
    assert "train by cycles: 3.0 ms by XLA's count + 1.0 ms in kernels by their bundles, MFU by cycles 12%" in text
    assert text.endswith("FITS: at most 4.00 GiB of 15.75 GiB (25%)") and "kernels are unknown" not in text
    json.dumps(found)


def test_report_of_the_costliest():
    uncounted = result(train=part(uncounted_kernels=2))
    found = completed(uncounted, find_topology("v5e:2x2"), {"bytes": 1, "cycles": 2})
    top = found["parts"]["train"]["top"]
    assert [(row["what"], row["share"]) for row in top["bytes"]] == [("fusion", 0.75)]
    assert [(row["what"], row["share"]) for row in top["cycles"]] == [("copy", 0.75), ("fusion", 0.25)]
    lines = report(found).splitlines()
    start = lines.index("costliest instructions of train by cycles:")
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["share", "75.0%", "25.0%"]
    assert len({line.index("a.py:1") for line in lines[start + 2 : start + 4]}) == 1  # aligned
    assert "note: the cycles of 2 kernels are unknown and not counted" in lines


def test_report_of_what_does_not_fit():
    failed = {"fits": False, "needed": 20 * GIB, "message": "", "seconds": 1.0}
    text = report(completed(result(train=failed, eval=part(16 * GIB)), find_topology("v5e:2x2")))
    assert "DOES NOT FIT: train needs 20.00 GiB of 15.75 GiB, 4.25 GiB too much" in text
    assert "DOES NOT FIT: eval needs 16.00 GiB of 15.75 GiB, 256.00 MiB too much" in text
    assert "model.remat=full" in text.splitlines()[-1] and "FITS: at" not in text


def compiler(config, overrides, topology, parts, effort):
    """A compiler by the overrides: training fits with remat and fsdp 4."""
    fits = overrides.get("model.remat") == "full" and overrides.get("mesh.fsdp") == "4"
    found = result(**{name: part(4 * GIB if fits or name != "train" else 20 * GIB) for name in parts})
    return found | {"memory_of_compiler": 1}


def test_suggest(capsys):
    given = dict(config="k600", topology="v5litepod-4", config_overrides={}, suggest=True, json=False)
    given |= dict(effort="full", top_bytes=0, top_cycles=0, plan=False, chips=None, minutes=None)
    with pytest.raises(RunError) as error:
        with logging_installed():
            cli_preflight.run(argparse.Namespace(**given), compiler)
    out, err = capsys.readouterr()
    assert "DOES NOT FIT: train needs 20.00 GiB" in out and "v5litepod-4 is v5e:2x2" in err
    tried = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    assert [line.partition(":")[0] for line in tried] == [
        "--config.model.remat=full", "--config.mesh.fsdp=4", "--config.model.remat=full --config.mesh.fsdp=4",
    ]  # fmt: skip
    assert "fits, 4.00 GiB" in tried[-1] and err.count("\n") == 5
    assert "it fits with --config.model.remat=full --config.mesh.fsdp=4" in str(error.value)

    given |= dict(config_overrides={"model.remat": "full", "mesh.fsdp": "4"}, json=True)
    cli_preflight.run(argparse.Namespace(**given), compiler)
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["topology"] == "v5e:2x2" and set(found["parts"]) == {*run.TRAIN, *run.REST}

    def large_evaluation(*given):
        found = compiler(*given)
        return found | {"parts": found["parts"] | {"eval": part(20 * GIB)}}

    with pytest.raises(RunError, match="eval needs 20.00 GiB .* the training step fits: lower the batch sizes of data"):
        cli_preflight.run(argparse.Namespace(**given), large_evaluation)


def test_cycles_are_for_tpus():
    with pytest.raises(UserError, match="--top-bytes"):
        run.preflight("k600", {}, find_topology("cuda:h100"), top={"cycles": 3}, compiler=compiler)


def test_changes_halve_batches_last():
    tries = run.changes("k600", {"model.remat": "full"}, 64)
    assert tries[0] == {"mesh.fsdp": "4"} and tries[1] == {"mesh.fsdp": "32"}
    assert tries[2] == {"mesh.fsdp": "32", "train.grad_accum_steps": "2"}
    assert tries[-1]["data.train.k600.batch_size"] == tries[-1]["data.train.imagenet.batch_size"] == "32"


def test_a_compiler_that_crashes():
    def crash(*args, **kwargs):
        return subprocess.CompletedProcess(args, -6, "", "I0000 log\nF0000 check failed: x\n")

    def late(*args, timeout, **kwargs):
        raise subprocess.TimeoutExpired("worker", timeout)

    def failed(command, **kwargs):
        pathlib.Path(command[-2]).write_text(json.dumps({"failed": "cannot reach gs://b"}))
        return subprocess.CompletedProcess(command, 0, "", "")

    texts = "failed on train: F0000 check failed: x", "took more than 1800 s", "^cannot reach gs://b$"
    for execute, text in zip((crash, late, failed), texts):
        for topology in ("v5e:2x2", "cuda:h100"):
            with pytest.raises(RunError, match=text):
                run.compile_in_process("k600", {}, find_topology(topology), ["train"], execute=execute)


def test_low_effort_after_the_limit():
    """Full effort is stopped at the limit, and the result of low effort says so."""
    tried = []

    def execute(command, env, timeout, **kwargs):
        request = json.loads(pathlib.Path(command[-3]).read_text())
        tried.append((request["effort"], timeout))
        assert f"--xla_jf_dump_to={request['dump']} " in env["LIBTPU_INIT_ARGS"]
        if request["effort"] == "full":
            raise subprocess.TimeoutExpired("worker", timeout)
        pathlib.Path(command[-2]).write_text(json.dumps({"notes": ["first"], "parts": {}}))
        return subprocess.CompletedProcess(command, 0, "", "")

    found = run.compile_in_process("k600", {}, find_topology("v5e:2x2"), ["train"], limit=7, execute=execute)
    assert tried == [("full", 7), ("low", 1800)]
    assert found["notes"] == ["first", f"train took more than 7 s with full effort; {run.LOW_EFFORT}"]
    tried.clear()
    run.compile_in_process("k600", {}, find_topology("v5e:2x2"), ["train"], "low", execute=execute)
    assert tried == [("low", 1800)]
    tried.clear()
    with pytest.raises(RunError, match="took more than 1800 s"):
        run.compile_in_process("k600", {}, find_topology("v5e:2x2"), ["train"], limit=None, execute=execute)
    assert tried == [("full", 1800)]


def test_programs_without_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"data.train.charades.batch_size": "8", "mesh.fsdp": "2"}
    config = load_config("charades:videos=charades:lists@clips", changes)
    plan = resolve(config, assume_missing=True)
    asked = dataclasses.replace(plan, model=plan.model.replace(attention="cudnn"))
    plan = program.without_cudnn(plan)
    assert program.without_cudnn(asked) == plan
    assert dict(plan.model.heads)["charades"].classes == 157 and plan.model.attention == "xla"
    (note,) = plan.notes
    assert note.startswith(
        "data.train.charades: assuming 157 classes of videos, as the data cannot be opened: folder lists"
    )
    mesh = make_mesh(config.mesh)
    batch = program.abstract_batch(plan, mesh)["charades"]
    windows = window_shapes(plan.model.tubes, (128, 224, 224))
    assert [x.shape for x in batch["pixels"].windows] == [(8, *each) for each in windows]
    assert batch["label"].shape == (8, 157)
    assert {x.sharding.shard_shape(x.shape)[0] for x in batch["pixels"].windows} == {1}
    _, (params, pixels), views = program.eval_program(plan, mesh)
    assert [x.shape for x in pixels.windows] == [(16, 3, *each) for each in windows] and views == 48
    kernel = params["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[-1] == 2048

    dense = resolve(
        load_config("charades:videos=charades:lists@clips", changes | {"input.path": "dense"}), assume_missing=True
    )
    assert program.abstract_batch(dense, mesh)["charades"]["pixels"].shape == (8, 128, 224, 224, 3)
    assert program.eval_program(dense, mesh)[1][1].shape == (16, 3, 128, 224, 224, 3)

    other = resolve(load_config("bootstrap:videos=mine.csv"), assume_missing=True)
    assert other.notes[-1].endswith(
        "assuming 600 classes of videos, as the data cannot be opened: csv file mine.csv does not exist"
    )
    pathlib.Path("mine.csv").write_text("path,label,split\na.mp4,,train\n")  # the reason is said, whatever it is
    assert (
        "mine.csv line 2: the label is empty"
        in resolve(load_config("bootstrap:videos=mine.csv"), assume_missing=True).notes[-1]
    )
    monkeypatch.setattr(storage, "TIMEOUT", 0.12)
    with gcs.unreachable(accepts=False):
        note = resolve(load_config("k600:videos=shards:gs://b/k600"), assume_missing=True).notes[-1]
    assert "as the data cannot be opened: cannot reach gs://b/k600" in note
    with pytest.raises(UserError, match="must be a multiple of 8"):
        config.data.train.charades.batch_size = 12
        program.abstract_batch(resolve(config, assume_missing=True), mesh)


@pytest.mark.parametrize("variant, tokens", [("timesformer", 257), ("factorised", 5)])
def test_parts_of_other_patterns(variant, tokens):
    plan = resolve(load_config(f"claims:variant={variant}"), assume_missing=True)
    parts = program.part_programs(plan, make_mesh(plan.config.mesh))
    shapes = {part: jax.eval_shape(function, *arguments).shape for part, (function, arguments) in parts.items()}
    assert shapes == {"tokenizer": (16, 257, 96), "encoder": (16, tokens, 96)}


def test_the_step_traces_on_a_mesh():
    """The arguments are those that the step takes, and FLOPs of a step follow from the model."""
    config = load_config("quickstart", {"mesh.fsdp": "2"})
    plan, mesh = resolve(config, assume_missing=True), make_mesh(config.mesh)
    step, arguments = program.train_program(plan, mesh)
    state, _ = jax.eval_shape(step, *arguments)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, arguments[0])
    assert program.step_flops(plan) == pytest.approx(20.6e9, rel=0.01)


def test_the_elastic_step_computes_two_budgets():
    """Its matrix products are those of the steps of either budget, but for the tokenizer, which both share."""

    def lowered(elastic):
        plan = resolve(load_config("quickstart", {"train.elastic": elastic}), assume_missing=True)
        step, arguments = program.train_program(plan, make_mesh(plan.config.mesh))
        return step.lower(*arguments).cost_analysis()["flops"]

    one, other, both, three = map(lowered, ("100%", "50%", "50%,100%", "25%,50%,100%"))
    assert both == three and 0.9 < both / (one + other) <= 1.0


def test_table_of_experiments():
    """The csv has every row, every experiment is in it and fits, and the page shows it."""
    module = script("benchmarks/preflight.py")
    known = module.read()
    keys = [tuple(module.key_of(*row).values()) for row in module.ROWS]
    assert set(keys) == set(known)
    fitting = {experiment.partition(":")[0] for (experiment, *_), row in known.items() if row["fits"] == "True"}
    here = {"claims", "sparse_from_dense"}  # variants of the quickstart's model on the embedded data
    assert fitting == {path.stem for path in experiments_folder().glob("*.py")} - {"eval_published"} - here
    assert module.page([known[key] for key in keys]) in (ROOT / "docs/preflight.md").read_text()
    for experiment, changes, topology in module.ROWS:
        load_config(experiment, {key: str(value) for key, value in changes.items()})
        find_topology(topology)


def test_commands_of_the_page():
    text = (ROOT / "docs/preflight.md").read_text()
    commands = re.findall(r"^tubevit preflight --config (\S+) --topology (\S+)(.*)$", text, re.MULTILINE)
    assert commands
    for config, topology, rest in commands:
        overrides = dict(re.findall(r"--config\.(\S+?)=(\S+)", rest))
        load_config(config, overrides)
        assert slices_of(topology, 256) if "--plan" in rest else find_topology(topology)


@pytest.mark.parametrize(
    "experiment, topology, limits",
    [
        ("k600", "v5e:8x8", {"hbm_gb": 9, "ms": 40}),
        ("k600", "v5e:4x4", {"train_peak_gib": 8, "ms": 140}),
        ("k600:model=tubevit_l16", "v6e:4x4", {"hbm_gb": 80, "ms": 175}),
        ("k600:model=tubevit_h16", "v5e:16x16", {"hbm_gb": 8, "ms": 65, "sent_gb": 5.2}),
    ],
)
def test_steps_are_within_their_limits(experiment, topology, limits):
    """By the rows of the benchmark, of which test_step_budget.py of the extras compiles H again; not run on a TPU."""
    rows = script("benchmarks/preflight.py").read().values()
    row = next(row for row in rows if (row["experiment"], row["topology"]) == (experiment, topology))
    found = {key: float(row[key]) for key in row if key in limits}
    found["ms"] = float(row["xla_ms"]) + float(row["kernel_ms"])
    assert all(found[key] <= limit for key, limit in limits.items()), found
