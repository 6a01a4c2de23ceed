"""The folder of a run, on disk or in a bucket: config.json, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import pathlib
import tempfile
import time

from ml_collections import ConfigDict

from tubevit import storage
from tubevit.config import flatten
from tubevit.errors import UserError
from tubevit.training.checkpoints import Checkpoints  # noqa: F401 - where the loop looks for it
from tubevit.zoo.checkpoint import RUN_FOLDER, steps

# Keys that cannot change the result of a run.
_FREE = (
    "mesh.",
    "loader.",
    "log.",
    "checkpoint.",
    "eval.",
    "data.eval.",
    "train.steps",
    "train.skip_nonfinite",
    "compilation_cache",
    "input.path",
)


# Seconds between two uploads of what is appended to: a bucket knows whole files only.
_UPLOAD_EVERY = 30.0


def prepare_workdir(workdir: str | os.PathLike, config: ConfigDict, heads: dict, allow_change=()) -> pathlib.PurePath:
    """Creates the folder, or checks that a run with checkpoints in it has the same configuration; writes config.json.

    Args:
        workdir: the folder; on disk or `gs://`.
        config: resolved.
        heads: {name: Head as a dict}.
        allow_change: keys that may differ from the earlier run beyond those that cannot change the result.

    Raises:
        UserError: it cannot be written, or holds a run of another configuration.
        StorageError: the bucket is out of reach or refuses.
    """
    workdir = storage.as_path(workdir)
    path = storage.join(workdir, "config.json")
    content = config.to_dict() | {"heads": heads}
    try:
        if storage.exists(path) and steps(workdir / RUN_FOLDER):
            _compare(workdir, json.loads(storage.read_bytes(path)), content, allow_change)
        storage.write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write workdir {workdir}: {error.strerror or 'there is no such bucket'}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}; name a new workdir") from error
    return workdir


def _compare(workdir: pathlib.PurePath, old: dict, new: dict, allow_change) -> None:
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

    Those of a bucket are kept in a temporary folder and uploaded whole, at most every half minute, by `sync` and
    at the end.

    Args:
        workdir: of the run; on disk or `gs://`.
        step: of the restored checkpoint; lines of later steps are cut off.

    Raises:
        StorageError: the bucket is out of reach or refuses; so do `write`, `sync` and `close`.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        from tensorboardX import SummaryWriter

        self._workdir, self._uploaded = workdir, time.monotonic()
        self._temporary = tempfile.TemporaryDirectory(prefix="tubevit-") if storage.is_remote(workdir) else None
        self._folder = pathlib.Path(self._temporary.name if self._temporary else workdir)
        self._path = self._folder / "metrics.jsonl"
        before = storage.join(workdir, "metrics.jsonl")
        kept = []
        for line in storage.read_bytes(before).decode().splitlines() if storage.exists(before) else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # the process died while it wrote this line
        storage.write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._tensorboard = SummaryWriter(str(self._folder), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Appends one line, null for what is None or not finite, which TensorBoard does not get."""
        metrics = {
            name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)
        if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
            self.sync()

    def sync(self) -> None:
        """Brings a bucket up to date: to be called before a checkpoint, which a resumed run goes on from."""
        if self._temporary:
            self._tensorboard.flush()
            for name in storage.names(self._folder):
                storage.upload(self._folder / name, storage.join(self._workdir, name))
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flushes the events and brings a bucket up to date."""
        self._tensorboard.close()
        if self._temporary:
            try:
                self.sync()
            finally:
                self._temporary.cleanup()
