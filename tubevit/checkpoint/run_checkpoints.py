"""The checkpoints of a run: saving in the background with hashes of the files, and finding the newest good one."""

import contextlib
import json
import logging
import math
import os
import pathlib
import threading
from collections.abc import Mapping

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from tubevit import storage
from tubevit.checkpoint.checkpoint import RUN_FOLDER, is_whole, steps
from tubevit.checkpoint.manifest import verify, write_manifest
from tubevit.checkpoint.metadata import versions
from tubevit.checkpoint.replays import FILE, Replays
from tubevit.checkpoint.tracebacks import tracebacks_hidden
from tubevit.errors import RunError, UserError, cannot_write, unknown
from tubevit.models.freeze import join_frozen
from tubevit.sharding.hosts import run_on_main

logger = logging.getLogger(__name__)

# Suffixes of folders that must not be used; neither Orbax nor `steps` takes them for checkpoints.
_DAMAGED, _UNVERIFIED, _SUSPECT = ".damaged", ".unverified", ".suspect"
_BEST = "best.json"
# What Orbax and TensorStore raise when a save fails.
_FAILURES = (OSError, ValueError, RuntimeError)


def newest_good(folder: str | os.PathLike) -> int | None:
    """Find the step to resume from: the newest checkpoint whose files match its manifest; None without any.

    Folders of newer steps are renamed, because these steps will be saved again: to `<step>.damaged`, or to
    `<step>.unverified` (only the last is kept) if the manifest is missing, as after a kill before it was written. If
    no checkpoint matches its manifest, the newest one without a manifest is used.

    If a replay of the run differed, checkpoints after its last clean replay are not used either, and are renamed to
    `<step>.suspect`, see `Checkpoints.mark_corrupt`.

    Every process of a run calls it before it makes `Checkpoints`; process 0 does the work.

    Raises:
        UserError: there are checkpoints, but all are damaged or suspect.
        RunError: a folder cannot be renamed; StorageError: the bucket is out of reach or refuses.
    """
    return run_on_main(lambda: _newest_good(storage.as_path(folder)))


def _newest_good(folder: pathlib.PurePath) -> int | None:
    good, unverified, reasons, replays = None, None, {}, Replays.read(folder.parent)
    for step in reversed(steps(folder)):
        if replays.corrupt is not None and step > replays.clean:
            found = f"two results of step {replays.corrupt}, and the last clean replay was of step {replays.clean}"
            reasons[step] = _SUSPECT, f"is suspect ({found})"
            continue
        problems = verify(folder / str(step))
        if problems == []:
            good = step
            break
        if problems is None:
            unverified = step if unverified is None else unverified
            reasons[step] = _UNVERIFIED, "has no manifest"
        else:
            more = f", and {len(problems) - 1} more files" if len(problems) > 1 else ""
            reasons[step] = _DAMAGED, f"is damaged ({problems[0]}{more})"
    chosen = unverified if good is None else good
    if chosen is None and reasons:
        listed = "; ".join(f"step {step} {reason}" for step, (_, reason) in reasons.items())
        remedy = "bring a good copy, or name a new workdir"
        if replays.corrupt is not None:
            remedy = f"remove {FILE} to trust those that are suspect, {remedy}"
        raise UserError(f"no checkpoint in {folder} can be used: {listed}; {remedy}")
    if good is None and chosen is not None:
        logger.warning(f"checkpoint {chosen} in {folder} has no manifest: resuming from it without a check for damage")
    for step, (suffix, reason) in reasons.items():
        if chosen is not None and step > chosen:
            renamed = f"renamed to {step}{suffix}"
            logger.warning(f"checkpoint {step} in {folder} {reason}: {renamed}; resuming from step {chosen}")
            _set_aside(folder, step, suffix)
    proved = min(replays.clean, chosen or 0)  # what is saved from here on is as good as what is resumed
    if replays != Replays(proved):
        _write(Replays(proved), folder.parent)
    return chosen


def _write(replays: Replays, workdir: str | os.PathLike) -> None:
    try:
        replays.write(workdir)
    except OSError as error:
        raise cannot_write(f"workdir {workdir}", error) from error


