"""What the documentation takes from the code: tables of the zoo and of the configuration, pages of the API.

That the site builds is in tests/extras/test_docs_site.py.
"""

import dataclasses
import json
import re
import types

import pytest

from tests.scripts import script
from tubevit.config import dataset_config, default_config, flatten
from tubevit.config.key import Key
from tubevit.models.patterns import PATTERNS
from tubevit.models.variants import ARCHITECTURES
from tubevit.zoo import registry
from tubevit.zoo.registry import Release

generate = script("docs/generate.py")


def test_every_key_has_its_row():
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| (.+?) \| (.+) \|$", generate.configuration(), re.MULTILINE)
    keys = flatten(default_config()) | flatten(dataset_config())
    assert len(rows) == len(keys) and {row[0] for row in rows} == set(keys)
    shown = {key: (kind, default) for key, kind, default, _ in rows}
    assert shown["optimizer.learning_rate"] == ("float", "`5e-05`") and shown["train.gate"] == ("bool", "`false`")
    assert shown["model.mean"] == ("tuple", "none") and shown["augment.frame_order"] == ("str", "`forward`")
    meaning = {key: text for key, _, _, text in rows}
    repeated = [key for key in meaning if list(meaning.values()).count(meaning[key]) > 1]
    assert not repeated, f"keys with the meaning of another key: {repeated}"
    assert "Adam" in meaning["optimizer.b1"] and meaning["init.tubes"].endswith("or a checkpoint that has them")
    assert "none" in meaning["model.tube_width"].lower()  # of several lines


def test_a_key_without_description_is_an_error():
    @dataclasses.dataclass
    class Undescribed:
        """No field is described."""

        steps: int = 1

    with pytest.raises(ValueError, match="Undescribed.steps is not described"):
        generate.meaning(Key(Undescribed, "steps", int, 1))


def release(name, **changes):
    metrics = dict(dataset="clips", source="moving_digits", split="test", head="motion", views="1x1", clips=900,
                   correct=880, top1=0.97777, top5=1.0, map=None, loss=0.1)  # fmt: skip
    values = dict(
        name=name, source="hf://owner/model", sha256="0" * 64, bytes=1_234_567, licence="Apache-2.0",
        data={"clips": "moving_digits"}, input=dict(frames=16, fps=8.0, size=64, range="uint8 0..255"),
        classes={"motion": 8}, metrics=(metrics,), command=f"tubevit evaluate --checkpoint {name}",
        config="quickstart", commit=None,
    )  # fmt: skip
    return Release(**values | changes)


def test_the_zoo_is_made_from_the_index(monkeypatch, tmp_path):
    several = dataclasses.asdict(release("tubevit_nano8@one"))["metrics"][0]
    releases = [
        release("tubevit_nano8@one", metrics=(several, {**several, "head": "tags", "top1": None, "map": 0.5})),
        release("tubevit_ti8@two"),
    ]
    (tmp_path / "index.json").write_text(json.dumps([dataclasses.asdict(each) for each in releases]))
    (tmp_path / "tubevit_ti8@two").mkdir()
    (tmp_path / "tubevit_ti8@two/README.md").write_text("a card")
    for module in (registry, generate):
        monkeypatch.setattr(module, "checkpoints_folder", lambda: tmp_path)
    table = generate.zoo_table("checkpoints").splitlines()[2:]
    assert [len(line.split(" | ")) for line in table] == [7, 7, 7]
    assert table[0].startswith("| `tubevit_nano8@one` | 16x64x64 | `motion` |") and "97.8 %" in table[0]
    assert table[1].startswith("|  |  | `tags` |") and "| 50.0 % |" in table[1]
    assert table[2].startswith("| [`tubevit_ti8@two`](checkpoints/tubevit_ti8@two/README.md) |")
    assert "tubevit evaluate --checkpoint tubevit_ti8@two" in generate.zoo_details()
    text = f"before\n{generate.BEGIN}\nold\n{generate.END}\nafter"
    assert generate.between_markers(text, "new") == text.replace("old", "new")


def test_public_checkpoints():
    """Tokens and GFLOPs as torch counts them for Hugging Face's models, without TimeSformer's folded layer."""
    cells = [line.strip("| ").split(" | ") for line in generate.public_table().splitlines()[2:]]
    counted = {row[0]: tuple(row[2:5]) for row in cells}
    folded = 12 * 2 * 1568 * 768**2 / 1e9
    assert counted["google/vivit-b-16x2-kinetics400"] == ("32x224x224", "3,137", "903.0")
    assert counted["facebook/timesformer-base-finetuned-k400"] == ("8x224x224", "1,569", f"{391.7 - folded:.1f}")
    assert counted["MCG-NJU/videomae-base-finetuned-kinetics"] == ("16x224x224", "1,568", "360.7")
    assert counted["scenic ViViT-B/16x2 FE"] == ("32x224x224", "3,137", "566.7")
    protocols = script("experiments/eval_published.py").PUBLISHED
    rows = [row for row, _ in generate.public_checkpoints()]
    assert len({(row["checkpoint"], row["data"]) for row in rows}) == len(rows)
    for row in rows:
        if row["top1"] and row["architecture"] in protocols:
            assert protocols[row["architecture"]][row["data"]] == float(row["top1"]), row


def test_every_other_video_vit_is_described():
    page = (generate.ROOT / "docs/video_vits.md").read_text()
    names = {name for name in ARCHITECTURES if not name.startswith(("tubevit_", "vit_"))}
    assert names and not {name for name in names if f"`{name}`" not in page}
    assert all(f"- `{pattern}`: " in page and f"| `{pattern}` | " in page for pattern in PATTERNS)


def test_the_menu_has_every_page_of_the_api():
    """The site builds only where each page is in its menu."""
    config = types.SimpleNamespace(nav=[{"Start": "index.md"}, {"Tutorial": "tutorial.md"}, {"Reference": []}])
    (api,) = generate.on_config(config).nav[-1]["Reference"]
    assert api["API"] == ["api/index.md", *(f"api/{name}.md" for name in generate.MODULES)]


def test_the_api_has_every_name():
    import tubevit

    index = generate.api_index()
    assert all(f"`tubevit.{name}`" in index for name in tubevit.__all__ if name != "__version__")
    pages = "\n".join(generate.api_page(name) for name in generate.MODULES)
    documented = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    files = generate.ROOT.glob("tubevit/**/*.py")
    modules = {".".join(path.relative_to(generate.ROOT).with_suffix("").parts) for path in files}
    public = {name.removesuffix(".__init__") for name in modules if not re.search(r"\._|\.cli\b|__main__", name)}
    # What users do not import from: the command line is documented by its own help.
    assert public - {"tubevit", "tubevit.__init__"} - documented == {
        "tubevit.code_hash", "tubevit.private", "tubevit.publish", "tubevit.storage", "tubevit.writable",
    }  # fmt: skip
