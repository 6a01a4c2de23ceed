"""Downloads of files with a known hash, from several addresses, resumed after interruptions."""

import contextlib
import hashlib
import http.client
import io
import os
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from tubevit import publish

TIMEOUT = 30.0  # seconds without a response
_BLOCK = 2**16  # bytes


class DownloadError(Exception):
    """No address served the file; the message gives the reason for each."""


def download(urls: Sequence[str], path: str | os.PathLike, sha256: str, size: int) -> None:
    """Download a file from the first address that serves it, unless it exists already.

    An interrupted download (`PATH.part`) is resumed, also from another address. A file with the wrong content is
    removed. Other processes and threads that download the same file wait for it.

    Args:
        urls: http or https, mirrors after the first.
        path: the file, which appears once it is complete.
        sha256, size: hash and size in bytes of its content.

    Raises:
        DownloadError: no address served it. The part that arrived is kept for the next call.
        OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    with publish.naming(path), _part(path) as part:
        if path.exists():  # brought by other means, or by another process meanwhile
            with path.open("rb") as file:
                if _problem(file, sha256, size) is None:
                    return
            path.unlink()
        reasons = []
        for url in urls:
            resumed = _length(part) > 0
            reason = _try(url, part, sha256, size)
            if reason is not None and resumed and not _length(part):  # the earlier part may have been the bad one
                reason = _try(url, part, sha256, size)
            if reason is None:
                os.replace(part.name, path)
                return
            reasons.append(f"{url}: {reason}")
    raise DownloadError("; ".join(reasons))


@contextlib.contextmanager
def _part(path: pathlib.Path) -> Iterator[io.BufferedRandom]:
    """Open `PATH.part` for this process and thread alone; an empty one is removed at the end."""
    name = path.with_name(f"{path.name}.part")
    with publish.locked(name, keep=True) as part:
        try:
            yield part
        finally:
            if name.exists() and (path.exists() or not _length(part)):
                name.unlink()


def _length(file: io.BufferedReader | io.BufferedRandom) -> int:
    return file.seek(0, os.SEEK_END)


def _try(url: str, part: io.BufferedRandom, sha256: str, size: int) -> str | None:
    """Return what is wrong, or None if the file is complete."""
    description = os.path.basename(part.name).removesuffix(".part")
    with tqdm(total=size, unit="B", unit_scale=True, desc=description, file=sys.stderr, disable=None) as bar:
        while (have := _length(part)) < size:
            reason = _append(url, part, size, bar)
            if _length(part) <= have:  # otherwise the connection was lost: try again
                return reason or f"ends after {_length(part)} of {size} bytes"
    problem = _problem(part, sha256, size)
    if problem is not None:
        part.truncate(0)
    return problem


def _append(url: str, part: io.BufferedRandom, size: int, bar: tqdm) -> str | None:
    """Append the rest of the file, at most one byte too many; returns why it ended early."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        return f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response:
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.truncate(0)  # the server sends the whole file only
        bar.n = have = _length(part)
        while have <= size:
            try:
                block = response.read(min(_BLOCK, size + 1 - have))
            except (OSError, http.client.HTTPException) as error:
                return str(error) or type(error).__name__
            if not block:
                break
            part.write(block)
            part.flush()
            have += len(block)
            bar.update(len(block))
    return None


def _problem(file: io.BufferedReader | io.BufferedRandom, sha256: str, size: int) -> str | None:
    found = _length(file)
    if found != size:
        return f"expected {size} bytes, found {'more' if found > size else found}"
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == sha256 else f"its sha256 is {found}, expected {sha256}"