def _set_aside(folder: pathlib.PurePath, step: int, suffix: str) -> None:
    old = [name for name in storage.names(folder) if name == f"{step}{suffix}" or name.endswith(_UNVERIFIED)]
    source, target = folder / str(step), folder / f"{step}{suffix}"
    try:
        for name in old:
            storage.call(folder, epath.Path(folder / name).rmtree)
        if storage.is_remote(folder):  # copied whole before anything is removed
            files = storage.list_files(source)
            pairs = [[storage.join(place, file) for file in files] for place in (source, target)]
            storage.operate(folder, lambda filesystem, inner: filesystem.copy(*pairs))
            storage.call(folder, epath.Path(source).rmtree)
        else:
            os.rename(source, target)
    except OSError as error:
        raise RunError(f"cannot rename {source}: {error.strerror or error}") from error


def name_best(workdir: str | os.PathLike, last: int, metric: str | None) -> None:
    """Log where the best checkpoint of a run is by a metric, unless it is that of the last step, or was removed."""
    if metric is None:
        return
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # of a file that was cut off
        best = json.loads(storage.read_bytes(storage.join(workdir, _BEST)))
        place = storage.join(storage.join(workdir, RUN_FOLDER), str(best["step"]))
        if best["metric"] == metric and best["step"] < last and is_whole(place):
            logger.info(
                f"the best checkpoint is {place}, with {metric} {best['value']:.3f}; {workdir} stands for the last one"
            )


