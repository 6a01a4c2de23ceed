"""Generate the parts of the documentation that follow from the code: front page, zoo, configuration and API reference.

As a hook of mkdocs (see mkdocs.yml), this module generates these pages when the site is built. As a script, it writes
the tables between two markers: the zoo's in README.md, those of other video models in docs/zoo.md and
docs/video_vits.md:

    python docs/generate.py
"""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import sys
from collections.abc import Mapping

import griffe

import tubevit
from tubevit.config.key import Key
from tubevit.config.keys import keys_of
from tubevit.models.config import ModelConfig
from tubevit.models.flops import count_flops, num_tokens
from tubevit.models.variants import model_config
from tubevit.zoo.registry import checkpoints_folder, read_index

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
from docstrings import ungrouped  # noqa: E402

_DATA = (
    "`data.train` and `data.eval` hold data sets under names of your choice. These are the keys of each of them: "
    "`data.train.<name>.source` and so on."
)
BEGIN, END = "<!-- zoo: written by docs/generate.py -->", "<!-- end of zoo -->"
_WITHOUT_CLASS_TOKEN: dict = dict(class_token=False, pooling="mean")
PATTERNS: tuple[tuple[str, str, dict], ...] = (
    ("joint", "ViViT's model 1, VideoMAE, V-JEPA 2", {}),
    ("divided", "TimeSformer", {}),
    ("divided", "ViViT's model 3", _WITHOUT_CLASS_TOKEN),
    ("factorised_encoder", "ViViT's model 2", dict(temporal_depth=4, position="learned_space")),
    (
        "factorised_encoder",
        "VideoPrism, `frame_pooling=none`",
        dict(temporal_depth=4, position="learned_space", frame_pooling="none") | _WITHOUT_CLASS_TOKEN,
    ),
    ("factorised_dot", "ViViT's model 4", _WITHOUT_CLASS_TOKEN),
)
# What users import from, in the order of the reference; the rest of the package stands behind them.
MODULES = ("tubes", "presets", "budget", "motion", "windows", "errors", "ranges", "data", "models", "sharding",
           "checkpoint", "convert", "zoo", "transfer", "config", "recipes", "evaluation", "training", "preflight",
           "visualize")  # fmt: skip


def zoo_table(folder: str) -> str:
    """Return the released checkpoints as a Markdown table, with one row per metric.

    Args:
        folder: folder of the checkpoints in links; "" disables links to the model cards.
    """
    releases = read_index()
    if not releases:
        return "No checkpoint is released yet."
    rows = ["| checkpoint | input | head | data | top-1 | mAP | size |", "|" + "---|" * 7]
    for release in releases.values():
        has_card = folder and (checkpoints_folder() / release.name / "README.md").is_file()
        name = f"[`{release.name}`]({folder}/{release.name}/README.md)" if has_card else f"`{release.name}`"
        shape = f"{release.input['frames']}x{release.input['size']}x{release.input['size']}"
        for i, each in enumerate(release.metrics):
            shares = ["" if each[key] is None else f"{100 * each[key]:.1f} %" for key in ("top1", "map")]
            data = f"{each['dataset']} {each['split']}, {each['clips']} files, {each['views']}"
            cells = [name, shape, f"`{each['head']}`", data, *shares, f"{release.bytes / 1e6:.1f} MB"]
            rows.append("| " + " | ".join(cells if i == 0 else ["", "", *cells[2:6], ""]) + " |")
    return "\n".join(rows)


