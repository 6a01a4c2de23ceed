"""Files on disk and in buckets; paths are local or begin with a scheme of fsspec, e.g. `gs://bucket/folder`.

Clients of buckets retry silently, gcsfs for half a minute, TensorStore for many minutes. Every access to a bucket
therefore goes through `call`, which checks that the service itself answers.
"""

import concurrent.futures
import contextvars
import functools
import logging
import math
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import fsspec

from tubevit.errors import DISK_ERRORS, RunError, StorageError, UserError
from tubevit.publish import replacing, replacing_all

logger = logging.getLogger(__name__)
TIMEOUT = 40.0  # seconds without an answer after which a bucket is unreachable

_answered = -math.inf  # time of the last successful request
_lost = False  # whether the service was unreachable: requests at the end of a run then wait only briefly


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def encode(text: str) -> bytes:
    """Encode text as UTF-8. Names of files that are not UTF-8 (surrogates in Python) keep their bytes."""
    return text.encode("utf-8", "surrogateescape")


def decode(content: bytes) -> str:
    """Decode what `encode` gave, or any other bytes."""
    return content.decode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Return text for pictures and pages, where each byte that is not UTF-8 becomes a replacement character."""
    return encode(text).decode("utf-8", "replace")


def join(folder: str | os.PathLike, name: str) -> str:
    """Return the path of `name` in a folder, local or remote."""
    return f"{os.fspath(folder).rstrip('/')}/{name}" if is_remote(folder) else str(pathlib.Path(folder) / name)


def stays_inside(name: str) -> bool:
    """Whether a name that others chose, with `/` between its parts, stays inside the folder that it is joined to."""
    return not {"", ".", ".."} & {*name.split("/")} and "\\" not in name and name.isprintable()


def as_path(name: str | os.PathLike) -> pathlib.Path:
    """Return an absolute path with `/`, `name` and `parent` that keeps the scheme (pathlib would give `gs:/`)."""
    if not is_remote(name):
        return pathlib.Path(name).absolute()
    from etils import epath

    return epath.Path(os.fspath(name).rstrip("/"))


def call(path: str | os.PathLike, function, *args, **kwargs):
    """Return `function(*args, **kwargs)`, which accesses `path`. It has no time limit as long as its bucket answers.

    Raises:
        StorageError: the bucket did not answer for `TIMEOUT` seconds.
        UserError: gcsfs is not installed.
    """
    global _answered, _lost
    path = os.fspath(path)
    if not path.startswith("gs://"):
        return function(*args, **kwargs)
    _prepare_gcsfs(path)
    if time.monotonic() - _answered > TIMEOUT:
        _check_answer(path)
    future = _run_in_daemon(functools.partial(function, *args, **kwargs))
    while not concurrent.futures.wait([future], TIMEOUT / 2).done:
        _check_answer(path)
    error = future.exception()
    if error is not None and not isinstance(error, FileNotFoundError | UserError | StorageError):
        _check_answer(path)  # if it answers, the error has another reason
    result = future.result()
    _answered, _lost = time.monotonic(), False
    return result


def _prepare_gcsfs(path: str) -> None:
    """Import gcsfs and set its process-wide defaults, on the first use of a bucket."""
    # It would ask for the layout of a bucket by gRPC before each operation, which needs a permission and has retries
    # of its own. The variable is read once, at import.
    variable = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
    unset = variable not in os.environ
    os.environ.setdefault(variable, "false")
    try:
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} needs gcsfs: pip install 'tubevit[gcs]'") from error
    finally:
        if unset:
            os.environ.pop(variable, None)
    # Other clients and hosts write too, so a listing may be outdated as soon as it is made.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    theirs = logging.getLogger("gcsfs")
    if theirs.level == logging.NOTSET:  # it logs a traceback for each failed request; our error has one line
        theirs.setLevel(logging.CRITICAL)


def _run_in_daemon(function) -> concurrent.futures.Future:
    """Run a function in a daemon thread, so that a call that never returns does not keep the process alive."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return future


def _check_answer(path: str) -> None:
    """Raise StorageError unless the service answers, with any status, within half of `TIMEOUT`."""
    global _answered, _lost
    address = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    address = address if "://" in address else f"http://{address}"
    patience = TIMEOUT / 40 if _lost else TIMEOUT / 2
    end = time.monotonic() + patience

    def answers():
        reason = "no answer"
        while (left := end - time.monotonic()) > 0:
            try:
                urllib.request.urlopen(address, timeout=left).close()
                return None
            except urllib.error.HTTPError:
                return None
            except Exception as error:
                reason = getattr(error, "reason", error)
                time.sleep(min(0.5, left))
        return reason

    future = _run_in_daemon(answers)  # name resolution has no time limit
    concurrent.futures.wait([future], patience + 1)
    reason = future.result() if future.done() else "no answer"
    if reason is not None:
        _answered, _lost = -math.inf, True
        raise StorageError(f"cannot reach {path}: {address} does not answer ({reason}); is there a network?")


