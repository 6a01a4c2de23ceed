import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import tubevit
from tubevit.checkpoint.checkpoint import MARK
from tubevit.checkpoint.manifest import is_complete, verify
from tubevit.checkpoint.paths import flatten
from tubevit.errors import RunError, StorageError, UserError
from tubevit.models.abstract import parameters
from tubevit.sharding.rules import put
from tubevit.transfer.initialise import read_donor
from tubevit.zoo import registry
from tubevit.zoo.names import named_config, open_checkpoint
from tubevit.zoo.registry import Release, find_release, read_index, write_index
from tubevit.zoo.source import copy_to

NAME = "tubevit_x@tag"


def entry(manifest: bytes, source="", name=NAME, **fields) -> Release:
    values = dict(
        name=name, source=source, sha256=hashlib.sha256(manifest).hexdigest(), bytes=1000, licence="CC-BY-4.0",
        data={"a": "moving_digits"}, input={"frames": 16, "fps": 8.0, "size": 64, "range": "uint8 0..255"},
        classes={"default": 5}, metrics=(), command=f"tubevit evaluate --checkpoint {name}", config="", commit=None,
    )  # fmt: skip
    return Release(**values | fields)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder with the name of the release, and its manifest."""
    folder = tmp_path_factory.mktemp("saved") / NAME
    tubevit.save_model(model, folder)
    (folder / "README.md").write_text("a card")
    return folder, (folder / "manifest.json").read_bytes()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(folder of the released checkpoints, cache), both empty."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/index.json").write_text("[]")
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "checkpoints", tmp_path / "cache"


def cached(cache, manifest: bytes):
    return cache / "checkpoints" / f"{NAME}-{hashlib.sha256(manifest).hexdigest()[:12]}" / NAME


def test_the_index_of_the_repository():
    """Each entry is what its folder holds: the files are those of its manifest, which has the hash of the entry."""
    folder = registry.checkpoints_folder()
    releases = read_index()
    assert tubevit.list_models(pretrained=True) == sorted(releases)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(releases)
    for name, release in releases.items():
        assert (folder / name / "README.md").read_text().startswith(f"# {name}\n")
        if not release.source:
            manifest = (folder / name / "manifest.json").read_bytes()
            size = sum((folder / name / file).stat().st_size for file in json.loads(manifest))
            assert (size, hashlib.sha256(manifest).hexdigest()) == (release.bytes, release.sha256)
            assert verify(folder / name) == []


def test_round_trip_of_the_index(places):
    both = (
        entry(b"a", "hf://owner/model@" + "0" * 40),
        entry(b"b", "gs://bucket/folder", name="vit_b16@k400_2", licence="CC-BY ©"),
    )
    releases = {each.name: each for each in both}
    write_index(releases)
    assert read_index() == releases and list(read_index()) == sorted(releases)
    (row, _) = json.loads((places[0] / "index.json").read_text())
    assert set(row) == {
        "name", "source", "sha256", "bytes", "licence", "data", "input", "classes", "metrics", "command", "config",
        "commit",
    }  # fmt: skip
    assert tubevit.list_models("tubevit_x*", pretrained=True) == [NAME]
    assert tubevit.list_models("tubevit_b16*") == ["tubevit_b16"]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"name": "no_tag"}, "is named ARCHITECTURE@TAG"),
        ({"name": "../x@tag"}, "found '../x@tag'"),
        ({"name": "a@b@c"}, "found 'a@b@c'"),
        ({"metrics": "top1"}, "metrics must be a list"),
        (
            {"source": "/data/x"},
            "is hf://owner/repo, or the address of a folder such as gs://bucket/folder; found '/data/x'",
        ),
        ({"source": "hf://owner"}, "is named hf://owner/repo[@revision][:subfolder]"),
        ({"sha256": "abc"}, "sha256 must be 64 hexadecimal digits"),
        ({"bytes": 0}, "bytes must be a whole number above 0; found 0"),
        ({"input": {"frames": 3}}, "input must have frames, fps, size, range"),
        ({"licenze": "x"}, "licenze"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_index(places, change, part):
    write_index({NAME: entry(b"a")})
    path = places[0] / "index.json"
    (row,) = json.loads(path.read_text())
    path.write_text("[{" if change is None else json.dumps([row | change]))
    with pytest.raises(UserError) as error:
        tubevit.list_models(pretrained=True)
    assert str(path) in str(error.value) and part in str(error.value)


def test_an_index_that_is_missing_or_names_one_twice(places):
    write_index({NAME: entry(b"a")})
    path = places[0] / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(UserError, match="lists a checkpoint twice"):
        read_index()
    path.unlink()
    with pytest.raises(UserError, match="index.json does not exist: the installation is incomplete"):
        read_index()


def test_unknown_names_give_the_closest(places):
    with pytest.raises(UserError, match="unknown released checkpoint 'tubevit_x@tga'; none is available"):
        tubevit.load_model("tubevit_x@tga")
    write_index({NAME: entry(b"a"), "tubevit_b16@k400": entry(b"b", name="tubevit_b16@k400")})
    with pytest.raises(UserError, match="unknown released checkpoint 'tubevit_x@tga'; did you mean 'tubevit_x@tag'"):
        tubevit.load_model("tubevit_x@tga")
    with pytest.raises(UserError, match="unknown checkpoint 'tubevit_x_tag'; did you mean 'tubevit_x@tag'"):
        tubevit.load_model("tubevit_x_tag")
    with pytest.raises(UserError, match="unknown model 'tubevit_x_tag'; did you mean 'tubevit_x@tag'"):
        named_config("tubevit_x_tag")
    with pytest.raises(UserError, match="without parameters; .* such as a workdir or tubevit_b16@k400"):
        tubevit.load_model("tubevit_b16")


def test_the_folder_beside_the_index_comes_first(places, saved, model):
    folder, manifest = saved
    write_index({NAME: entry(manifest, "hf://owner/model")})
    (places[0] / NAME).symlink_to(folder)
    assert open_checkpoint(NAME).folder == places[0] / NAME and not places[1].exists()
    ours, theirs = flatten(parameters(model)), flatten(parameters(tubevit.load_model(NAME)))
    for path in ours | theirs:
        np.testing.assert_array_equal(ours[path], theirs[path])
    assert named_config(NAME) == model.config
    with pytest.raises(UserError, match="is a released model, which has no steps; found step 3"):
        tubevit.load_model(NAME, step=3)


def test_what_lies_under_that_name_here_comes_before(places, saved, tmp_path, monkeypatch):
    write_index({NAME: entry(saved[1])})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / NAME).symlink_to(saved[0])
    monkeypatch.chdir(tmp_path / "here")
    assert open_checkpoint(NAME).folder == tmp_path / "here" / NAME


def test_copied_once_from_any_address(places, saved, model, said):
    folder, manifest = saved
    source = f"file://{folder}"  # as_uri would encode the @, which fsspec does not decode
    write_index({NAME: entry(manifest, source)})
    found = find_release(NAME)
    assert found == cached(places[1], manifest)
    assert sorted(p.name for p in found.parent.iterdir()) == [".lock", NAME]
    assert not (found / "README.md").exists() and len(said) == 1 and f"from {source}" in said[0]
    loaded = tubevit.load_model(NAME)
    assert loaded.config == model.config and len(said) == 1  # from the cache
    damaged = next(path for path in sorted(found.rglob("d/*")) if path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{found} is damaged: .*; delete {found.parent}, and it is fetched again"):
        tubevit.load_model(NAME)
    (found / "manifest.json").unlink()  # as if it had been cut off
    assert find_release(NAME) == found and is_complete(found) and len(said) == 2


def test_a_complete_release_is_only_read(places, saved):
    """The cache may belong to another user."""
    folder, manifest = saved
    write_index({NAME: entry(manifest, f"file://{folder}")})
    found = find_release(NAME)
    (found.parent / ".lock").unlink()
    (found.parent / ".lock").mkdir()  # cannot be opened
    assert find_release(NAME) == found


def test_a_copy_that_stops_is_not_whole(saved, tmp_path):
    """Neither the manifest nor the marker of a bucket is there before the parameters are."""
    (tmp_path / "params").write_text("in the way")
    with pytest.raises((OSError, StorageError)):
        copy_to(saved[0], tmp_path.as_uri())
    assert (saved[0] / MARK).exists() and not {MARK, "manifest.json"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("place", ["runs/mine/checkpoints/9", "checkpoints/9", "mine", "hub/mine/checkpoints/9"])
def test_only_what_was_fetched_may_be_deleted(places, saved, place):
    """Runs and models of the user may lie in the folder of the cache, and come from nowhere else."""
    folder = shutil.copytree(saved[0], places[1] / place)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match=f"{folder} is damaged: .*; use a good copy or another step$"):
        tubevit.load_model(folder)


def test_an_address_with_something_else(places, saved, tmp_path):
    folder, manifest = saved
    copy = shutil.copytree(folder, tmp_path / "copy")
    write_index({NAME: entry(b"another", copy.as_uri())})
    with pytest.raises(RunError, match=f"{copy.as_uri()} is not {NAME}: its manifest.json has the sha256 "):
        find_release(NAME)
    write_index({NAME: entry(manifest, copy.as_uri())})
    changed = next(path for path in sorted(copy.rglob("d/*")) if path.stat().st_size)
    changed.write_bytes(b"x" * changed.stat().st_size)
    with pytest.raises(RunError, match=f"{copy.as_uri()} is damaged: params/.*: its content has changed"):
        find_release(NAME)
    changed.unlink()
    with pytest.raises(RunError, match=f"is not in the package, and not complete in {copy.as_uri()}: .*{changed.name}"):
        find_release(NAME)
    evil = json.dumps({"../evil": {"bytes": 1, "sha256": "0" * 64}}).encode()
    (copy / "manifest.json").write_bytes(evil)
    write_index({NAME: entry(evil, copy.as_uri())})
    with pytest.raises(UserError, match="is refused: manifest.json names '../evil'; expected files inside the folder"):
        find_release(NAME)
    assert {path.name for path in places[1].rglob("*") if path.is_file()} == {".lock"}
    write_index({NAME: entry(manifest)})
    with pytest.raises(RunError, match=f"is not in {places[0] / NAME}, and its entry names no source"):
        find_release(NAME)


def test_processes_wait_for_each_other(places, saved):
    folder, manifest = saved
    write_index({NAME: entry(manifest, f"file://{folder}")})
    program = (
        "import logging, pathlib, sys; from tubevit.zoo import registry; "
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s'); "
        "registry.checkpoints_folder = lambda: pathlib.Path(sys.argv[1]); print(registry.find_release(sys.argv[2]))"
    )
    root = pathlib.Path(tubevit.__file__).parent.parent
    command = [sys.executable, "-c", program, str(places[0]), NAME]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in running]
    assert [each[-1] for each in lines] == [str(cached(places[1], manifest))] * 2
    assert sum("copying" in line for each in lines for line in each) == 1


@pytest.fixture(scope="module")
def narrow(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow") / "narrow"
    tubevit.save_model(tubevit.load_model(saved[0], dtype="bfloat16"), folder)
    return folder


def test_bfloat16_on_disk_and_in_memory(saved, narrow, model):
    stored = flatten(ocp.load_checkpointables(narrow)["params"])
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype("bfloat16")}
    loaded = {dtype: tubevit.load_model(narrow, dtype=dtype) for dtype in ("float32", "bfloat16")}
    ours = flatten(parameters(model))
    donor = read_donor(str(narrow)).params
    for dtype, other in loaded.items():
        theirs = flatten(parameters(other))
        assert theirs.keys() == ours.keys() == donor.keys()
        for path, leaf in theirs.items():
            assert leaf.dtype == dtype and donor[path].dtype == np.float32
            rounded = np.asarray(ours[path]).astype(jnp.bfloat16)
            np.testing.assert_array_equal(np.asarray(leaf).astype(np.float32), rounded.astype(np.float32))
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    logits = {dtype: nnx.jit(other)(clip) for dtype, other in loaded.items()}
    assert logits["bfloat16"].dtype == np.float32
    np.testing.assert_allclose(logits["bfloat16"], logits["float32"], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="unknown dtype 'float16'; did you mean 'bfloat16'"):
        tubevit.load_model(narrow, dtype="float16")


def test_onto_any_mesh(narrow):
    from tubevit.config import default_config
    from tubevit.sharding.mesh import make_mesh

    settings = default_config().mesh
    settings.update(data=2, fsdp=2, tensor=2)
    model = tubevit.load_model(narrow)
    params = put(parameters(model), make_mesh(settings))
    assert any(len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in flatten(params).values())
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    graph = nnx.graphdef(model)
    there = nnx.jit(lambda params: nnx.merge(graph, params)(clip))(params)
    np.testing.assert_allclose(there, nnx.jit(model)(clip), rtol=1e-4, atol=1e-5)


def test_loading_needs_no_training_code(places, saved):
    write_index({NAME: entry(saved[1])})
    (places[0] / NAME).symlink_to(saved[0])
    program = (
        "import pathlib, sys; from tubevit.zoo import registry; "
        "registry.checkpoints_folder = lambda: pathlib.Path(sys.argv[1]); import tubevit; "
        "tubevit.load_model(sys.argv[2]); "
        "print([n for n in sys.modules if n.startswith(('tubevit.training', 'tubevit.cli'))])"
    )
    root = pathlib.Path(tubevit.__file__).parent.parent
    command = [sys.executable, "-c", program, str(places[0]), NAME]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip() == "[]"
