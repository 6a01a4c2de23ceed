import ast
import json
import pathlib
import subprocess
import sys

import pytest

import tubevit

ROOT = pathlib.Path(tubevit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Each may import from its own layer and from those before it.
LAYERS = [
    ["errors"], ["publish", "ranges", "private", "code_hash"], ["tubes", "storage"], ["windows", "writable"],
    ["data", "models"], ["sharding"], ["checkpoint"], ["convert"], ["zoo"], ["transfer"], ["config"], ["recipes"],
    ["evaluation"], ["training"], ["preflight"], ["visualize"], ["cli"],
]  # fmt: skip
TWIN = ROOT / "convert/tubevit_torch.py"  # is copied alone, and may be longer; `forward` is torch's `__call__`
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def ids(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    """The parts of tubevit that a module imports, at its top or in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tubevit" else [node.module]
            )
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "tubevit" and len(parts) > 1 and parts[1] in LEVEL:
                yield parts[1]


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != ROOT or p.stem in LEVEL], ids=ids)
def test_imports_go_one_way(path):
    layer = path.relative_to(ROOT).with_suffix("").parts[0]
    assert layer in LEVEL, f"say in which layer {layer} is"
    for other in imported(ast.parse(path.read_text())):
        assert LEVEL[other] < LEVEL[layer] or other == layer, f"{layer} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_are_short_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (400 if path == TWIN else 320)
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip()

    def check(node):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
                continue
            if not (path == TWIN and child.name == "forward"):
                assert ast.get_docstring(child), f"{child.name} has no docstring"
            if isinstance(child, ast.ClassDef):
                check(child)

    check(tree)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_signatures_are_short(path):
    """At most 7 parameters, `self` and `cls` apart."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [each.arg for each in (given.vararg, given.kwarg) if each]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= 7, f"{node.name} has {len(names)} parameters: {', '.join(names)}"


def test_every_name_is_there():
    for name in tubevit.__all__:
        assert getattr(tubevit, name) is not None
    assert set(tubevit.__all__) <= set(dir(tubevit))
    from tubevit.tubes import Tube

    assert tubevit.Tube is Tube and tubevit.tubes.Tube is Tube


def test_an_unknown_name_gives_the_closest():
    with pytest.raises(AttributeError, match="no attribute 'creat_model'; did you mean 'create_model'"):
        tubevit.creat_model  # noqa: B018


def test_heavy_modules_are_imported_late():
    """Geometry needs NumPy only; configuration, sources and decoding no jax."""
    program = """
import json, sys
heavy = ("jax", "flax", "orbax", "optax", "grain", "sklearn", "cv2", "av", "ml_collections")
loaded = lambda: [name for name in heavy if name in sys.modules]
import tubevit
tubevit.Tube, tubevit.list_tubes()
first = loaded()
tubevit.read_video, tubevit.config
from tubevit.data.sources import open_source
print(json.dumps([first, loaded()]))
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, check=True).stdout
    first, second = json.loads(output)
    assert first == [] and not {"jax", "flax", "orbax", "optax", "sklearn"} & set(second)


def test_python_m_tubevit():
    command = [sys.executable, "-m", "tubevit"]
    version = subprocess.run([*command, "--version"], cwd=ROOT.parent, capture_output=True, text=True)
    assert version.returncode == 0 and version.stdout.startswith(f"tubevit {tubevit.__version__}\n")
    wrong = subprocess.run([*command, "trian"], cwd=ROOT.parent, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == "tubevit: unknown verb 'trian'; did you mean 'train'?\n"


def test_the_entry_point_is_main():
    assert 'tubevit=tubevit.cli.main:entry"' in (ROOT.parent / "setup.py").read_text()
    from tubevit.cli.main import entry, main

    assert callable(entry) and main(["--version"]) == 0
