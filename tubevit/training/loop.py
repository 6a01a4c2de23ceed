"""The main job: joint training on image and video data, from a configuration to a workdir."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Generator

import jax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tubevit import storage, writable
from tubevit.checkpoint.adapter import Base
from tubevit.checkpoint.metadata import model_metadata
from tubevit.checkpoint.run_checkpoints import Checkpoints, name_best
from tubevit.config import names
from tubevit.config.experiment import Experiment, open_experiment
from tubevit.config.resolve import Resolved, resolve_on_main
from tubevit.data.joint import joint_batches
from tubevit.errors import RunError
from tubevit.models.abstract import abstract_parameters
from tubevit.models.config import ModelConfig
from tubevit.models.elastic import drawn_models, elastic_models
from tubevit.models.lora import training_graph, training_shapes
from tubevit.recipes.finetune import expected_time
from tubevit.sharding.agreement import SourceEntries, agree, mapping_entries
from tubevit.sharding.hosts import is_main, run_on_all, run_on_main
from tubevit.sharding.mesh import check_batch, global_batch, local_rows
from tubevit.sharding.rules import check_sharding
from tubevit.training.automatic_fsdp import training_mesh
from tubevit.training.baseline import pixel_baseline, warn_if_worse
from tubevit.training.begin import begin
from tubevit.training.evaluation import make_evaluation
from tubevit.training.optimizer import learning_rate_schedule, make_optimizer, with_average
from tubevit.training.run.broken_files import BrokenFiles, lost_later
from tubevit.training.run.lease import Lease
from tubevit.training.run.nonfinite import NonFiniteGuard
from tubevit.training.run.preemption import Preempted, preemption
from tubevit.training.run.profile import Profile
from tubevit.training.run.progress import Progress
from tubevit.training.run.replay import CorruptStep, Replay
from tubevit.training.run.trackers import Tracker, make_tracker
from tubevit.training.run.workdir import open_metrics, prepare_workdir, services
from tubevit.training.step import average_metrics, chosen_by_step, make_step, teaching

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run that can be exchanged; tests hand in their own.

    Attributes:
        make_step: makes the compiled step, see `tubevit.training.step.make_step`.
        batches: makes the joint batches, see `joint_batches`.
        place: sends a batch to the devices, see `global_batch`.
        make_evaluation: (experiment, mesh) -> (state -> metrics), see `make_evaluation`.
        make_tracker: (name of a service) -> its tracker, see `make_tracker`.
    """

    make_step: Callable = make_step
    batches: Callable = joint_batches
    place: Callable = global_batch
    make_evaluation: Callable = make_evaluation
    make_tracker: Callable[[str], Tracker] = make_tracker


ALL_PARTS = Parts()


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    allow_change=(),
    profile: tuple[int, int] | None = None,
    parts: Parts = ALL_PARTS,
) -> dict[str, float | None]:
    """Train, or resume the run in the workdir; return the metrics of the last evaluation. Every process calls it.

    Batches, dropout and mixup depend on (seed, step) alone: a run that was killed at any moment ends with the same
    parameters as an uninterrupted one, and other meshes or numbers of processes change only the order of sums.

    Args:
        config: the configuration of an experiment, see `tubevit.config.load_config`.
        workdir: receives config.json, metrics.jsonl, TensorBoard events and checkpoints/.
        allow_change: keys that may differ from the run that is resumed.
        profile: (first, end) of the steps to trace.
        parts: what the run is made of.

    Raises:
        UserError: configuration, data, mesh or workdir are not valid, the processes do not agree on them, or another
            run uses the workdir.
        RunError: a checkpoint could not be saved, the loss is not finite, too many files are broken, or a replayed step
            had another result.
        Preempted: SIGTERM came; the state was saved.
    """
    workdir = storage.as_path(workdir)
    run_on_main(lambda: writable.check_folder(workdir, "name another workdir"))
    run_on_main(lambda: _check_services(config, parts))
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    agree(lambda: {"the configuration": mapping_entries(config.to_dict())})
    resolved = resolve_on_main(config)
    for note in resolved.notes:
        logger.info(note)
    experiment = run_on_all(lambda: open_experiment(resolved))  # may take minutes: it makes copies
    agree(lambda: _entries(experiment))
    for note in experiment.notes:
        logger.info(note)
    if resolved.decoding is not None and is_main():
        logger.info(expected_time(resolved))
    config, model, mesh = experiment.config, experiment.model, checked_mesh(experiment)
    heads = {name: dataclasses.asdict(head) for name, head in model.heads}
    optimizer, models = make_optimizer(config), elastic_models(model, config.train.elastic)
    # The workdir is touched once the configuration is known to be good.
    with Lease(workdir).acquire() as lease:
        run_on_main(lambda: prepare_workdir(workdir, config, heads, allow_change))
        logger.info(parameter_overview.get_parameter_overview(training_shapes(model), include_stats=False))
        baseline = None
        if resolved.decoding is not None:  # fine-tuning
            baseline = pixel_baseline(experiment, workdir, resolved.decoding)
        state, start, base = begin(experiment, optimizer, workdir, mesh)

        def make(model: ModelConfig, mesh: Mesh, **kind) -> Callable:
            return parts.make_step(training_graph(model), optimizer, config, mesh, **kind, **teaching(model, models))

        def make_replay(model: ModelConfig) -> Replay:
            return Replay(config.train.replay, mesh, functools.partial(make, model, checked=True), parts.place)

        step_of = chosen_by_step(lambda model: make(model, mesh), drawn_models(models), config.seed)
        replay_of = chosen_by_step(make_replay, drawn_models(models), config.seed)
        run = Run(experiment, mesh, workdir, lease, step_of, replay_of, parts, base)
        results = run.loop(state, start, Profile(workdir, profile))
        warn_if_worse(baseline, results)
        run_on_main(lambda: name_best(workdir, config.train.steps, config.checkpoint.keep_best))
        return results


