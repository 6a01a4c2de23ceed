"""Files on disk and in buckets: paths are local or begin with a scheme that fsspec knows, e.g. `gs://bucket/folder`."""

from __future__ import annotations

import os
import pathlib

import fsspec


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path is in a bucket."""
    return "://" in os.fspath(path)


def join(folder: str | os.PathLike, name: str) -> str:
    """The path of `name` in a folder, local or remote."""
    return f"{os.fspath(folder).rstrip('/')}/{name}" if is_remote(folder) else str(pathlib.Path(folder) / name)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read; FileNotFoundError if it does not exist.
    """
    with fsspec.open(os.fspath(path), "rb") as file:
        return file.read()


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder of this name."""
    filesystem, inner = fsspec.core.url_to_fs(os.fspath(path))
    return filesystem.exists(inner)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder of this name."""
    filesystem, inner = fsspec.core.url_to_fs(os.fspath(path))
    return filesystem.isdir(inner)


def list_files(folder: str | os.PathLike) -> list[str]:
    """Every file below a folder, relative to it with `/` between the parts, sorted; one listing of a bucket."""
    filesystem, inner = fsspec.core.url_to_fs(os.fspath(folder))
    inner = inner.rstrip("/")
    return sorted(path[len(inner) + 1 :] for path in filesystem.find(inner))
