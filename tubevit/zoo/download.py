"""Downloads of files with a known hash, from several addresses, resumed after interruptions."""

import hashlib
import http.client
import os
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a response
_BLOCK = 2**16  # bytes


class DownloadError(Exception):
    """No address served the file; the message gives the reason for each."""


def download(urls: Sequence[str], path: str | os.PathLike, sha256: str, size: int) -> None:
    """Download a file from the first address that serves it, unless it exists already.

    An interrupted download (`PATH.part`) is resumed, also from another address. A file with the wrong content is
    removed.

    Args:
        urls: http or https, mirrors after the first.
        path: the file, which appears once it is complete.
        sha256, size: hash and size in bytes of its content.

    Raises:
        DownloadError: no address served it. The part that arrived is kept for the next call.
        OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    part = path.with_name(f"{path.name}.part")
    if path.exists():  # brought by other means
        found = _problem(path, sha256, size)
        if found is None:
            return
        path.unlink()
    reasons = []
    for url in urls:
        resumed = part.exists()
        reason = _try(url, part, sha256, size)
        if reason is not None and resumed and not part.exists():  # the earlier part may have been the bad one
            reason = _try(url, part, sha256, size)
        if reason is None:
            part.rename(path)
            return
        reasons.append(f"{url}: {reason}")
    raise DownloadError("; ".join(reasons))


def _try(url: str, part: pathlib.Path, sha256: str, size: int) -> str | None:
    """Return what is wrong, or None if the file is complete."""
    part.touch()
    with tqdm(total=size, unit="B", unit_scale=True, desc=part.stem, file=sys.stderr, disable=None) as bar:
        while (have := part.stat().st_size) < size:
            reason = _append(url, part, size, bar)
            if part.stat().st_size <= have:  # otherwise the connection was lost: try again
                return reason or f"ends after {part.stat().st_size} of {size} bytes"
    problem = _problem(part, sha256, size)
    if problem is not None:
        part.unlink()
    return problem


def _append(url: str, part: pathlib.Path, size: int, bar: tqdm) -> str | None:
    """Append the rest of the file, at most one byte too many; returns why it ended early."""
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        return f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    with response, part.open("ab") as file:
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(0)  # the server sends the whole file only
        bar.n = file.seek(0, os.SEEK_END)
        while file.tell() <= size:
            try:
                block = response.read(min(_BLOCK, size + 1 - file.tell()))
            except (OSError, http.client.HTTPException) as error:
                return str(error) or type(error).__name__
            if not block:
                break
            file.write(block)
            bar.update(len(block))
    return None


def _problem(path: pathlib.Path, sha256: str, size: int) -> str | None:
    found = path.stat().st_size
    if found != size:
        return f"expected {size} bytes, found {'more' if found > size else found}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == sha256 else f"its sha256 is {found}, expected {sha256}"
