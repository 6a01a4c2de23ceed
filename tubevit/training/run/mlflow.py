"""Metrics to MLflow."""

import os
import time
from collections.abc import Mapping
from typing import Any

from tubevit.errors import optional_import
from tubevit.training.run.trackers import TrackedRun

_TAG = "tubevit.run"


class MlflowTracker:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, in the experiment MLFLOW_EXPERIMENT_NAME or `tubevit`.

    It gets the configuration as parameters, and the metrics; nothing about the machine, the user or the code.
    """

    def __init__(self):
        self._mlflow = optional_import("mlflow", "log.to=mlflow", "mlflow")
        self._client: Any = None
        self._id = ""

    def start(self, run: TrackedRun) -> int:
        """Begin the run, or continue the one that has its id as a tag."""
        self._client = client = self._mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tubevit")
        experiment = client.get_experiment_by_name(name)
        folder = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([folder], f"tags.`{_TAG}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return max((each.step for each in client.get_metric_history(self._id, "train/loss")), default=-1)
        self._id = client.create_run(folder, run_name=run.name, tags={_TAG: run.id}).info.run_id
        # They cannot change later: if a resumed run differs, in its mesh for example, they tell how it began.
        params = [self._mlflow.entities.Param(key, str(value)) for key, value in run.config.items()]
        client.log_batch(self._id, params=params)
        return -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        now = int(1000 * time.time())
        rows = [self._mlflow.entities.Metric(key, value, now, step) for key, value in metrics.items()]
        self._client.log_batch(self._id, metrics=rows)

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")
