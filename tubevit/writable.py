"""Check that results can be written before the work begins, so that they are not lost at its end."""

import contextlib
import errno
import os
import pathlib
import tempfile
import uuid

from tubevit import storage
from tubevit.errors import StorageError, cannot_write


def check_file(path: str | os.PathLike, remedy: str = "name another") -> None:
    """Check that a file can be written to `path`.

    Nothing is left behind, and what is at `path` stays as it is.

    Args:
        path: a file, new or not, or a folder that does not exist.
        remedy: what the user can do otherwise.

    Raises:
        UserError: there is a folder, or the file cannot be written.
        RunError: the disk is full or broken; StorageError: the bucket is unreachable or refuses.
    """
    path = os.fspath(path)
    try:
        if not path or path.endswith("/") or storage.is_folder(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder" if path else "its name is empty")
        _try_to_write(path)
    except OSError as error:
        raise cannot_write(path, error, remedy) from error


def check_folder(folder: str | os.PathLike, remedy: str = "name another folder") -> None:
    """Check that files can be written into a folder, new or not; see `check_file`."""
    try:
        if not os.fspath(folder):
            raise FileNotFoundError(errno.ENOENT, "its name is empty")
        _try_to_write(storage.join(folder, f"{uuid.uuid4().hex}.tmp"))
    except OSError as error:
        raise cannot_write(folder, error, remedy) from error


def _try_to_write(path: str) -> None:
    """Write what is removed again; raises OSError or StorageError if that fails."""
    if not storage.is_remote(path):
        return _check_local(pathlib.Path(os.path.abspath(path)))
    probe = f"{path}.{uuid.uuid4().hex}.tmp"
    storage.operate(probe, lambda filesystem, inner: filesystem.pipe_file(inner, b""))
    with contextlib.suppress(OSError, StorageError):  # who may write need not be allowed to delete
        storage.operate(probe, lambda filesystem, inner: filesystem.rm_file(inner))


def _check_local(path: pathlib.Path) -> None:
    if storage.is_device(path):
        return
    if path.exists():
        path.open("ab").close()
    existing = next(parent for parent in path.parents if os.path.lexists(parent))
    with tempfile.TemporaryDirectory(prefix=".tubevit-", dir=existing) as temporary:
        inside = pathlib.Path(temporary, path.relative_to(existing))  # folders and names as they would be created
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
