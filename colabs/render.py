"""Write the notebooks from their .py files, which are the source, and their pages in the documentation.

    python colabs/render.py --sync                  # writes every .ipynb from its .py, without outputs
    python colabs/render.py                         # executes all, writes docs/colabs/NAME.md and its figures
    python colabs/render.py 1_quickstart checkpoint=runs/quickstart

`NAME=VALUE` replaces a value in the parameter cell. After editing a notebook in Jupyter or Colab, update its .py file
with `jupytext --sync colabs/NAME.ipynb`. Requires the extra `notebook`.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import re
import shutil
import sys
import tempfile

import jupytext
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
PAGES = FOLDER.parent / "docs" / "colabs"
SOURCES = sorted(FOLDER.glob("[0-9]_*.py"))
_TIMEOUT = 3600  # maximum seconds per cell
_ROOT = FOLDER.parent
# Colours and progress lines, which are removed from a page.
_LEFT_OUT = re.compile(r"\x1b\[[0-9;]*m|^step \d+/\d+ .*\n?", re.MULTILINE)


def notebook_of(source: pathlib.Path) -> nbformat.NotebookNode:
    """Read a .py file in percent format as a notebook without outputs; the result is deterministic."""
    book = jupytext.read(source, fmt="py:percent")
    book.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    return book


def with_parameters(book: nbformat.NotebookNode, values: dict) -> nbformat.NotebookNode:
    """Replace values in the cell tagged `parameters`, and nothing else.

    Raises:
        ValueError: The cell does not assign one of the names.
    """
    (cell,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    for name, value in values.items():
        line = re.compile(rf"^{re.escape(name)} = .*?(?=  #|$)", re.MULTILINE)
        cell.source, count = line.subn(lambda match, text=f"{name} = {value!r}": text, cell.source)
        if count != 1:
            raise ValueError(f"the parameter cell has no line {name} = ...:\n{cell.source}")
    return book


def execute(book: nbformat.NotebookNode, folder: pathlib.Path, env: dict | None = None) -> nbformat.NotebookNode:
    """Execute all cells in a folder, and raise the error of a cell that fails."""
    from nbclient import NotebookClient

    client = NotebookClient(
        book, timeout=_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(**({"env": env} if env else {}))


def write_page(book: nbformat.NotebookNode, name: str) -> None:
    """Write docs/colabs/NAME.md and its figures."""
    from nbconvert import MarkdownExporter

    book.cells.insert(1, nbformat.v4.new_markdown_cell(f"*This page is `colabs/{name}.ipynb`, executed.*"))
    for cell in book.cells:
        if cell.cell_type == "code":
            for out in cell.outputs:
                if "text" in out:
                    out["text"] = _LEFT_OUT.sub("", out["text"]).replace(f"{_ROOT}/", "").replace(str(_ROOT), ".")
            cell.outputs = [out for out in cell.outputs if out.get("text") != ""]
    text, resources = MarkdownExporter().from_notebook_node(
        book, resources={"unique_key": name, "output_files_dir": f"{name}_files"}
    )
    PAGES.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(PAGES / f"{name}_files", ignore_errors=True)
    for path, content in resources["outputs"].items():
        (PAGES / path).parent.mkdir(exist_ok=True)
        (PAGES / path).write_bytes(content)
    (PAGES / f"{name}.md").write_text(text.strip() + "\n")


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: list[str]) -> None:
    """Write the notebooks or render their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync", action="store_true", help="only write the .ipynb files from the .py files")
    parser.add_argument("what", nargs="*", metavar="NOTEBOOK or NAME=VALUE")
    args = parser.parse_args(arguments)
    values = dict(each.split("=", 1) for each in args.what if "=" in each)
    known = [source.stem for source in SOURCES]
    names = [each for each in args.what if "=" not in each] or known
    if unknown := set(names) - set(known):
        parser.error(f"unknown notebook {', '.join(sorted(unknown))}; expected one of {', '.join(known)}")
    for source in SOURCES:
        if source.stem not in names:
            continue
        if args.sync:
            nbformat.write(notebook_of(source), source.with_suffix(".ipynb"))
        else:
            book = with_parameters(notebook_of(source), {name: _value(text) for name, text in values.items()})
            with tempfile.TemporaryDirectory() as folder:
                write_page(execute(book, pathlib.Path(folder)), source.stem)
            print(PAGES / f"{source.stem}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
