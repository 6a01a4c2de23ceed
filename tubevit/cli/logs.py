"""The package's log as the command line shows it: plain lines on stderr, from process 0 of a job."""

import contextlib
import logging
import sys
from collections.abc import Iterator


class _Stderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment: notebooks and tests replace it."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))
        self.addFilter(_is_for_here)

    @property
    def stream(self):
        return sys.stderr


def _is_for_here(record: logging.LogRecord) -> bool:
    """Whether this process shows a record: process 0 shows all, the others those marked `every_process`."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return True
    return getattr(record, "every_process", False) or jax.process_index() == 0


_HANDLER = _Stderr()


def install_logging() -> None:
    """Show what the package logs, such as the progress of `train`, as plain lines on stderr."""
    logger = logging.getLogger("tubevit")
    logger.addHandler(_HANDLER)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries install a handler of the root logger, which would show each line again


@contextlib.contextmanager
def logging_installed() -> Iterator[None]:
    """Do so inside of a `with` block."""
    logger = logging.getLogger("tubevit")
    before = logger.handlers[:], logger.level, logger.propagate
    install_logging()
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
