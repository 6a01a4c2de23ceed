"""Standard streams that are closed, that nobody reads any more, or whose encoding lacks a character."""

import os
import select
import sys


def prepare_streams() -> None:
    """Make the standard streams accept any text.

    What is printed to a closed stream is discarded. Characters that the encoding of stdout lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened would get the number, and what libraries print.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))
    # As on stderr: file names and labels may have any encoding.
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as in `tubevit predict ... | head -1`."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file, in a test or a notebook
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poll.poll(0))


def flush_stdout() -> None:
    """Write what is still in the buffer of stdout; after an error the rest is discarded.

    Raises OSError if it cannot be written; not if the reader has left.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at its end
        if not isinstance(error, BrokenPipeError):
            raise
