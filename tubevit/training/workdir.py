"""The folder of a run: config.json, metrics.jsonl, TensorBoard events, checkpoints."""

from __future__ import annotations

import json
import logging
import os
import pathlib

from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from tubevit.config import flatten
from tubevit.errors import UserError
from tubevit.zoo.checkpoint import RUN_FOLDER, steps

# Keys that cannot change the result of a run.
_FREE = ("loader.", "log.", "checkpoint.", "eval.", "data.eval.", "train.steps")


class RunError(RuntimeError):
    """A run failed for a reason outside of the program; the command line prints its one line, exit code 1."""


def prepare_workdir(workdir: str | os.PathLike, config: ConfigDict, heads: dict, allow_change=()) -> pathlib.Path:
    """Creates the folder, or checks that a run with checkpoints in it has the same configuration; writes config.json.

    Args:
        workdir: the folder.
        config: resolved.
        heads: {name: Head as a dict}.
        allow_change: keys that may differ from the earlier run beyond those that cannot change the result.

    Raises:
        UserError: it cannot be written, or holds a run of another configuration.
    """
    workdir = pathlib.Path(workdir).absolute()
    path = workdir / "config.json"
    content = config.to_dict() | {"heads": heads}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists() and steps(workdir / RUN_FOLDER):
            _compare(workdir, json.loads(path.read_text()), content, allow_change)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write workdir {workdir}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}; name a new workdir") from error
    return workdir


def _compare(workdir: pathlib.Path, old: dict, new: dict, allow_change) -> None:
    old, new = flatten(old), flatten(json.loads(json.dumps(new)))
    differing = [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        and not key.startswith(_FREE)
        and not (key.startswith("data.") and key.endswith(".source"))  # where the data lies
        and key not in allow_change
    ]
    if differing:
        lines = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing[:5]]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{workdir} holds a run of another configuration ({'; '.join(lines)}{more}); "
            f"name a new workdir, or pass --allow-change {differing[0]}"
        )


class MetricsWriter:
    """Writes metrics.jsonl, a JSON object a line, and TensorBoard events.

    Args:
        workdir: of the run.
        step: of the restored checkpoint; lines of later steps are cut off.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # the process died while it wrote this line
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self._path)
        self._tensorboard = SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Appends one line; metrics that are None are left out of TensorBoard."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        self._tensorboard.close()


def _not_of_a_failed_save(record: logging.LogRecord) -> bool:
    """False for the tracebacks that each of Orbax's threads logs: `Checkpoints` raises one error for all of them."""
    return not (record.exc_info and "orbax" in record.pathname)


class Checkpoints:
    """The checkpoints of a run: saved in the background, the last `keep` are kept."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        self.folder = workdir / RUN_FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        logging.getLogger("absl").addFilter(_not_of_a_failed_save)

    def save(self, state: dict, metadata: dict, wait: bool = False) -> None:
        """Saves a training state; returns once it is copied, or when it is written if `wait`.

        Raises:
            RunError: this save or the one before failed; earlier checkpoints are untouched.
        """
        step = int(state["step"])
        try:
            if self._checkpointer.latest is None or self._checkpointer.latest.step < step:
                trees = {"params": state["params"], "optimizer": state["opt_state"]}
                self._checkpointer.save_checkpointables_async(
                    step, trees, force=True, custom_metadata=metadata | {"step": step}
                )
            if wait:
                self.wait()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits until the last save is written."""
        self._checkpointer.wait()

    def _failure(self, error: Exception) -> RunError:
        whole = steps(self.folder)
        last = f"the last good checkpoint is step {whole[-1]}" if whole else "there is no earlier checkpoint"
        reason = " ".join(str(error).split())[:300]
        return RunError(f"saving a checkpoint in {self.folder} failed ({reason}); {last}")

    def close(self) -> None:
        """Ends the background work."""
        self._checkpointer.close()