class Checkpoints:
    """The checkpoints of a run: saved in the background; the last `keep` and the best are kept.

    Once a checkpoint is complete, process 0 writes its `manifest.json`, and `best.json` with {"step", "metric",
    "value"} in the workdir. All processes of a run make this object and call the same methods.

    Args:
        workdir: the folder of the run, on disk or `gs://`.
        keep: number of checkpoints to keep.
        keep_best: a metric of the evaluation, such as eval/clips/top1; the checkpoint with its largest value
            (smallest for a loss) is kept as well. None keeps only the last ones.
        replays: whether steps are replayed; the newest checkpoint before a clean replay is then kept as well.

    Raises:
        StorageError: the bucket is out of reach or refuses; so do `save`, `wait` and `close`.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int, keep_best: str | None = None, replays: bool = False):
        self._workdir = workdir
        self.folder = storage.as_path(workdir) / RUN_FOLDER
        self.keep_best, self._best_file = keep_best, storage.join(workdir, _BEST)
        policies = ocp.training.preservation_policies
        kept: list = [policies.LatestN(keep)]
        if keep_best is not None:
            kept.append(policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        self._replays = Replays()
        if replays:
            self._replays = Replays(run_on_main(lambda: Replays.read(workdir).clean))
            kept.append(self._replays)
        policy = policies.AnyPreservationPolicy(kept)
        make = ocp.training.Checkpointer
        options = {"preservation_policy": policy, "cleanup_tmp_directories": True}
        try:
            self._checkpointer = self._call(make, self.folder, **options)
        except ValueError:  # it reads all metrics; those of an older checkpoint are not JSON
            run_on_main(self._set_damaged_aside)
            self._checkpointer = self._call(make, self.folder, **options)
        self._background: threading.Thread | None = None
        self._error: Exception | None = None
        self._until_closed = contextlib.ExitStack()
        self._until_closed.enter_context(tracebacks_hidden)

    def _call(self, function, *args, **kwargs):
        return storage.call(self.folder, function, *args, **kwargs)

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return a score that is larger for a better checkpoint."""
        value = metrics.get(self.keep_best or "", math.nan)
        value = -value if (self.keep_best or "").rpartition("/")[2].endswith("loss") else value
        return -math.inf if math.isnan(value) else value

    def _set_damaged_aside(self) -> None:
        for step in steps(self.folder):
            if verify(self.folder / str(step)):
                _set_aside(self.folder, step, _DAMAGED)

    def save(self, state: dict, metadata: dict, metrics: Mapping | None = None, wait: bool = False) -> None:
        """Save a training state; return once it is copied, or once it is written if `wait`.

        Args:
            state: the training state; a step that is not newer than the last one saved is skipped.
            metadata: JSON values; `step` and `versions` are added.
            metrics: {name: value} of the evaluation of this state; None or {} if it was not evaluated.
            wait: whether to wait until the checkpoint and its manifest are written.

        Raises:
            UserError: the metrics do not have the one that `keep_best` names.
            RunError: this save or the one before failed; earlier checkpoints are untouched.
        """
        step, metrics = int(state["step"]), self._metrics(metrics)
        try:
            self._join()
            if self._checkpointer.latest is None or self._checkpointer.latest.step < step:
                params = join_frozen(state["params"], state["frozen"])
                trees = {"params": params, "optimizer": state["opt_state"]}
                metadata = metadata | {"step": step, "versions": versions()}
                save = self._checkpointer.save_checkpointables_async
                self._call(save, step, trees, force=True, custom_metadata=metadata, metrics=metrics)
                self._background = threading.Thread(target=self._finish, args=(step, self._best()), daemon=True)
                self._background.start()
            if wait:
                self.wait()
        except storage.StorageError as error:  # which checkpoints there are is not known either
            raise storage.StorageError(f"saving a checkpoint in {self.folder} failed: {error}") from error
        except _FAILURES as error:
            raise self._failure(error) from error

    def _metrics(self, metrics: Mapping | None) -> dict[str, float] | None:
        if self.keep_best is None or not metrics:
            return None
        if self.keep_best not in metrics:
            raise unknown("metric of checkpoint.keep_best", self.keep_best, metrics)
        value = metrics[self.keep_best]
        return None if value is None or not math.isfinite(value) else {self.keep_best: float(value)}

    def _best(self) -> dict | None:
        """Return the content of best.json for when the current save is complete."""
        if self.keep_best is None:
            return None
        scored = [info for info in self._checkpointer.checkpoints if info.metrics and self.keep_best in info.metrics]
        if not scored:
            return None
        best = max(reversed(scored), key=lambda info: self._score(info.metrics))  # of equals the newest, as Orbax does
        return {"step": best.step, "metric": self.keep_best, "value": best.metrics[self.keep_best]}

    def _finish(self, step: int, best: dict | None) -> None:
        """Write the manifest once Orbax has written the step; runs in the background."""
        try:
            self._call(self._checkpointer.wait)
            if jax.process_index() == 0:
                write_manifest(self.folder / str(step))
                if best:
                    storage.write_text(self._best_file, json.dumps(best) + "\n")
        except Exception as error:
            self._error = error

    def _join(self) -> None:
        """Wait for the background work and raise its error."""
        if self._background is not None:
            self._background.join()
            self._background = None
        if self._error is not None:
            error, self._error = self._error, None
            with contextlib.suppress(Exception):
                self._call(self._checkpointer.wait)  # raises the error of each thread now, so that `close` does not
            raise error

    def wait(self) -> None:
        """Wait until the last save and its manifest are written."""
        self._join()
        self._call(self._checkpointer.wait)

    def mark_clean(self, step: int) -> None:
        """Note that a step was computed twice with the same result; all processes call it.

        Raises RunError if that cannot be written.
        """
        self._replays.clean = step
        run_on_main(lambda: _write(self._replays, self._workdir))

    def mark_corrupt(self, step: int) -> str:
        """Note that the results of a step differed; return which checkpoint is good. All processes call it.

        When the run resumes, `newest_good` leaves later checkpoints out. The text says if it cannot be written.
        """
        self._replays.corrupt, good, unwritten = step, None, ""
        try:
            run_on_main(lambda: _write(self._replays, self._workdir))
        except (RunError, UserError) as error:
            unwritten = f"; remove what is suspect before you resume, as this could not be noted: {error}"
        with contextlib.suppress(*_FAILURES, RunError):  # the difference is the error that counts
            self.wait()  # for a checkpoint that may be good
        with contextlib.suppress(RunError):
            good = run_on_main(lambda: self._replays.last_good(steps(self.folder)))
        if good is None:
            return f"no checkpoint is known to be good, all are suspect{unwritten}"
        resumes = "" if unwritten else ", from which the same command resumes"
        return f"the last good checkpoint is step {good}{resumes}; later ones are suspect{unwritten}"

    def _failure(self, error: Exception) -> RunError:
        whole = steps(self.folder)
        last = f"the last good checkpoint is step {whole[-1]}" if whole else "there is no earlier checkpoint"
        reason = " ".join(str(error).split())[:300]
        return RunError(f"saving a checkpoint in {self.folder} failed ({reason}); {last}")

    def close(self) -> None:
        """Finish the background work; raises RunError if the last save failed."""
        try:
            with self._until_closed:
                try:
                    self._join()
                finally:
                    self._call(self._checkpointer.close)
        except storage.StorageError:
            raise
        except _FAILURES as error:
            raise self._failure(error) from error
