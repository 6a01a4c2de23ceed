"""Files on disk and in a bucket by the same functions; what happens when a bucket is out of reach."""

import functools
import os
import subprocess
import sys
import time

import pytest

from tests import gcs
from tubevit import storage
from tubevit.checkpoint.checkpoint import steps
from tubevit.checkpoint.run_checkpoints import Checkpoints
from tubevit.data.sources import open_source
from tubevit.data.sources.source import read_file
from tubevit.errors import DecodeError, UserError
from tubevit.training.run.workdir import MetricsWriter
from tubevit.zoo.names import open_checkpoint


@pytest.fixture(scope="module")
def bucket():
    with gcs.emulator("bucket"):
        yield "gs://bucket"


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    """An empty folder, on disk and in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "folder")
    return storage.join(request.getfixturevalue("bucket"), tmp_path.name)


def test_files(folder, tmp_path):
    path = storage.join(folder, "some/file.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(path)
    assert not storage.exists(path) and not storage.is_folder(folder)
    assert storage.names(folder) == [] == storage.list_files(folder)
    for content in (os.urandom(300_000), b"", b"\r\n--"):
        storage.write_bytes(path, content)
        assert storage.read_bytes(path) == content
    (tmp_path / "local").write_bytes(b"local")
    storage.upload(tmp_path / "local", storage.join(folder, "other"))
    storage.write_text(storage.join(folder, "a/b/c"), "né")
    assert storage.read_bytes(storage.join(folder, "a/b/c")).decode() == "né"
    assert storage.names(folder) == ["a", "other", "some"]
    assert storage.names(folder + "/") == ["a", "other", "some"] and storage.names(storage.join(folder, "some/f")) == []
    assert storage.list_files(folder) == ["a/b/c", "other", "some/file.bin"] == storage.list_files(folder + "/")
    assert storage.is_folder(folder) and storage.exists(folder) and storage.is_folder(storage.join(folder, "a/b"))
    assert storage.exists(path) and not storage.is_folder(path) and not storage.exists(path[:-1])
    storage.remove(path)
    assert not storage.exists(path) and storage.list_files(folder) == ["a/b/c", "other"]
    with pytest.raises(FileNotFoundError):
        storage.remove(path)


@pytest.mark.parametrize("name, refused", [("class_of_a", True), ("lost+found", False), (".Trash-100", False)])
def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, said, name, refused):
    """Its path is longer than the system allows, which stops root, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    left = os.pathconf("/", "PC_PATH_MAX") - 6 - len(str(tmp_path))  # letters of folders that can be read
    for part in ("d" * (left % 100 + 99), *["d" * 99] * (left // 100 - 1), name):
        os.mkdir(part)
        os.chdir(part)
    if refused:
        with pytest.raises(UserError, match=f"cannot read .*/{name}: File name too long"):
            storage.list_files(tmp_path)
        assert storage.list_files(tmp_path, skip_unreadable=True) == ["file"]
        assert f"/{name}: File name too long; left out" in said[-1]
    else:
        assert storage.list_files(tmp_path) == ["file"]


def test_paths_keep_their_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = storage.as_path("gs://bucket/runs/a/")
    assert os.fspath(path) == str(path) == "gs://bucket/runs/a" and os.fspath(path / "b") == "gs://bucket/runs/a/b"
    assert path.name == "a" and os.fspath(path.parent) == "gs://bucket/runs" and storage.as_path(path) == path
    assert os.fspath(storage.as_path("runs/a")) == str(tmp_path / "runs/a")


def test_what_is_missing_in_a_bucket(bucket):
    with pytest.raises(DecodeError, match="no such file"):
        read_file(f"{bucket}/none.mp4")
    with pytest.raises(UserError, match="gs://bucket/none.csv does not exist"):
        open_source(f"{bucket}/none.csv")
    for path in (f"{bucket}/none/file", "gs://no-such-bucket/file"):
        assert not storage.exists(path) and steps(path) == []
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(path)
        with pytest.raises(UserError, match="unknown checkpoint"):
            open_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        storage.write_bytes("gs://no-such-bucket/file", b"")


def test_listings_are_not_remembered(bucket):
    """Others write to the bucket too."""
    import gcsfs

    assert storage.names(f"{bucket}/run") == []
    assert gcsfs.GCSFileSystem is gcsfs.core.GCSFileSystem  # asks for no layout of buckets
    assert "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT" not in os.environ
    gcsfs.GCSFileSystem(skip_instance_cache=True).pipe_file("bucket/run/a", b"a")
    assert storage.names(f"{bucket}/run") == ["a"] == storage.list_files(f"{bucket}/run")


def test_gcsfs_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://bucket/a.csv needs gcsfs: pip install 'tubevit\[gcs\]'"):
        open_source("gs://bucket/a.csv")
    assert storage.call("a.csv", lambda: 3) == 3


OPERATIONS = {
    "read": lambda path: storage.read_bytes(path),
    "write": lambda path: storage.write_bytes(path, b"a"),
    "upload": lambda path: storage.upload(__file__, path),
    "exists": lambda path: storage.exists(path),
    "is_folder": lambda path: storage.is_folder(path),
    "names": lambda path: storage.names(path),
    "list_files": lambda path: storage.list_files(path),
    "clip": lambda path: read_file(path),
    "csv": lambda path: open_source(path + ".csv"),
    "steps": lambda path: steps(path),
    "find_checkpoint": lambda path: open_checkpoint(path).folder,
    "metrics": lambda path: MetricsWriter(path, 0),
    "checkpoints": lambda path: Checkpoints(path, 2),
}


@pytest.mark.parametrize("answered_before", [False, True])
@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "hangs"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_out_of_reach_is_an_error_in_time(operation, accepts, answered_before, monkeypatch):
    """Never an empty folder, a missing file or a broken clip; the limit is as long as TIMEOUT says."""
    monkeypatch.setattr(storage, "TIMEOUT", 0.12)
    monkeypatch.setattr(storage, "_lost", False)
    monkeypatch.setattr(storage, "_answered", time.monotonic() + (60 if answered_before else -60))
    begin = time.monotonic()
    with gcs.unreachable(accepts), pytest.raises(storage.StorageError) as error:
        OPERATIONS[operation]("gs://bucket/run")
    assert time.monotonic() - begin < 2
    assert str(error.value).startswith("cannot reach gs://bucket/run") and "\n" not in str(error.value)
    assert not isinstance(error.value, OSError | UserError)


def test_what_is_closed_afterwards_waits_no_longer(bucket, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT", 4.0)
    monkeypatch.setattr(storage, "_lost", True)
    begin = time.monotonic()
    with gcs.unreachable(accepts=True), pytest.raises(storage.StorageError):
        storage.write_bytes(f"{bucket}/a", b"a")
    assert time.monotonic() - begin < 1.9
    storage.write_bytes(f"{bucket}/a", b"a")  # it is back
    assert not storage._lost


def test_the_limit_is_below_a_minute():
    assert storage.TIMEOUT + 1 < 60


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "hangs"])
def test_the_process_ends(accepts):
    """Clients that still try do not keep it alive."""
    program = """
import time
from tubevit import storage
storage.TIMEOUT, storage._answered = 0.5, time.monotonic() + 60
try:
    storage.names("gs://bucket")
except storage.StorageError as error:
    print("error", error)
"""
    with gcs.unreachable(accepts):
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.stdout.startswith("error cannot reach gs://bucket: http://localhost:")
    assert done.returncode == 0 and time.monotonic() - begin < 15


def test_a_slow_bucket_is_not_out_of_reach(bucket, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT", 0.2)

    def slow():
        time.sleep(0.7)
        return "done"

    assert storage.call(f"{bucket}/large", slow) == "done"


def test_a_short_interruption_is_survived(bucket, monkeypatch):
    monkeypatch.setattr(storage, "_answered", -storage.TIMEOUT - 1)
    storage.write_bytes(f"{bucket}/kept", b"kept")
    ask, tries = storage.urllib.request.urlopen, []

    def first_time_not(*args, **kwargs):
        tries.append(args)
        if len(tries) == 1:
            raise ConnectionResetError("reset")
        return ask(*args, **kwargs)

    monkeypatch.setattr(storage, "_answered", -storage.TIMEOUT - 1)
    monkeypatch.setattr(storage.urllib.request, "urlopen", first_time_not)
    assert storage.read_bytes(f"{bucket}/kept") == b"kept" and len(tries) == 2


@pytest.mark.parametrize("operation", ["read", "exists", "is_folder", "names", "list_files", "clip", "csv"])
def test_a_refusal_says_so(bucket, operation, monkeypatch):
    monkeypatch.setattr(gcs._Handler, "do_GET", functools.partialmethod(gcs._Handler._refuse, 403))
    monkeypatch.setattr(gcs._Handler, "generation", 0, raising=False)
    with pytest.raises(storage.StorageError, match="gs://bucket/private.*Forbidden"):
        OPERATIONS[operation](f"{bucket}/private")


def test_errors_of_the_callee_pass(bucket):
    for error in (UserError("mine"), KeyError("theirs"), FileNotFoundError("none")):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            storage.call(f"{bucket}/file", fail)
        assert caught.value is error
