import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import tubevit
from tubevit import Head, UserError
from tubevit.checkpoint.metadata import config_from_metadata
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.cli import main
from tubevit.convert import convert
from tubevit.convert.export import PLATFORMS, export_jax, export_program, export_safetensors, load_exported
from tubevit.convert.export_folder import new_folder
from tubevit.convert.foreign import Options
from tubevit.models.abstract import parameters

ROOT = pathlib.Path(__file__).parents[2]
HEADS = {
    "motion": Head(4, "video", ("up", "down", "left", "right")),
    "digit": Head(10, "image"),
    "actions": Head(6, "video", multi_label=True),
}
SMALL = dict(tubes="4x8x8/8x16x16_1x8x8/16x16x16", frames=8, size=32)
ACTIVATION = {"motion": jax.nn.softmax, "digit": jax.nn.softmax, "actions": jax.nn.sigmoid}


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def jitted(model, head=None, activation=jax.nn.softmax):
    """The model's own output, compiled, its parameters an argument."""
    graph = nnx.graphdef(model)
    forward = jax.jit(lambda params, x: activation(nnx.merge(graph, params)(x, head=head)))
    return lambda x: np.asarray(forward(parameters(model), x))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(HEADS, gate_layer=0, **SMALL)  # the gate's alpha has no axis


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The exported head `motion`, for all platforms."""
    folder = tmp_path_factory.mktemp("export") / "motion"
    export_jax(model, folder, "motion")
    return folder


def test_an_existing_folder_is_not_replaced(tmp_path):
    """It may be a mount, or the only place where the user may write: nothing is written beside it."""
    (tmp_path / "mount").mkdir()
    inode = (tmp_path / "mount").stat().st_ino
    with new_folder(tmp_path / "mount") as inside:
        assert inside.parent == tmp_path / "mount" and os.listdir(tmp_path) == ["mount"]
        (inside / "config.json").write_text("{}")
    assert os.listdir(tmp_path / "mount") == ["config.json"] and (tmp_path / "mount").stat().st_ino == inode
    (tmp_path / "other/.tubevit-killed").mkdir(parents=True)  # the rest of an earlier one
    with pytest.raises(KeyError), new_folder(tmp_path / "other") as inside:
        (inside / "config.json").write_text("{}")
        raise KeyError
    assert os.listdir(tmp_path / "other") == [".tubevit-killed"]


WITHOUT_JAX = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "tubevit"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
try:
    import jax
    raise SystemExit("jax is not blocked")
except ImportError:
    pass
"""


