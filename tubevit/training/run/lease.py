"""One run per workdir: a lease that its holder renews, and that another run takes over once the holder has ended."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Self

from tubevit import storage
from tubevit.errors import RunError, UserError, cannot_write
from tubevit.sharding.hosts import run_on_main

logger = logging.getLogger(__name__)

LEASE = "lease.json"


class Lease:
    """The right to write to a workdir; a context manager that releases it at the end.

    A process that was frozen while another run took over learns of it by `check`, before each important write. Clocks
    of two hosts are never compared: a run measures for how long it saw no renewal.

    Args:
        workdir: the folder of the run, on disk or `gs://`; created if it does not exist. Among several processes,
            process 0 holds the lease.
        refresh: seconds between two renewals.
        stale: seconds without a renewal after which a holder counts as dead.
    """

    def __init__(self, workdir: str | os.PathLike, refresh: float = 30.0, stale: float = 90.0):
        self._workdir, self._path = workdir, storage.join(workdir, LEASE)
        self._refresh, self._stale = refresh, stale
        self._id, self._beat, self._step = uuid.uuid4().hex, 0, None
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> Self:
        """Acquire the lease and renew it every `refresh` seconds; all processes call it.

        If another holder does not renew it, wait until it counts as dead: `stale` seconds, or no time for a process of
        this machine that has ended.

        Raises:
            UserError: a live run holds it, or the workdir cannot be written.
            RunError: the disk is full; StorageError: the bucket is out of reach or refuses.
        """
        run_on_main(self._acquire)
        return self

    def check(self, step: int | None = None) -> None:
        """Make sure that no other run has taken over, and note the step. Call it before a save; it reads a small file.

        Raises:
            RunError: another run has the lease, or it was removed; StorageError: the bucket is out of reach.
        """
        self._step = step
        if self._thread is None:
            return  # not process 0
        self._lost = self._lost or self._taken()
        if self._lost is not None:
            raise RunError(self._lost)

    def release(self) -> None:
        """Stop the renewals and remove the file if it is still ours."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(self._refresh)
        self._thread = None
        # The run is over: a lease that cannot be removed becomes stale.
        with contextlib.suppress(OSError, storage.StorageError):
            if not self._taken():
                storage.call(self._path, storage.as_path(self._path).unlink)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def _acquire(self) -> None:
        try:
            if not storage.is_remote(self._path):
                pathlib.Path(self._workdir).mkdir(parents=True, exist_ok=True)
            content = self._read()
            if content is not None:
                content = self._wait(content)
            if content is None and not storage.is_remote(self._path):
                try:
                    self._write(new=True)
                except FileExistsError:
                    raise self._refusal(self._read()) from None
            else:
                self._write()
                time.sleep(self._refresh / 30)  # a run that saw the same has written by then
                content = self._read()
                if content is None or _parse(content).get("id") != self._id:
                    raise self._refusal(content)
        except OSError as error:
            raise cannot_write(f"workdir {self._workdir}", error) from error
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _wait(self, content: bytes) -> bytes | None:
        """Wait until the lease may be taken; return its content then, None if it was removed."""
        holder, begin = _parse(content), time.monotonic()
        seconds = f"{self._stale:.0f} s"
        waiting = f"{self._path} is held by {_name(holder)}: waiting for up to {seconds} to see whether it is alive"
        while not _is_dead(holder):
            if time.monotonic() - begin >= self._stale:
                logger.warning(f"{self._path}: taken over from {_name(holder)}, which has not renewed it for {seconds}")
                return content
            if waiting:
                logger.warning(waiting)
                waiting = None
            time.sleep(self._refresh / 30)
            now = self._read()
            if now is None:
                return None
            if now != content:
                raise self._refusal(now)
        logger.warning(f"{self._path}: taken over from {_name(holder)}, which has ended")
        return content

    def _refusal(self, content: bytes | None) -> UserError:
        holder = _name(_parse(content or b"{}"))
        return UserError(f"{self._workdir} is in use by a live run, {holder}; end that, or name another workdir")

    def _renew(self) -> None:
        while not self._ended.wait(self._refresh):
            # A disk that is full or a bucket that is out of reach stops the run, if at all, when it saves.
            with contextlib.suppress(OSError, storage.StorageError):
                self._lost = self._lost or self._taken()
                if self._lost is not None:
                    return
                self._write()

    def _taken(self) -> str | None:
        """Explain why the lease is no longer ours; None if it is."""
        content = self._read()
        if content is None:
            return f"{self._path} is gone: another run took the workdir over and has ended, or it was removed by hand"
        holder = _parse(content)
        if holder.get("id") == self._id:
            return None
        return f"{self._workdir} was taken over by {_name(holder)}, as this run had not renewed its lease; it stops"

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self._path)
        except FileNotFoundError:
            return None

    def _write(self, new: bool = False) -> None:
        """Write the file; if `new`, raise FileExistsError if it exists."""
        self._beat += 1
        host, machine, started = socket.gethostname(), _machine(), _started(os.getpid())
        content = {"id": self._id, "host": host, "pid": os.getpid(), "step": self._step, "beat": self._beat}
        content |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, "started": started}
        text = json.dumps(content) + "\n"
        if storage.is_remote(self._path):
            storage.write_text(self._path, text)
        elif new:
            with open(self._path, "x") as file:
                file.write(text)
        else:
            temporary = pathlib.Path(f"{self._path}.{self._id}")  # its own: two runs may write at once
            temporary.write_text(text)
            temporary.replace(self._path)


def _parse(content: bytes) -> dict:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"


def _is_dead(holder: dict) -> bool:
    """Tell whether the holder was a process of this machine that has ended; False if that is unknown."""
    if not _machine() or holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return False
    return _started(holder["pid"]) != holder.get("started")  # another process may have its number now


def _machine() -> str:
    """Name the host, boot and process namespace in which a process number is unique; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return the start of a process of this machine, in ticks since boot; None if it does not exist."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # ended, and not yet waited for
