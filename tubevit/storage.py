"""Files on disk and in buckets: paths are local or begin with a scheme that fsspec knows, e.g. `gs://bucket/folder`.

Clients of buckets retry in silence: gcsfs for half a minute, TensorStore for many. So whatever touches a bucket goes
through `call`, which asks the service itself whether it answers.
"""

from __future__ import annotations

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

import fsspec

from tubevit.errors import StorageError, UserError

TIMEOUT = 40.0  # seconds after which a bucket that does not answer is out of reach

_answered = -math.inf  # when the service last did what it was asked to
_lost = False  # it was found out of reach: what is still to be closed does not wait as long again


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path is in a bucket."""
    return "://" in os.fspath(path)


def join(folder: str | os.PathLike, name: str) -> str:
    """The path of `name` in a folder, local or remote."""
    return f"{os.fspath(folder).rstrip('/')}/{name}" if is_remote(folder) else str(pathlib.Path(folder) / name)


def as_path(name: str | os.PathLike) -> pathlib.PurePath:
    """An absolute path with `/`, `name` and `parent` that keeps the scheme (pathlib alone makes `gs:/` of it)."""
    if not is_remote(name):
        return pathlib.Path(name).absolute()
    from etils import epath

    return epath.Path(os.fspath(name).rstrip("/"))


def call(path: str | os.PathLike, function, *args, **kwargs):
    """`function(*args, **kwargs)`, which reads or writes `path`: while a bucket answers it may take its time.

    Raises:
        StorageError: the bucket is out of reach; known after at most `TIMEOUT` seconds without an answer.
        UserError: gcsfs is not installed.
    """
    global _answered, _lost
    path = os.fspath(path)
    if not path.startswith("gs://"):
        return function(*args, **kwargs)
    _prepare_gcsfs(path)
    if time.monotonic() - _answered > TIMEOUT:
        _ask(path)
    future = _start(functools.partial(function, *args, **kwargs))
    while not concurrent.futures.wait([future], TIMEOUT / 2).done:
        _ask(path)
    error = future.exception()
    if error is not None and not isinstance(error, FileNotFoundError | UserError | StorageError):
        _ask(path)  # otherwise the error has another reason
    result = future.result()
    _answered, _lost = time.monotonic(), False
    return result


def _prepare_gcsfs(path: str) -> None:
    """Import gcsfs and set its defaults, which hold for the whole process: only once a bucket is used."""
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
    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:  # it logs a traceback for each failed request; our error has one line
        logger.setLevel(logging.CRITICAL)


def _start(function) -> concurrent.futures.Future:
    """Runs it in a daemon thread: one that waits for ever does not keep the process from ending."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return future


def _ask(path: str) -> None:
    """Raises StorageError unless the service answers, with whatever status, within half of the time."""
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

    future = _start(answers)  # looking up a name has no time limit of its own
    concurrent.futures.wait([future], patience + 1)
    reason = future.result() if future.done() else "no answer"
    if reason is not None:
        _answered, _lost = -math.inf, True
        raise StorageError(f"cannot reach {path}: {address} does not answer ({reason}); is there a network?")


def operate(path: str | os.PathLike, operation):
    """`operation(filesystem, path in it)`; what a bucket's client raises becomes FileNotFoundError or StorageError."""
    if not is_remote(path):
        return operation(fsspec.filesystem("file"), os.path.abspath(path))
    try:
        return call(path, lambda: operation(*fsspec.core.url_to_fs(os.fspath(path))))
    except (FileNotFoundError, UserError, StorageError):
        raise
    except Exception as error:  # clients raise errors of their own, of aiohttp and of google.auth
        raise StorageError(f"{path}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read; FileNotFoundError if it does not exist.
        StorageError: the bucket is out of reach or refuses.
    """
    return operate(path, lambda filesystem, inner: filesystem.cat_file(inner))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file, folders above it included; readers see the old content or the new one.

    Raises:
        OSError: it cannot be written; FileNotFoundError if there is no such bucket.
        StorageError: the bucket is out of reach or refuses.
    """
    if is_remote(path):
        return operate(path, lambda filesystem, inner: filesystem.pipe_file(inner, content))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Writes a whole file of UTF-8. Raises as `write_bytes`."""
    write_bytes(path, content.encode())


def upload(file: str | os.PathLike, path: str | os.PathLike) -> None:
    """Copies a local file, of any size, to `path`. Raises as `write_bytes`."""
    operate(path, lambda filesystem, inner: filesystem.put_file(os.fspath(file), inner))


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder of this name. Raises StorageError, which is not to be taken for a no."""
    return os.path.exists(path) if not is_remote(path) else _kind(path) is not None


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder of this name: of a bucket, whether a file's name begins with it. Raises as `exists`."""
    return os.path.isdir(path) if not is_remote(path) else _kind(path) == "directory"


def _kind(path: str) -> str | None:
    try:
        return operate(path, lambda filesystem, inner: filesystem.info(inner)["type"])
    except FileNotFoundError:
        return None


def names(folder: str | os.PathLike) -> list[str]:
    """Names of the files and folders in a folder, sorted; [] if there is none. Raises as `exists`."""
    if not is_remote(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    try:
        paths = operate(folder, lambda filesystem, inner: filesystem.ls(inner, detail=False))
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)


def list_files(folder: str | os.PathLike) -> list[str]:
    """Every file below a folder, relative to it with `/` between the parts, sorted; one listing of a bucket.

    Raises:
        StorageError: the bucket is out of reach or refuses.
    """
    if not is_remote(folder):  # fsspec would not enter folders that are links
        walked = os.walk(folder, followlinks=True)
        inside = ((os.path.relpath(place, folder).replace(os.sep, "/"), files) for place, _, files in walked)
        return sorted(name if place == "." else f"{place}/{name}" for place, files in inside for name in files)

    def find(filesystem, inner):
        inner = inner.rstrip("/")
        return sorted(path[len(inner) + 1 :] for path in filesystem.find(inner))

    return operate(folder, find)