def operate(path: str | os.PathLike, operation):
    """Return `operation(filesystem, path)`; errors of a bucket's client become FileNotFoundError or StorageError."""
    if not is_remote(path):
        return operation(fsspec.filesystem("file"), os.path.abspath(path))
    try:
        return call(path, lambda: operation(*fsspec.core.url_to_fs(os.fspath(path))))
    except (FileNotFoundError, UserError, StorageError):
        raise
    except Exception as error:  # errors of the client, of aiohttp and of google.auth
        raise StorageError(f"{path}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """Read a file.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it does not exist.
        StorageError: the bucket is unreachable or refuses the request.
    """
    return operate(path, lambda filesystem, inner: filesystem.cat_file(inner))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically, and create its folders.

    Raises:
        OSError: the file cannot be written; FileNotFoundError if the bucket does not exist.
        StorageError: the bucket is unreachable or refuses the request.
    """
    if is_remote(path):
        return operate(path, lambda filesystem, inner: filesystem.pipe_file(inner, content))
    if is_device(path):
        pathlib.Path(path).write_bytes(content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_files(folder: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Write several files, {name: content}; on a local disk all or none. Raises the errors of `write_bytes`."""
    if is_remote(folder):
        for name, content in files.items():
            write_bytes(join(folder, name), content)
        return
    with replacing_all(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write a file as UTF-8, see `encode` and `write_bytes`."""
    write_bytes(path, encode(content))


def upload(file: str | os.PathLike, path: str | os.PathLike) -> None:
    """Copy a local file of any size to `path`, and create its folders; raises the errors of `write_bytes`."""

    def put(filesystem, inner):
        filesystem.makedirs(inner.rpartition("/")[0], exist_ok=True)  # nothing in a bucket, which has no folders
        filesystem.put_file(os.fspath(file), inner)

    operate(path, put)


def download(path: str | os.PathLike, file: str | os.PathLike) -> None:
    """Copy a file of any size to a local `file`; raises the errors of `read_bytes`."""
    operate(path, lambda filesystem, inner: filesystem.get_file(inner, os.fspath(file)))


def remove(path: str | os.PathLike) -> None:
    """Remove a file; raises FileNotFoundError if it does not exist, and the errors of `read_bytes`."""
    operate(path, lambda filesystem, inner: filesystem.rm_file(inner))


def is_device(path: str | os.PathLike) -> bool:
    """Whether a path is a device or a pipe, such as /dev/stdout, which is written to but never replaced."""
    local = not is_remote(path) and os.path.exists(path) and not os.path.isdir(path)
    return local and (not os.path.isfile(path) or os.path.abspath(path).startswith("/dev/"))


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or a folder exists; raises StorageError if a bucket gives no answer."""
    return os.path.exists(path) if not is_remote(path) else _kind(path) is not None


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a folder exists; in a bucket, whether it holds a file. Raises the errors of `exists`."""
    return os.path.isdir(path) if not is_remote(path) else _kind(path) == "directory"


def _kind(path: str | os.PathLike) -> str | None:
    try:
        return operate(path, lambda filesystem, inner: filesystem.info(inner)["type"])
    except FileNotFoundError:
        return None


def names(folder: str | os.PathLike) -> list[str]:
    """Return the sorted names of files and folders in a folder, [] if it does not exist; errors as `exists`."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    try:
        paths = operate(folder, lambda filesystem, inner: filesystem.ls(inner, detail=False))
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)


def list_files(folder: str | os.PathLike, skip_unreadable: bool = False) -> list[str]:
    """List all files below a folder, sorted relative paths with `/`; a bucket is listed once.

    Links to folders are entered, unless they lead back to a folder that they are in: a warning names those, and with
    `skip_unreadable` the local folders that cannot be read.

    Raises:
        StorageError: the bucket is unreachable or refuses the request.
        UserError: a folder cannot be read, RunError if the disk is broken; but hidden folders and `lost+found` are left
            out, which belong to the system.
    """
    if not is_remote(folder):  # fsspec would not follow links to folders
        return sorted(_files_below(os.fspath(folder), skip_unreadable))

    def find(filesystem, inner):
        inner = inner.rstrip("/")
        return sorted(path[len(inner) + 1 :] for path in filesystem.find(inner))

    return operate(folder, find)


def _files_below(folder: str, skip_unreadable: bool, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the files of a local folder, as `list_files`; `above` are the real paths of the folders that hold it."""
    real = os.path.realpath(folder)
    if real in above:
        logger.warning(f"{folder} is a link to a folder that it lies in: not entered")
        return
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if "/." in f"/{prefix}" or prefix.endswith("lost+found/"):
            return
        if skip_unreadable:
            logger.warning(f"cannot read {folder}: {error.strerror}; left out")
            return
        kind = RunError if error.errno in DISK_ERRORS else UserError
        raise kind(f"cannot read {folder}: {error.strerror}; make it readable, or move it elsewhere") from error
    for entry in entries:
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _files_below(entry.path, skip_unreadable, f"{prefix}{entry.name}/", (*above, real))
        else:
            yield prefix + entry.name