def test_safetensors_without_jax(model, tmp_path):
    export_safetensors(model, tmp_path / "a")
    program = WITHOUT_JAX + (
        "from safetensors.numpy import load_file\n"
        f"config = json.load(open({str(tmp_path / 'a' / 'config.json')!r}))\n"
        f"params = load_file({str(tmp_path / 'a' / 'model.safetensors')!r})\n"
        "read = {path: [float(x.astype('float64').sum()), *x.shape] for path, x in params.items()}\n"
        "print(json.dumps([config, read]))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    config, read = json.loads(output)
    assert config["labels"] == {"motion": ["up", "down", "left", "right"], "digit": [], "actions": []}
    assert config["input"]["video"] == ["b", 8, 32, 32, 3] and config["input"]["image"] == ["b", 32, 32, 3]
    assert (config["format"], config["input"]["dtype"], config["input"]["range"]) == ("safetensors", "uint8", [0, 255])
    want = flatten(parameters(model))
    assert read.keys() == want.keys() and "encoder/blocks/mlp/up/kernel" in read
    for path, leaf in want.items():
        assert read[path] == [np.asarray(leaf, np.float64).sum(), *leaf.shape]
    (tmp_path / "new").touch()
    assert {p.stat().st_mode for p in (tmp_path / "a").iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_safetensors_and_back(tiny, tmp_path):
    """Configuration and parameters are whole: they are the model again."""
    options = dict(position="learned", class_token=True, pooling="map", layer_scale=0.1, mean=(0.4, 0.5, 0.6), fps=8.0)
    model = tiny(HEADS, gate_layer=0, **options)
    export_safetensors(model, tmp_path / "a")
    config = config_from_metadata(json.loads((tmp_path / "a/config.json").read_text())["model"])
    assert config == model.config
    graph = nnx.graphdef(nnx.eval_shape(lambda: tubevit.TubeViT(config, rngs=nnx.Rngs(0))))
    again = nnx.merge(graph, unflatten(load_file(tmp_path / "a/model.safetensors")))
    for (path, want), (other, found) in zip(flatten(parameters(model)).items(), flatten(parameters(again)).items()):
        assert path == other
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("head, shape", [("motion", (8, 32, 32)), ("digit", (32, 32)), ("actions", (8, 32, 32))])
def test_the_same_output_after_reload(model, folder, tmp_path, head, shape):
    """For any b, bit for bit that of the jitted model; lowered here for CPU, TPU and CUDA."""
    if head != "motion":
        folder = tmp_path / head
        export_jax(model, folder, head)
    exported, expected = load_exported(folder), jitted(model, head, ACTIVATION[head])
    for batch in (1, 3) if head == "motion" else (2,):
        x = pixels((batch, *shape), batch)
        found = np.asarray(exported(x))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected(x))
    assert exported.labels == HEADS[head].labels and exported.shape == (*shape, 3)
    config = json.loads((folder / "config.json").read_text())
    assert (config["head"], config["platforms"]) == (head, ["cpu", "tpu", "cuda"])
    assert config["output"] == ("sigmoid" if head == "actions" else "softmax")
    (modality,) = {"video", "image"} & config["input"].keys()
    assert (modality, config["input"][modality]) == (HEADS[head].modality, ["b", *shape, 3])
    assert {path for path in load_file(folder / "params.safetensors") if path.startswith("heads")} == {
        f"heads/{head}/kernel", f"heads/{head}/bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields, shape",
    [
        (dict(class_token=True, position="learned", pooling="cls"), (16, 64, 64)),
        (dict(SMALL, pooling="map", padding="same", interpolated=True, add_attention=1, scan=False), (8, 32, 32)),
        (dict(pooling="query", precision="bfloat16", tubes="4x8x8/8x16x16", fps=8.0), (16, 64, 64)),
        (dict(pooling="mean", class_token=True, tubes="1x8x8/32x8x8", frames=1), (64, 64)),  # a plain ViT: images
        (dict(pooling="mean", tubes="1x8x8/8x8x8", frames=16), (16, 64, 64)),
        (dict(SMALL, budget="50%:motion"), (8, 32, 32)),
        (dict(SMALL, budget="25%:tube"), (8, 32, 32)),
    ],
)
def test_every_kind_of_model(tiny, tmp_path, fields, shape):
    """With b unknown they are all lowered; a head of any modality takes what the model is made for."""
    model = tiny(5, depth=1, **fields)
    export_jax(model, tmp_path / "a")
    exported, x = load_exported(tmp_path / "a"), pixels((2, *shape))
    assert exported.shape == (*shape, 3)
    np.testing.assert_array_equal(exported(x), jitted(model)(x))


def test_without_heads_pooled_features(tiny, tmp_path):
    model = tiny({}, depth=1, **SMALL)
    export_jax(model, tmp_path / "a", platforms=["cpu"])
    exported, x = load_exported(tmp_path / "a"), pixels((2, 8, 32, 32))
    np.testing.assert_array_equal(exported(x), jitted(model, activation=lambda x: x)(x))
    assert exported.labels == () and exported.config["output"] == "features"


def test_parameters_are_no_constants(tiny):
    """The program is small, and hardly larger for parameters of 16 times the size."""
    small, large = (
        len(export_program(tiny(5, depth=4, width=width, mlp_dim=4 * width, position="none").config).serialize())
        for width in (24, 96)
    )
    assert large < 1.1 * small < 250_000


def test_each_platform_has_its_attention(tiny):
    """The einsums of CPU take two heads at a time, XLA's attention all: other programs, whatever exports them."""
    config = tiny(5, depth=1, num_heads=6).config
    counts = {}
    for platform in PLATFORMS:
        exported = export_program(config, [platform])
        assert exported.platforms == (platform,)
        counts[platform] = exported.mlir_module().count("dot_general")
    assert counts["cpu"] == counts["tpu"] + 4 == counts["cuda"] + 4


def test_what_is_refused(model, folder, tmp_path):
    with pytest.raises(UserError, match="several heads: pass head=, one of 'motion', 'digit', 'actions'"):
        export_jax(model, tmp_path / "a")
    with pytest.raises(UserError, match="unknown head 'moton'; did you mean 'motion'"):
        export_jax(model, tmp_path / "a", "moton")
    exported = load_exported(folder)
    for x, found in [
        (pixels((1, 8, 32, 32)).astype(np.float32), r"float32 \(1, 8, 32, 32, 3\)"),
        (pixels((8, 32, 32)), r"uint8 \(8, 32, 32, 3\)"),
        (pixels((1, 16, 32, 32)), r"uint8 \(1, 16, 32, 32, 3\)"),
        (pixels((0, 8, 32, 32)), r"uint8 \(0, 8, 32, 32, 3\)"),
    ]:
        with pytest.raises(UserError, match=rf"expected uint8 \(b, 8, 32, 32, 3\) with b of at least 1; found {found}"):
            exported(x)
    assert list(tmp_path.iterdir()) == []


def test_an_image_head_needs_a_2d_tube(tiny, tmp_path):
    model = tiny({"digit": Head(3, "image")}, tubes="4x8x8/8x16x16")
    with pytest.raises(UserError, match="takes no images"):
        export_jax(model, tmp_path / "a")


@pytest.mark.parametrize("package, exporting", [("safetensors.numpy", export_safetensors), ("flatbuffers", export_jax)])
def test_missing_packages(tiny, tmp_path, monkeypatch, package, exporting):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package.split('.')[0]}, .*: pip install 'tubevit\[convert\]'"):
        exporting(tiny(), tmp_path / "a")
    with pytest.raises(UserError, match=r"tubevit\[convert\]"):
        load_exported(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def copy(folder, into):
    into.mkdir()
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


@pytest.mark.parametrize("name", ["config.json", "model.jaxexport", "params.safetensors"])
def test_loading_what_is_not_whole(folder, tmp_path, name):
    missing, cut, empty = (copy(folder, tmp_path / kind) for kind in ("missing", "cut", "empty"))
    (missing / name).unlink()
    (cut / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    (empty / name).write_bytes(b"")
    for broken in (missing, cut, empty, tmp_path / "none"):
        with pytest.raises(UserError, match=f"{broken} is not an? .*export"):
            load_exported(broken)


def test_loading_what_does_not_fit(model, folder, tiny, tmp_path):
    other = copy(folder, tmp_path / "other")
    params = load_file(other / "params.safetensors")
    params["encoder/norm/bias"] = params["encoder/norm/bias"][:-1].copy()
    params["more"] = params.pop("encoder/norm/scale")
    save_file(params, other / "params.safetensors")
    with pytest.raises(UserError, match="differ in encoder/norm/bias, encoder/norm/scale, more"):
        load_exported(other)
    export_safetensors(model, tmp_path / "b")
    with pytest.raises(UserError, match="exported with --format safetensors; expected jax"):
        load_exported(tmp_path / "b")
    export_jax(tiny(depth=1), tmp_path / "c", platforms=["tpu", "cuda"])
    with pytest.raises(UserError, match="was exported for tpu, cuda; this process runs on cpu"):
        load_exported(tmp_path / "c")


def test_what_becomes_a_checkpoint_again(model, folder, tmp_path):
    """The options of `convert` hold for our own parameters, too; a program does not come back."""
    export_safetensors(model, tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", options=Options(headless=True, mean=(0.4, 0.5, 0.6)))
    assert len(done.notes) == 1 and done.notes[0].startswith("left out: heads/")
    again = tubevit.load_model(tmp_path / "b")
    assert again.config == model.config.replace(heads=(), mean=(0.4, 0.5, 0.6))
    np.testing.assert_array_equal(again.encoder.gate[...], model.encoder.gate[...])
    with pytest.raises(UserError, match="exported with --format jax, .* export with --format safetensors or torch"):
        convert(folder, tmp_path / "c")


def test_the_page(tiny_run, tmp_path, monkeypatch, capsys):
    """docs/export.md: its Python reads what its commands write, the first of it without jax.

    PyTorch and ONNX, which come after these, are in tests/extras/test_twin.py.
    """
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/export.md").read_text().partition("## PyTorch")[0]
    for command in re.findall(r"^    tubevit (.+)$", page, re.MULTILINE):
        assert main(command.split()) == 0
    capsys.readouterr()
    read, back, serve, checked = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    output = subprocess.run([sys.executable, "-c", WITHOUT_JAX + read], capture_output=True, check=True, text=True)
    assert output.stdout.startswith("(1, 24, 32)\n4x8x8/8x16x16_1x8x8/16x16x16 ['b', 16, 32, 32, 3] [")
    names = {}
    with contextlib.redirect_stdout(None):
        exec(read, names)
    exec(back, names)
    loaded = tubevit.load_model("runs/quickstart")
    x = pixels((2, 16, 32, 32))
    np.testing.assert_array_equal(names["model"](x, head="motion"), loaded(x, head="motion"))
    exec(serve, names)
    expected = jitted(loaded, "motion")
    np.testing.assert_array_equal(names["call"](names["params"], x), expected(x))
    exec(checked, names)
    np.testing.assert_array_equal(names["model"](x), expected(x))
    shape, label = capsys.readouterr().out.splitlines()
    assert shape == "(2, 8)" and label in loaded.labels["motion"]
