"""What several processes and threads write to one place: it is complete or absent, and what appeared first is kept."""

import errno
import fcntl
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.zoo.test_registry import NAME, entry
from tubevit import publish, storage
from tubevit.checkpoint.manifest import is_complete, write_manifest
from tubevit.data.moving_digits import make_moving_digits
from tubevit.errors import MadeMeanwhile
from tubevit.zoo import registry

ROOT = pathlib.Path(__file__).parents[1]


def write(path: pathlib.Path, text: str, is_folder: bool) -> None:
    if is_folder:
        path.mkdir()
        (path / "a").mkdir()
    (path / "a/b" if is_folder else path).write_text(text)


def read(path: pathlib.Path, is_folder: bool) -> str:
    return (path / "a/b" if is_folder else path).read_text()


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_what_appeared_meanwhile_is_kept(tmp_path, monkeypatch, is_folder, links):
    if not links:  # as on file systems without hard links

        def refuse(source, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    place = tmp_path / "new/place"
    with pytest.raises(MadeMeanwhile, match=f"another process created {place} in the meantime"):
        with publish.creating(place) as second:
            with publish.creating(place) as first:
                assert first != second and not place.exists()
                write(first, "first", is_folder)
            inode = place.stat().st_ino
            write(second, "second", is_folder)
    assert read(place, is_folder) == "first" and place.stat().st_ino == inode
    assert os.listdir(place.parent) == ["place"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_replacing_on_purpose(tmp_path, is_folder):
    asked = []
    place = tmp_path / "place"
    for text in ("first", "second"):
        with publish.creating(place, replace=lambda found: asked.append(read(found, is_folder)) or True) as temporary:
            write(temporary, text, is_folder)
        assert read(place, is_folder) == text
    assert asked == ["first"] and os.listdir(tmp_path) == ["place"]


def test_an_empty_folder_is_no_obstacle(tmp_path):
    (tmp_path / "place").mkdir()
    with publish.creating(tmp_path / "place") as temporary:
        write(temporary, "text", True)
    assert read(tmp_path / "place", True) == "text"


def test_modes_are_those_of_new_files_and_folders(tmp_path):
    """Not those of temporary ones, which only their owner can read."""
    with publish.creating(tmp_path / "folder") as temporary:
        write(temporary, "text", True)
    storage.write_text(tmp_path / "file", "text")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").touch()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain/file").stat().st_mode


def test_threads_that_write_one_file(tmp_path):
    """Temporary names with the id of the process alone would be the same."""
    texts = [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(functools.partial(storage.write_text, tmp_path / "file"), texts * 5))
    assert (tmp_path / "file").read_text() in texts and os.listdir(tmp_path) == ["file"]


def test_a_lock_is_held_by_one_and_its_file_leaves_no_trace(tmp_path):
    running, seen = [], []

    def work(number: int) -> None:
        with publish.locked(tmp_path / "lock"):
            running.append(number)
            seen.append(len(running))
            threading.Event().wait(0.005)
            running.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(30)))
    assert seen == [1] * 30 and os.listdir(tmp_path) == []


def test_without_locks_nothing_waits(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with publish.locked(tmp_path / "lock"), publish.locked(tmp_path / "lock"):
        pass


# The embedded data, fewer of it, as the first command on a machine opens it.
FIRST_RUN = """
import functools, os
from tubevit.data import moving_digits
from tubevit.data.decode import decode_clip
from tubevit.data.sources import embedded, open_source

few = functools.partial(moving_digits.make_moving_digits, train_clips=8, train_digits=8, held_out_digits=2)
embedded.make_moving_digits = few
source = open_source("moving_digits", "test")
inode = embedded.embedded_folder().stat().st_ino
decoded = sum(len(decode_clip(path)) == 16 for path in source.keys for _ in range(20))
assert embedded.embedded_folder().stat().st_ino == inode
print(len(source.keys), decoded)
"""


def test_first_runs_at_once(tmp_path):
    """With an empty cache, each of four processes reads all of the data, which is made once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TUBEVIT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", FIRST_RUN]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert outputs == [["8", "160"]] * 4
    assert os.listdir(tmp_path / "cache") == ["moving_digits_v2"]


@pytest.mark.parametrize("existed", [False, True])
def test_two_that_make_the_digits(tmp_path, existed):
    """Both begin before one has finished; whichever comes last, the folder is whole and has one of both contents."""
    place, barrier = tmp_path / "digits", threading.Barrier(2, timeout=60)
    if existed:
        make_moving_digits(place, 3, 1, 1, 1)

    def progress(done: int, total: int) -> None:
        if done == total:
            barrier.wait()

    def make(seed: int):
        try:
            return make_moving_digits(place, seed, 2, 1, 1, progress)
        except MadeMeanwhile as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(make, (1, 2)))
    kept = [isinstance(result, MadeMeanwhile) for result in results]
    assert sum(kept) == (0 if existed else 1)  # an existing one is replaced on purpose, by both
    digests = []
    for folder in (place, *(tmp_path / f"seed{seed}" for seed in (1, 2))):
        if folder != place:
            make_moving_digits(folder, int(folder.name[-1]), 2, 1, 1)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    assert digests[0] in digests[1:]
    if not existed:
        assert digests[0] == digests[1 + kept.index(False)]
    assert sorted(os.listdir(tmp_path)) == ["digits", "seed1", "seed2"]


def test_two_entries_at_once(tmp_path, monkeypatch, said):
    """Threads that copy one release into one cache: it is copied once."""
    (tmp_path / NAME / "params").mkdir(parents=True)
    (tmp_path / NAME / "params/a").write_bytes(os.urandom(200_000))
    write_manifest(tmp_path / NAME)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    manifest = (tmp_path / NAME / "manifest.json").read_bytes()
    registry.write_index({NAME: entry(manifest, f"file://{tmp_path / NAME}")})
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(lambda _: registry.find_release(NAME), range(4)))
    assert is_complete(folder) and len(said) == 1
