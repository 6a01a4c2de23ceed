"""The notebooks as they stand in git: in step with their .py files, without outputs, the first cell installs."""

import importlib.metadata
import json
import subprocess
import sys
import types

import nbformat
import pytest

from tests.scripts import ROOT, script

render = script("colabs/render.py")
NAMES = [source.stem for source in render.SOURCES]
each_notebook = pytest.mark.parametrize("name", NAMES)


def notebook(name):
    return nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)


def parts(book):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]


def test_a_notebook_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        render.main(["1_quikstart"])
    assert "unknown notebook 1_quikstart; expected one of 1_quickstart, " in capsys.readouterr().err


def test_which_there_are():
    names = ["1_quickstart", "2_finetune", "3_joint_training", "4_small_to_large", "5_tpu_pod", "6_in_and_out"]
    assert NAMES == names
    assert NAMES == sorted(path.stem for path in (ROOT / "colabs").glob("*.ipynb"))


@each_notebook
def test_notebook_and_source_are_in_step(name):
    book, source = notebook(name), render.notebook_of(ROOT / "colabs" / f"{name}.py")
    nbformat.validate(book)
    assert parts(book) == parts(source), f"python colabs/render.py --sync ({name}.py is the source)"
    assert book.metadata["jupytext"]["formats"] == source.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@each_notebook
def test_outputs_are_stripped(name):
    text = json.loads((ROOT / "colabs" / f"{name}.ipynb").read_text())
    code = [cell for cell in text["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 4 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@each_notebook
def test_first_cells(name):
    install, parameters = [cell for cell in notebook(name).cells if cell.cell_type == "code"][:2]
    expected = notebook(NAMES[0]).cells[1].source  # all are the same, but for the extra that is installed
    assert install.source.replace("tubevit[hub]", "tubevit[plot]") == expected and "pip" in install.source
    assert [cell for cell in notebook(name).cells if "parameters" in cell.metadata.get("tags", [])] == [parameters]
    values = {}
    exec(parameters.source, values)
    with pytest.raises(ValueError, match="no line stepz = ..."):
        render.with_parameters(notebook(name), {"stepz": 1})
    changed = render.with_parameters(notebook(name), {key: [key] for key in values if key != "__builtins__"})
    assert sum(a != b for a, b in zip(parts(changed), parts(notebook(name)))) == 1
    exec(next(cell.source for cell in changed.cells if cell.metadata.get("tags")), values)
    assert all(value == [key] for key, value in values.items() if key != "__builtins__")


def test_install_cell_keeps_jax(monkeypatch, tmp_path):
    """In Colab pip may not touch what is there; elsewhere it is not called."""
    source, calls = notebook(NAMES[0]).cells[1].source, []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command, check)))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    exec(source, {})
    assert calls == [] and not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    with pytest.raises(AssertionError, match="change the line above: https://github.com/OWNER/tubevit is no address"):
        exec(source, {})
    exec(source.replace("/OWNER/", "/me/", 1), {})
    ((command, check),) = calls
    assert check and command[:4] == [sys.executable, "-m", "pip", "install"]
    kept = set((tmp_path / command[command.index("-c") + 1]).read_text().split())
    assert {f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")} <= kept
    assert command[-1] == "tubevit[plot] @ git+https://github.com/me/tubevit"


def test_pages_are_of_these_notebooks():
    """Each cell but that of the parameters stands in the rendered page, where there is one."""
    for page in render.PAGES.glob("*.md"):
        text = page.read_text()
        for cell in notebook(page.stem).cells:
            if not cell.metadata.get("tags"):
                assert cell.source.strip() in text, f"python colabs/render.py {page.stem}"
