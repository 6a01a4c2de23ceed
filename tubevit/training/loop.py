"""The main job: joint training on image and video data, from a configuration to a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import signal
import sys
import time

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import tubevit
from tubevit.config import names, pairs
from tubevit.data.joint import joint_batches
from tubevit.data.views import Views
from tubevit.models.freeze import join_frozen, split_frozen
from tubevit.models.tubevit import TubeViT
from tubevit.training.broken import BrokenFiles
from tubevit.training.evaluate import evaluate_source, make_forward
from tubevit.training.experiment import Experiment, open_experiment
from tubevit.training.optimizer import learning_rate_schedule, make_optimizer
from tubevit.training.step import initial_state, make_step, state_of
from tubevit.training.workdir import Checkpoints, MetricsWriter, prepare_workdir
from tubevit.zoo.checkpoint import load_tree, model_metadata, parameters, steps
from tubevit.zoo.transfer import initialise


class Preempted(Exception):
    """The process was asked to end; the state is saved, the same command goes on from there."""


def train(config: ConfigDict, workdir: str | os.PathLike, allow_change=()) -> dict[str, float | None]:
    """Trains, or goes on with the run that the workdir holds.

    Batches, dropout and mixup follow from (seed, step) alone: a run that was killed at any moment ends with the same
    parameters as one that was not.

    Args:
        config: of an experiment, see `tubevit.config.load_config`.
        workdir: gets config.json, metrics.jsonl, TensorBoard events and checkpoints/.
        allow_change: keys that may differ from those of the run that is resumed.

    Returns:
        The metrics of the last evaluation, {} without evaluation data.

    Raises:
        UserError: bad configuration, data or workdir.
        RunError: a checkpoint could not be saved.
        Preempted: SIGTERM came; the state was saved.
    """
    experiment = open_experiment(config)
    config, model = experiment.config, experiment.model
    for note in experiment.notes:
        _say(note)
    heads = {name: dataclasses.asdict(head) for name, head in model.heads}
    optimizer = make_optimizer(config)
    graph = nnx.graphdef(nnx.eval_shape(lambda: TubeViT(model, rngs=nnx.Rngs(0))))
    workdir = prepare_workdir(workdir, config, heads, allow_change)  # once the configuration is known to be good

    state, start = _restore_or_initialise(experiment, optimizer, workdir)
    step_function = make_step(graph, optimizer, config)
    evaluate = functools.partial(_evaluate, experiment, _forwards(experiment))
    metadata = {"model": model_metadata(model), "config": config.to_dict(), "tubevit": tubevit.__version__}
    schedule = learning_rate_schedule(config)
    loads = {name: (load, config.data.train[name].batch_size) for name, load in experiment.train.items()}
    broken = BrokenFiles(experiment.train, config.loader.max_broken)
    batches = joint_batches(
        loads, config.seed, first=start, threads=config.loader.threads, workers=config.loader.workers
    )

    writer = MetricsWriter(workdir, start)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    progress = _Progress(config, start)
    results: dict = {}
    pending = []
    with (
        contextlib.closing(writer),
        contextlib.closing(checkpoints),
        contextlib.closing(batches),
        _sigterm_flag() as preempted,
    ):
        for step in range(start + 1, config.train.steps + 1):
            with progress.time("data"):
                batch = broken.take(next(batches))
            with progress.time("step"):
                state, metrics = step_function(state, batch)
                pending.append(metrics)
                last = step == config.train.steps
                log = step % config.log.every == 0 or last
                if log:  # waits for the device; in between it runs ahead
                    averages = _average(pending, config.data.train)
                    pending = []
            if log:
                averages["train/learning_rate"] = float(schedule(step - 1))
                writer.write(step, averages | progress.report(step, averages["train/loss"]))
            if last or step % config.eval.every == 0:
                results = evaluate(join_frozen(state["params"], state["frozen"]))
                if results:
                    writer.write(step, results)
                    _say(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in results.items() if v is not None))
                progress.pause()
            stop = bool(preempted)  # read once: the signal may come at any moment
            if last or stop or step % config.checkpoint.every == 0:
                with progress.time("save"):
                    writer.sync()  # a bucket's log must not be behind its checkpoint
                    checkpoints.save(state, metadata, wait=bool(last or stop))
            if stop and not last:
                raise Preempted(f"saved step {step} in {workdir}; the same command goes on from there")
    if start >= config.train.steps:
        _say(f"{workdir} has reached step {start} of {config.train.steps} already: nothing to train")
    return results


def _restore_or_initialise(experiment: Experiment, optimizer, workdir) -> tuple[dict, int]:
    make = functools.partial(initial_state, experiment.model, optimizer, experiment.config.seed)
    folder = workdir / "checkpoints"
    saved = steps(folder)
    if not saved:
        return _initial_state(experiment, optimizer, make), 0
    abstract = jax.eval_shape(make)
    checkpoint = folder / str(saved[-1])
    whole = jax.eval_shape(join_frozen, abstract["params"], abstract["frozen"])
    params, frozen = split_frozen(load_tree(checkpoint, "params", whole), experiment.model)
    state = {
        "step": jax.device_put(np.int32(saved[-1]), jax.local_devices()[0]),  # as the others: the step compiles once
        "params": params,
        "frozen": frozen,
        "opt_state": load_tree(checkpoint, "optimizer", abstract["opt_state"]),
    }
    _say(f"resuming {workdir} from step {saved[-1]}")
    return state, saved[-1]


def _initial_state(experiment: Experiment, optimizer, make) -> dict:
    init, model = experiment.config.init, experiment.model
    if init.checkpoint is None:
        return jax.jit(make)()
    params = jax.jit(lambda: parameters(TubeViT(model, rngs=nnx.Rngs(experiment.config.seed))))()
    params, notes = initialise(
        params, model, init.checkpoint, skip=names(init.skip), renamed=pairs(init.rename), tubes=init.tubes
    )
    _say("\n  ".join([f"beginning from {init.checkpoint}", *notes]))
    return state_of(params, model, optimizer)


def _forwards(experiment: Experiment) -> dict:
    model = nnx.eval_shape(lambda: TubeViT(experiment.model, rngs=nnx.Rngs(0)))
    heads = {dataset.head for dataset in experiment.config.data.eval.values()}
    return {head: make_forward(model, head) for head in heads}


def _evaluate(experiment: Experiment, forwards: dict, params: dict) -> dict[str, float | None]:
    config, results = experiment.config, {}
    for name, load in experiment.eval.items():
        dataset = config.data.eval[name]
        record, _ = evaluate_source(
            forwards[dataset.head], params, load, dataset.batch_size, name=name, head=dataset.head,
            views=Views.from_text(config.eval.views), threads=config.loader.threads, workers=config.loader.workers,
        )  # fmt: skip
        if record["broken"]:
            _say(f"eval {name}: {len(record['broken'])} files cannot be decoded and are left out: evaluate lists them")
        results |= {f"eval/{name}/{key}": record[key] for key in ("top1", "top5", "map", "loss")}
    return results


def _average(pending: list, names) -> dict[str, float]:
    averages = functools.reduce(lambda a, b: a.merge(b), pending).compute()
    named = {f"{name}_loss": f"train/{name}/loss" for name in names}
    return {named.get(key, f"train/{key}"): float(value) for key, value in averages.items()}


class _Progress:
    """Times the parts of a step and prints the progress line."""

    def __init__(self, config: ConfigDict, start: int):
        self.config, self.step = config, start
        self.clips = sum(dataset.batch_size for dataset in config.data.train.values())
        self.seconds = dict.fromkeys(("data", "step", "save"), 0.0)
        self.rate = None  # steps per second, smoothed
        self.idle = 0.0
        self.since = self.paused_at = time.perf_counter()

    @contextlib.contextmanager
    def time(self, part: str):
        begin = time.perf_counter()
        yield
        self.paused_at = time.perf_counter()
        self.seconds[part] += self.paused_at - begin

    def pause(self) -> None:
        """Leaves out the time since the last timed part (evaluation) from the rate."""
        self.idle += time.perf_counter() - self.paused_at

    def report(self, step: int, loss: float) -> dict[str, float]:
        """Prints the line; returns seconds a step since the last report by part."""
        now = time.perf_counter()
        count = step - self.step
        rate = count / max(now - self.since - self.idle, 1e-9)
        self.rate = rate if self.rate is None else 0.7 * self.rate + 0.3 * rate
        eta = datetime.timedelta(seconds=round((self.config.train.steps - step) / self.rate))
        _say(
            f"step {step}/{self.config.train.steps} | loss {loss:.4f} | {self.rate:.2f} steps/s | "
            f"{self.rate * self.clips:.0f} clips/s | ETA {eta}"
        )
        times = {f"time/{part}": round(value / count, 5) for part, value in self.seconds.items()}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.step, self.since, self.idle = step, now, 0.0
        return times


@contextlib.contextmanager
def _sigterm_flag():
    """A list that becomes non-empty when SIGTERM comes (Cloud TPU's notice of preemption)."""
    caught: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    except ValueError:  # not the main thread: notices go elsewhere
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
