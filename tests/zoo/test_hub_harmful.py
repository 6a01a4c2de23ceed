"""Repositories on the Hub that would do harm are refused by name: they run nothing, and write into the cache only."""

import io
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest

import tubevit
from tests.convert.test_torch_file import name as opcode
from tests.convert.test_torch_file import state_dict, tensor
from tests.convert.test_torch_file import write as write_torch
from tubevit.errors import UserError
from tubevit.zoo.names import open_checkpoint

REPO = "owner/model"
NAME = f"hf://{REPO}"


def files_below(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def marker(path) -> bytes:
    """A pickle that makes a file."""
    return b"\x80\x02" + opcode("os", "system") + b"(" + b"S'touch %s'\n" % str(path).encode() + b"tR."


def harmful(saved, foreign, tmp_path) -> dict[str, tuple[dict[str, bytes], str]]:
    """{what: (files of the repository, part of the error)}."""
    ours = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    theirs = {path.name: path.read_bytes() for path in foreign.iterdir()}
    plain = {name: theirs[name] for name in ("config.json", "preprocessor_config.json")}
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    manifest = json.loads(ours["manifest.json"])
    evil = manifest | {"../../../evil": {"bytes": 1, "sha256": "0" * 64}}
    index = {"weight_map": {"a": "../evil.safetensors"}}
    infinite = manifest | {"_CHECKPOINT_METADATA": {"bytes": float("inf"), "sha256": "0" * 64}}
    labels = {key: value for key, value in json.loads(theirs["config.json"]).items() if key != "id2label"}
    labels["num_labels"] = 10**12
    wide = json.loads(theirs["config.json"]) | {"hidden_size": 8192, "num_hidden_layers": 4, "intermediate_size": 32768}
    values = {f"a{i}": tensor("0", "FloatStorage", 10**6, (10**6,), (1,)) for i in range(1000)}
    shared = write_torch(tmp_path / "shared", state_dict(**values), {"0": np.zeros(10**6, np.float32)})
    archive = zipfile.ZipFile(bomb := io.BytesIO(), "w")
    archive.writestr("a.npy", b"x")
    archive.filelist[0].file_size = 10**12
    archive.close()
    huge = ours["_CHECKPOINT_METADATA"].replace(b'"width": 24', b'"width": 24000000')
    assert huge != ours["_CHECKPOINT_METADATA"]
    return {
        "pickle": (plain | {"pytorch_model.bin": marker(tmp_path / "ran")}, "saved by torch before 1.6"),
        "zipped pickle": (
            plain | {"pytorch_model.bin": write_torch(tmp_path / "x", marker(tmp_path / "ran")).read_bytes()},
            "refers to os.system, which could run code",
        ),
        "path outside": (theirs | {"../../../evil": b"x"}, "is refused: it names a file '../../../evil'"),
        "absolute path": (theirs | {"/tmp/evil": b"x"}, "is refused: it names a file '/tmp/evil'"),
        "path of Windows": (theirs | {"a\\..\\evil": b"x"}, "is refused: it names a file"),
        "outside in manifest": (ours | {"manifest.json": json.dumps(evil).encode()}, "names '../../../evil'"),
        "outside in index": (
            plain | {"model.safetensors.index.json": json.dumps(index).encode()}, "weight_map from names of arrays",
        ),
        "header of 100 GB": (
            plain | {"model.safetensors": (10**11).to_bytes(8, "little") + b'{"a":1}'}, "header reaches beyond its end",
        ),
        "deep json": (plain | {"config.json": deep, "model.safetensors": theirs["model.safetensors"]}, "is damaged"),
        "deep json of Orbax": (ours | {"_CHECKPOINT_METADATA": deep}, "cannot be read as a model: "),
        "deep manifest": (ours | {"manifest.json": deep}, "manifest.json cannot be read (RecursionError)"),
        "no manifest": ({key: ours[key] for key in ours if key != "manifest.json"}, "without the manifest.json"),
        "link": (plain | {"model.safetensors": b"../../../../etc/passwd"}, "is not a .npz, .safetensors or torch"),
        "more than it holds": (ours | {"_CHECKPOINT_METADATA": huge}, "is refused: it claims "),
        "many names for a value": (
            plain | {"config.json": json.dumps(wide).encode(), "pytorch_model.bin": shared.read_bytes()}, "claims ",
        ),
        "a trillion labels": (theirs | {"config.json": json.dumps(labels).encode()}, "its configuration claims 25,000"),
        "archive that grows": (theirs | {"model.safetensors": bomb.getvalue()}, "would grow from 0 to 1,000,000 MB"),
        "infinite manifest": (ours | {"manifest.json": json.dumps(infinite).encode()}, "cannot be read (OverflowErr"),
        "long text": (theirs | {"config.json": b" " * 10**7 * 2}, "config.json has 20 MB; expected at most 16"),
    }  # fmt: skip


KINDS = [
    "pickle", "zipped pickle", "path outside", "absolute path", "path of Windows", "outside in manifest",
    "outside in index", "header of 100 GB", "deep json", "deep json of Orbax", "deep manifest", "no manifest", "link",
    "more than it holds", "many names for a value", "a trillion labels", "archive that grows", "infinite manifest",
    "long text",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_harmful_repository_is_refused(hub, saved, foreign, tmp_path, kind):
    """By name; nothing is run, and nothing is written outside of the cache."""
    cases = harmful(saved, foreign, tmp_path)
    assert set(cases) == set(KINDS)
    files, part = cases[kind]
    if "manifest.json" in files and kind in ("deep json of Orbax", "more than it holds"):
        manifest = json.loads(files["manifest.json"])
        manifest["_CHECKPOINT_METADATA"]["bytes"] = len(files["_CHECKPOINT_METADATA"])
        files["manifest.json"] = json.dumps(manifest).encode()
    hub.add(REPO, files)
    before = files_below(tmp_path)
    with pytest.raises(UserError) as error:
        tubevit.load_model(NAME)
    text = str(error.value)
    assert text.startswith(NAME) and part in text and "\n" not in text
    assert {path.split("/")[0] for path in files_below(tmp_path) - before} <= {"cache"}
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "cache").glob("converted/*/*/[!.]*"))


