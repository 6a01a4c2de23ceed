"""What the user sees of a run's speed: a progress line, and seconds a step by part."""

import contextlib
import datetime
import logging
import time

from ml_collections import ConfigDict

logger = logging.getLogger(__name__)


class Progress:
    """Times the parts of a step and prints the progress line.

    Args:
        config: of the experiment.
        start: step that the run begins with, or goes on from.
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
        """Counts what is done inside as `data`, `step` or `save`."""
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
        logger.info(
            f"step {step}/{self.config.train.steps} | loss {loss:.4f} | {self.rate:.2f} steps/s | "
            f"{self.rate * self.clips:.0f} clips/s | ETA {eta} | "
            + ", ".join(f"{part} {1000 * value / count:.0f}" for part, value in self.seconds.items())
            + " ms"
        )
        times = {f"time/{part}": round(value / count, 5) for part, value in self.seconds.items()}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.step, self.since, self.idle = step, now, 0.0
        return times
