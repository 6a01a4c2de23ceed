"""The twin in PyTorch against ours, and the programs made from it (the extras `peers` and `onnx`)."""

import ast
import functools
import json
import math
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from flax import nnx
from torch._subclasses.fake_tensor import FakeTensorMode

import tubevit
from tests.twins import CASES, HEADS, VIDEO
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.cli import main
from tubevit.convert import convert, tubevit_torch, twin
from tubevit.convert.export_torch import export_onnx, export_torch, torch_model
from tubevit.models.abstract import abstract_parameters, model_of, parameters
from tubevit.models.variants import model_config

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"tubevit_b16": [(22, 60, 60), (60, 60)], "tubevit_l16": [(22, 60, 60)], "tubevit_h14": [(22, 60, 60)]}


def pixels(shape, batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *shape, 3), np.uint8)


def outputs(module, *inputs, **arguments):
    with torch.no_grad():
        return module(*map(torch.from_numpy, inputs), **arguments).numpy()


def assert_close(found, expected, tolerance, what=""):
    """Compare relative to the largest expected value."""
    largest = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest, err_msg=what)


def inputs_of(config, shapes):
    """Pairs of pixels and the name of the first head that takes them."""
    kinds = {2: ("image", "any"), 3: ("video", "any")}
    heads = {n: next(name for name, head in config.heads if head.modality in kind) for n, kind in kinds.items()}
    return [(pixels(shape), heads[len(shape)]) for shape in shapes]


def waves(logits):
    """Weights of a sum of logits, all different."""
    return np.sin(np.arange(logits.size, dtype=np.float32) + 1).reshape(logits.shape)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, tiny):
    """Tokens and logits to 1e-5 of the largest, for clips and images; gradients of a weighted sum to 1e-4."""
    fields, shapes = CASES[case]
    fields = dict(fields)
    model = tiny(fields.pop("heads", VIDEO), **fields)
    inputs = inputs_of(model.config, shapes)
    graph, params = nnx.split(model)

    def loss(params):
        ours = nnx.merge(graph, params)
        logits = [ours(jnp.asarray(x), head=head) for x, head in inputs]
        tokens = [ours.encode(jnp.asarray(x)) for x, _ in inputs]
        return sum((each * waves(each)).sum() for each in logits), (logits, tokens)

    gradients, (expected, tokens) = jax.jit(jax.grad(loss, has_aux=True))(params)
    module = torch_model(model, model.config)
    for (x, _), encoded in zip(inputs, tokens):
        assert_close(outputs(module.encode, x), encoded, 1e-5, f"tokens, {x.shape}")
    found = [module(torch.from_numpy(x), head=head) for x, head in inputs]
    sum((each * torch.from_numpy(waves(each.detach().numpy()))).sum() for each in found).backward()
    for ours, theirs, (x, head) in zip(expected, found, inputs):
        assert np.std(ours, axis=0).min() > 0  # the inputs matter
        assert_close(theirs.detach().numpy(), ours, 1e-5, f"{head}, {x.shape}")
    of_all = {name: leaf if leaf.grad is None else leaf.grad for name, leaf in module.named_parameters()}
    unused = {name for name, leaf in module.named_parameters() if leaf.grad is None}
    assert all(name.startswith("heads.") for name in unused)
    back = twin.layout(model.config).to_ours({name: x.detach().numpy() for name, x in of_all.items()}, model.config, "")
    expected = flatten(nnx.to_pure_dict(gradients))
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    heads = {f"heads/{name}": f"heads.{i}.bias" in unused for i, (name, _) in enumerate(model.config.heads)}
    for path, leaf in expected.items():
        if not heads.get(path.rpartition("/")[0], False):
            # Some are 0 but for rounding, such as those of the biases of keys.
            atol = 1e-4 * max(np.abs(leaf).max(), 1e-3 * largest)
            np.testing.assert_allclose(back[path], leaf, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize("case", CASES)
def test_tensors_follow_the_parameters(case):
    """To the device and the dtype of a GPU that need not be there: fake tensors have no values."""
    fields, shapes = CASES[case]
    config = model_config("tubevit_nano8", **{"heads": VIDEO, "num_heads": 2, **fields})
    with FakeTensorMode():
        module = tubevit_torch.TubeViT(twin.description(config))
        for name, leaf in list(module.named_parameters()):
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, torch.nn.Parameter(leaf.to("cuda", torch.bfloat16)))
        for x, head in inputs_of(config, shapes):
            logits = module(torch.from_numpy(x).to("cuda"), head=head)
            assert (logits.device.type, logits.dtype) == ("cuda", torch.bfloat16)