def test_files_that_are_too_large(hub, foreign):
    """By what the listing says, before anything is fetched."""
    hub.add_folder(REPO, foreign)
    hub.sizes = {"config.json": 10**9}
    with pytest.raises(UserError, match=f"{NAME} is refused: config.json has 1,000 MB; expected at most 16"):
        tubevit.load_model(NAME)
    hub.add_folder(REPO, foreign, "d/")
    hub.sizes = {"d/config.json": 10**9}
    with pytest.raises(UserError, match=f"{NAME}:d is refused: d/config.json has 1,000 MB"):  # not arrays of Orbax
        tubevit.load_model(f"{NAME}:d")
    hub.sizes = {"model.safetensors": 10**11}
    hub.add_folder(REPO, foreign)
    with pytest.raises(
        UserError, match=f"{NAME} is refused: model.safetensors has 100,000 MB; expected at most 40,000"
    ):
        tubevit.load_model(NAME)
    assert hub.got() == []


def test_links_in_the_cache_that_leave_it(hub, saved, tmp_path):
    hub.add_folder(REPO, saved)
    folder = open_checkpoint(NAME).folder
    (tmp_path / "outside").write_bytes((folder / "_CHECKPOINT_METADATA").read_bytes())
    (folder / "_CHECKPOINT_METADATA").unlink()
    os.symlink(tmp_path / "outside", folder / "_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match=f"{NAME} is refused: _CHECKPOINT_METADATA is a link that leaves the cache"):
        tubevit.load_model(NAME)
    assert (tmp_path / "outside").exists()
