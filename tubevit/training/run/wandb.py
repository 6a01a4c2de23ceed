"""Metrics to Weights & Biases."""

import logging
from collections.abc import Mapping
from typing import Any

from tubevit.errors import optional_import
from tubevit.training.run.trackers import PATIENCE, TrackedRun

logger = logging.getLogger(__name__)


class WandbTracker:
    """A run of Weights & Biases: of the project that W&B is set to (WANDB_PROJECT), or `tubevit`.

    It gets the configuration and the metrics; nothing about the host, the code or what is printed.
    """

    def __init__(self):
        self._wandb = optional_import("wandb", "log.to=wandb", "wandb")
        self._run: Any = None

    def start(self, run: TrackedRun) -> int:
        """Begin or continue the run; raises RuntimeError if nobody is logged in."""
        wandb = self._wandb
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
        private = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            host="",
            init_timeout=PATIENCE,  # the process cannot end before it
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            stop_fn=lambda: None,  # else the button in the browser interrupts the run
        )
        self._run = wandb.init(
            project=settings.project or "tubevit",
            id=run.id,
            name=run.name,
            dir=run.folder,
            config=dict(run.config),
            resume="allow",
            allow_val_change=True,
            settings=private,
        )
        if self._run.url:
            logger.info(f"metrics go to {self._run.url}")
        return self._run.starting_step - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def finish(self, failed: bool) -> None:
        """Upload the rest and end the run."""
        self._run.finish(exit_code=int(failed))
        self._wandb.teardown()  # its process writes the end of the file even later