def large(name):
    """A model of an architecture, every parameter random at a scale that keeps the activations at about 1."""
    config = model_config(name, heads=HEADS)
    noise = np.random.default_rng(0).standard_normal(2**20 + 7, np.float32)

    def fill(path, leaf):
        shape = leaf.shape[int("blocks" in path) :]
        inputs = math.prod(shape[:-1]) if "tubes" in path or "/out/" in path else shape[0]
        deviation = inputs**-0.5 if path.endswith("kernel") else 0.1
        return np.resize(noise, leaf.shape) * np.float32(deviation) + np.float32(path.endswith("scale"))

    shapes = flatten(abstract_parameters(config))
    return model_of(config, unflatten({path: jnp.asarray(fill(path, leaf)) for path, leaf in shapes.items()}))


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    """Real widths and depths, and clips that are just large enough for a few tokens of each tube.

    The gradients of the kernels of the tubes go through all of the model.
    """
    model = large(name)
    module = torch_model(model, model.config).requires_grad_(False)
    module.tubes.requires_grad_(True)
    graph, params = nnx.split(model)
    tubes = params.pop("tokenizer")

    @functools.partial(jax.jit, static_argnames="head")
    @functools.partial(jax.grad, has_aux=True)
    def ours(tubes, params, x, head):
        logits = nnx.merge(graph, nnx.State({"tokenizer": tubes, **params}))(x, head=head)
        return (logits * waves(logits)).sum(), logits

    checked = set()
    for x, head in inputs_of(model.config, SIZES[name]):
        gradients, expected = ours(tubes, params, x, head)
        assert 0.1 < np.abs(expected).mean() < 10
        module.zero_grad()
        found = module(torch.from_numpy(x), head=head)
        (found * torch.from_numpy(waves(found.detach().numpy()))).sum().backward()
        assert_close(found.detach().numpy(), expected, 1e-5)
        gradients = flatten(nnx.to_pure_dict(gradients))
        largest = max(np.abs(gradients[path]).max() for path in gradients)
        for i, tube in enumerate(module.tubes):
            if tube.weight.grad is None:  # of a clip's tubes, for an image
                continue
            for path, leaf in {"kernel": tube.weight.grad.permute(2, 3, 4, 1, 0), "bias": tube.bias.grad}.items():
                found, expected = leaf.numpy(), gradients[f"tubes/{i}/{path}"]
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest, err_msg=f"{i}, {path}")
                checked.add((i, path))
    assert len(checked) == 2 * len(module.tubes)


def test_a_trained_state_dict_comes_back(tiny, tmp_path):
    """Dropout and stochastic depth are on while it trains."""
    model = tiny(HEADS, dropout=0.2, stochastic_depth=0.5, layer_scale=0.1)
    export_torch(model, tmp_path / "a")
    sys.path.insert(0, str(tmp_path / "a"))
    try:
        import tubevit_torch
    finally:
        sys.path.remove(str(tmp_path / "a"))
    module = tubevit_torch.load_model(tmp_path / "a")
    x = pixels((16, 64, 64))
    before = outputs(module, x, head="a video")
    np.testing.assert_array_equal(outputs(module, x, head="a video"), before)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    logits = [module(torch.from_numpy(x), head="a video") for _ in range(2)]
    assert (logits[0] != logits[1]).any()
    torch.nn.functional.cross_entropy(logits[0], torch.tensor([1, 2])).backward()
    optimizer.step()
    state = {"epoch": 1, "model": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "a/trained.pt")
    convert(tmp_path / "a/trained.pt", tmp_path / "ours")
    expected = outputs(module.eval(), x, head="a video")
    assert np.abs(expected - before).max() > 1e-3
    again = tubevit.load_model(tmp_path / "ours")
    assert_close(nnx.jit(lambda model, x: model(x, head="a video"))(again, x), expected, 1e-5)
    arrays = {name: leaf.numpy() for name, leaf in module.state_dict().items()}
    for path, leaf in twin.layout(again.config).to_ours(arrays, again.config, "").items():
        np.testing.assert_array_equal(flatten(parameters(again))[path], leaf)


def test_stochastic_depth_leaves_out_branches_of_samples(tiny):
    """At the last block half of the samples lose a branch, and the others' is doubled; the first block loses none."""
    model = tiny(depth=2, stochastic_depth=0.5)
    module = torch_model(model, model.config)
    block, x = module.encoder.blocks[1], torch.randn(2000, 3, 24)
    y = block.train().branch(x)
    kept = (y != 0).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all() and abs(kept.any(1).float().mean() - 0.5) < 0.05
    torch.testing.assert_close(y[kept.any(1)], 2 * x[kept.any(1)])
    torch.testing.assert_close(module.encoder.blocks[0].train().branch(x), x)


@pytest.mark.parametrize("case", CASES)
def test_compile_and_export(case, tiny):
    fields, shapes = CASES[case]
    fields = dict(fields)
    model = tiny(fields.pop("heads", VIDEO), **fields)
    module = torch_model(model, model.config).eval()
    ((_, head), *_), three = inputs_of(model.config, shapes), pixels(shapes[0], batch=3)
    expected = outputs(module, three, head=head)
    dynamic = {"pixels": {0: torch.export.Dim("b")}, "head": None}
    two = torch.from_numpy(three[:2].copy())
    program = torch.export.export(module, (), {"pixels": two, "head": head}, dynamic_shapes=dynamic)
    assert_close(outputs(lambda pixels: program.module()(pixels=pixels, head=head), three), expected, 1e-6)
    torch.compiler.reset()  # else, the sizes of another case make those of this one dynamic, which takes minutes
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(outputs(compiled, three, head=head), expected, 1e-6)


