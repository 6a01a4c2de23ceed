"""The wheel: it is built, and works in an environment that has nothing else, away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import tubevit
from tests.scripts import ROOT
from tubevit.convert.export import export_safetensors


def run(*command, **options):
    """The output of a command that ends well."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves its folders where it builds, and files that are gone in them."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("tubevit", "experiments", "checkpoints"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(copy / "dist"), str(copy))
    (found,) = (copy / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of the programs of a new virtual environment: the wheel, its extra `hub`, the pinned versions."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", str(folder))
    pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", str(ROOT / "constraints.txt"), f"{wheel}[hub]")
    return folder / "bin"


def test_it_carries_all_of_the_package(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("tubevit", "experiments", "checkpoints"):
        for path in (ROOT / folder).rglob("*"):
            name = str(path.relative_to(ROOT))
            if path.is_file() and "__pycache__" not in name and (folder == "checkpoints" or path.suffix == ".py"):
                assert (name if folder == "tubevit" else f"tubevit/{name}") in inside
    assert not [name for name in inside if name.startswith(("tests", "docs", "benchmarks"))]


def test_it_works_elsewhere(environment, tmp_path):
    here = dict(cwd=tmp_path)
    command = str(environment / "tubevit")
    assert run(command, "--version", **here).startswith(f"tubevit {tubevit.__version__}\n")
    assert "176 tokens" in run(command, "inspect", "tubevit_nano8", **here)
    assert "176 tokens" in run(command, "inspect", "--config", "quickstart", **here)
    code = "import tubevit; tubevit.load_model; print(tubevit.list_models(pretrained=True)); print(tubevit.__file__)"
    names, path = run(str(environment / "python"), "-c", code, **here).splitlines()
    assert names == str(tubevit.list_models(pretrained=True)) and path.startswith(str(environment.parent))


def test_two_lines_classify_a_clip_with_a_model_from_the_hub(environment, hub, digits_cache, tmp_path):
    """Ours as saved, and as safetensors."""
    name = "tubevit_nano8@moving_digits"
    clip = sorted((digits_cache / "videos/test").iterdir())[0]
    model = tubevit.load_model(name)
    expected = model.labels["motion"][int(model(tubevit.read_video(clip, **model.input), head="motion").argmax())]
    export_safetensors(model, tmp_path / "exported")
    hub.add_folder("owner/saved", ROOT / "checkpoints" / name)
    hub.add_folder("owner/exported", tmp_path / "exported")
    for repo in ("saved", "exported"):
        code = (
            f'model = tubevit.load_model("hf://owner/{repo}")\n'
            f'logits = model(tubevit.read_video("{clip}", **model.input), head="motion")\n'
        )
        shown = 'print(model.labels["motion"][int(logits.argmax())])'
        output = run(str(environment / "python"), "-c", f"import tubevit\n{code}{shown}", cwd=tmp_path)
        assert output.strip() == expected


def test_it_asks_for_nothing_of_the_extras(environment):
    installed = set(re.findall(r"^(\S+)==", run(str(environment / "pip"), "list", "--format=freeze"), re.MULTILINE))
    assert not installed & {"torch", "tensorflow", "pytest", "matplotlib", "mkdocs"}
