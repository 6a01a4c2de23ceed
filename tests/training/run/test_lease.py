import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests import gcs
from tubevit import storage
from tubevit.errors import RunError, UserError
from tubevit.training.run import lease as leases

Lease = functools.partial(leases.Lease, refresh=0.2, stale=1.5)

PROGRAM = """
import sys, time
from tubevit.training.run.lease import Lease
lease = Lease(sys.argv[1], 0.2, 1.5).acquire()
print("acquired", flush=True)
while True:
    lease.check(7)
    time.sleep(0.05)
"""


@pytest.fixture
def start(tmp_path):
    """`start()`: another process that holds the lease."""
    processes = []

    def other():
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "acquired\n":
                return process
        raise AssertionError(process.stderr.read())

    yield other
    for process in processes:
        process.kill()
        process.communicate()


def content(workdir):
    return json.loads(storage.read_bytes(storage.join(workdir, "lease.json")))


def of_another_host(workdir, **changes):
    """A lease that nobody renews."""
    holder = {"id": "x", "host": "far", "pid": 1, "step": 3, "machine": "far boot", "started": "1"} | changes
    storage.write_text(storage.join(workdir, "lease.json"), json.dumps(holder))


def test_held_renewed_released(tmp_path, said):
    with Lease(tmp_path).acquire() as lease:
        first = content(tmp_path)
        assert first["pid"] == os.getpid() and {"id", "host", "time", "step"} <= first.keys()
        lease.check(12)
        time.sleep(0.7)
        second = content(tmp_path)
        assert second["beat"] - first["beat"] >= 2 and second["id"] == first["id"] and second["step"] == 12
    assert os.listdir(tmp_path) == [] and said == []
    lease.release()  # twice does no harm


def test_a_live_run_is_refused(tmp_path, start, said):
    process = start()
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf"{tmp_path} is in use by a live run, process {process.pid} on"):
        Lease(tmp_path).acquire()
    assert time.monotonic() - begin < 1.4  # as soon as it is renewed
    assert len(said) == 1 and "waiting for up to" in said[0]
    assert content(tmp_path)["pid"] == process.pid and process.poll() is None  # it was not disturbed
    assert os.listdir(tmp_path) == ["lease.json"]


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path, start, said):
    process = start()
    process.kill()  # not waited for yet: it is a zombie
    time.sleep(0.2)
    begin = time.monotonic()
    with Lease(tmp_path).acquire() as lease:
        assert time.monotonic() - begin < 1.4
        lease.check()
    assert len(said) == 1 and f"process {process.pid}" in said[0] and "has ended" in said[0]


def test_a_number_that_another_process_has_now(tmp_path):
    """In a container that was restarted every process has the number that it had before."""
    of_another_host(tmp_path, machine=leases._machine(), pid=os.getpid(), started="12")
    begin = time.monotonic()
    Lease(tmp_path).acquire().release()
    assert time.monotonic() - begin < 1.4


@pytest.mark.parametrize("text", [None, "[1"])
def test_a_holder_elsewhere_that_is_gone(tmp_path, text, said):
    """Its clock does not matter, nor what the file's says: only for how long we saw no change."""
    of_another_host(tmp_path)
    if text is not None:
        (tmp_path / "lease.json").write_text(text)
    os.utime(tmp_path / "lease.json", (0, 0))
    begin = time.monotonic()
    with Lease(tmp_path).acquire() as lease:
        assert 1.5 <= time.monotonic() - begin < 10
        lease.check()
    assert [("waiting for up to" in line, "taken over" in line) for line in said] == [(True, False), (False, True)]


def test_a_lease_that_is_given_back_meanwhile(tmp_path):
    of_another_host(tmp_path)
    threading.Timer(0.3, (tmp_path / "lease.json").unlink).start()
    begin = time.monotonic()
    Lease(tmp_path).acquire().release()
    assert time.monotonic() - begin < 1.4


def test_a_frozen_run_stops_when_it_wakes(tmp_path, start):
    process = start()
    process.send_signal(signal.SIGSTOP)
    with Lease(tmp_path).acquire() as lease:
        process.send_signal(signal.SIGCONT)
        _, error = process.communicate(timeout=10)
        assert process.returncode == 1 and "was taken over by process" in error.splitlines()[-1]
        assert error.splitlines()[-1].startswith("tubevit.errors.RunError")
        time.sleep(0.5)
        lease.check()  # it did not write over ours
        assert content(tmp_path)["pid"] == os.getpid()


def test_a_frozen_run_wakes_after_the_other_has_ended(tmp_path, start):
    process = start()
    process.send_signal(signal.SIGSTOP)
    Lease(tmp_path).acquire().release()
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 1 and "is gone" in error.splitlines()[-1]
    assert os.listdir(tmp_path) == []  # it did not take it again


def test_lost(tmp_path):
    lease = Lease(tmp_path).acquire()
    of_another_host(tmp_path)
    with pytest.raises(RunError, match=rf"{tmp_path} was taken over by process 1 on far"):
        lease.check()
    time.sleep(0.5)
    lease.release()
    assert content(tmp_path)["host"] == "far"  # neither renewed nor removed


def contend(workdir, count):
    """Starts at one moment; the leases and the errors that came of it."""
    barrier, leased, errors = threading.Barrier(count), [], []

    def one():
        lease = Lease(workdir)
        barrier.wait()
        try:
            leased.append(lease.acquire())
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return leased, errors


def test_of_several_at_once_one_gets_it(tmp_path):
    for attempt in range(10):
        (tmp_path / str(attempt)).mkdir()
        leased, errors = contend(tmp_path / str(attempt), 4)
        assert len(leased) == 1 and len(errors) == 3
        leased[0].check()
        leased[0].release()
    of_another_host(tmp_path)
    leased, errors = contend(tmp_path, 4)  # of those that take over
    assert len(leased) == 1 and len(errors) == 3 and "is in use by a live run" in str(errors[0])
    leased[0].check()
    leased[0].release()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write workdir .*file: File exists"):
        Lease(tmp_path / "file").acquire()
    with Lease(tmp_path / "a/new/one").acquire():
        assert (tmp_path / "a/new/one/lease.json").exists()


def test_in_a_bucket():
    with gcs.emulator("leased"):
        with Lease("gs://leased/run").acquire() as lease:
            lease.check(3)
            with pytest.raises(UserError, match="gs://leased/run is in use by a live run"):
                Lease("gs://leased/run").acquire()
        assert storage.names("gs://leased/run") == []
        of_another_host("gs://leased/run")
        with Lease("gs://leased/run").acquire() as lease:
            of_another_host("gs://leased/run")
            with pytest.raises(RunError, match="was taken over"):
                lease.check()
