import hashlib
import json

import pytest

from tests import gcs
from tubevit import storage
from tubevit.checkpoint.manifest import MANIFEST, verify, write_manifest

FILES = {"_CHECKPOINT_METADATA": b"{}", "params/d/a": bytes(range(256)) * 40, "params/empty": b"", "params/é": b"x"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        storage.write_bytes(tmp_path / "6" / name, content)
    write_manifest(tmp_path / "6")
    return tmp_path / "6"


def test_content(folder):
    expected = {name: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for name, c in FILES.items()}
    assert json.loads((folder / MANIFEST).read_text()) == expected
    assert verify(folder) == []
    write_manifest(folder)  # does not hash itself
    assert json.loads((folder / MANIFEST).read_text()) == expected


@pytest.mark.parametrize("position", [0, 5_000, 10_239])
def test_a_flipped_bit_is_found(folder, position):
    content = bytearray(FILES["params/d/a"])
    content[position] ^= 1
    (folder / "params/d/a").write_bytes(content)
    assert verify(folder) == ["params/d/a: its content has changed"]


def test_all_damage_is_listed(folder):
    (folder / "params/d/a").write_bytes(FILES["params/d/a"][:100])
    (folder / "params/empty").unlink()
    (folder / "_CHECKPOINT_METADATA").write_text("{]")
    assert verify(folder) == [
        "_CHECKPOINT_METADATA: its content has changed",
        "params/d/a: expected 10240 bytes, found 100",
        "params/empty: missing",
    ]


def test_without_a_manifest_it_is_not_known(folder):
    (folder / MANIFEST).unlink()
    assert verify(folder) is None
    assert verify(folder.parent / "none") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"a": 3}', '{"a": {"bytes": 3}}'])
def test_a_damaged_manifest_is_damage(folder, text):
    (folder / MANIFEST).write_text(text)
    (problem,) = verify(folder)
    assert problem.startswith(MANIFEST)
    (folder / MANIFEST).write_bytes(b"\xff" + text.encode())
    assert len(verify(folder)) == 1


def test_other_files_do_not_matter(folder):
    (folder / "notes.txt").write_text("ours")
    assert verify(folder) == []


def test_in_a_bucket():
    with gcs.emulator("hashes"):
        for name, content in FILES.items():
            storage.write_bytes(f"gs://hashes/6/{name}", content)
        folder = storage.as_path("gs://hashes/6")
        assert verify(folder) is None
        write_manifest(folder)
        assert verify(folder) == []
        storage.write_bytes("gs://hashes/6/params/d/a", b"\1" + FILES["params/d/a"][1:])
        storage.write_bytes("gs://hashes/6/params/é", b"")
        assert verify(folder) == ["params/d/a: its content has changed", "params/é: expected 1 bytes, found 0"]
