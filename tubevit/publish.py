"""Write local files and folders that are complete or absent, even with several writers or after a crash."""

import contextlib
import errno
import io
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

from tubevit.errors import DISK_ERRORS, MadeMeanwhile, TubeViTError

TEMPORARY = ".tubevit-"  # begins the names of temporary folders
_PATIENCE = 5.0  # seconds for which the removal of a temporary folder is tried again


class _DiskError(OSError):
    """An error that names what was to be written."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Turn the errors of a full or broken disk into an OSError that names `path`, the file or folder that is written.

    Libraries name a temporary file or none, and some raise errors of their own.
    """
    try:
        yield
    except (TubeViTError, _DiskError):
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in DISK_ERRORS:
            number = next((each for each in DISK_ERRORS if os.strerror(each) in str(error)), None)
        if number is None:
            raise
        raise _DiskError(number, os.strerror(number), os.fspath(path)) from error


@contextlib.contextmanager
def _beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path for the new content of `path`, in a temporary folder beside it."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as folder:
            yield folder / path.name


@contextlib.contextmanager
def temporary_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a folder that no other process or thread uses; a killed process leaves it behind, under its name."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
    try:
        yield folder
    finally:
        end = time.monotonic() + _PATIENCE
        shutil.rmtree(folder, ignore_errors=True)
        while folder.exists() and time.monotonic() < end:  # a thread of a library still writes there
            time.sleep(0.05)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path for a file that replaces a local `path` at the end: the file is complete, old or new.

    Raises:
        OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    with _beside(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextlib.contextmanager
def creating(
    path: str | os.PathLike, replace: Callable[[pathlib.Path], bool] = lambda path: False
) -> Iterator[pathlib.Path]:
    """Yield a temporary path for a new file or folder that is renamed to a local `path` at the end.

    So it is complete or absent. What another process puts there meanwhile is kept, because others may use it already.

    Args:
        path: the file or folder. An empty folder is replaced by a folder.
        replace: called with `path` if something is there at the end; returns whether to replace it.

    Raises:
        MadeMeanwhile: something is there and is kept.
        OSError: the file or folder cannot be written.
    """
    path = pathlib.Path(os.path.abspath(path))
    with _beside(path) as temporary:
        yield temporary
        while not _renamed_to_new(temporary, path):
            if not replace(path):
                raise MadeMeanwhile(f"another process created {path} in the meantime; it is kept")
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, os.path.join(tempfile.mkdtemp(dir=temporary.parent), path.name))


def _renamed_to_new(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Rename a file or a folder; returns False if there is something at `target`."""
    try:
        if source.is_dir():
            os.rename(source, target)  # fails unless the target is absent or an empty folder
        else:
            os.link(source, target)  # a rename would replace the target
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        if source.is_dir() or error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(target):  # the file system has no hard links
            return False
        os.rename(source, target)
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, keep: bool = False) -> Iterator[io.BufferedRandom]:
    """Yield a file with its lock held, for which other processes and threads wait; open for reading and appending.

    Where the file system has no locks, nothing is held: what is written must be right without it, only not once.

    Args:
        path: the file; it is created if necessary.
        keep: keep the file at the end.
    """
    import fcntl

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab+") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:  # whoever held the lock before may have renamed or removed the file that this one waited for
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield file
            finally:
                if not keep:
                    path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def replacing_all(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary folder whose files replace those of a local folder at the end; other files there are kept.

    Raises:
        OSError: a file cannot be written. Then the folder is as before, or absent if it was.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    with naming(folder):
        if not folder.exists():
            with creating(folder) as temporary:
                temporary.mkdir()
                yield temporary
            return
        with temporary_folder(folder) as temporary:
            yield temporary
            for file in sorted(os.listdir(temporary)):
                os.replace(os.path.join(temporary, file), folder / file)
