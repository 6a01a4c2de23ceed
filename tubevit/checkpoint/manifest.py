"""Hashes of a checkpoint's files, because Orbax loads arrays with a flipped byte without an error."""

import concurrent.futures
import hashlib
import json
import os
import pathlib

from tubevit import storage
from tubevit.errors import UserError

MANIFEST = "manifest.json"
_BLOCK = 2**24  # bytes that are read at once from a bucket
_THREADS = 8


def write_manifest(folder: str | os.PathLike) -> None:
    """Write `manifest.json`, {file: {"sha256": hash, "bytes": size}}, to a checkpoint on disk or `gs://`.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
        StorageError: the bucket is out of reach or refuses.
    """
    storage.write_text(storage.join(folder, MANIFEST), json.dumps(_hashes(folder), indent=1) + "\n")


def manifest_entries(folder: str | os.PathLike) -> list[str]:
    """List a checkpoint's files with their hashes, for `agree`; without a manifest the files are read.

    Raises UserError if the folder does not exist, or its manifest is damaged.
    """
    try:
        hashes = json.loads(storage.read_bytes(storage.join(folder, MANIFEST)))
    except FileNotFoundError:
        hashes = _hashes(folder)
    except ValueError as error:
        raise UserError(f"{folder} is damaged: {MANIFEST} is not JSON: {error}") from error
    if not hashes:
        raise UserError(f"{folder} does not exist here; every process needs it, for example in a bucket")
    return [os.path.basename(folder), *(f"{file} with sha256 {hashes[file].get('sha256')}" for file in hashes)]


def listed_files(content: bytes, source: str) -> dict[str, int]:
    """Return {file: size in bytes} of a manifest that others wrote.

    Args:
        content: the content of `manifest.json`.
        source: where it comes from, for the error.

    Raises:
        UserError: it is no manifest, or names a file outside of its folder.
    """
    try:
        sizes = {file: int(entry["bytes"]) for file, entry in json.loads(content).items()}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{source} is damaged: {MANIFEST} cannot be read ({type(error).__name__})") from error
    for file in sizes:
        if not storage.stays_inside(file):
            raise UserError(f"{source} is refused: {MANIFEST} names {file!r}; expected files inside the folder")
    return sizes


def is_complete(folder: pathlib.Path) -> bool:
    """Whether a local folder holds a manifest and all the files it lists, with their sizes."""
    try:
        sizes = listed_files((folder / MANIFEST).read_bytes(), str(folder))
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, UserError):
        return False


def _hashes(folder) -> dict[str, dict]:
    files = [file for file in storage.list_files(folder) if file != MANIFEST]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(lambda file: _entry(folder, file), files), strict=True))


def verify(folder: str | os.PathLike) -> list[str] | None:
    """Compare every file of a checkpoint with its manifest; files that the manifest does not list are ignored.

    Returns:
        One text per damaged file, which begins with its name; [] if all are good; None if there is no manifest.

    Raises:
        StorageError: the bucket is out of reach or refuses.
    """
    try:
        manifest = json.loads(storage.read_bytes(storage.join(folder, MANIFEST)))
        expected = {file: (entry["bytes"], entry["sha256"]) for file, entry in manifest.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{MANIFEST}: cannot be read ({type(error).__name__})"]
    if not expected:
        return [f"{MANIFEST}: names no file"]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda file: _problem(folder, file, *expected[file]), expected)
        return [f"{file}: {problem}" for file, problem in zip(expected, found, strict=True) if problem]


def _problem(folder, file: str, size: int, sha256: str) -> str | None:
    try:
        entry = _entry(folder, file)
    except FileNotFoundError:
        return "missing"
    except storage.StorageError:
        raise
    except OSError as error:  # a bad block of the disk
        return f"cannot be read ({error.strerror or error})"
    if entry["bytes"] != size:
        return f"expected {size} bytes, found {entry['bytes']}"
    return None if entry["sha256"] == sha256 else "its content has changed"


def _entry(folder, file: str) -> dict:
    path = storage.join(folder, file)

    def read(filesystem, inner):
        with filesystem.open(inner, "rb", **({"block_size": _BLOCK} if storage.is_remote(path) else {})) as stream:
            return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": stream.tell()}

    return storage.operate(path, read)
