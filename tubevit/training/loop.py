"""The main job: joint training on image and video data, from a configuration to a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit import storage
from tubevit.checkpoint.metadata import model_metadata
from tubevit.checkpoint.run_checkpoints import Checkpoints
from tubevit.config.experiment import Experiment, open_experiment
from tubevit.config.resolve import resolve_on_main
from tubevit.data.joint import joint_batches
from tubevit.data.views import Views
from tubevit.evaluation.evaluate import EvalSettings, evaluate_source
from tubevit.evaluation.forward import make_forward
from tubevit.models.abstract import abstract_parameters, graph_of
from tubevit.models.freeze import join_frozen
from tubevit.recipes.finetune import expected_time
from tubevit.sharding.hosts import is_main, run_on_main
from tubevit.sharding.mesh import check_batch, global_batch, local_rows, make_mesh
from tubevit.sharding.rules import check_sharding, shardings
from tubevit.training.begin import begin
from tubevit.training.optimizer import learning_rate_schedule, make_optimizer
from tubevit.training.run.broken_files import BrokenFiles
from tubevit.training.run.lease import Lease
from tubevit.training.run.nonfinite import NonFiniteGuard
from tubevit.training.run.preemption import Preempted, preemption
from tubevit.training.run.profile import Profile
from tubevit.training.run.progress import Progress
from tubevit.training.run.workdir import MetricsWriter, prepare_workdir
from tubevit.training.step import make_step

logger = logging.getLogger(__name__)


def train(
    config: ConfigDict, workdir: str | os.PathLike, allow_change=(), profile: tuple[int, int] | None = None
) -> dict[str, float | None]:
    """Trains, or goes on with the run that the workdir holds; every process of a job calls it.

    Batches, dropout and mixup follow from (seed, step) alone: a run that was killed at any moment ends with the same
    parameters as one that was not, and other meshes or numbers of processes change the order of sums only.

    Args:
        config: of an experiment, see `tubevit.config.load_config`.
        workdir: gets config.json, metrics.jsonl, TensorBoard events and checkpoints/.
        allow_change: keys that may differ from those of the run that is resumed.
        profile: (first, end) of the steps to write a trace of.

    Returns:
        The metrics of the last evaluation, {} without evaluation data.

    Raises:
        UserError: bad configuration, data, mesh or workdir, or another run is in the workdir.
        RunError: a checkpoint could not be saved, or the loss is not finite.
        Preempted: SIGTERM came; the state was saved.
    """
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    resolved = resolve_on_main(config)
    for note in resolved.notes:
        logger.info(note)
    if resolved.decoding is not None and is_main():
        logger.info(expected_time(resolved))
    experiment = open_experiment(resolved)
    config, model = experiment.config, experiment.model
    for note in experiment.notes:
        logger.info(note)
    mesh = training_mesh(experiment)
    heads = {name: dataclasses.asdict(head) for name, head in model.heads}
    optimizer = make_optimizer(config)
    graph = graph_of(model)
    # Once the configuration is known to be good.
    workdir = storage.as_path(workdir)
    with Lease(workdir).acquire() as lease:
        run_on_main(lambda: prepare_workdir(workdir, config, heads, allow_change) and None)
        state, start = begin(experiment, optimizer, workdir, mesh)
        return _run(experiment, mesh, state, start, make_step(graph, optimizer, config, mesh), workdir, lease, profile)


def training_mesh(experiment: Experiment) -> Mesh:
    """The mesh of an experiment.

    Raises:
        UserError: it does not fit the devices, the batches or the parameters.
    """
    config, mesh = experiment.config, make_mesh(experiment.config.mesh)
    for name, dataset in config.data.train.items():
        check_batch(name, dataset.batch_size, config.train.grad_accum_steps, mesh)
    check_sharding(abstract_parameters(experiment.model), mesh)
    local_rows(mesh)
    return mesh


def _run(experiment: Experiment, mesh: Mesh, state: dict, start: int, step_function, workdir, lease, profile) -> dict:
    config = experiment.config
    evaluate = functools.partial(_evaluate, experiment, _forwards(experiment, mesh), mesh)
    metadata = {"model": model_metadata(experiment.model), "config": config.to_dict()}
    schedule = learning_rate_schedule(config)
    batches_from = functools.partial(_batches, experiment, local_rows(mesh))
    broken = BrokenFiles(experiment.train, config.loader.max_broken)
    names = {name: load.source.keys for name, load in experiment.train.items()}
    watch = NonFiniteGuard(workdir, names, functools.partial(_batch_of, batches_from), config.train.skip_nonfinite)
    progress, traces = Progress(config, start), Profile(workdir, profile)
    results: dict = {}
    pending = []
    with (
        contextlib.closing(MetricsWriter(workdir, start) if is_main() else _NoMetrics()) as writer,
        contextlib.closing(Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.keep_best)) as checkpoints,
        contextlib.closing(batches_from(start)) as batches,
        contextlib.closing(traces),
        preemption() as asked_to_stop,
    ):
        for step in range(start + 1, config.train.steps + 1):
            traces.before(step)
            with progress.time("data"):
                batch = global_batch(broken.take(next(batches)), mesh)
            with progress.time("step"):
                state, metrics = step_function(state, batch)
                pending.append((step, metrics))
                traces.after(step, metrics)
                last = step == config.train.steps
                stop = asked_to_stop(step)  # read once: the signal may come at any moment
                log = step % config.log.every == 0 or last
                save = last or stop or step % config.checkpoint.every == 0
                if log or save:  # waits for the device; in between it runs ahead
                    pending = [(step, metrics) for metrics in watch.take(pending)]
                if log:
                    averages = _average([metrics for _, metrics in pending], config.data.train)
                    pending = []
            if log or save:
                lease.check(step)  # before anything is written
            if log:
                averages["train/learning_rate"] = float(schedule(step - 1))
                averages |= broken.dense_shares()
                writer.write(step, averages | progress.report(step, averages["train/loss"]))
            evaluated = last or step % config.eval.every == 0
            if evaluated:
                results = evaluate(state)
                if results:
                    writer.write(step, results)
                    logger.info(
                        f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in results.items() if v is not None)
                    )
                progress.pause()
            if save:
                with progress.time("save"):
                    writer.sync()  # a bucket's log must not be behind its checkpoint
                    checkpoints.save(state, metadata, results if evaluated else None, wait=bool(last or stop))
            if stop and not last:
                raise Preempted(f"saved step {step} in {workdir}; the same command goes on from there")
    if start >= config.train.steps:
        logger.info(f"{workdir} has reached step {start} of {config.train.steps} already: nothing to train")
    return results


def _batches(experiment: Experiment, host, first: int):
    config = experiment.config
    loads = {name: (load, config.data.train[name].batch_size) for name, load in experiment.train.items()}
    return joint_batches(
        loads, config.seed, first=first, shards=host, threads=config.loader.threads, workers=config.loader.workers
    )


def _batch_of(batches_from, step: int) -> dict:
    with contextlib.closing(batches_from(step - 1)) as batches:
        return next(batches)


def _forwards(experiment: Experiment, mesh: Mesh) -> dict:
    heads = {dataset.head for dataset in experiment.config.data.eval.values()}
    return {head: make_forward(experiment.model, head, mesh) for head in heads}


def _evaluate(experiment: Experiment, forwards: dict, mesh: Mesh, state: dict) -> dict[str, float | None]:
    config, results = experiment.config, {}
    if not experiment.eval:
        return results
    params = state["params"]
    if state["frozen"]:
        whole = jax.eval_shape(join_frozen, params, state["frozen"])
        params = jax.jit(join_frozen, out_shardings=shardings(whole, mesh))(params, state["frozen"])
    loader = config.loader
    settings = EvalSettings(Views.from_text(config.eval.views), loader.threads, loader.workers, mesh=mesh)
    for name, load in experiment.eval.items():
        head, batch_size = config.data.eval[name].head, config.data.eval[name].batch_size
        record = evaluate_source(
            forwards[head], params, load, batch_size, name=name, head=head, settings=settings
        ).record
        if record["broken"]:
            logger.warning(
                f"eval {name}: {len(record['broken'])} files cannot be decoded and are left out: evaluate lists them"
            )
        results |= {f"eval/{name}/{key}": record[key] for key in ("top1", "top5", "map", "loss")}
    return results


def _average(finite: list, names) -> dict[str, float]:
    if not finite:  # every step was left out
        return {"train/loss": float("nan")}
    averages = functools.reduce(lambda a, b: a.merge(b), finite).compute()
    named = {f"{name}_loss": f"train/{name}/loss" for name in names}
    return {named.get(key, f"train/{key}"): float(value) for key, value in averages.items()}


class _NoMetrics:
    """Of a process that does not write."""

    def write(self, step: int, metrics: dict) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