def _check_services(config: ConfigDict, parts: Parts) -> None:
    for name in services(names(config.log.to)):
        parts.make_tracker(name)


def _entries(experiment: Experiment) -> dict:
    """What all processes must have in common: the files of each data set and the resolved configuration."""
    groups = {"train": experiment.train, "eval": experiment.eval}
    files = {
        f"data.{group}.{name}": SourceEntries(load.source) for group in groups for name, load in groups[group].items()
    }
    return files | {"the resolved configuration": mapping_entries(experiment.config.to_dict())}


def checked_mesh(experiment: Experiment | Resolved) -> Mesh:
    """Make the mesh of an experiment; raises UserError if it does not fit devices, batches or parameters."""
    config = experiment.config
    mesh, notes = training_mesh(config, experiment.model)
    for note in notes:
        logger.info(note)
    for name, dataset in config.data.train.items():
        check_batch(name, dataset.batch_size, config.train.grad_accum_steps, mesh)
    check_sharding(abstract_parameters(experiment.model), mesh)
    local_rows(mesh)
    return mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        experiment: the configuration, the model and the data sets.
        mesh: the devices of the state.
        workdir: the folder of the run, whose `lease` this process holds.
        step_of: (number of a step) -> its program, (state, batch) -> (state, metrics).
        replay_of: (number of a step) -> what computes it twice, if that is due.
        parts: makes batches and evaluations.
        base: the base of the adapter that is trained, whose parameters are not saved.
    """

    experiment: Experiment
    mesh: Mesh
    workdir: pathlib.PurePath
    lease: Lease
    step_of: Callable[[int], Callable]
    replay_of: Callable[[int], Replay]
    parts: Parts
    base: Base | None = None

    def loop(self, state: dict, start: int, profile: Profile) -> dict[str, float | None]:
        """Train from step `start` to the last one; return the metrics of the last evaluation.

        While a step runs, the batch of the next one is loaded and sent to the devices, except before a save. At most
        two steps are queued, so that the devices hold three batches at most. The position in the data follows from the
        step alone, so that a batch that was sent ahead and never used is neither lost nor repeated.
        """
        config, results, pending, running, following = self.experiment.config, {}, [], None, None
        evaluate = self.parts.make_evaluation(self.experiment, self.mesh)
        metadata = {"model": model_metadata(self.experiment.model), "config": config.to_dict()}
        metadata |= {} if self.base is None else {"adapter": dataclasses.asdict(self.base)}
        schedule, progress, keep = learning_rate_schedule(config), Progress(config, start), config.checkpoint
        broken = BrokenFiles(self.experiment.train, config.loader.max_broken)
        files = {name: load.source.keys for name, load in self.experiment.train.items()}
        guard = NonFiniteGuard(self.workdir, files, self._batch_of, config.train.skip_nonfinite)
        with (
            open_metrics(self.workdir, start, names(config.log.to), self.parts.make_tracker) as writer,
            contextlib.closing(
                Checkpoints(self.workdir, keep.keep, keep.keep_best, replays=config.train.replay > 0)
            ) as checkpoints,
            contextlib.closing(self._batches_from(start)) as batches,
            contextlib.closing(profile),
            preemption() as asked_to_stop,
        ):

            def save_state(scores: dict[str, float | None] | None) -> None:
                with progress.time("save"):
                    writer.sync()  # a bucket's log must not be behind its checkpoint
                    checkpoints.save(self._saved(state), metadata, scores, wait=bool(last or stop))

            for step in range(start + 1, config.train.steps + 1):
                profile.before(step)
                last = step == config.train.steps
                with progress.time("data"):
                    loaded, placed = following or self._load(batches)
                    broken.check(loaded)
                with progress.time("step"):
                    state, metrics = self._compute(step, state, placed, loaded, checkpoints)
                due = last or step % config.checkpoint.every == 0
                with progress.time("data"):  # where a save is due it comes first, as a broken file must not prevent it
                    following = None if due else self._load(batches)
                with progress.time("step"):
                    jax.block_until_ready(running)
                    running = metrics
                    pending.append((step, metrics))
                    profile.after(step, metrics)
                    stop = asked_to_stop(step)  # read once: the signal may come at any moment
                    log = step % config.log.every == 0 or last
                    save = due or stop
                    if log or save:  # waits for the device; in between it runs ahead
                        pending = [(step, metrics) for metrics in guard.take(pending)]
                if log or save:
                    self.lease.check(step)  # before anything is written
                if log:
                    averages = average_metrics([metrics for _, metrics in pending], config.data.train)
                    averages["train/learning_rate"] = float(schedule(step - 1))
                    averages |= broken.dense_shares()
                    writer.write(step, averages | progress.report(step, averages["train/loss"]))
                    pending = []
                evaluated = last or (step % config.eval.every == 0 and not stop)  # SIGTERM may leave too little time
                # The save comes before the evaluation, which may fail, unless it needs the scores or is the last.
                scored = evaluated and (last or keep.keep_best is not None)
                if save and not scored:
                    save_state(None)
                if evaluated:
                    results = evaluate(with_average(state))
                    if results:
                        writer.write(step, results)
                        shown = (f"{name} {value:.3f}" for name, value in results.items() if value is not None)
                        logger.info(f"step {step}: {', '.join(shown)}")
                    progress.pause()
                if save and scored:
                    save_state(results)
                if evaluated:
                    writer.sync()
                    broken.check_evaluation(results)
                if save:
                    broken.check_together()
                if stop and not last:
                    raise Preempted(f"saved step {step} in {self.workdir}; the same command resumes the run")
        if start >= config.train.steps:
            logger.info(f"{self.workdir} has reached step {start} of {config.train.steps} already: nothing to train")
        return results

    def _compute(self, step: int, state: dict, placed: dict, loaded: dict, checkpoints: Checkpoints) -> tuple:
        """Compute a step, twice if that is due; return the new state and the metrics."""
        if not self.replay_of(step).due(step):
            with jax.transfer_guard("disallow"):
                return self.step_of(step)(state, placed)
        try:
            new, metrics = self.replay_of(step)(
                step, state, placed, {name: _inputs(part) for name, part in loaded.items()}
            )
        except CorruptStep as error:
            self.lease.check(step)
            raise RunError(f"{error}; {checkpoints.mark_corrupt(step)}") from None
        self.lease.check(step)
        checkpoints.mark_clean(step)
        return new, metrics

    def _saved(self, state: dict) -> dict:
        """Return what is saved of a state: the average of its parameters, if it has one, without those of the base."""
        state = with_average(state)
        return state if self.base is None else state | {"frozen": self.base.without(state["frozen"])}

    def _load(self, batches: Generator) -> tuple[dict, dict]:
        """Load the next batch and start to send it; return what stays on the host, and what the devices get."""
        batch = next(batches)
        inputs = {name: _inputs(part) for name, part in batch.items()}
        if not self.experiment.config.train.replay:  # which sends them again
            batch = {name: {key: part[key] for key in part if key not in inputs[name]} for name, part in batch.items()}
        return batch, self.parts.place(inputs, self.mesh)

    def _batches_from(self, step: int) -> Generator[dict, None, None]:
        config = self.experiment.config
        loads = {name: (load, config.data.train[name].batch_size) for name, load in self.experiment.train.items()}
        loader = {"threads": config.loader.threads, "workers": config.loader.workers}
        return lost_later(self.parts.batches(loads, config.seed, first=step, shards=local_rows(self.mesh), **loader))

    def _batch_of(self, step: int) -> dict:
        with contextlib.closing(self._batches_from(step - 1)) as batches:
            return next(batches)


def _inputs(part: dict) -> dict:
    """The part of a batch that the devices get."""
    return {key: part[key] for key in ("pixels", "label")}