@pytest.mark.parametrize(
    "case, head, changes",
    [
        ("joint", "several", {"size": 160}), ("joint", "image", {}), ("divided", None, {}), ("budget", None, {}),
        ("factorised_encoder", None, {}),
    ],
)  # fmt: skip
def test_onnx(case, head, changes, tiny, tmp_path, monkeypatch):
    """The logarithms of the probabilities agree to 1e-4, for any number of clips or images.

    The program holds the positions, also those of many tokens, instead of computing them in float64 in each call. That
    of the divided model has its parameters in a second file, as large models do.
    """
    fields = CASES[case][0] | changes
    model = tiny(fields.pop("heads", VIDEO), **fields)
    monkeypatch.setattr("tubevit.convert.export_torch._MOST", 0 if case == "divided" else 2**30)
    export_onnx(model, tmp_path / "a", head)
    graph = onnx.load(tmp_path / "a/model.onnx").graph
    assert not {"Sin", "Cos"} & {node.op_type for node in graph.node}
    assert (tmp_path / "a/model.onnx.data").exists() == (case == "divided")
    session = onnxruntime.InferenceSession(str(tmp_path / "a/model.onnx"))
    config = json.loads((tmp_path / "a/config.json").read_text())
    (shape,) = (shape for kind, shape in config["input"].items() if kind in ("video", "image"))
    activation = jax.nn.log_sigmoid if config["output"] == "sigmoid" else jax.nn.log_softmax
    forward = nnx.jit(lambda model, x: activation(model(x, head=head)))
    x = pixels(shape[1:-1], batch=3)
    expected = np.asarray(forward(model, x))
    for batch in (1, 3):
        (found,) = session.run(None, {"pixels": x[:batch]})
        np.testing.assert_allclose(np.log(found), expected[:batch], rtol=0, atol=1e-4)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "orbax", "tubevit", "einops", "ml_dtypes", "numpy"):
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""


def test_alone_it_gives_the_same_labels(tiny_run, tmp_path, capsys):
    """A process without jax, NumPy and this package; the labels of clips and images."""
    assert main(["export", str(tiny_run), str(tmp_path / "a"), "--format", "torch"]) == 0
    inputs = {"motion": pixels((16, 32, 32), batch=8), "digit": pixels((32, 32), batch=8)}
    torch.save({head: torch.from_numpy(x) for head, x in inputs.items()}, tmp_path / "inputs.pt")
    program = ALONE + (
        f"import json, torch\nsys.path.insert(0, {str(tmp_path / 'a')!r})\nfrom tubevit_torch import load_model\n"
        f"model, inputs = load_model({str(tmp_path / 'a')!r}), torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        "print(json.dumps({h: [model.labels[h][i] for i in model(x, head=h).argmax(-1)] for h, x in inputs.items()}))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, cwd=tmp_path)
    found, model = json.loads(output.stdout), tubevit.load_model(tiny_run)
    for head, x in inputs.items():
        assert found[head] == [model.labels[head][i] for i in np.argmax(model(x, head=head), axis=-1)]


def test_the_page(tiny_run, tmp_path, monkeypatch, capsys):
    """docs/export.md: what it does with torch and ONNX Runtime."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tubevit_torch", raising=False)
    page = (ROOT / "docs/export.md").read_text()
    _, with_torch, with_onnx = re.split(r"^## (?:PyTorch|ONNX)$", page, flags=re.MULTILINE)
    commands = re.findall(r"^(?:    )?tubevit (.+)$", with_torch + with_onnx, re.MULTILINE)
    (twins,), (serve,) = (re.findall(r"```python\n(.+?)```", part, re.DOTALL) for part in (with_torch, with_onnx))
    assert len([line for line in serve.splitlines() if line]) <= 10
    export, back, program = (command.split() for command in commands)
    labels, printed = tubevit.load_model(tiny_run).labels["motion"], []
    for command, example in ((export, twins), (back, ""), (program, serve)):
        assert main(command) == 0
        capsys.readouterr()
        exec(example, {})
        printed.append(capsys.readouterr().out)
    assert len(ast.literal_eval(printed[0])) == 2 and set(ast.literal_eval(printed[0])) <= set(labels)
    assert len(printed[2].splitlines()) == 2
    for line in printed[2].splitlines():
        label, probability = line.rsplit(maxsplit=1)
        assert label in labels and 1 / len(labels) <= float(probability) <= 1
    x = pixels((16, 32, 32))
    ours, again = (tubevit.load_model(name)(x, head="motion") for name in ("runs/quickstart", "trained"))
    np.testing.assert_array_equal(again, ours)