def zoo_details() -> str:
    """Return one section per released checkpoint, with the details that the table leaves out."""
    parts = []
    for release in read_index().values():
        lines = [
            f"input: {json.dumps(dict(release.input))}",
            "classes: " + ", ".join(f"`{head}` {count}" for head, count in release.classes.items()),
            "trained on: " + ", ".join(f"`{name}` from `{source}`" for name, source in release.data.items()),
            f"trained by: `{release.config}`" if release.config else "trained by: see its metadata",
            f"its numbers: `{release.command}`",
            f"licence: {release.licence}; commit: {release.commit}; weights: {release.source or 'in the package'}; "
            f"sha256 of its manifest.json: `{release.sha256}`",
        ]
        parts.append(f"### {release.name}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)


def public_checkpoints() -> list[tuple[dict, ModelConfig]]:
    """Read docs/public_checkpoints.csv: the row of each public checkpoint, and its model as it is converted."""
    with open(ROOT / "docs/public_checkpoints.csv", newline="") as file:
        return [(row, _public_model(row)) for row in csv.DictReader(file)]


def _public_model(row: Mapping[str, str]) -> ModelConfig:
    values = dict(pair.split("=") for pair in row["fields"].split())
    known = {"false": False} | {text: int(text) for text in values.values() if text.isdecimal()}
    fields = {key: known.get(text, text) for key, text in values.items()}
    return model_config(row["architecture"], num_classes=int(row["classes"] or 0), **fields)


def public_table() -> str:
    """Return the public checkpoints that `convert` reads as a Markdown table; tokens and FLOPs are counted."""
    rows = ["| checkpoint | architecture | input | tokens | GFLOPs | data | top-1, % | licence |", "|" + "---|" * 8]
    for row, model in public_checkpoints():
        changed = "".join(f", `{field}`" for field in row["fields"].split() if "heads" in field)
        architecture = "VideoPrism" if "videoprism" in row["checkpoint"] else f"`{row['architecture']}`{changed}"
        cells = [row["checkpoint"], architecture, *_figures(model), row["data"], row["top1"], row["licence"]]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def patterns_table() -> str:
    """Return the patterns of attention on one tubelet grid, that of ViViT-B, as a Markdown table."""
    rows = ["| pattern | as in | class token | tokens | GFLOPs |", "|" + "---|" * 5]
    for pattern, known_as, fields in PATTERNS:
        model = model_config("vivit_b16x2", pattern=pattern, **fields)
        token = "yes" if model.class_token else "no"
        rows.append("| " + " | ".join([f"`{pattern}`", known_as, token, *_figures(model)[1:]]) + " |")
    return "\n".join(rows)


def _figures(model: ModelConfig) -> tuple[str, str, str]:
    """Return the input, the number of tokens and the GFLOPs of a model."""
    head = next((name for name, _ in model.heads), None)
    flops = count_flops(model, model.shape, head).total
    return "x".join(map(str, model.shape)), f"{num_tokens(model, model.shape):,}", f"{flops / 1e9:,.1f}"


def between_markers(text: str, table: str) -> str:
    """Replace the part of a text between the markers of a table."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


@functools.cache
def described(home: type) -> dict[str, str]:
    """{name: text} of the section `Attributes` of a dataclass's docstring."""
    sections = griffe.Docstring(ungrouped(inspect.getdoc(home))).parse("google", warnings=False)
    entries = [entry for section in sections if section.kind.value == "attributes" for entry in section.value]
    return {entry.name: " ".join(entry.description.split()) for entry in entries}


def meaning(key: Key) -> str:
    """Return the text that describes a key.

    Raises:
        ValueError: it is described nowhere.
    """
    text = key.meaning or described(key.home).get(key.name)
    if not text:
        raise ValueError(f"{key.home.__name__}.{key.name} is not described")
    return text


def configuration() -> str:
    """Return all keys with type, default and meaning, as one table per group."""
    groups: dict[str, dict[str, Key]] = {"Without a group": {}}
    for path, key in keys_of().items():
        group = path.partition(".")[0] if "." in path else "Without a group"
        groups.setdefault(group, {})[path] = key
    for path, key in keys_of("data").items():
        groups.setdefault("augment" if "." in path else "data", {})[path] = key
    parts = [
        f"## {name}\n\n" + (f"{_DATA}\n\n" if name == "data" else "") + _rows(keys) for name, keys in groups.items()
    ]
    return "\n\n".join(parts)


def _rows(keys: Mapping[str, Key]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, key in keys.items():
        default = {None: "none", "": "empty"}.get(key.default, f"`{key.default}`".lower())
        text = meaning(key).replace("|", "\\|").removesuffix(".")
        limits = key.range.limits if key.range else ""
        rows.append(f"| `{path}` | {key.kind.__name__} | {default} | {text}{limits and f' ({limits})'} |")
    return "\n".join(rows)


def api_index() -> str:
    """Return the names of the package itself, each with its summary and a link to its module."""
    rows = ["| name | |", "|---|---|"]
    for name, home in tubevit._HOME.items():
        summary = inspect.getdoc(getattr(tubevit, name)).split("\n\n")[0]
        rows.append(f"| [`tubevit.{name}`][tubevit.{home}.{name}] | {' '.join(summary.split())} |")
    what = "The names that `import tubevit` provides. The links lead to shapes, units, ranges and errors."
    return "\n\n".join(["# API", what, "\n".join(rows)]) + "\n"


def api_page(name: str) -> str:
    """Return the page of a module, or of all modules of a package."""
    module = importlib.import_module(f"tubevit.{name}")
    members = pkgutil.walk_packages(getattr(module, "__path__", []), f"tubevit.{name}.")
    paths = [f"tubevit.{name}", *(member.name for member in members if "._" not in member.name)]
    return "\n\n".join(
        f"::: {path}\n    options:\n      heading: {path}\n      toc_label: {path.removeprefix('tubevit.')}\n"
        f"      heading_level: {1 if path == paths[0] else 2}"
        for path in paths
    )


def on_config(config):
    """Add the pages of the API to the menu, and the rendered notebooks, after the tutorial (hook of mkdocs)."""
    (reference,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"API": [f"api/{name}.md" for name in ("index", *MODULES)]})
    pages = sorted((ROOT / "docs/colabs").glob("*.md"))
    if pages:
        config.nav.insert(2, {"Notebooks": [f"colabs/{page.name}" for page in pages]})
    return config


def on_files(files, config):
    """Add the pages of the repository's root and of the API, which are not in `docs/` (hook of mkdocs)."""
    from mkdocs.structure.files import File

    texts = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    pages = {name: text.replace("](docs/", "](") for name, text in texts.items()}
    pages["index.md"] = re.sub(r"\[(`[^`]+`)\]\(checkpoints/[^)]+\)", r"\1", pages.pop("README.md"))
    pages["api/index.md"] = api_index()
    pages |= {f"api/{name}.md": api_page(name) for name in MODULES}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Fill in the zoo and the keys of a configuration (hook of mkdocs)."""
    if page.file.src_uri == "zoo.md":
        return markdown.replace("<!-- zoo table -->", zoo_table("")).replace("<!-- zoo details -->", zoo_details())
    if page.file.src_uri == "configuration.md":
        return markdown.replace("<!-- keys -->", configuration())
    return markdown


TABLES = {
    "README.md": functools.partial(zoo_table, "checkpoints"),
    "docs/zoo.md": public_table,
    "docs/video_vits.md": patterns_table,
}

if __name__ == "__main__":
    for path, make in TABLES.items():
        page = ROOT / path
        page.write_text(between_markers(page.read_text(), make()))
