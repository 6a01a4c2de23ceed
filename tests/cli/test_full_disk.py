"""A full disk: one line that names what cannot be written and why, exit code 1, and nothing half-written.

A limit on the size of files stands for it (EFBIG, "File too large"): it needs no file system of its own.
"""

import contextlib
import errno
import json
import os
import resource

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import tubevit
from tests.data.clips import write_clip
from tubevit import publish, storage
from tubevit.cli import main
from tubevit.models.config import Head
from tubevit.visualize import page

REASON = os.strerror(errno.EFBIG)


@contextlib.contextmanager
def limited(size: int):
    """No file can grow beyond `size` bytes; Python ignores the signal, so that writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module", autouse=True)
def no_compilation_cache():
    """JAX would write half a program to a folder that other tests use, and never replace it."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def inputs(tiny, tmp_path_factory):
    """A folder with `model`, a plain ViT `vit` and its `vit.safetensors`, clips, `clips.csv` and `clips.npz`."""
    folder = tmp_path_factory.mktemp("inputs")
    labels = ("a", "b", "c")
    tubevit.save_model(tiny({"motion": Head(3, labels=labels)}, depth=1), folder / "model")
    tubevit.save_model(tiny(3, depth=1, tubes="2x8x8/2x8x8", frames=4, size=16), folder / "dense")
    vit = tubevit.create_model("vit_nano8", num_classes=3)
    tubevit.save_model(vit, folder / "vit")
    assert main(["convert", str(folder / "vit"), str(folder / "vit.safetensors"), "--format", "timm"]) == 0
    for i in range(4):
        write_clip(folder / f"{i}.mp4", range(0, 1000, 40))
    rows = [f"{i}.mp4,{labels[i % 3]},test" for i in range(4)]
    (folder / "clips.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ["predict", "--checkpoint", f"{folder}/model", "--features", f"{folder}/clips.npz", f"{folder}/0.mp4"]
    assert main(command) == 0
    return folder


def content(folder) -> dict:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


DIGITS = "make-moving-digits {out}/new --train-clips 2 --train-digits 200 --held-out-digits 1"
COMMANDS = {
    "convert to ours": (2000, "convert {inputs}/vit.safetensors {out}/new"),
    "convert to ours, one array": (None, "convert {inputs}/vit.safetensors {out}/new"),
    "convert to timm": (2000, "convert {inputs}/vit {out}/new.safetensors --format timm"),
    "convert to Hugging Face": (2000, "convert {inputs}/vit {out}/new --format hugging-face"),
    "export safetensors": (2000, "export {inputs}/model {out}/new --format safetensors"),
    "export jax": (2000, "export {inputs}/model {out}/new --format jax --platforms cpu"),
    "sparsify": (2000, "sparsify {inputs}/dense {out}/new --tubes 2x8x8/4x16x16"),
    "make-moving-digits, clips": (1000, DIGITS),
    "make-moving-digits, all": (0, DIGITS),
    "make-moving-digits, lists": (20_000, DIGITS),
    "predict --csv": (40, "predict --checkpoint {inputs}/model --csv {out}/new.csv {inputs}/0.mp4 {inputs}/1.mp4"),
    "predict --features": (100, "predict --checkpoint {inputs}/model --features {out}/new.npz {inputs}/0.mp4"),
    "predict --tokens": (100, "predict --checkpoint {inputs}/model --tokens {out}/new {inputs}/0.mp4"),
    "search --csv": (40, "search {inputs}/clips.npz {inputs}/0.mp4 --csv {out}/new.csv"),
    "search --page": (5000, "search {inputs}/clips.npz {inputs}/0.mp4 --page {out}/new"),
    "evaluate": (100, "evaluate --checkpoint {inputs}/model --data {inputs}/clips.csv --out {out}/new.json"),
    "report": (5000, "report {inputs}/model --out {out}/new"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_and_nothing_half_written(inputs, tmp_path, capsys, monkeypatch, command):
    limit, text = COMMANDS[command]
    (tmp_path / "kept").write_text("kept")
    before = content(tmp_path)
    if limit is None:  # too little for the largest file only, while Orbax still writes others
        limit = max(path.stat().st_size for path in (inputs / "vit").rglob("*")) // 2
    monkeypatch.chdir(inputs)
    capsys.readouterr()
    with limited(limit):
        assert main(text.format(inputs=inputs, out=tmp_path).split()) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("tubevit: ") and REASON in error[-1] and f"{tmp_path}/new" in error[-1]
    assert not [line for line in error if "Traceback" in line or "Error" in line]
    assert content(tmp_path) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_shards(inputs, tmp_path, capsys, processes):
    """What is finished stays for the same command; nothing else does."""
    command = ["shard-videos", f"{inputs}/clips.csv", f"{tmp_path}/new", "--shards", "2", "--split", "test"]
    with limited(5000):  # multiprocessing has a file of a page
        assert main([*command, "--processes", str(processes)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert REASON in error and f"{tmp_path}/new/test-0000" in error
    assert list(content(tmp_path)) == ["new", "new/parts", "new/parts/test.json"]
    assert main(command) == 0


def test_a_report_stays_whole(tmp_path):
    """An earlier report is neither mixed with a new one nor removed."""
    with page.themed(page.LIGHT):
        picture = page.Animation("a", "a", lambda: np.zeros((2, 8, 8, 3), np.uint8))
    page.write_page(tmp_path / "out", "first", {}, [page.Section("a", "", [picture])])
    before = content(tmp_path)
    with limited(2000), pytest.raises(OSError, match=REASON) as error:  # the picture fits, the page does not
        page.write_page(tmp_path / "out", "second", {}, [page.Section("a", "", [picture])])
    assert str(tmp_path / "out") in str(error.value) and content(tmp_path) == before
    page.write_page(tmp_path / "out", "second", {}, [page.Section("a", "", [picture])])
    assert "<title>second" in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("kind", [OSError, RuntimeError, ValueError])
def test_errors_of_libraries_name_what_is_written(tmp_path, number, kind):
    """They name a temporary file or none, and wrap the reason in an error of their own."""
    text = os.strerror(number)
    error = OSError(number, text) if kind is OSError else kind(f"write failed: {text}; at byte 20000")
    with pytest.raises(OSError) as caught, publish.creating(tmp_path / "new") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_its_old_content(tmp_path):
    path = tmp_path / "eval.json"
    storage.write_text(path, json.dumps("old"))
    with limited(100), pytest.raises(OSError, match=REASON) as error:
        storage.write_bytes(path, b"x" * 1000)
    assert error.value.filename == str(path) and json.loads(path.read_text()) == "old"
    assert list(tmp_path.iterdir()) == [path]
