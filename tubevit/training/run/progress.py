"""The speed of a run: a progress line, and seconds per step for each part."""

import contextlib
import datetime
import logging
import time

from ml_collections import ConfigDict

logger = logging.getLogger(__name__)


class Progress:
    """Time the parts of a step and log the progress line.

    Args:
        config: the configuration of the experiment.
        start: the step that the run starts or resumes from.
    """

    def __init__(self, config: ConfigDict, start: int):
        self.config, self.step = config, start
        self.clips = sum(dataset.batch_size for dataset in config.data.train.values())
        self.seconds: dict[str, float] = dict.fromkeys(("data", "step", "save"), 0.0)
        self.rate = None  # steps per second, smoothed
        self.idle = 0.0
        self.since = self.paused_at = time.perf_counter()

    @contextlib.contextmanager
    def time(self, part: str):
        """Add the time spent inside to `data`, `step` or `save`."""
        begin = time.perf_counter()
        yield
        self.paused_at = time.perf_counter()
        self.seconds[part] += self.paused_at - begin

    def pause(self) -> None:
        """Exclude the time since the last timed part (evaluation) from the rate."""
        self.idle += time.perf_counter() - self.paused_at

    def report(self, step: int, loss: float) -> dict[str, float]:
        """Log the line; return seconds per step for each part since the last report."""
        now = time.perf_counter()
        count = step - self.step
        rate = count / max(now - self.since - self.idle, 1e-9)
        self.rate = rate if self.rate is None else 0.7 * self.rate + 0.3 * rate
        eta = datetime.timedelta(seconds=round((self.config.train.steps - step) / self.rate))
        parts = ", ".join(f"{part} {1000 * value / count:.0f}" for part, value in self.seconds.items())
        speed = f"{self.rate:.2f} steps/s | {self.rate * self.clips:.0f} clips/s | ETA {eta} | {parts} ms"
        logger.info(f"step {step}/{self.config.train.steps} | loss {loss:.4f} | {speed}")
        times = {f"time/{part}": round(value / count, 5) for part, value in self.seconds.items()}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.step, self.since, self.idle = step, now, 0.0
        return times
