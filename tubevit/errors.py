"""Errors with what was expected, what was found, and the closest valid choice."""

import difflib
import errno
import importlib
import os
from collections.abc import Iterable

# Errors of the operating system that are faults of the machine, not of the path that a user names.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class TubeViTError(Exception):
    """Base of all errors of this package."""


class UserError(TubeViTError):
    """Bad input or configuration. The command line prints its one line and exits with code 2."""


class SplitError(UserError):
    """A source does not have the requested split, or has no labels for it."""


class NothingFound(UserError):
    """A source lists files for a split, but none of them exists."""


class NothingDecoded(UserError):
    """None of the files of a data set can be decoded."""


class DecodeError(UserError):
    """A file cannot be read as a video or an image. The message names the file and the reason."""


class RunError(TubeViTError):
    """A run failed for a reason outside the program. The command line prints its one line and exits with code 1."""


class TookTooLong(RunError):
    """A compile was stopped."""


class StorageError(RunError):
    """A bucket is unreachable or refuses the request. Never raised for a missing file."""


class MadeMeanwhile(RunError):
    """Another process made the same file or folder, which is kept."""


def closest(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the closest valid names, else a list of them.

    Args:
        name: the unknown name.
        choices: the valid names.

    Returns:
        For example `did you mean 'paper'?` or `valid: core, paper`; never empty.
    """
    choices = sorted(choices)
    matches = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if matches:
        return "did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if not choices:
        return "none is available"
    shown = ", ".join(choices[:12])
    return f"valid: {shown}" + (f", ... ({len(choices)} in all)" if len(choices) > 12 else "")


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the closest valid names."""
    return UserError(f"unknown {kind} {name!r}; {closest(name, choices)}")


def unknown_split(source: str, split: str, splits: Iterable[str]) -> SplitError:
    """Return the error for an unknown split of a source, with the closest valid names."""
    return SplitError(str(unknown(f"split of {source}", split, splits)))


def optional_import(module: str, purpose: str, extra: str):
    """Import a module of an optional dependency; if it is missing or broken, the UserError says how to install it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        # Else it does not fit the version of another package, or lacks one.
        reason = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        what = "is not installed" if missing else reason
        raise UserError(f"{purpose} needs {package}, which {what}: pip install 'tubevit[{extra}]'") from error


def cannot_write(what: str | os.PathLike, error: OSError, remedy: str = "") -> TubeViTError:
    """Return the error to raise if writing failed: RunError for a full or broken disk, else UserError.

    Args:
        what: what was to be written.
        error: the reason.
        remedy: what the user can do about a UserError.
    """
    missing = isinstance(error, FileNotFoundError) and error.strerror is None  # as fsspec raises it
    reason = "there is no such bucket" if missing else error.strerror or error
    text = f"cannot write {os.fspath(what)}: {reason}"
    if error.errno in DISK_ERRORS:
        return RunError(text)
    return UserError(f"{text}; {remedy}" if remedy else text)
