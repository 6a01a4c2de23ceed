"""Hide what Orbax logs when a checkpoint cannot be written."""

import atexit
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Hide the tracebacks of a failed save, one for each thread and array: its caller raises one error for them."""
    absl, before = logging.getLogger("absl"), sys.unraisablehook

    def is_shown(record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # arrays in flight when Orbax ended TensorStore's loop
            before(unraisable)

    absl.addFilter(is_shown)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        absl.removeFilter(is_shown)
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


class _WhileAnyIsOpen:
    """Enter a context with the first of several users and leave it with the last one, in whichever order they end."""

    def __init__(self, context: Callable[[], contextlib.AbstractContextManager]):
        self._context, self._lock, self._users, self._stack = context, threading.Lock(), 0, contextlib.ExitStack()
        atexit.register(self._stack.close)  # for a user that never ends; later, modules are gone

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._stack.enter_context(self._context())
            self._users += 1

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stack.close()


tracebacks_hidden = _WhileAnyIsOpen(_hidden)
